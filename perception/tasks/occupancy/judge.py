"""Judges the occupancy of a finished replay: IoU by class, and recall of unknown obstacles. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from perception.tasks.judging import GateMetric, Subject, Unmeasured, mean_shares
from perception.tasks.occupancy.confusion import ious
from perception.tasks.occupancy.obstacle_recall import ObstacleJudge
from perception.tasks.rings import RING, rings


class OccupancyJudge(ObstacleJudge):
    """Judges the voxels that the cameras or the LiDAR see, clusters of voxels of no known class, and obstacles.json."""

    metrics: ClassVar[Mapping[str, GateMetric]] = {
        **ObstacleJudge.metrics,
        "occupancy_IoU": GateMetric("voxel_names", step=RING),
        "obstacle_recall": GateMetric(),
    }

    def score(self, subject: Subject, draws: np.ndarray | None = None) -> np.ndarray:
        """(R,) recall; or IoU of a class, or the mean over the classes that are annotated."""
        if subject.metric in ObstacleJudge.metrics:
            return super().score(subject, draws)
        per_scene = self._obstacles(subject) if subject.metric == "obstacle_recall" else self._voxels(subject)
        draws = np.ones((1, len(per_scene))) if draws is None else draws
        summed = np.tensordot(draws.astype(np.float64), per_scene, 1)
        if subject.metric == "obstacle_recall":
            if not per_scene[:, 1].any():
                raise Unmeasured(f"no unknown obstacle is annotated{subject.where}")
            return np.divide(summed[:, 0], summed[:, 1], out=np.zeros(len(summed)), where=summed[:, 1] > 0)
        found = np.where(summed[:, 2] > 0, ious(summed), np.nan)
        if subject.class_ is not None:
            found = found[:, [self.frames.taxonomy.voxel_names.index(subject.class_)]]
        present = ~np.isnan(found)
        if not present.any():
            raise Unmeasured(f"no voxel of {subject.class_ or 'any class'} is annotated{subject.where}")
        number = present.sum(axis=1)
        return np.divide(np.nansum(found, axis=1), number, out=np.zeros(len(found)), where=number > 0)

    def sizes(self, subject: Subject) -> np.ndarray:
        """(S,) share of each scene in the obstacles; or in the voxels, averaged over the classes."""
        if subject.metric in ObstacleJudge.metrics:
            return super().sizes(subject)
        if subject.metric == "obstacle_recall":
            return mean_shares(self._obstacles(subject)[:, 1:])
        true = self._voxels(subject)[:, 2]
        names = self.frames.taxonomy.voxel_names
        return mean_shares(true if subject.class_ is None else true[:, [names.index(subject.class_)]])

    def same_results(self, other: ObstacleJudge, subject: Subject) -> bool:
        """Whether all that is counted in a frame is the same."""
        if subject.metric in ObstacleJudge.metrics:
            return super().same_results(other, subject)
        known = self.frames.known(subject.condition)
        pairs = zip(self.frames.statistics, other.frames.statistics, known, strict=True)
        return all(mine == others for mine, others, there in pairs if there)

    def _voxels(self, subject: Subject) -> np.ndarray:
        """(S, 3, classes) intersection, union and truth of each scene."""
        return self._summed(
            "counts", subject, lambda counts: np.array(counts)[rings(subject.range)].sum(axis=0), "voxels"
        )

    def _obstacles(self, subject: Subject) -> np.ndarray:
        """(S, 2) found and annotated obstacles of each scene."""
        low, high = subject.range or (0.0, np.inf)

        def counted(obstacles: list[tuple[float, bool]]) -> np.ndarray:
            within = [found for distance, found in obstacles if low <= distance < high]
            return np.array([sum(within), len(within)])

        return self._summed("obstacles", subject, counted, "unknown obstacles")

    def _summed(self, part: str, subject: Subject, counted: Any, what: str) -> np.ndarray:
        known, scenes = self.frames.known(subject.condition), self.frames.scenes
        frames = [
            (scene, counted(each[part]))
            for scene, each, there in zip(scenes, self.frames.statistics, known, strict=True)
            if there and each and each[part] is not None
        ]
        if not frames:
            raise Unmeasured(f"there are no annotated {what}{subject.where}, or the network has no occupancy")
        per_scene = np.zeros((scenes.max() + 1, *np.shape(frames[0][1])))
        for scene, counts in frames:
            per_scene[scene] += counts
        return per_scene
