"""Simulate, train, evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perception.commands.common import (
    TRAINING,
    VALIDATION,
    AllowOlder,
    Json,
    Keys,
    Out,
    Root,
    Scenes,
    State,
    Version,
    app,
    console_for,
    names,
    report,
    trust_in,
)
from perception.errors import InputError

if TYPE_CHECKING:
    from perception.frame import Frame, Prediction


@app.command(epilog="Example: perception simulate drives --scenes 8 --samples 20 --conditions clear-day-boston")
def simulate(
    out: Annotated[Path, typer.Argument(help="New dataroot to write.")],
    scenes: Annotated[int, typer.Option(help="Number of drives.", min=1)] = 8,
    samples: Annotated[int, typer.Option(help="Keyframes (at 2 Hz) in each drive.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    conditions: Annotated[
        str,
        typer.Option(
            help="all, or names such as clear-day-boston,rain-night-singapore; a drive that changes on its way is "
            "clear-day-boston/rain-day-boston."
        ),
    ] = "all",
    sweeps: Annotated[int, typer.Option(help="LiDAR sweeps (at 20 Hz) before each keyframe.", min=0, max=10)] = 0,
) -> None:
    """Write simulated drives in nuScenes' own schema, which the official devkit loads."""
    from rich.progress import Progress

    from perception.simulate.simulate import simulate as run

    with Progress() as progress:
        bar = progress.add_task("keyframes", total=scenes * samples)
        run(out, scenes, samples, seed, names(conditions), sweeps, lambda done, _: progress.update(bar, completed=done))


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
    from perception.datasets.source import open_source
    from perception.training.loop import train as run

    settings = load_config(config)
    if steps is not None:
        settings = settings.model_copy(update={"train": settings.train.model_copy(update={"steps": steps})})
    tables = open_source(data, version)
    print(run(settings, tables, split or TRAINING.get(tables.version, "all"), out, resume))


@app.command(epilog="Example: perception evaluate runs/a --data drives --out runs/a/evaluation --by condition,range")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run, one of its checkpoints, or an exported bundle.")],
    data: Root,
    out: Out,
    version: Version = None,
    split: Annotated[
        str | None, typer.Option(help="Default: the version's validation split; all: every scene.")
    ] = None,
    scenes: Scenes = "",
    by: Annotated[str, typer.Option(help="Also score the parts: of condition, city, scene, range.")] = "",
    corruptions: Annotated[
        str, typer.Option(help="Also score with corrupted sensors: all, or names such as lidar_noise,camera_missing.")
    ] = "",
    target: Annotated[str, typer.Option(help="Engine of a bundle: cpu, or what `perception build` made.")] = "cpu",
    key: Keys = None,
    state: State = None,
    allow_older: AllowOlder = False,
    official: Annotated[
        bool, typer.Option("--official", help="Also score the submission with nuscenes-devkit, and compare.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score a model as nuScenes does: mAP, NDS, TP errors; and the map's IoU."""
    from perception.datasets.source import open_source
    from perception.evaluation.evaluate import evaluate as run
    from perception.tasks.detection.official import compare, require_official

    tables, console = open_source(data, version), console_for(as_json)
    if official:
        require_official(tables)
    split = split or VALIDATION.get(tables.version, "all")
    predictor: Callable[[Frame], Prediction]
    if (model / "manifest.json").exists():
        from deploy.runtime import Runtime

        predictor = runtime = Runtime(model, target, trust_in(key, state, allow_older))
        spec = runtime.bundle.spec
    elif key or target != "cpu":
        raise InputError(f"{model}: --target and --key are of a bundle; export one first")
    else:
        from perception.predict import TorchPredictor

        predictor = of_run = TorchPredictor.load(model)
        spec = of_run.spec
    metrics = run(predictor, tables, split, names(scenes), out, spec, console, names(by), names(corruptions))
    if official:
        metrics = compare(out, tables, metrics, console)
    report(metrics, as_json)
