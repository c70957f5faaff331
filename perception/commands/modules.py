"""Commands for modules: adapt; list, add and merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perception.commands.common import (
    Json,
    Out,
    RigOption,
    Root,
    Run,
    Scenes,
    Version,
    app,
    console_for,
    explain_stop,
    from_store,
    keep_memory,
    names,
    print_trained,
    report,
    rig_of,
    to_store,
    training_split,
    yaml_file,
)
from perception.errors import InputError
from perception.modules.spec import COMPUTATIONS

if TYPE_CHECKING:
    from rich.console import Console

    from perception.model import PerceptionModel


def _numbers(options: list[str]) -> dict[str, float]:
    """Name -> number from options such as `rank=4`."""
    numbers: dict[str, float] = {}
    for text in options:
        name, _, value = text.partition("=")
        try:
            numbers[name] = int(value) if value.lstrip("-").isdigit() else float(value)
        except ValueError:
            raise InputError(f"--option {text}: write NAME=NUMBER, such as rank=4") from None
    return numbers


def _kinds(text: str, slots: list[str], options: dict[str, float]) -> dict[str, Any]:
    """Kind, slots and options of a module, from a text such as `low_rank`, or `batch_norm+low_rank` for a union."""
    kinds = text.split("+")
    usual = ["fuse*", "trunk.*", "heads.*"]
    parts: dict[str, dict[str, Any]] = {kind: {"kind": kind, "slots": slots or usual} for kind in kinds}
    if "memory" in parts and not slots:
        del parts["memory"]["slots"]  # it has one of its own
    if len(kinds) == 1:
        return {**parts[text], **options}
    for name, value in options.items():
        kind, _, option = name.partition(".")
        if kind not in parts:
            raise InputError(f"--option {name}: write KIND.NAME=NUMBER, with KIND one of {', '.join(kinds)}")
        parts[kind][option] = value
    return {"kind": "union", "parts": list(parts.values())}


@app.command(
    epilog="Example: perception adapt runs/a --add low_rank:rain --data drives --conditions rain --out runs/rain",
    rich_help_panel="Train",
)
def adapt(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            callback=from_store, help="A run, or one of its checkpoints; or a YAML file with a backbone of mmdet3d."
        ),
    ],
    data: Root,
    out: Out,
    add: Annotated[
        str,
        typer.Option(
            help="KIND:NAME of the new module: low_rank:rain; of several: batch_norm+low_rank:rain. "
            f"Kinds: {', '.join(COMPUTATIONS)}."
        ),
    ] = "",
    memory: Annotated[
        bool,
        typer.Option("--memory", help="Short for --add memory:memory at its slot; trains on clips."),
    ] = False,
    task: Annotated[str, typer.Option(help="Instead of a module, the head of a new task, such as conditions.")] = "",
    config: Annotated[
        Path | None,
        typer.Option(
            help="With --task `tasks`, the new head's options, and `modules` of its own; alone one entry of `modules` "
            "to add.",
            **yaml_file("adapt"),
        ),
    ] = None,
    conditions: Annotated[
        str, typer.Option(help="Train on the frames with these, such as rain,night, and route to the module there.")
    ] = "",
    slots: Annotated[
        str,
        typer.Option(
            help="Names or globs of the places in the network; default: fuse*,trunk.*,heads.*, of a memory its own."
        ),
    ] = "",
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=NUMBER of the kind, such as rank=4; of several: low_rank.rank=4; repeatable."),
    ] = None,
    version: Version = None,
    split: Annotated[str | None, typer.Option(help="Default: the version's training split; all: every scene.")] = None,
    scenes: Scenes = "",
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 300,
    learning_rate: Annotated[float, typer.Option(help="Peak of the one-cycle schedule.", min=0)] = 1e-2,
    rig: RigOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint in --out; repeat the other options.")
    ] = False,
) -> None:
    """Train a new module on the frozen base of a checkpoint (post-hoc adaptation; repeated: continual learning).

    Base and earlier modules do not change. Writes the module to OUT/modules and the whole model to OUT/checkpoints.
    With a backbone of mmdet3d (perception/mmdet3d/foreign_config.py) its losses and data pipeline train the module.

    With --memory the network remembers the drive (docs/memory.md); the module is removed and routed like any other.

    With --task it trains the head of a new task, and writes it with its own modules to OUT/modules. The head of
    `conditions` recognises weather, light and city, by which a bundle routes drives without tags. It is fitted in
    closed form to pretrained picture features, whatever --steps, and abstains; a head of the run is built upon.
    """
    keep_memory()
    from accelerate.utils import set_seed

    from perception.checkpoint import read_config
    from perception.config import extend_taxonomy
    from perception.datasets.nuscenes.dataset import NuScenesTables
    from perception.datasets.sources import open_source
    from perception.mmdet3d.foreign_config import foreign_config
    from perception.training.adapt import adapt as run
    from perception.training.adapt import add_task, read_task

    _require_one_way(add, memory, task, config, has_options=bool(conditions or slots or option))
    add = "memory:memory" if memory else add
    module = None if task else _read_module(config, add, names(conditions), slots, option or [])
    foreign = foreign_config(checkpoint)
    base = read_config(checkpoint) if foreign is None else None
    vehicle = rig_of(rig) or (base.rig if base else None)
    content = read_task(config) if config and task else {}
    options = content.get("tasks", {}).get(task) or {}
    taxonomy = extend_taxonomy(base, task, options, str(config)) if base else None
    tables = open_source(data, version, vehicle, taxonomy)
    selection = split or training_split(tables.version), names(scenes)
    training: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate}
    # Initial weights of the module or head are drawn before its training, which sets the seed itself.
    set_seed(base.seed if base else 0)
    if module is None:
        if foreign is not None:
            raise InputError(f"{checkpoint}: --task takes a run of ours; a foreign backbone has its own heads")
        with explain_stop():
            last = add_task(checkpoint, task, content, tables, *selection, out, resume, **training)
    elif foreign is None:
        with explain_stop():
            last = run(checkpoint, module, tables, *selection, out, resume, **training)
    else:
        if resume:
            raise InputError("--resume: a module of a foreign backbone saves no checkpoints; train it again")
        if not isinstance(tables, NuScenesTables):
            raise InputError(f"{data}: a backbone of mmdet3d trains on nuScenes' tables; give their dataroot")
        from perception.mmdet3d.foreign import adapt_foreign

        last = adapt_foreign(foreign, module, tables, *selection, out, **training)
    print_trained(last)


def _require_one_way(add: str, memory: bool, task: str, config: Path | None, has_options: bool) -> None:
    """Raise InputError unless one way is chosen, and options of a module are given with --add or --memory alone."""
    ways = [bool(add), memory, bool(task), config is not None and not task]
    if ways.count(True) != 1 or (has_options and not (add or memory)):
        raise InputError(
            "choose one: --add KIND:NAME, --memory, --task NAME, or --config FILE with a module; --conditions, "
            "--slots and --option go with --add and --memory"
        )


def _read_module(file: Path | None, add: str, conditions: list[str], slots: str, option: list[str]) -> dict[str, Any]:
    """The new module as in a configuration: from a file, or from KIND:NAME and the options that describe it."""
    from perception.training.adapt import read_module

    if file is not None:
        return read_module(file)
    kinds, _, name = add.partition(":")
    if not name:
        raise InputError(f"--add {add}: write KIND:NAME, such as low_rank:rain")
    return {"name": name, "when": conditions} | _kinds(kinds, names(slots), _numbers(option))


_METHOD_OF = {"keep": "ties", "drop": "dare", "seed": "dare"}  # options that other methods do not have


def _merge(
    checkpoint: Path,
    members: list[str],
    name: str,
    method: str,
    out: Path,
    conditions: list[str],
    option: list[str],
    drives: tuple[Path, str | None] | None,
) -> dict[str, float]:
    """The share of the change that the new module's rank could not represent, by slot."""
    from perception.checkpoint import read_config
    from perception.datasets.sources import open_source
    from perception.training.combine import merge

    recalibrated, options = None, _numbers(option)
    for key in options:
        if _METHOD_OF.get(key, method) != method:
            raise InputError(f"--option {key}: is of --method {_METHOD_OF[key]}, not {method}; leave it out")
    if len(members) == 1 and "*" not in members[0]:
        raise InputError(f"--merge {members[0]}: name two or more modules, or scale one: 0.5*{members[0]}")
    if drives is not None:
        config = read_config(checkpoint)
        tables = open_source(*drives, config.rig, config.taxonomy)
        recalibrated = tables, training_split(tables.version)
    return merge(checkpoint, members, name, method, out, conditions, drives=recalibrated, **options)


