"""Networks on recorded drives: evaluate, replay, judge."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.commands.trust import AllowOlder, Keys, State, trust_in
from perception.commands.common import VALIDATION, Json, Out, Root, Scenes, Version, app, console_for, names, report
from perception.errors import InputError

if TYPE_CHECKING:
    from perception.frame import Frame, Prediction


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
    from perception.evaluation.evaluate import Breakdown
    from perception.evaluation.evaluate import evaluate as run
    from perception.sources import open_source
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
    metrics = run(predictor, tables, split, names(scenes), out, spec, console, Breakdown(names(by), names(corruptions)))
    if official:
        metrics = compare(out, tables, metrics, console)
    report(metrics, as_json)


@app.command(epilog="Example: perception replay drives --scenes scene-0003 --bundle runs/a/bundle --out runs/a/replay")
def replay(
    drive: Annotated[Path, typer.Argument(help="nuScenes dataroot, recorded or simulated; .mcap file; rosbag2.")],
    bundle: Annotated[Path, typer.Option(help="An exported bundle.")],
    out: Out,
    target: Annotated[str, typer.Option(help="Whose engine of the bundle runs: `perception build --list`.")] = "cpu",
    version: Version = None,
    scenes: Scenes = "",
    topics: Annotated[
        Path | None, typer.Option(help="YAML that says which topics of a recording are which sensor.")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="KIND:SENSOR[,NAME=NUMBER]@START-END in seconds, as drop:CAM_FRONT@2.0-4.0; repeatable."),
    ] = None,
    conditions: Annotated[
        str,
        typer.Option(
            help="What the vehicle is told instead of the drive's tags: clear,day to stay on one route; none to go by "
            "what the network recognises."
        ),
    ] = "",
    start: Annotated[float, typer.Option(help="Leave out what comes before, in seconds of each drive.")] = 0.0,
    end: Annotated[
        float | None, typer.Option(help="Leave out what comes from here on, in seconds of each drive.")
    ] = None,
    every: Annotated[int, typer.Option(help="Replay each Nth frame alone, from the first one on.")] = 1,
    real_time: Annotated[
        bool, typer.Option("--real-time", help="No faster than the vehicle drove. Default: as fast as possible.")
    ] = False,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency", help="Measure latencies as a vehicle would see them: at the drive's pace, with nothing beside."
        ),
    ] = False,
    baseline: Annotated[
        Path | None, typer.Option(help="Folder of another replay of the scenes to compare with.")
    ] = None,
    gates: Annotated[Path | None, typer.Option(help="YAML file of what must be reached to pass.")] = None,
    viewer: Annotated[str, typer.Option(help="foxglove, rerun: write results.mcap, results.rrd too.")] = "",
    key: Keys = None,
    state: State = None,
    allow_older: AllowOlder = False,
    as_json: Json = False,
) -> None:
    """Run recorded scenes through an exported bundle; writes results, tracks, latencies and an HTML report.

    A replay that was interrupted goes on where it was when the same command is given again, with the same results.

    With --gates or --baseline it gives a verdict too (verdict.json, junit.xml): exit code 0 is pass, 1 is fail, 3 is
    inconclusive: the scenes are too few to tell.
    """
    from deploy.replay.faults import Fault
    from deploy.replay.gates import Gates
    from deploy.replay.outcome import EXIT_CODES
    from deploy.replay.run import replay as run
    from deploy.replay.selection import Selection
    from deploy.replay.settings import Settings, Source
    from deploy.replay.sources import is_recording
    from deploy.route import parse_conditions
    from perception.datasets.nuscenes.tables import only_version
    from perception.section import load_section

    settings = Settings(
        target=target,
        trust=trust_in(key, state, allow_older),
        faults=[Fault.parse(text) for text in fault or ()],
        conditions=parse_conditions([] if conditions == "none" else names(conditions)) if conditions else None,
        selection=Selection(start, math.inf if end is None else end, every),
        real_time=real_time,
        latency=latency,
        viewers=names(viewer),
    )
    wanted = None if gates is None else load_section(Gates, gates, "the gates")
    version = version or (None if is_recording(drive) else only_version(drive))
    source = Source(drive, version, names(scenes), topics)
    summary = run(source, bundle, out, settings, baseline, wanted, console_for(as_json))
    report(summary, as_json)
    outcome = summary.get("verdict", {"outcome": "pass"})["outcome"]
    if outcome != "pass":
        raise typer.Exit(EXIT_CODES[outcome])


@app.command(epilog="Example: perception judge runs/b/replay --baseline runs/a/replay --gates gates.yaml")
def judge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished replay.")],
    baseline: Annotated[Path | None, typer.Option(help="Folder of another replay of the same drives.")] = None,
    gates: Annotated[Path | None, typer.Option(help="YAML file of what must be reached to pass.")] = None,
    as_json: Json = False,
) -> None:
    """Judge a finished replay, also once more by other gates or another baseline, without replaying.

    Writes verdict.json and junit.xml, and the verdict into report.html. Exit code 0 is pass, 1 is fail, 3 is
    inconclusive: the scenes are too few to tell.
    """
    from deploy.replay.gates import Gates
    from deploy.replay.outcome import EXIT_CODES
    from deploy.replay.verdict import judge as run_judge
    from perception.section import load_section

    verdict = run_judge(run, baseline, None if gates is None else load_section(Gates, gates, "the gates"))
    report(verdict.as_dict(), as_json)
    console_for(as_json).print(verdict.table())
    if verdict.outcome != "pass":
        raise typer.Exit(EXIT_CODES[verdict.outcome])
