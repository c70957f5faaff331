"""The command that shows configurations, and the schemas by which editors complete them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from perception.commands.common import app, yaml_file
from perception.errors import InputError, suggestion
from perception.registry import Registry

# The YAML files of the product, by kind.
KINDS = Registry(
    train="perception.config:Config",
    adapt="perception.training.adapt:Addition",
    rig="perception.rig:Rig",
    taxonomy="perception.taxonomy:Taxonomy",
    world="perception.simulate.worlds:WorldFile",
    replay="deploy.replay.settings:ReplayFile",
    gates="deploy.replay.gates:Gates",
    evidence="perception.scene.sources:EvidenceConfig",
    topics="deploy.recordings.topics:Topics",
    policy="deploy.live.policy:Policy",
    mmdet3d="perception.mmdet3d.foreign_config:ForeignConfig",
)


@app.command(epilog="Example: perception config tiny train.batch=8 > mine.yaml", rich_help_panel="Train")
def config(
    name: Annotated[
        Path | None, typer.Argument(help="Such as tiny, nuscenes/fusion or my.yaml.", **yaml_file("train"))
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Other values for its keys: train.batch=8 data.augment=null."),
    ] = None,
    schema: Annotated[
        str, typer.Option(metavar="KIND", help=f"Print the JSON schema of a kind of YAML file: {', '.join(KINDS)}.")
    ] = "",
) -> None:
    """Print a configuration with all its keys, each with an explanation, as a YAML file to train with or to edit."""
    if bool(schema) == (name is not None):
        raise InputError("config takes either a configuration, such as tiny, or --schema KIND")
    if schema:
        print(schema_of(schema), end="")
    elif name is not None:
        print(resolved(name, changes or ()), end="")


def schema_of(kind: str) -> str:
    """The JSON schema of a kind of YAML file, as text."""
    if kind not in KINDS:
        raise InputError(f"--schema {kind}: is none of {', '.join(KINDS)}{suggestion(kind, KINDS)}")
    described = {"$schema": "https://json-schema.org/draft/2020-12/schema", **KINDS[kind].model_json_schema()}
    return json.dumps(described, indent=1, ensure_ascii=False) + "\n"


def resolved(path: Path, changes: list[str] | tuple[str, ...]) -> str:
    """A configuration with the values of all keys, as YAML with comments; taxonomy and rig by name, as written."""
    from perception.config import Config, parse_config
    from perception.io.commented import commented_yaml
    from perception.io.section import overridden, read_yaml
    from perception.io.shipped import shipped_folder

    content = overridden(read_yaml(path, "the configuration"), changes)
    found = parse_config(content, str(path))
    named = {key: content.get(key, Config.model_fields[key].default) for key in ("taxonomy", "rig")}
    schema = shipped_folder() / "schemas" / "train.json"
    text = commented_yaml(found, {key: value for key, value in named.items() if isinstance(value, str)})
    return f"# yaml-language-server: $schema={schema.as_posix()}\n{text}"
