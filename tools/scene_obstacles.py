"""Unknown obstacles that the scene follows on held-out drives: how many are found, and how many are none.

An annotated obstacle with a LiDAR point within NEAR of the vehicle counts once in a drive; it is found if the scene has
an obstacle within REACH of it in any of these frames. A false alarm is an id that never is within REACH of an annotated
object; it counts once, too. `evaluate` counts both in every frame, of single frames (docs/occupancy.md).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.tables import only_version
from perception.frame import Boxes, Frame
from perception.predict import TorchPredictor
from perception.scene.scene import Scene, SceneFrame
from perception.tasks.occupancy.obstacle_scores import CURVE, REACH, driven
from perception.tasks.occupancy.obstacles import Obstacles, ObstacleTracker, cluster_boxes, distances, obstacle_clusters
from perception.tasks.occupancy.result import OccupancyResult

NEAR = 30.0  # m


class DriveCount:
    """Obstacles and false alarms of one drive, at one probability of voxels."""

    def __init__(self, probability: float) -> None:
        self.probability = probability
        self._tracker = ObstacleTracker()
        self.found: set[str] = set()  # instances
        self._real: dict[int, bool] = {}  # by id, whether it was at an annotated object in any frame

    def add(self, frame: Frame, state: OccupancyResult, objects: Boxes, near: Boxes, every: Boxes) -> None:
        """Add a frame: fused occupancy, objects of the scene, annotated obstacles nearby, all annotated objects."""
        seen = obstacle_clusters(state, state.grid, self.probability)
        boxes = cluster_boxes(seen.centers, seen.sizes, seen.probabilities).transformed(frame.global_from_reference)
        obstacles: Obstacles = self._tracker.update(boxes, objects)
        at = distances(obstacles.boxes.centers, near) <= REACH
        self.found |= set(near.instances[at.any(axis=0)].tolist())
        real = (distances(obstacles.boxes.centers, every) <= REACH).any(axis=1)
        for name, is_real in zip(obstacles.ids.tolist(), real.tolist(), strict=True):
            self._real[name] = self._real.get(name, False) or is_real

    @property
    def alarms(self) -> int:
        return sum(not real for real in self._real.values())


def scene_obstacles(run: Path, drives: Keyframes, scenes: Sequence[str]) -> dict[str, Any]:
    """Obstacles, metres driven, and for each probability of CURVE the recall and false alarms per 100 m.

    Args:
        run: a checkpoint with detection and occupancy.
    """
    predictor = TorchPredictor.load(run)
    metres, there, found, alarms = 0.0, 0, np.zeros(len(CURVE)), np.zeros(len(CURVE))
    for scene in scenes:
        counts = [DriveCount(probability) for probability in CURVE]
        annotated, places = set[str](), []
        for frame, seen in _perceive(predictor, drives, scene):
            recording = drives.recording(frame.token)
            obstacles, objects = recording.annotated("obstacles"), recording.annotated("boxes")
            assert obstacles is not None
            assert objects is not None
            ego = frame.global_from_ego[:2, 3]
            counted = (np.linalg.norm(obstacles.centers[:, :2] - ego, axis=1) < NEAR) & (obstacles.num_points > 0)
            near = obstacles.select(counted)
            annotated |= set(near.instances.tolist())
            places.append(ego)
            known = predictor.model.tasks["detection"].objects(seen.states["detection"])
            for each in counts:
                each.add(frame, seen.states["occupancy"].fused, known, near, Boxes.joined(obstacles, objects))
        metres += driven(np.array(places), np.zeros(len(places)))
        there += len(annotated)
        found += [len(each.found) for each in counts]
        alarms += [each.alarms for each in counts]
    rows = [
        {"probability": p, "recall": f / there if there else None, "false_alarms_per_100_m": 100 * a / metres}
        for p, f, a in zip(CURVE, found.tolist(), alarms.tolist(), strict=True)
    ]
    return {"obstacles": there, "metres": metres, "curve": rows}


def _perceive(predictor: TorchPredictor, drives: Keyframes, scene: str) -> Iterator[tuple[Frame, SceneFrame]]:
    """The frames of a drive, and what a scene makes of them."""
    spec = predictor.spec
    state = Scene(spec.rig.sensors, predictor.model.tasks, drives.taxonomy.conditions)
    for token in drives.samples(selectors=[scene]):
        frame = drives.frame(token, Reads(sweeps=spec.sweeps))
        state.observe(frame)
        yield frame, state.update(frame, predictor(frame))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="sim_val")
    parser.add_argument("--scenes", default="", help="only these: scene-0001,scene-0002")
    arguments = parser.parse_args()
    drives = NuScenesTables(arguments.data, only_version(arguments.data))
    scenes = drives.scenes(arguments.split, [name for name in arguments.scenes.split(",") if name])
    print(json.dumps(scene_obstacles(arguments.run, drives, scenes)))


if __name__ == "__main__":
    main()
