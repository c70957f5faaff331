"""The `perception` command. It is the one place that knows both `perception` and `deploy`.

Heavy modules are imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perception.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from perception.model import PerceptionModel

app = typer.Typer(
    help="Camera + LiDAR perception built from modules: train on nuScenes, export engines, replay drives.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Root = Annotated[Path, typer.Option("--data", help="nuScenes dataroot, recorded or simulated.")]
Version = Annotated[str | None, typer.Option(help="v1.0-mini, v1.0-trainval, ... Default: the only one there is.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, all else to standard error.")]
Scenes = Annotated[str, typer.Option(help="Only these: scene-0103,scene-0916 or keyframes scene-0103:0-4.")]


TRAINING = {"v1.0-mini": "mini_train", "v1.0-trainval": "train", "v1.0-sim": "sim_train"}
VALIDATION = {"v1.0-mini": "mini_val", "v1.0-trainval": "val", "v1.0-sim": "sim_val"}


def _only_version(dataroot: Path) -> str:
    from perception.data.tables import versions

    found = versions(dataroot)
    if len(found) != 1:
        raise InputError(f"{dataroot}: holds {', '.join(found) or 'no tables'}; say which with --version")
    return found[0]


def _report(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))


def _console(as_json: bool) -> Console:
    from rich.console import Console

    return Console(stderr=as_json)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(options: list[str]) -> dict[str, float]:
    """Of `rank=4` and the like."""
    numbers: dict[str, float] = {}
    for text in options:
        name, _, value = text.partition("=")
        try:
            numbers[name] = int(value) if value.lstrip("-").isdigit() else float(value)
        except ValueError:
            raise InputError(f"--option {text}: write NAME=NUMBER, such as rank=4") from None
    return numbers


def _kinds(text: str, slots: list[str], options: dict[str, float]) -> dict[str, Any]:
    """Of a module's description what `low_rank`, or `batch_norm+low_rank` for a union, and its options say."""
    kinds = text.split("+")
    if len(kinds) == 1:
        return {"kind": text, "slots": slots, **options}
    parts: dict[str, dict[str, Any]] = {kind: {"kind": kind, "slots": slots} for kind in kinds}
    for name, value in options.items():
        kind, _, own = name.partition(".")
        if kind not in parts:
            raise InputError(f"--option {name}: write KIND.NAME=NUMBER, with KIND one of {', '.join(kinds)}")
        parts[kind][own] = value
    return {"kind": "union", "parts": list(parts.values())}


