"""Commands that run networks on recorded drives, evaluate and replay, and those that judge the results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.commands.options import AllowOlder, BundleOption, GatesFile, Keys, State, Target, TopicsFile, make_trust
from deploy.networks import find_network
from perception.commands.common import (
    Json,
    Out,
    RayAddress,
    RigOption,
    Root,
    Scenes,
    Version,
    app,
    console_for,
    from_store,
    names,
    report,
    rig_of,
    validation_split,
    yaml_file,
)  # fmt: skip
from perception.errors import InputError

if TYPE_CHECKING:
    from deploy.trust import Trust
    from perception.datasets.keyframes import Keyframes
    from perception.evaluation.predictions import Predictor
    from perception.frame import Conditions
    from perception.sensors.inputs import InputSpec


@app.command(
    epilog="Example: perception evaluate runs/a --data drives --out runs/a/evaluation --by condition,range",
    rich_help_panel="Validate",
)
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(callback=find_network, help="A run, one of its checkpoints, an exported bundle, or demo."),
    ],
    data: Root,
    out: Out,
    version: Version = None,
    split: Annotated[
        str | None, typer.Option(help="Default: the version's validation split; all: every scene.")
    ] = None,
    scenes: Scenes = "",
    by: Annotated[
        str, typer.Option(help="Also score each part by: condition, scene, range, or one kind of condition.")
    ] = "",
    corruptions: Annotated[
        str, typer.Option(help="Also score with corrupted sensors: all, or names such as lidar_noise,camera_missing.")
    ] = "",
    target: Annotated[
        str, typer.Option(help="Engine of a bundle: cpu, or a target that `perception build` compiled for.")
    ] = "cpu",
    key: Keys = None,
    state: State = None,
    allow_older: AllowOlder = False,
    official: Annotated[
        bool, typer.Option("--official", help="Also score the submission with the data set's devkit, and compare.")
    ] = False,
    as_report: Annotated[
        bool, typer.Option("--report", help="Also write report.html: slices, curves, robustness, worst samples.")
    ] = False,
    rig: RigOption = None,
    batch: Annotated[int, typer.Option(help="Frames in a forward pass of a run.", min=1)] = 1,
    jobs: Annotated[
        int, typer.Option(help="Processes of one thread that predict; 0: this one, with all threads.", min=0)
    ] = 0,
    ray: RayAddress = None,
    as_json: Json = False,
) -> None:
    """Score a run or a bundle on annotated drives: nuScenes' mAP, NDS and TP errors, the map's IoU, ...

    `perception compare` compares two evaluations of the same keyframes.
    """
    from deploy.manifest import read_manifest
    from perception.evaluation.evaluate import Breakdown
    from perception.evaluation.evaluate import evaluate as run
    from perception.evaluation.predictions import Processes
    from perception.io.workers import open_pool
    from perception.tasks.detection.devkit import compare, require_official

    if (model / "manifest.json").exists():
        if rig is not None:
            own = read_manifest(model).rig.name
            raise InputError(f"--rig {rig}: a bundle is for one rig, {own}; give a run")
        if batch > 1:
            raise InputError("--batch: the engine of a bundle takes one frame; give a run")
        trust = make_trust(key, state, allow_older)
        open_model = partial(_bundle_and_drives, model.absolute(), data.absolute(), version, target, trust)
    elif key or state or allow_older or target != "cpu":
        raise InputError(f"{model}: --target, --key, --state and --allow-older need a bundle; export one first")
    else:
        open_model = partial(_run_and_drives, model.absolute(), data.absolute(), version, rig, batch)
    in_processes = bool(jobs or ray)
    if in_processes and batch > 1:
        raise InputError("--jobs and --batch: a process of --jobs computes one frame after the other; use one of both")
    predictor, spec, tables = open_model()
    if in_processes and spec.memory is not None:
        raise InputError(
            f"{model}: has a memory, so that its frames depend on those before; leave out --jobs and --ray"
        )
    console = console_for(as_json)
    if official:
        require_official(tables)
    split = split or validation_split(tables.version)
    breakdown = Breakdown(names(by), names(corruptions), left_out=True, report=as_report)
    with open_pool(open_model, jobs, ray) if in_processes else nullcontext() as pool:
        if pool is not None:
            predictor = Processes(pool)
        metrics = run(predictor, tables, split, names(scenes), out, spec, console, breakdown)
    if official:
        metrics = compare(out, tables, metrics, console)
    report(metrics, as_json)


def _bundle_and_drives(
    bundle: Path, data: Path, version: str | None, target: str, trust: Trust | None
) -> tuple[Predictor, InputSpec, Keyframes]:
    from deploy.runtime import Runtime
    from perception.datasets.sources import open_source

    runtime = Runtime(bundle, target, trust)
    spec = runtime.bundle.spec
    return runtime, spec, open_source(data, version, spec.rig, runtime.bundle.manifest.taxonomy)


def _run_and_drives(
    run: Path, data: Path, version: str | None, rig: Path | None, batch: int
) -> tuple[Predictor, InputSpec, Keyframes]:
    from perception.datasets.sources import open_source
    from perception.predict import TorchPredictor

    predictor = TorchPredictor.load(run, rig_of(rig), batch)
    return predictor, predictor.spec, open_source(data, version, predictor.spec.rig, predictor.taxonomy)


def _parse_conditions(conditions: Sequence[str], bundle: Path) -> Conditions:
    from deploy.manifest import read_manifest
    from deploy.route import parse_conditions

    return parse_conditions(conditions, read_manifest(bundle).taxonomy)


@app.command(
    epilog="Example: perception compare runs/a/evaluation runs/b/evaluation --by condition --out runs/b/compared",
    rich_help_panel="Validate",
)
def compare(
    before: Annotated[Path, typer.Argument(callback=from_store, help="Folder that `perception evaluate` wrote.")],
    after: Annotated[Path, typer.Argument(callback=from_store, help="Another one, of the same keyframes.")],
    by: Annotated[
        str, typer.Option(help="Slices that both were evaluated by: condition,range,... Default: all of them.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Folder to write comparison.json and comparison.html to.")] = None,
    as_json: Json = False,
) -> None:
    """Compare two evaluations: the difference of each score in each slice, with its 95 % interval over scenes."""
    from perception.evaluation.comparison import compare as run
    from perception.evaluation.comparison import comparison_table, write_comparison

    found = run(before, after, names(by))
    if out is not None:
        write_comparison(out, found)
    report(found, as_json, comparison_table(found))


@app.command(
    epilog="Example: perception replay drives --scenes scene-0003 --bundle runs/a/bundle --out runs/a/replay",
    rich_help_panel="Validate",
)
def replay(
    drive: Annotated[
        Path,
        typer.Argument(callback=from_store, help="Drives as for --data of `evaluate`; .mcap file; rosbag2."),
    ],
    bundle: BundleOption,
    out: Out,
    target: Target = "cpu",
    version: Version = None,
    scenes: Scenes = "",
    topics: TopicsFile = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND:SENSOR[,NAME=NUMBER]@START-END in seconds, as drop:cameras@2.0-4.0, or hidden:CLASS@START-END: "
            "a class that the network no longer detects; repeatable."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Conditions, evidence, part of the drives, pace, viewer, Ray, keys.", **yaml_file("replay")),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(callback=from_store, help="Folder of another replay of the scenes to compare with.")
    ] = None,
    gates: GatesFile = None,
    jobs: Annotated[int, typer.Option(help="Processes that replay a scene each; 0: this one alone.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Run recorded drives through a bundle as the vehicle does; writes results, tracks, latencies and a report.

    The same command goes on with the drives of an interrupted replay that are finished, with the same results.

    With --gates or --baseline it also writes a verdict (verdict.json, junit.xml). Exit code 0: pass; 1: fail; 3:
    inconclusive, because there are too few scenes.
    """
    from deploy.recordings.choice import Selection
    from deploy.recordings.drives import is_recording
    from deploy.replay.outcome import EXIT_CODES
    from deploy.replay.run import replay as run
    from deploy.replay.settings import ReplayFile, Settings, Source
    from perception.datasets.nuscenes.tables import only_version, versions

    given = ReplayFile() if config is None else ReplayFile.load(config)
    settings = Settings(
        target=target,
        trust=make_trust(given.keys, given.state, given.allow_older),
        faults=fault or (),
        conditions=None if given.conditions is None else _parse_conditions(given.conditions, bundle),
        evidence=given.evidence,
        selection=Selection(given.start, math.inf if given.end is None else given.end, given.every),
        real_time=given.real_time,
        viewer=given.viewer,
    )
    if version is None and versions(drive) and not is_recording(drive):
        version = only_version(drive)
    source = Source(drive, version, names(scenes), topics)
    summary = run(source, bundle, out, settings, baseline, gates, console_for(as_json), jobs, given.ray)
    report(summary, as_json)
    outcome = summary.get("verdict", {"outcome": "pass"})["outcome"]
    if outcome != "pass":
        raise typer.Exit(EXIT_CODES[outcome])


