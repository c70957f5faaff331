"""What tasks tell the vehicle's other software, whatever carries it there. numpy only."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from perception.frame import Boxes
from perception.io.section import Section, Share
from perception.tasks.drawing import COUNTED_SCORE
from perception.taxonomy import Taxonomy

FREE, TAKEN, UNKNOWN = 0, 100, -1  # of a cell of the ground, as in nav_msgs/OccupancyGrid


class ScoreThresholds(Section):
    """Lowest scores of detections that are published and that confirm tracks; the names are Autoware's."""

    default: Share = COUNTED_SCORE  # of the classes without an entry
    # m from the reference in the ground plane; the last range has no end, so that N bounds make N ranges.
    upper_bounds: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(), strict=False)
    # Class -> a threshold for each range.
    thresholds: dict[str, Annotated[tuple[Share, ...], Field(strict=False)]] = Field(default={})

    @model_validator(mode="after")
    def _require_ranges(self) -> ScoreThresholds:
        ranges = max(1, len(self.upper_bounds))
        if any(near >= far for near, far in pairwise(self.upper_bounds)):
            raise ValueError("upper_bounds must ascend")
        if wrong := [name for name, values in self.thresholds.items() if len(values) != ranges]:
            raise ValueError(f"thresholds.{wrong[0]} must have a threshold for each of the ranges, {ranges}")
        return self

    def require_classes(self, taxonomy: Taxonomy) -> None:
        if unknown := sorted(self.thresholds.keys() - set(taxonomy.class_names)):
            raise ValueError(f"score_thresholds: {unknown[0]!r} is not among the classes")

    def table(self, taxonomy: Taxonomy) -> np.ndarray:
        """(ranges, classes) thresholds."""
        default = (self.default,) * max(1, len(self.upper_bounds))
        return np.array([self.thresholds.get(name, default) for name in taxonomy.class_names]).T

    def reached(self, boxes: Boxes, place: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
        """(N,) bool: which boxes have the score of their class, at their distance from a place (2,) m."""
        distances = np.hypot(*(boxes.centers[:, :2] - place).T)
        ranges = np.searchsorted(self.upper_bounds[:-1], distances, side="right")
        return boxes.scores >= self.table(taxonomy)[ranges, boxes.labels]


@dataclass(frozen=True)
class Tracks:
    """N tracks at one time, in order of their ids."""

    ids: np.ndarray  # (N,) int, unique, from 1 on
    boxes: Boxes  # upright, in the global frame; `scores` are those of the tracks
    age: np.ndarray  # (N,) s since the first detection
    unseen: np.ndarray  # (N,) s since the latest detection; 0 if detected in this frame
    confirmed: np.ndarray  # (N,) bool
    variances: np.ndarray  # (N, 3) m^2, m^2, m^2/s^2: of the position along the ground, of the height, of the velocity

    def select(self, index: np.ndarray) -> Tracks:
        rows = {each.name: getattr(self, each.name)[index] for each in fields(self) if each.name != "boxes"}
        return Tracks(boxes=self.boxes.select(index), **rows)


class Cloud(NamedTuple):
    """N points or voxels with classes."""

    points: np.ndarray  # (N, >=3) m, in the frame's reference
    classes: np.ndarray  # (N,) uint8
    probabilities: np.ndarray  # (N,) float32