@app.command(epilog="Example: perception simulate drives --scenes 8 --samples 20 --conditions clear-day-boston")
def simulate(
    out: Annotated[Path, typer.Argument(help="New dataroot to write.")],
    scenes: Annotated[int, typer.Option(help="Number of drives.", min=1)] = 8,
    samples: Annotated[int, typer.Option(help="Keyframes (at 2 Hz) in each drive.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    conditions: Annotated[
        str, typer.Option(help="all, or names such as clear-day-boston,rain-night-singapore.")
    ] = "all",
    sweeps: Annotated[int, typer.Option(help="LiDAR sweeps (at 20 Hz) before each keyframe.", min=0, max=10)] = 0,
) -> None:
    """Write simulated drives in nuScenes' own schema, which the official devkit loads."""
    from rich.progress import Progress

    from perception.simulate.simulate import simulate as run

    with Progress() as progress:
        bar = progress.add_task("keyframes", total=scenes * samples)
        run(
            out, scenes, samples, seed, _names(conditions), sweeps, lambda done, _: progress.update(bar, completed=done)
        )


@app.command(epilog="Example: perception train configs/tiny.yaml --data drives --out runs/a")
def train(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/tiny.yaml.")],
    data: Root,
    out: Out,
    version: Version = None,
    split: Annotated[str | None, typer.Option(help="Default: the version's training split; all: every scene.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
    steps: Annotated[int | None, typer.Option(help="Instead of the configuration's number of steps.", min=1)] = None,
) -> None:
    """Train a model; checkpoints and TensorBoard logs go to --out.

    Several GPUs: accelerate launch -m perception.cli train ...
    """
    from perception.config import load_config
    from perception.data.nuscenes import NuScenesTables
    from perception.training.loop import train as run

    settings = load_config(config)
    if steps is not None:
        settings = settings.model_copy(update={"train": settings.train.model_copy(update={"steps": steps})})
    tables = NuScenesTables(data, version or _only_version(data))
    print(run(settings, tables, split or TRAINING.get(tables.version, "all"), out, resume))


@app.command(epilog="Example: perception evaluate runs/a --data drives --out runs/a/evaluation")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run, one of its checkpoints, or an exported bundle.")],
    data: Root,
    out: Out,
    version: Version = None,
    split: Annotated[
        str | None, typer.Option(help="Default: the version's validation split; all: every scene.")
    ] = None,
    scenes: Scenes = "",
    as_json: Json = False,
) -> None:
    """Score a model with the official devkit: mAP, NDS, TP errors; and the map's IoU."""
    from perception.data.nuscenes import NuScenesTables
    from perception.evaluation.evaluate import evaluate as run

    tables, console = NuScenesTables(data, version or _only_version(data)), _console(as_json)
    split = split or VALIDATION.get(tables.version, "all")
    if (model / "manifest.json").exists():
        from deploy.runtime import Runtime

        runtime = Runtime(model)
        result = run(runtime, tables, split, _names(scenes), out, runtime.bundle.spec, console)
    else:
        from perception.predict import TorchPredictor

        predictor = TorchPredictor.load(model)
        result = run(predictor, tables, split, _names(scenes), out, predictor.spec, console)
    _report(result, as_json)


@app.command(
    epilog="Example: perception adapt runs/a --add low_rank:rain --data drives --conditions rain --out runs/rain"
)
def adapt(
    checkpoint: Annotated[Path, typer.Argument(help="A run, or one of its checkpoints.")],
    add: Annotated[
        str, typer.Option(help="KIND:NAME of the new module: low_rank:rain; of several: batch_norm+low_rank:rain.")
    ],
    data: Root,
    out: Out,
    conditions: Annotated[
        str, typer.Option(help="Train on the frames with these, such as rain,night, and route to the module there.")
    ] = "",
    slots: Annotated[str, typer.Option(help="Names or globs of the places in the network.")] = "fuse*,trunk.*,heads.*",
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=NUMBER of the kind, such as rank=4; of several: low_rank.rank=4; repeatable."),
    ] = None,
    version: Version = None,
    split: Annotated[str | None, typer.Option(help="Default: the version's training split; all: every scene.")] = None,
    scenes: Scenes = "",
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 300,
    learning_rate: Annotated[float, typer.Option(help="Peak of the one-cycle schedule.", min=0)] = 1e-2,
) -> None:
    """Train a new module on a checkpoint's frozen base, beside its other modules (post-hoc; repeated: continual).

    Base and earlier modules keep every bit. OUT/modules gets the module alone, OUT/checkpoints the whole model.
    Kinds: low_rank, sparse_delta, batch_norm, prompt, series_adapter, parallel_adapter, bottleneck, rescale,
    scale_shift, film, hypernetwork.
    """
    from perception.data.nuscenes import NuScenesTables
    from perception.training.adapt import adapt as run

    kinds, _, name = add.partition(":")
    if not name:
        raise InputError(f"--add {add}: write KIND:NAME, such as low_rank:rain")
    module = {"name": name, "when": _names(conditions)} | _kinds(kinds, _names(slots), _numbers(option or []))
    tables = NuScenesTables(data, version or _only_version(data))
    split = split or TRAINING.get(tables.version, "all")
    print(run(checkpoint, module, tables, split, _names(scenes), out, steps=steps, learning_rate=learning_rate))


@app.command(
    epilog="Example: perception merge runs/both --modules rain,night --method ties --name wet_night --out runs/merged"
)
def merge(
    checkpoint: Annotated[Path, typer.Argument(help="A run, or one of its checkpoints.")],
    modules: Annotated[str, typer.Option(help="Two or more of its modules: rain,night or 0.7*rain,0.3*night.")],
    name: Annotated[str, typer.Option(help="Name of the new module.")],
    out: Out,
    method: Annotated[str, typer.Option(help="average, task-arithmetic, ties or dare.")] = "average",
    conditions: Annotated[str, typer.Option(help="Route to the new module where these hold.")] = "",
    option: Annotated[
        list[str] | None, typer.Option(help="strength=, keep= (ties), drop= and seed= (dare), rank=; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge modules of one kind into a new one; the members stay. OUT is a checkpoint with all of them."""
    from perception.training.combine import merge as run

    lost = run(checkpoint, _names(modules), name, method, out, _names(conditions), **_numbers(option or []))
    _report({"module": name, "lost": lost}, as_json)
    if not as_json:
        print(f"{name}: {method} of {modules}; at most {max(lost.values()):.1%} of a slot's change had no room")


def _show_route(
    model: PerceptionModel, data: Path, version: str | None, frame: str, picture: Path | None, console: Console
) -> None:
    from perception.data.nuscenes import NuScenesTables
    from perception.modules.routing import inspect
    from perception.predict import TorchPredictor

    scene, _, number = frame.partition(":")
    if not number.isdigit():
        raise InputError(f"--frame {frame}: write a scene and the number of its keyframe, such as scene-0103:0")
    tables, predictor = NuScenesTables(data, version or _only_version(data)), TorchPredictor(model)
    (token,) = tables.samples(selectors=[f"{scene}:{number}-{int(number) + 1}"])
    recorded = tables.frame(token, predictor.spec.grid.reference, predictor.spec.sweeps)
    predictor(recorded)
    console.print(f"{frame}: {', '.join(recorded.conditions.known()) or 'conditions not known'}")
    for route in model.routes:  # one for each group of tasks
        console.print(inspect.as_table(inspect.routing_table(route, model.bank)))
    if picture is not None:
        inspect.picture(inspect.routing_table(model.routes[0], model.bank)).savefig(picture)


@app.command(epilog="Example: perception modules runs/a --load runs/rain/modules/rain.safetensors --out runs/both")
def modules(
    checkpoint: Annotated[Path, typer.Argument(help="A run, or one of its checkpoints.")],
    load: Annotated[str, typer.Option(help="Add modules from files: FILE,FILE or NEW_NAME=FILE. Needs --out.")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the checkpoint with the added modules.")] = None,
    frame: Annotated[str, typer.Option(help="Show how this keyframe is routed: scene-0103:0. Needs --data.")] = "",
    data: Annotated[Path | None, typer.Option("--data", help="nuScenes dataroot of --frame.")] = None,
    version: Version = None,
    picture: Annotated[
        Path | None, typer.Option(help="Picture of the route of --frame to write, such as a.png.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List a checkpoint's modules and its base's fingerprint; put modules that were trained apart together."""
    if bool(load) != (out is not None):
        raise InputError("--load and --out go together: the checkpoint with the added modules is a new one")
    if bool(frame) != (data is not None) or (picture and not frame):
        raise InputError("--frame and --data go together, and --picture needs them")
    from dataclasses import asdict

    from perception.modules.status import table
    from perception.training.checkpoint import load_model
    from perception.training.combine import combine, described

    if out is not None:
        combine(checkpoint, _names(load), out)
        checkpoint = out
    model, _ = load_model(checkpoint)
    rows, base = described(model, checkpoint), model.bank.base_hash()
    if as_json:
        print(json.dumps({"base": base, "modules": [asdict(row) for row in rows]}))
    else:
        console = _console(as_json)
        console.print(table(rows) if rows else "no modules")
        console.print(f"base {base}", soft_wrap=True)
    if data is not None:
        _show_route(model, data, version, frame, picture, _console(as_json))


@app.command(epilog="Example: perception export runs/a --out runs/a/bundle --conditions rain")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run, or one of its checkpoints.")],
    out: Out,
    conditions: Annotated[str, typer.Option(help="Fold the modules for these, such as rain,boston.")] = "",
    as_json: Json = False,
) -> None:
    """Export a checkpoint to a bundle: ONNX, manifest, golden inputs and outputs."""
    from deploy.export import export as run

    bundle = run(checkpoint, out, _names(conditions), console=_console(as_json))
    _report(bundle.manifest.model_dump(mode="json"), as_json)


@app.command(epilog="Example: perception build runs/a/bundle --target rtx-ampere")
def build(
    bundle: Annotated[Path, typer.Argument(help="An exported bundle.")],
    target: Annotated[
        str, typer.Option(help="cpu, rtx-ampere, rtx-ada, rtx-blackwell, orin, thor, drive-orin, drive-thor.")
    ],
    as_json: Json = False,
) -> None:
    """Compile a bundle's graph to an engine for a target."""
    from deploy.build import build as run

    _report(run(bundle, target, _console(as_json)).model_dump(mode="json"), as_json)


@app.command(epilog="Example: perception replay drives --scenes scene-0003 --bundle runs/a/bundle --out runs/a/replay")
def replay(
    drive: Annotated[Path, typer.Argument(help="nuScenes dataroot, recorded or simulated.")],
    bundle: Annotated[Path, typer.Option(help="An exported bundle.")],
    out: Out,
    version: Version = None,
    scenes: Scenes = "",
    as_json: Json = False,
) -> None:
    """Run recorded scenes through an exported bundle; writes results, latencies and an HTML report."""
    from deploy.replay.player import replay as run

    version = version or _only_version(drive)
    _report(run(drive, version, _names(scenes), bundle, out, console=_console(as_json)), as_json)


@app.command(epilog="Example: perception demo --out runs/demo")
def demo(out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("runs/demo")) -> None:
    """Simulate, train, evaluate, export, compile and replay, in minutes, ending in a report to open."""
    from deploy.demo import demo as run

    run(out)


def main() -> None:
    """Run the command; an InputError becomes one line on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        print(f"perception: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder without permission
        print(f"perception: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