@app.command(
    epilog="Example: perception judge runs/b/replay --baseline runs/a/replay --gates gates.yaml",
    rich_help_panel="Validate",
)
def judge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished replay.")],
    baseline: Annotated[
        Path | None, typer.Option(callback=from_store, help="Folder of another replay of the same drives.")
    ] = None,
    gates: GatesFile = None,
    as_json: Json = False,
) -> None:
    """Judge a finished replay by gates or against a baseline, without replaying.

    Writes verdict.json and junit.xml, and adds the verdict to report.html. Exit code 0: pass; 1: fail; 3: inconclusive,
    because there are too few scenes.
    """
    from deploy.replay.folder import error_if_unjudged
    from deploy.replay.gates import Gates
    from deploy.replay.outcome import EXIT_CODES
    from deploy.replay.results import STATISTICS
    from deploy.replay.verdict import judge as run_judge
    from perception.io.section import load_section

    finished = (run / STATISTICS).exists()  # else the folder is of no replay, and its files stay
    with error_if_unjudged(run, judged=True) if finished else nullcontext():
        verdict = run_judge(run, baseline, None if gates is None else load_section(Gates, gates, "the gates"))
    report(verdict.as_dict(), as_json)
    console_for(as_json).print(verdict.table())
    if verdict.outcome != "pass":
        raise typer.Exit(EXIT_CODES[verdict.outcome])


class Storage(str, Enum):
    file = "file"
    sqlite3 = "sqlite3"
    mcap = "mcap"


@app.command(
    epilog="Example: perception log drives --scene scene-0001 --out drive.mcap",
    rich_help_panel="Data",
)
def log(
    data: Annotated[Path, typer.Argument(help="Dataroot of nuScenes, or simulated.")],
    scene: Annotated[str, typer.Option(help="Its name, or some of its keyframes: scene-0103:0-4.")],
    out: Annotated[Path, typer.Option("--out", help="File (drive.mcap) or folder to write.")],
    storage: Annotated[
        Storage, typer.Option(help="file: one MCAP file; sqlite3, mcap: the folder of a rosbag2.")
    ] = Storage.file,
    version: Version = None,
    sweeps: Annotated[int, typer.Option(help="LiDAR sweeps before each keyframe.", min=0)] = 10,
    rig: RigOption = None,
    as_json: Json = False,
) -> None:
    """Write a scene as a ROS 2 recording, such as a vehicle records; `perception replay` reads both."""
    from deploy.log import write_log

    count = write_log(data, scene, out, storage.value, version, sweeps, rig_of(rig))
    report({"out": str(out), "messages": count}, as_json, f"{out}: {count} messages")
