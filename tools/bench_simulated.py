"""Points and occupancy on held-out simulated drives: added to a trained base, adapted to weathers, trained with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from bench_networks import TASKS, with_tasks
from benchmark import QUIET
from scene_obstacles import scene_obstacles

from deploy.replay.faults import HiddenClass, hide
from perception.checkpoint import newest
from perception.config import Config, find_config
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.evaluation.evaluate import evaluate
from perception.predict import TorchPredictor
from perception.scene.scene import Scene
from perception.simulate.conditions import Extras, parse
from perception.simulate.simulate import simulate
from perception.simulate.worlds import Worlds
from perception.taxonomy import load_taxonomy
from perception.training.adapt import adapt, add_task, read_task
from perception.training.loop import train

VERSION = "v1.0-sim"
# Name -> conditions of its drives, in turn. All but the modules is trained on clear days.
DRIVES = {
    "clear": ("clear-day-boston", "clear-day-singapore"),
    "rain": ("rain-day-boston",),
    "night": ("clear-night-singapore",),
}
KEYFRAMES, SEED = 4, 11  # of each drive
RATE = 0.01  # peak of the learning rate of what is added
ALARMS = 1.0  # false alarms per 100 m at which the recall of obstacles is quoted
HIDDEN = ("car", "pedestrian", "barrier")  # classes that the detector loses
OWN = ("points", "occupancy", "obstacles")  # scores of the tasks that are added


def simulated(
    out: Annotated[Path, typer.Option(help="Folder of the drives and runs.")] = Path("runs/simulated"),
    drives: Annotated[int, typer.Option(help="Half of them on clear days; a quarter is held out.")] = 120,
    clear: Annotated[bool, typer.Option("--clear", help="All on clear days, no module for a weather.")] = False,
    joint: Annotated[bool, typer.Option("--joint/--no-joint", help="Also train all jointly.")] = True,
    steps: Annotated[int, typer.Option(help="Of the base, and of all jointly.")] = 400,
    head_steps: Annotated[int, typer.Option(help="Of a head; 0: --steps. A module takes a quarter.")] = 0,
    config: Annotated[str, typer.Option(help="Of the base: network and recipe.")] = "tiny",
) -> dict[str, Any]:
    """Scores on held-out drives of a base, with both heads added, with modules for rain and night, and trained jointly.

    `unchanged`: the scores of detection and map are the same with the heads, and with the modules in their weathers.
    `obstacles` have the best recall within 30 m of the metric's probabilities with at most one false alarm per 100 m,
    else that at the highest one; boxes find none, since obstacles are of no detection class. `scene_obstacles` are
    those that the scene follows, with the best recall of the same kind over all distances. `hidden`: see `_hide_class`.
    Parts that the folder has are not made again.
    """
    head_steps = head_steps or steps
    weathers = ("clear",) if clear else tuple(DRIVES)
    tables = _drives(out / "drives", drives, weathers)
    training, held_out = (_scenes(tables, split) for split in ("sim_train", "sim_val"))
    together: dict[str, Sequence[str]] = {"base": (), "joint": TASKS} if joint else {"base": ()}
    for name, tasks in together.items():
        if newest(out / name) is None:
            train(_settings(config, tasks, steps, training["clear"]), tables, "sim_train", out / name)
    last = out / "base"
    for file in TASKS:
        content = read_task(find_config(file))
        (task,) = content["tasks"]
        if newest(out / task) is None:
            options = {"steps": head_steps, "learning_rate": RATE}
            add_task(last, task, content, tables, "sim_train", training["clear"], out / task, **options)
        last = out / task
    added = last
    for weather in weathers[1:]:
        for task in ("points", "occupancy"):
            run = out / f"{weather}_{task}"
            if newest(run) is None:
                options = {"steps": head_steps // 4, "learning_rate": RATE}
                adapt(last, _module(weather, task), tables, "sim_train", training[weather], run, **options)
            last = run
    runs = {**{name: out / name for name in together}, "added": added}
    scores = {name: _scores(run, tables, "clear", held_out["clear"]) for name, run in runs.items()}
    pairs = {
        weather: [_scores(run, tables, weather, held_out[weather]) for run in (added, last)] for weather in weathers[1:]
    }
    followed = scene_obstacles(added, tables, held_out["clear"])
    quiet = [each["recall"] for each in followed["curve"] if each["false_alarms_per_100_m"] <= ALARMS]
    compared = [(scores["base"], scores["added"]), *pairs.values()]
    return {
        **{name: _figures(each) for name, each in scores.items()},
        **{weather: {"without": _figures(a), "with_module": _figures(b)} for weather, (a, b) in pairs.items()},
        "unchanged": all(_of_base(a) == _of_base(b) for a, b in compared),
        "scene_obstacles": {**followed, "recall": max(quiet, default=0.0)},
        "hidden": _hide_class(added, tables, held_out["clear"]),
        "keyframes": {name: KEYFRAMES * len(training[name]) for name in weathers},
        "held_out_keyframes": {name: KEYFRAMES * len(held_out[name]) for name in weathers},
        "steps": steps,
        "head_steps": head_steps,
    }


def _drives(folder: Path, count: int, weathers: Sequence[str]) -> NuScenesTables:
    """Drives with unknown obstacles and annotated points and voxels, simulated unless they are there."""
    if not folder.exists():
        names = [name for weather in weathers for name in DRIVES[weather]]
        courses = parse(names, load_taxonomy("nuscenes"), Worlds(), Extras(obstacles=True, occupancy=True))
        simulate(folder, count, KEYFRAMES, SEED, courses)
    return NuScenesTables(folder, VERSION)


def _scenes(drives: NuScenesTables, split: str) -> dict[str, list[str]]:
    """Name of DRIVES -> its drives of a split."""
    found: dict[str, list[str]] = {name: [] for name in DRIVES}
    for scene in drives.scenes(split):
        known = drives.conditions(drives.samples(selectors=[scene])[0]).known()
        found[next((name for name in ("rain", "night") if name in known), "clear")].append(scene)
    return found


def _settings(name: str, tasks: Sequence[str], steps: int, scenes: Sequence[str]) -> Config:
    """The base's configuration without modules and with further tasks, for these drives."""
    config = with_tasks(name, tasks)
    data = config.data.model_copy(update={"scenes": tuple(scenes)})
    training = config.train.model_copy(update={"steps": steps})
    return config.model_copy(update={"modules": (), "data": data, "train": training})


