"""Classes of points on PandaSet's spinning LiDAR, by the product's commands: what do simulated drives teach?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from bench_labels import DRIVE, choose
from bench_pandaset import HELD_BACK
from benchmark import SHARED, Commands

from perception.datasets.keyframes import Reads
from perception.datasets.pandaset import PandaSet
from perception.frame import Frame
from perception.io.section import read_yaml
from perception.rig import load_rig
from perception.tasks.points.task import count_rings, summary
from perception.training.placement import points_of

CONFIGS = Path(__file__).parents[1] / "configs"
FILE, RIG = CONFIGS / "tasks" / "points_pandaset.yaml", "pandaset_64"
# For the simulator: the mount and rings of its LiDAR, evenly spaced, and a camera of small pictures.
LIDAR = {"mount": {"position": [0.81, 0.0, 2.26]}, "beams": {"elevation": [-25, 15], "rings": 64, "columns": 1200}}
LENS = {"size": [176, 99], "lens": {"focal": 180.0, "center": [88.0, 49.5]}, "mount": {"position": [1.7, 0.0, 1.5]}}
# Simulated drives of two keyframes, with as many earlier sweeps as the base sees of PandaSet.
DRIVES, SWEEPS, CONDITIONS = 60, 5, "clear-day-boston,clear-day-singapore"
HEAD = ("--task", "points", "--config")
SLOTS = ["lidar.*", "fuse*", "trunk.*", "heads.points*"]
REAL = {"name": "real", "kind": "low_rank", "slots": SLOTS, "rank": 8, "when": ["points"]}
PARTS = '["lidar.*", "camera.*", "fuse.*", "trunk.*"]'
BAND = 0.2  # m, of heights
NOT_SIMULATED = ("sign", "other_static")

Row = dict[str, Any]  # scores of a way


def points(
    data: Path = SHARED / "pandaset",
    base: Annotated[Path, typer.Option(help="A run that saw simulated drives alone.")] = Path("runs/demo/run"),
    out: Annotated[Path, typer.Option(help="Folder of the runs; commands that ended are not repeated.")] = Path(
        "runs/points"
    ),
    steps: Annotated[int, typer.Option(help="Of each training, whatever the number of frames.", min=1)] = 200,
    frames: Annotated[str, typer.Option(help="Numbers of labelled frames, of 16.")] = "16,4,1",
    ways: Annotated[str, typer.Option(help="Only these.")] = "simulated,head,module,both,tuned,alone,heights,boxes",
) -> dict[str, Any]:
    """IoU of PandaSet's classes of points on held-back frames, as `evaluate` gives them; one run each.

    `simulated`: a head on the base, taught on simulated drives alone. `head` and `module`: on the base, taught on real
    frames, without and with a module of its own. `both`: the simulated one with a module taught on real frames.
    `tuned` and `alone`: the whole network, taught on real frames, from the base and from random weights. Without a
    network, fitted on the same frames: `heights`, the commonest class at each height; `boxes`, that of the annotated
    boxes of each class, and elsewhere at each height. `shared` is the mean IoU of annotated classes that the simulator
    has.
    """
    bench, result = _Ways(data, base, out, steps), dict[str, Any]()
    for way in ways.split(","):
        if way == "simulated":
            result[way] = bench.simulated()
            continue
        for count in map(int, frames.split(",")):
            scenes = [f"{DRIVE}:{frame}-{frame + 1}" for frame in choose(count, 0)]
            result[f"{way} {count}"] = getattr(bench, way)(f"{way}_{count}", ",".join(scenes))
    return result


class _Ways(Commands):
    """Each method gives the scores of one way."""

    def __init__(self, data: Path, base: Path, out: Path, steps: int) -> None:
        super().__init__(out)
        self.data, self.base, self.steps = data, base, steps
        task = {"tasks": read_yaml(FILE, "the task")["tasks"]}
        rig = {"name": RIG, "cameras": [{"name": "front", **LENS}], "lidars": [{"name": "pandar64", **LIDAR}]}
        out.mkdir(parents=True, exist_ok=True)
        for name, content in {"head": task, "real": {"modules": [REAL]}, "rig": rig}.items():
            (out / f"{name}.yaml").write_text(yaml.safe_dump(content))

    def simulated(self) -> Row:
        drives = self.out / "drives"
        how = ("--samples", 2, "--sweeps", SWEEPS, "--conditions", CONDITIONS, "--rig", self.out / "rig.yaml")
        self.call("simulate", "simulate", drives, "--scenes", DRIVES, *how, "--jobs", 1)
        return self._adapted("simulated", self.base, *HEAD, self.out / "head.yaml", "--data", drives, "--split", "all")

    def head(self, name: str, scenes: str) -> Row:
        return self._adapted(name, self.base, *HEAD, self.out / "head.yaml", "--data", self.data, "--scenes", scenes)

    def module(self, name: str, scenes: str) -> Row:
        return self._adapted(name, self.base, *HEAD, FILE, "--data", self.data, "--scenes", scenes)

    def both(self, name: str, scenes: str) -> Row:
        self.simulated()
        module = ("--config", self.out / "real.yaml", "--data", self.data, "--scenes", scenes)
        return self._adapted(name, self.out / "simulated", *module)

    def tuned(self, name: str, scenes: str) -> Row:
        return self._whole(name, scenes, f"init_from.run={self.base}", f"init_from.parts={PARTS}")

    def alone(self, name: str, scenes: str) -> Row:
        return self._whole(name, scenes)

    def _whole(self, name: str, scenes: str, *start: str) -> Row:
        places = read_yaml(FILE, "the task")["tasks"]["points"]["max_points"]
        names = ("taxonomy=pandaset", f"rig={RIG}", f"tasks={{points: {{max_points: {places}}}}}", "data.paste=null")
        chosen = f"data.scenes={json.dumps(scenes.split(','))}"
        return self._trained(name, "train", CONFIGS / "demo.yaml", *names, chosen, *start, "--data", self.data)

    def heights(self, name: str, scenes: str) -> Row:
        return _by_height(self.data, scenes.split(","), boxes=False)

    def boxes(self, name: str, scenes: str) -> Row:
        return _by_height(self.data, scenes.split(","), boxes=True)

    def _adapted(self, name: str, run: Path, *words: object) -> Row:
        return self._trained(name, "adapt", run, *words, "--rig", RIG)

    def _trained(self, name: str, *words: object) -> Row:
        run = self.out / name
        seconds = self.call(name, *words, "--steps", self.steps, "--out", run)["seconds"]
        scored = ("--data", self.data, "--rig", RIG, "--scenes", HELD_BACK, "--out", run / "scores", "--json")
        metrics = json.loads(self.call(f"evaluate_{name}", "evaluate", run, *scored)["printed"])
        return {**_row(metrics["points"]), "processor_seconds_per_step": seconds / self.steps}


def _row(scores: Mapping[str, Any]) -> Row:
    """Of `evaluate`'s scores of points."""
    known = [iou for name, iou in scores["classes"].items() if iou is not None and name not in NOT_SIMULATED]
    return {**scores, "shared": float(np.mean(known))}


