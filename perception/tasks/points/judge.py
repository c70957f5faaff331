"""Judges the classes of points of a finished replay: IoU by class, and agreement with another replay. numpy only."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from perception.tasks.judging import GateMetric, RingJudge, Subject, Unmeasured, mean_shares
from perception.tasks.points.iou import NONE, ious
from perception.tasks.rings import RING


def pack(classes: np.ndarray) -> str:
    """Classes (K,) uint8 for JSON."""
    return base64.b64encode(zlib.compress(classes.tobytes(), 9)).decode()


def unpack(packed: str) -> np.ndarray:
    """The inverse of `pack`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)


class PointsJudge(RingJudge):
    """Judges the likeliest class of each point."""

    without: ClassVar[str] = "the drive has no annotated points"
    metrics: ClassVar[Mapping[str, GateMetric]] = {"points": GateMetric("point_names", step=RING)}
    agreements: ClassVar[Mapping[str, GateMetric]] = {"point_classes": GateMetric("point_names", ranged=False)}

    def score(self, subject: Subject, draws: np.ndarray | None = None) -> np.ndarray:
        """(R,) IoU of a class, or the mean over the classes that occur."""
        per_scene = self.by_scene(subject)
        draws = np.ones((1, len(per_scene))) if draws is None else draws
        found = ious(np.tensordot(draws.astype(np.float64), per_scene, 1))
        if subject.class_ is not None:
            found = found[:, [self._label(subject.class_)]]
        present = ~np.isnan(found)
        if not present.any():
            raise Unmeasured(f"no point{f' of {subject.class_}' if subject.class_ else ''} is annotated{subject.where}")
        sums, number = np.nansum(found, axis=1), present.sum(axis=1)
        return np.divide(sums, number, out=np.zeros_like(sums), where=number > 0)

    def sizes(self, subject: Subject) -> np.ndarray:
        """(S,) share of each scene in the annotated points, averaged over the classes."""
        true = self.by_scene(subject)[:, 2]
        if subject.class_ is not None:
            true = true[:, [self._label(subject.class_)]]
        return mean_shares(true)

    def same_results(self, other: PointsJudge, subject: Subject) -> bool:
        return bool((self.by_scene(subject) == other.by_scene(subject)).all())

    def agreement(self, other: PointsJudge, subject: Subject, score: float, metres: float) -> tuple[float, str]:
        """Share of the points with equal classes; of a class: among those to which either replay gives it."""
        same = either = 0
        for i in np.flatnonzero(self.frames.known(subject.condition)):
            parts = [judge.frames.statistics[i] for judge in (self, other)]
            classes = [unpack(part["classes"]) for part in parts if part is not None]
            if len(classes) < 2:
                continue
            if len(classes[0]) != len(classes[1]):
                raise Unmeasured("the networks take different numbers of points")
            wanted = range(NONE) if subject.class_ is None else [self._label(subject.class_)]
            chosen = np.isin(classes[0], wanted) | np.isin(classes[1], wanted)
            same += np.count_nonzero(chosen & (classes[0] == classes[1]))
            either += np.count_nonzero(chosen)
        if not either:
            raise Unmeasured(f"neither replay has a point{f' of {subject.class_}' if subject.class_ else ''}")
        return same / either, ""

    def _label(self, name: str) -> int:
        return self.frames.taxonomy.point_names.index(name)
