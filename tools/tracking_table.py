"""The tracker beside one that knows no motion: AMOTA, AMOTP, id switches, recall, and ids that survive an occlusion.

    python tools/tracking_table.py --data runs/demo/drives --bundle runs/demo/bundle

Objects are the annotations with errors as a detector has them, and, with a bundle, its detections.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tracking_scenes import (
    OCCLUDED,
    AnyTracker,
    Moment,
    NaiveTracker,
    Scene,
    annotated_scene,
    occluded,
    survival,
    tracked,
    with_errors,
)

from deploy.runtime import Runtime
from perception.data.nuscenes import NuScenesTables
from perception.data.tables import only_version
from perception.evaluation.detection import open_devkit
from perception.evaluation.tracking import TrackWriter, score_tracks
from perception.scene.tracker import Tracker

MOVING = 1.0  # m/s
TRACKERS: dict[str, Callable[[], AnyTracker]] = {"Kalman filter": Tracker, "no motion": NaiveTracker}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="nuScenes dataroot, recorded or simulated")
    parser.add_argument("--version", help="of the tables; default: the only one there is")
    parser.add_argument("--split", help="default: every scene")
    parser.add_argument("--bundle", type=Path, help="whose detections are tracked as well")
    arguments = parser.parse_args()
    version = arguments.version or only_version(arguments.data)
    tables, nusc = NuScenesTables(arguments.data, version), open_devkit(arguments.data, version)
    scenes = [annotated_scene(tables, name) for name in tables.scenes(arguments.split)]
    objects = {"annotations": scenes, "with errors": [with_errors(s, seed) for seed, s in enumerate(scenes)]}
    sensors: Sequence[str] = ["lidar"]
    if arguments.bundle:
        runtime = Runtime(arguments.bundle)
        sensors = runtime.bundle.manifest.sensors
        objects["detections"] = [detected(tables, scene, runtime) for scene in scenes]
    console = Console()
    console.print(devkit_table(objects, nusc, sensors))
    console.print(survival_table(scenes))


def devkit_table(objects: dict[str, list[Scene]], nusc: Any, sensors: Sequence[str]) -> Table:
    """What the devkit says of each tracker on each kind of objects."""
    table = Table(title="nuScenes tracking, 7 classes")
    for column in ("objects", "tracker", "AMOTA", "AMOTP", "recall", "id switches", "broken", "false", "missed"):
        table.add_column(column, justify="left" if column in ("objects", "tracker") else "right")
    for kind, scenes in objects.items():
        for name, tracker in TRACKERS.items():
            scores = score(tracker, scenes, nusc, sensors)
            means = (f"{scores[key]:.3f}" for key in ("amota", "amotp", "recall"))
            table.add_row(kind, name, *means, *(f"{scores[key]:.0f}" for key in ("ids", "frag", "fp", "fn")))
    return table


def survival_table(scenes: list[Scene], rounds: int = 3) -> Table:
    """Share of objects that have the same id after OCCLUDED without detections; ten classes, detector's errors."""
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
    """m/s of an object."""
    velocity = moment.truth.velocities[moment.truth.instances == instance][0]
    return float(np.hypot(velocity[0], velocity[1]))


def detected(tables: NuScenesTables, scene: Scene, runtime: Runtime) -> Scene:
    """The same with what a bundle detects."""
    spec = runtime.bundle.spec
    moments = []
    for moment in scene:
        frame = tables.frame(moment.sample, spec.grid.reference, spec.sweeps, annotations=False)
        boxes = runtime.step(frame).prediction.boxes.transformed(frame.global_from_reference)
        moments.append(replace(moment, boxes=boxes))
    return moments


def score(tracker: Callable[[], AnyTracker], scenes: list[Scene], nusc: Any, sensors: Sequence[str]) -> dict[str, Any]:
    """The devkit's scores of a tracker on scenes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tracks.json"
        with TrackWriter(path, sensors) as writer:
            for scene in scenes:
                for moment, tracks in zip(scene, tracked(tracker(), scene), strict=True):
                    writer.add(moment.sample, tracks)
        return score_tracks(path, nusc, [moment.sample for scene in scenes for moment in scene])


if __name__ == "__main__":
    main()
