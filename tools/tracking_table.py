"""Compare the tracker with a single-stage one and one without motion: AMOTA, AMOTP, id switches, recall by the devkit.

    python tools/tracking_table.py --data runs/demo/drives --bundle runs/demo/bundle

Objects are annotations with random errors like those of a detector (mean and standard deviation over rounds) and, if
given, detections of a bundle or a submission. The second table has the share of ids that survive an occlusion.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pyquaternion import Quaternion
from rich.console import Console
from rich.table import Table
from tracking_scenes import (
    OCCLUDED,
    AnyTracker,
    Moment,
    NaiveTracker,
    Scene,
    SingleStage,
    annotated_scene,
    nuscenes_tracker,
    occluded,
    survival,
    tracked,
    with_errors,
    with_peaks,
)

from deploy.runtime import Runtime
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.tables import only_version
from perception.frame import Boxes
from perception.tasks.detection.devkit import open_devkit
from perception.tasks.detection.submission_reader import read_samples
from perception.tasks.detection.tracking import TrackWriter, score_tracks
from perception.taxonomy import load_taxonomy

NUSCENES = load_taxonomy("nuscenes")
CLASSES = NUSCENES.class_names

MOVING = 1.0  # m/s
SCORES = {
    "amota": "AMOTA",
    "amotp": "AMOTP",
    "recall": "recall",
    "ids": "id switches",
    "frag": "broken",
    "fp": "false",
    "fn": "missed",
}
TRACKERS: dict[str, Callable[[], AnyTracker]] = {
    "two stages": nuscenes_tracker,
    "one stage": SingleStage,
    "no motion": NaiveTracker,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="nuScenes dataroot, recorded or simulated")
    parser.add_argument("--version", help="of the tables; default: the only one there is")
    parser.add_argument("--split", help="default: every scene")
    parser.add_argument("--rounds", type=int, default=3, help="with different random errors")
    parser.add_argument("--bundle", type=Path, help="bundle whose detections are tracked, too")
    parser.add_argument("--submission", type=Path, help="detection submission whose boxes are tracked, too")
    arguments = parser.parse_args()
    version = arguments.version or only_version(arguments.data)
    tables, nusc = NuScenesTables(arguments.data, version), open_devkit(arguments.data, version)
    scenes = [annotated_scene(tables, name) for name in tables.scenes(arguments.split)]
    objects = {"annotations": [scenes]}
    for name, errors in (("with errors", with_errors), ("every peak", with_peaks)):
        objects[name] = [[errors(s, 100 * r + n) for n, s in enumerate(scenes)] for r in range(arguments.rounds)]
    sensors: Sequence[str] = ["lidar"]
    if arguments.bundle:
        runtime = Runtime(arguments.bundle)
        sensors = runtime.bundle.manifest.sensors
        objects["bundle"] = [[detected(tables, scene, runtime) for scene in scenes]]
    if arguments.submission:
        objects["submission"] = [[submitted(arguments.submission, scene) for scene in scenes]]
    console = Console(width=140)  # the columns of rounds with their spread
    console.print(devkit_table(objects, nusc, sensors))
    console.print(survival_table(scenes))


def devkit_table(objects: dict[str, list[list[Scene]]], nusc: Any, sensors: Sequence[str]) -> Table:
    """The devkit's scores of each tracker on each kind of objects: mean and standard deviation over the rounds."""
    table = Table(title="nuScenes tracking, 7 classes")
    for column in ("objects", "tracker", *SCORES.values()):
        table.add_column(column, justify="left" if column in ("objects", "tracker") else "right")
    for kind, rounds in objects.items():
        for name, tracker in TRACKERS.items():
            scores = [score(tracker, scenes, nusc, sensors) for scenes in rounds]
            table.add_row(kind, name, *(spread([each[key] for each in scores], key) for key in SCORES))
    return table


def spread(values: list[float], key: str) -> str:
    """Mean and standard deviation of a score, as text."""
    digits = 0 if key in ("ids", "frag", "fp", "fn") else 3
    text = f"{np.mean(values):.{digits}f}"
    return f"{text} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else text


def survival_table(scenes: list[Scene], rounds: int = 3) -> Table:
    """The share of objects with the same id after OCCLUDED without detections; ten classes, with detection errors."""
    table = Table(title=f"ids that survive {OCCLUDED:.0f} s without detections")
    for column in ("tracker", "all", "objects", "moving", "objects"):
        table.add_column(column, justify="left" if column == "tracker" else "right")
    for name, tracker in TRACKERS.items():
        survived: list[bool] = []
        moving: list[bool] = []
        for seed in range(rounds):
            for number, scene in enumerate(scenes):
                hidden_scene, hidden = occluded(scene, seed)
                found = with_errors(hidden_scene, 100 * seed + number, missed=0)
                same = survival(found, hidden, tracked(tracker(), found))
                survived += same.values()
                moving += [same[instance] for instance in same if speed(scene[hidden[instance][0]], instance) > MOVING]
        shares = ((f"{np.mean(group):.3f}", str(len(group))) for group in (survived, moving))
        table.add_row(name, *(text for share in shares for text in share))
    return table


def speed(moment: Moment, instance: str) -> float:
    """The speed of an object in m/s."""
    velocity = moment.truth.velocities[moment.truth.instances == instance][0]
    return float(np.hypot(velocity[0], velocity[1]))


def detected(tables: NuScenesTables, scene: Scene, runtime: Runtime) -> Scene:
    """The scene with the detections of a bundle."""
    spec = runtime.bundle.spec
    moments = []
    for moment in scene:
        frame = tables.frame(moment.sample, Reads(spec.grid.reference, spec.sweeps, annotations=False))
        boxes = runtime.step(frame).prediction.results["detection"].transformed(frame.global_from_reference)
        moments.append(replace(moment, boxes=boxes))
    return moments


def submitted(path: Path, scene: Scene) -> Scene:
    """The scene with the boxes of a detection submission."""
    entries = dict(read_samples(path, {moment.sample for moment in scene}))
    return [replace(moment, boxes=submitted_boxes(entries[moment.sample])) for moment in scene]


def submitted_boxes(entries: Sequence[dict[str, Any]]) -> Boxes:
    """The boxes of submission entries, in the global frame, upright, without attributes."""
    rotations = [Quaternion(entry["rotation"]).rotation_matrix for entry in entries]
    return Boxes.from_headings(
        centers=np.reshape([entry["translation"] for entry in entries], (-1, 3)),
        sizes=np.reshape([entry["size"] for entry in entries], (-1, 3)),
        headings=np.reshape([rotation[[1, 0], 0] for rotation in rotations], (-1, 2)),
        velocities=np.reshape([entry["velocity"] for entry in entries], (-1, 2)),
        labels=np.array([CLASSES.index(entry["detection_name"]) for entry in entries], int),
        attributes=np.full(len(entries), -1),
        scores=np.array([entry["detection_score"] for entry in entries], float),
    )


def score(tracker: Callable[[], AnyTracker], scenes: list[Scene], nusc: Any, sensors: Sequence[str]) -> dict[str, Any]:
    """The devkit's scores of a tracker on scenes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tracks.json"
        with TrackWriter.open(path, sensors, NUSCENES) as writer:
            for scene in scenes:
                for moment, tracks in zip(scene, tracked(tracker(), scene), strict=True):
                    writer.add(moment.sample, tracks)
        return score_tracks(path, nusc, [moment.sample for scene in scenes for moment in scene])


if __name__ == "__main__":
    main()
