"""Scores of the unknown obstacles of a replay: found ones, false alarms, and occupied space that objects explain.

An annotated obstacle is an object of no detection class with LiDAR or RADAR points. It is found in a frame if the
centre of an unknown obstacle is within REACH of its footprint. An unknown obstacle is a false alarm if it never is
within REACH of any annotated object, detection classes included: those are objects too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from perception.datasets.keyframes import Keyframes, Truth
from perception.errors import InputError
from perception.frame import Boxes
from perception.tasks.judging import GateMetric, Judge, Range, Subject, Unmeasured
from perception.tasks.occupancy.footprints import distances
from perception.tasks.occupancy.obstacle_file import FrameObstacles, read_obstacles

REACH = 1.0  # m on the ground


def obstacle_truth(source: Keyframes | None, token: str) -> dict[str, Any] | None:
    """Annotations of a keyframe for JSON, as `truth` in the statistics of a frame; None without annotations.

    `obstacles` and `objects` of detection classes are rows of x, y, width, length, yaw, points in the global frame.
    """
    truth = Truth() if source is None else source.truth(token)
    obstacles, objects = truth.obstacles(), truth.boxes()
    if obstacles is None or objects is None:
        return None
    return {"obstacles": _rows(obstacles), "objects": _rows(objects)}


def _rows(boxes: Boxes) -> list[list[float]]:
    columns = [boxes.centers[:, :2], boxes.sizes[:, :2], boxes.yaws, boxes.num_points]
    return list(np.column_stack(columns).tolist())


def _boxes(rows: list[list[float]]) -> Boxes:
    values = np.array(rows, np.float64).reshape(-1, 6)
    zeros = np.zeros(len(values))
    centers, sizes = (np.column_stack([values[:, start : start + 2], zeros]) for start in (0, 2))
    return Boxes.from_yaws(centers, sizes, values[:, 4], np.zeros((len(values), 2)), zeros, zeros, zeros)


def found_and_real(centers: np.ndarray, truth: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """For each annotated obstacle whether it is found, (A,), and for each predicted one whether it is real, (P,).

    Args:
        centers: (P, >=2) m of the predicted obstacles, global frame.
        truth: of the frame, from `obstacle_truth`.
    """
    obstacles, objects = _boxes(truth["obstacles"]), _boxes(truth["objects"])
    found = (distances(centers, obstacles) <= REACH).any(axis=0)
    real = (distances(centers, Boxes.joined(obstacles, objects)) <= REACH).any(axis=1)
    return found, real


class ObstacleJudge(Judge):
    """Judges obstacles.json.

    scene_obstacle_recall      share of the annotated obstacles that are found, over all frames
    scene_obstacle_precision   share of the ids of unknown obstacles that are no false alarms
    explained                  share of the occupied voxels of detection classes that objects explain
    """

    metrics: ClassVar[Mapping[str, GateMetric]] = {
        "scene_obstacle_recall": GateMetric(),
        "scene_obstacle_precision": GateMetric(),
        "explained": GateMetric("class_names", ranged=False),
    }

    def score(self, subject: Subject, draws: np.ndarray | None = None) -> np.ndarray:
        counts = self.counts(subject)
        part, whole = ((np.ones((1, len(counts))) if draws is None else draws) @ counts).T
        return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

    def sizes(self, subject: Subject) -> np.ndarray:
        whole = self.counts(subject)[:, 1]
        return np.asarray(whole / whole.sum())

    def same_results(self, other: ObstacleJudge, subject: Subject) -> bool:
        return bool((self.counts(subject) == other.counts(subject)).all())

    def usual_differences(self) -> tuple[str, ...]:
        """Also without annotations: a class that is no longer detected leaves its voxels unexplained."""
        annotated = any(each and each["truth"] for each in self.frames.statistics)
        return ("scene_obstacle_recall", "explained") if annotated else ("explained",)

    def counts(self, subject: Subject) -> np.ndarray:
        """(S, 2) of each scene: number of successes, and how many there could be.

        Raises:
            Unmeasured: there could be none.
        """
        count = {
            "scene_obstacle_recall": self._found,
            "scene_obstacle_precision": self._real,
            "explained": self._explained,
        }[subject.metric]
        counts = np.zeros((self.frames.scenes.max() + 1, 2))
        for scene in np.unique(self.frames.scenes[self.frames.known(subject.condition)]):
            counts[scene] = count(int(scene), subject)
        if not counts[:, 1].any():
            raise Unmeasured(f"there is nothing to count for {subject.metric}{subject.where}")
        return counts

    @cached_property
    def _read(self) -> list[FrameObstacles]:
        try:
            return read_obstacles(self.frames.folder, self.frames.tokens)
        except InputError as error:
            raise Unmeasured(str(error)) from None

    def _chosen(self, scene: int, subject: Subject) -> list[int]:
        """Frames of a scene in the subject's condition."""
        frames = self.frames.known(subject.condition) & (self.frames.scenes == scene)
        return list(np.flatnonzero(frames).tolist())

    def _annotated(self, scene: int, subject: Subject) -> list[tuple[int, Mapping[str, Any]]]:
        statistics = self.frames.statistics
        parts = [(i, statistics[i]) for i in self._chosen(scene, subject)]
        return [(i, part["truth"]) for i, part in parts if part and part["truth"]]

    def _found(self, scene: int, subject: Subject) -> tuple[int, int]:
        successes = cases = 0
        for i, truth in self._annotated(scene, subject):
            rows = np.array(truth["obstacles"], np.float64).reshape(-1, 6)
            counted = (rows[:, 5] > 0) & self._within(rows, i, subject.range)
            found, _ = found_and_real(self._read[i].centers, truth)
            successes += int((found & counted).sum())
            cases += int(counted.sum())
        return successes, cases

    def _real(self, scene: int, subject: Subject) -> tuple[int, int]:
        seen: dict[int, bool] = {}  # by id, whether it was real in any frame
        for i, truth in self._annotated(scene, subject):
            obstacles = self._read[i]
            _, real = found_and_real(obstacles.centers, truth)
            within = self._within(obstacles.centers, i, subject.range)
            for name, each in zip(obstacles.ids[within].tolist(), real[within].tolist(), strict=True):
                seen[name] = seen.get(name, False) or each
        return sum(seen.values()), len(seen)

    def _explained(self, scene: int, subject: Subject) -> tuple[int, int]:
        frames = self._chosen(scene, subject)
        occupied, lost = np.sum([self._read[i].voxels for i in frames], axis=0)
        if subject.class_ is not None:
            label = self.frames.taxonomy.label(subject.class_)
            occupied, lost = occupied[[label]], lost[[label]]
        return int((occupied - lost).sum()), int(occupied.sum())

    def _within(self, places: np.ndarray, frame: int, bounds: Range) -> np.ndarray:
        """(P,) bool of places (P, >=2) in the global frame: those in the range from the vehicle."""
        distance = np.linalg.norm(places[:, :2] - self.frames.egos[frame], axis=1)
        low, high = bounds or (0.0, np.inf)
        return np.asarray((distance >= low) & (distance < high))