def _module(weather: str, task: str) -> dict[str, Any]:
    """A module that runs in this weather, for this task alone."""
    slots = ["lidar.*", "fuse*", "trunk.*", f"heads.{task}*"]
    return {"name": f"{weather}_{task}", "kind": "low_rank", "slots": slots, "rank": 4, "when": [weather, task]}


def _scores(run: Path, drives: NuScenesTables, name: str, scenes: Sequence[str]) -> dict[str, Any]:
    """Of some drives, as `perception evaluate` writes them."""
    written = run / f"scores_{name}" / "metrics.json"
    if not written.exists():
        predictor = TorchPredictor.load(run)
        evaluate(predictor, drives, "sim_val", scenes, written.parent, predictor.spec, QUIET)
    return json.loads(written.read_text())


def _of_base(scores: Mapping[str, Any]) -> str:
    """All scores of detection and map, as JSON, in which NaN equals itself."""
    return json.dumps({name: value for name, value in scores.items() if name not in OWN})


def _figures(scores: Mapping[str, Any]) -> dict[str, Any]:
    """What is quoted of the scores."""
    figures = {"mAP": scores["mAP"], "NDS": scores["NDS"], "map_IoU": scores["map"]["iou_max"]["mean"]}
    if "points" in scores:
        curve = [(each, each["by_distance"]["within 30 m"]) for each in scores["obstacles"]["curve"]]
        quiet = [pair for pair in curve if pair[0]["false_alarms_per_100_m"] <= ALARMS] or curve[-1:]
        best, recall = max(quiet, key=lambda pair: pair[1])
        figures |= {
            "points_mIoU": scores["points"]["mean"],
            "RayIoU": scores["occupancy"]["RayIoU"],
            "occupancy_mIoU": scores["occupancy"]["mIoU"],
            "geometric_IoU": scores["occupancy"]["geometric_IoU"],
            "obstacles": {
                "recall": recall,
                **{name: best[name] for name in ("probability", "false_alarms_per_100_m")},
                "metres": scores["obstacles"]["metres"],
            },
        }
    return figures


def _hide_class(run: Path, drives: NuScenesTables, scenes: Sequence[str]) -> dict[str, Any]:
    """Classes that the scene doubts at the end of a drive, when the network's boxes of a class are removed.

    Returns for each class `drives` with an annotated object of it, of these `doubted`, and `doubted_without_fault`.
    """
    predictor = TorchPredictor.load(run)
    counts = {name: {"drives": 0, "doubted": 0, "doubted_without_fault": 0} for name in HIDDEN}
    for scene in scenes:
        frames = [
            drives.frame(token, Reads(sweeps=predictor.spec.sweeps)) for token in drives.samples(selectors=[scene])
        ]
        predictions = [predictor(frame) for frame in frames]
        for name, count in counts.items():
            label = drives.taxonomy.label(name)
            if not any(frame.boxes is not None and (frame.boxes.labels == label).any() for frame in frames):
                continue
            count["drives"] += 1
            for key, faults in (("doubted", [f"hidden:{name}"]), ("doubted_without_fault", [])):
                hidden = [HiddenClass.parse(text, drives.taxonomy) for text in faults]
                spec = predictor.spec
                state = Scene(spec.rig.sensors, predictor.model.tasks, drives.taxonomy.conditions)
                for frame, prediction in zip(frames, predictions, strict=True):
                    state.observe(frame)
                    last = state.update(frame, hide(prediction, hidden, 0.0))
                count[key] += name in last.doubts
    return counts