def _by_height(data: Path, fitted: list[str], boxes: bool) -> Row:
    """Scores of the commonest class of these frames at each height, or in the annotated boxes of each class."""
    drives = PandaSet(data, load_rig(RIG))
    names, first = drives.taxonomy.point_names, len(drives.taxonomy.classes) if boxes else 0
    found, counts = np.zeros((first + 200, len(names)), np.int64), np.zeros((3, len(names)), np.int64)
    for selectors, scored in ((fitted, False), ([HELD_BACK], True)):
        for token in drives.samples(None, selectors):
            frame = drives.frame(token, Reads(cameras=False))
            classes, places = frame.class_of_point, _places(frame, first)
            assert frame.points is not None
            assert classes is not None
            if scored:
                likeliest = found.argmax(axis=1).astype(np.uint8)[places]
                counts += count_rings(likeliest, classes, frame.points, len(names)).sum(axis=2)
            else:
                np.add.at(found, (places[classes >= 0], classes[classes >= 0]), 1)
    return _row(summary(counts, names))


def _places(frame: Frame, first: int) -> np.ndarray:
    """(N,) the band of each point's height, from `first` on; before it, the class of the box around the point."""
    assert frame.points is not None
    assert frame.boxes is not None
    places = first + np.clip(frame.points[:, 2] / BAND + 50, 0, 199).astype(np.int64)
    if first:
        for label, inside in zip(frame.boxes.labels, points_of(frame.points, frame.boxes), strict=True):
            places[inside] = label
    return places
