"""`perception config` prints what is read again, and schemas that say what the program says of a file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import refuses, succeeds
from jsonschema import Draft202012Validator
from repository import ROOT

from deploy.commands.config import KINDS, schema_of
from perception.config import load_config
from perception.io.section import parse_yaml
from perception.io.shipped import shipped_files

CONFIGS = ROOT / "configs"


@pytest.mark.parametrize("name", shipped_files("train"))
def test_what_is_printed_is_the_same_configuration(name: str, tmp_path: Path) -> None:
    printed = tmp_path / "printed.yaml"
    printed.write_text(succeeds("config", name, "train.batch=6"))
    assert load_config(printed) == load_config(shipped_files("train")[name], ["train.batch=6"])
    keys = [line for line in printed.read_text().splitlines() if line.strip().startswith(("batch:", "cell:"))]
    assert keys
    assert all("#" in line for line in keys)


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_current_and_shipped_files_follow_them(kind: str) -> None:
    text = schema_of(kind)
    assert (CONFIGS / "schemas" / f"{kind}.json").read_text() == text, f"perception config --schema {kind} > it"
    schema = json.loads(text)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for path in shipped_files(kind).values():
        content = json.loads(json.dumps(parse_yaml(path.read_text())))
        assert [error.message for error in validator.iter_errors(content)] == [], path
        assert not validator.is_valid(content | {"nmae": 1}), path
        first = path.read_text().splitlines()[0].partition("$schema=")[2]
        assert (path.parent / first).resolve() == CONFIGS / "schemas" / f"{kind}.json"


def unexplained(schema: Any) -> Iterator[str]:
    """Keys without a description, anywhere in a schema; tasks and sensors, which are sections by name, have none."""
    if isinstance(schema, dict):
        if schema.get("title") not in ("Tasks", "Sensors"):
            properties = schema.get("properties", {}).items()
            yield from (f"{schema.get('title')}.{name}" for name, key in properties if "description" not in key)
        for inside in schema.values():
            yield from unexplained(inside)


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_explained(kind: str) -> None:
    assert [*unexplained(json.loads(schema_of(kind)))] == []


def test_mistakes_are_one_line() -> None:
    assert "did you mean gates?" in refuses("config", "--schema", "gate")
    assert "or --schema KIND" in refuses("config")
