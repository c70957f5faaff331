"""What tasks draw: layers of boxes, rasters, points and voxels, for the report and viewers. numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from perception.frame import Boxes
from perception.grid import BevGrid
from perception.taxonomy import rgb

LOWEST_SCORE = 0.1  # of drawn boxes
COUNTED_SCORE = 0.3  # of detections that count as mistakes or matches; initial value of the report's slider

# perceived: filled from above, and its edges in the pictures; in the frame's reference.
# annotated: the same, dashed: white where a perceived box of the task finds it, else red.
# tracked: outlined from above, with its detail and a trail; in the global frame.
Style = Literal["perceived", "annotated", "tracked"]


@dataclass(frozen=True)
class BoxLayer:
    """N boxes with the same style; the name is a topic in a viewer's file and a checkbox of the report."""

    name: str  # unique among the layers of all tasks
    style: Style
    boxes: Boxes  # their labels are indices into `colours`
    colours: Mapping[str, str]  # of each class, "#rrggbb"
    shown: np.ndarray  # (N,) bool, boxes to draw; trails contain the others as well
    ids: Sequence[str]  # of each box, the same in all frames
    details: Sequence[str]  # text for each box besides its class
    faded: np.ndarray | None = None  # (N,) bool, boxes not detected in this frame, drawn dashed
    within: float | None = None  # m, where a predicted box of the same class matches an annotated one

    def select(self, index: np.ndarray) -> BoxLayer:
        """The layer with the boxes at the integer index (M,)."""
        return replace(
            self,
            boxes=self.boxes.select(index),
            shown=self.shown[index],
            ids=[self.ids[i] for i in index],
            details=[self.details[i] for i in index],
            faded=None if self.faded is None else self.faded[index],
        )

    def visible(self) -> BoxLayer:
        return self.select(np.flatnonzero(self.shown))

    def classes(self) -> list[str]:
        names = list(self.colours)
        return [names[label] for label in self.boxes.labels.tolist()]


@dataclass(frozen=True)
class RasterLayer:
    """A raster on the ground with the classes' probabilities as opacities; later classes are on top."""

    name: str  # as in BoxLayer
    probabilities: np.ndarray  # (C, rows, columns) on the grid
    grid: BevGrid
    colours: Mapping[str, str]  # of each of the C classes, "#rrggbb"


@dataclass(frozen=True)
class PointLayer:
    """N points with classes."""

    name: str  # as in BoxLayer
    points: np.ndarray  # (N, 3) m, in the frame's reference
    labels: np.ndarray  # (N,) int, indices into `colours`
    colours: Mapping[str, str]  # of each class, "#rrggbb"


@dataclass(frozen=True)
class VoxelLayer:
    """N occupied voxels with classes; free voxels are left out."""

    name: str  # as in BoxLayer
    centers: np.ndarray  # (N, 3) m, in the frame's reference
    labels: np.ndarray  # (N,) int, indices into `colours`
    edges: np.ndarray  # (3,) m, of a voxel along x, y and z
    colours: Mapping[str, str]  # of each class, "#rrggbb"


Layer = BoxLayer | RasterLayer | PointLayer | VoxelLayer


def colours_of(layer: PointLayer | VoxelLayer) -> np.ndarray:
    """(N, 3) uint8 RGB of the class of each point or voxel."""
    palette = np.array([rgb(colour) for colour in layer.colours.values()], np.uint8).reshape(-1, 3)
    return palette[layer.labels]