def _show_route(model: PerceptionModel, data: Path, version: str | None, frame: str, console: Console) -> None:
    from perception.datasets.keyframes import Reads
    from perception.datasets.sources import open_source
    from perception.modules.status import routing_table
    from perception.predict import TorchPredictor

    scene, _, number = frame.partition(":")
    if not number.isdigit():
        raise InputError(f"--frame {frame}: write a scene and the number of its keyframe, such as scene-0103:0")
    tables = open_source(data, version, model.config.rig, model.config.taxonomy)
    predictor = TorchPredictor(model)
    (token,) = tables.samples(selectors=[f"{scene}:{number}-{int(number) + 1}"])
    recorded = tables.frame(token, Reads(predictor.spec.grid.reference, predictor.spec.sweeps))
    routes = predictor.routes(recorded)
    console.print(f"{frame}: {', '.join(recorded.conditions.known()) or 'conditions not known'}")
    for route in routes:
        console.print(routing_table(route, model.bank.slots))


@app.command(
    epilog="Example: perception modules runs/both --merge rain,night --method ties --name wet_night --out runs/merged",
    rich_help_panel="Train",
)
def modules(
    checkpoint: Run,
    load: Annotated[
        str, typer.Option(help="Add modules and heads of tasks: FILE,FILE or NEW_NAME=FILE. Needs --out.")
    ] = "",
    merge: Annotated[
        str,
        typer.Option(
            help="Merge two or more modules of one kind into a new one: rain,night or 0.7*rain,0.3*night. Needs --out "
            "and --name; with --data its batch statistics are computed anew on the frames under --conditions."
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="Name of the merged module.")] = "",
    method: Annotated[str, typer.Option(help="Of --merge: average, task-arithmetic, ties or dare.")] = "average",
    conditions: Annotated[str, typer.Option(help="Route to the merged module where these hold.")] = "",
    option: Annotated[
        list[str] | None,
        typer.Option(help="Of --merge: strength=, keep= (ties), drop= and seed= (dare), rank=; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", callback=to_store, help="Folder for the checkpoint with the added modules.")
    ] = None,
    frame: Annotated[str, typer.Option(help="Show how this keyframe is routed: scene-0103:0. Needs --data.")] = "",
    data: Annotated[
        Path | None, typer.Option("--data", callback=from_store, help="Drives of --frame, or for --merge.")
    ] = None,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """List a checkpoint's modules, added heads and its base's fingerprint; add some, or merge some into a new one."""
    if (load and merge) or bool(load or merge) != (out is not None):
        raise InputError("--load or --merge goes with --out: the checkpoint with the added modules is a new one")
    if bool(merge) != bool(name) or ((conditions or option or method != "average") and not merge):
        raise InputError("--merge and --name go together; --method, --conditions and --option go with them")
    if ((frame or version) and data is None) or (data and not (frame or merge)):
        raise InputError("--frame and --data go together, and --version with them")
    from dataclasses import asdict

    from perception.checkpoint import load_model
    from perception.modules.status import table
    from perception.training.combine import combine, module_rows

    console, lost = console_for(as_json), dict[str, float]()
    if out is not None:
        if load:
            combine(checkpoint, names(load), out)
        else:
            drives = None if data is None else (data, version)
            lost = _merge(checkpoint, names(merge), name, method, out, names(conditions), option or [], drives)
            room = f"at most {max(lost.values()):.1%} of a slot's change had no room"
            console.print(f"{name}: {method} of {merge}; {room}", highlight=False)
        checkpoint = out
    model, _ = load_model(checkpoint)
    rows, base = module_rows(model, checkpoint), model.bank.base_hash()
    found = {"base": base, "modules": [asdict(row) for row in rows], **({"lost": lost} if merge else {})}
    report(found, as_json, table(rows) if rows else "no modules")
    console.print(f"base {base}", soft_wrap=True)
    if frame and data is not None:
        _show_route(model, data, version, frame, console)
