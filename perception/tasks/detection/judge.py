"""Judges the detections of a finished replay: mAP, NDS, AP by class, AMOTA, and agreement with another replay."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.files import write_atomically
from perception.tasks.detection.columns import BoxColumns, read_submission
from perception.tasks.detection.files import RESULTS, TRACKING, TRACKS
from perception.tasks.detection.matching import match
from perception.tasks.detection.scores import DetectionScores, Scores
from perception.tasks.judging import GateMetric, Judge, Range, ReplayedFrames, Subject, Unmeasured, mean_shares


def truth_of(source: Keyframes | None, token: str) -> dict[str, Any] | None:
    """The annotations of a keyframe for JSON; None without annotations.

    `boxes` are rows of label, x y z, w l h, yaw, vx vy, attribute, score, points; `bike_racks` of centre, size and
    rotation. All in the global frame.
    """
    boxes = None if source is None else source.boxes(token)
    if source is None or boxes is None:
        return None
    rows = np.column_stack(
        [
            boxes.labels, boxes.centers, boxes.sizes, boxes.yaws, boxes.velocities[:, :2],
            boxes.attributes, boxes.scores, boxes.num_points,
        ]
    )  # fmt: skip
    known = [[None if math.isnan(number) else number for number in row] for row in rows.tolist()]
    return {"boxes": known, "bike_racks": source.bicycle_racks().get(token, [])}


class DetectionJudge(Judge):
    """Judges detections by the devkit's metrics."""

    metrics: ClassVar[Mapping[str, GateMetric]] = {
        "mAP": GateMetric(),
        "NDS": GateMetric(),
        "AP": GateMetric("class_names", each=True),
        "AMOTA": GateMetric(ranged=False, whole=True),
    }
    agreements: ClassVar[Mapping[str, GateMetric]] = {"detections": GateMetric("class_names")}
    files = (TRACKING,)

    def __init__(self, frames: ReplayedFrames) -> None:
        super().__init__(frames)
        self._matched = lru_cache(maxsize=None)(self._match)
        self._scored: dict[tuple[str | None, Range, bytes], Scores] = {}

    @cached_property
    def truth(self) -> BoxColumns | None:
        """Scored annotations; None if a frame has none."""
        truths = self._truths
        if len(truths) < len(self.frames):
            return None
        rows = [[i, *box] for i, truth in truths.items() for box in truth["boxes"]]
        return self._counted(BoxColumns.of(np.array(rows, np.float64).reshape(-1, 14)))

    @cached_property
    def detections(self) -> BoxColumns:
        """Scored detections, in the order of the file."""
        frame_of = {token: i for i, token in enumerate(self.frames.tokens)}
        return self._counted(read_submission(self.frames.folder / RESULTS, frame_of, self.frames.taxonomy))

    @property
    def _truths(self) -> dict[int, Any]:
        """Index of an annotated frame -> its annotations."""
        return {i: each["truth"] for i, each in enumerate(self.frames.statistics) if each and each["truth"]}

    def _counted(self, boxes: BoxColumns) -> BoxColumns:
        bicycle_racks = [[i, *rack] for i, truth in self._truths.items() for rack in truth["bike_racks"]]
        racks = np.array(bicycle_racks, np.float64).reshape(-1, 11)
        return boxes.counted(self.frames.egos, racks, self.frames.taxonomy)

    def score(self, subject: Subject, draws: np.ndarray | None = None) -> np.ndarray:
        metric, class_, condition, bounds = subject
        if metric == "AMOTA":
            return self._amota()
        scores = self._matched(condition, bounds)
        key = condition, bounds, b"" if draws is None else draws.tobytes()
        if key not in self._scored:
            self._scored[key] = scores.scored(draws)
        scored = self._scored[key]
        if metric == "AP":
            label = self.frames.taxonomy.label(str(class_))
            if not scores.annotated[:, label].any():
                raise Unmeasured(f"no {class_} is annotated{subject.where}")
            return scored.class_aps[:, label]
        return scored.mean_ap if metric == "mAP" else scored.nds

    def sizes(self, subject: Subject) -> np.ndarray:
        """(S,) share of each scene in the annotated boxes, averaged over the classes."""
        there = self._matched(subject.condition, subject.range).annotated
        there = there if subject.class_ is None else there[:, [self.frames.taxonomy.label(subject.class_)]]
        return mean_shares(there)

    def same_results(self, other: DetectionJudge, subject: Subject) -> bool:
        return self._chosen(subject, self.detections).equals(other._chosen(subject, other.detections))

    def measure_whole(self, source: Keyframes) -> None:
        """The devkit scores the tracks; without one, as on a vehicle, AMOTA is not measured."""
        from perception.tasks.detection.devkit import DEVKITS, open_devkit

        scoring = DEVKITS.get(self.frames.taxonomy.devkit or "")
        if scoring is None or not scoring.tracking:
            return
        if any(find_spec(name) is None for name in (scoring.package, "motmetrics")):
            return
        from perception.tasks.detection.tracking import score_tracks

        folder, devkit = self.frames.folder, open_devkit(source.dataroot, source.version)
        scores = score_tracks(folder / TRACKS, devkit, self.frames.tokens)
        write_atomically(folder / TRACKING, json.dumps(scores, indent=2).encode())

    def annotated_classes(self, subject: Subject) -> list[str]:
        there = self._matched(subject.condition, subject.range).annotated.any(axis=0)
        return [name for name, present in zip(self.frames.taxonomy.class_names, there, strict=True) if present]

    def agreement(self, other: DetectionJudge, subject: Subject, score: float, metres: float) -> tuple[float, str]:
        """2 M / (A + B) for A and B detections above the score, M of them matched."""
        sides = []
        for judge in (self, other):
            boxes = judge._chosen(subject, judge.detections)
            sides.append(boxes.select(boxes.scores >= score))
        here, there = map(len, sides)
        if not here + there:
            raise Unmeasured(f"neither replay detects anything with a score of {score:g}{subject.where}")
        matched = (match(sides[1], sides[0], (metres,)) >= 0).sum()
        return float(2 * matched / (here + there)), f" of {here} detections and the baseline's {there}"

    def usual_differences(self) -> Sequence[str]:
        return () if self.truth is None else ("mAP", "NDS")

    def usual_agreements(self) -> Sequence[str]:
        return ("detections",) if self.truth is None else ()

    def _amota(self) -> np.ndarray:
        try:
            scores = json.loads((self.frames.folder / TRACKING).read_text(encoding="utf-8"))
            return np.array([float(scores["amota"])])
        except (OSError, ValueError, KeyError, TypeError):
            raise Unmeasured(
                "AMOTA needs annotations, every keyframe, nuscenes-devkit with motmetrics, and a replay with this gate"
            ) from None

    def _match(self, condition: str | None, bounds: Range) -> DetectionScores:
        if self.truth is None:
            raise Unmeasured("the drive has no annotations")
        subject = Subject("", None, condition, bounds)
        sides = [self._chosen(subject, boxes) for boxes in (self.truth, self.detections)]
        return DetectionScores(sides[0], sides[1], self.frames.scenes, self.frames.taxonomy)

    def _chosen(self, subject: Subject, boxes: BoxColumns) -> BoxColumns:
        chosen = self.frames.known(subject.condition)[boxes.frames]
        if subject.range is not None:
            chosen &= boxes.within(subject.range, self.frames.egos)
        if subject.class_ is not None:
            chosen &= boxes.labels == self.frames.taxonomy.label(subject.class_)
        return boxes.select(chosen)
