"""Disagreement of occupancy and objects: voxels of detected classes where no object is. numpy only.

A detector that misses a class leaves the voxels of this class unexplained. No annotation is needed to see it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perception.frame import Boxes
from perception.tasks.drawing import COUNTED_SCORE
from perception.tasks.occupancy.footprints import covered
from perception.tasks.occupancy.unknown import MARGIN
from perception.taxonomy import Taxonomy
from perception.voxels import VoxelGrid

VOXELS = 20  # of a class in a frame, below which nothing follows from them
SHARE = 0.7  # of the voxels of a class, above which its objects seem to be missed
FRAMES = 3  # in sequence


def unexplained_voxels(classes: np.ndarray, grid: VoxelGrid, boxes: Boxes, taxonomy: Taxonomy) -> np.ndarray:
    """(2, C) int: for each detection class its occupied voxels, and those of them that no box explains.

    A box explains the voxels of its class within MARGIN of its footprint, and from COUNTED_SCORE on those of all
    classes: a detector with hundreds of unlikely boxes has one of some class nearly everywhere.

    Args:
        classes: (levels, rows, columns), index into `occupancy_classes`.
        boxes: in the reference frame of the grid.
    """
    label_of = detection_labels(taxonomy)
    labels = label_of[classes]
    movable = labels >= 0
    labels, centers = labels[movable], grid.centers()[movable].astype(np.float64)
    lost, count = ~covered(centers, boxes.select(boxes.scores >= COUNTED_SCORE), MARGIN), len(taxonomy.classes)
    for label in np.unique(labels[lost]).tolist():
        own = np.flatnonzero(lost & (labels == label))
        lost[own] = ~covered(centers[own], boxes.select(boxes.labels == label), MARGIN)
    return np.stack([np.bincount(labels, minlength=count), np.bincount(labels[lost], minlength=count)])


class Doubts:
    """Detection classes whose objects seem to be missed, over one drive.

    Args:
        names: of the detection classes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._frames = names, np.zeros(len(names), np.int64)

    def update(self, voxels: np.ndarray) -> dict[str, str]:
        """Class -> reason, after one more frame.

        Args:
            voxels: (2, C) from `unexplained_voxels`.
        """
        occupied, lost = voxels
        self._frames = np.where((occupied >= VOXELS) & (lost > SHARE * occupied), self._frames + 1, 0)
        return {
            self._names[i]: f"no object at {lost[i]} of {occupied[i]} occupied voxels, {self._frames[i]} frames so far"
            for i in np.flatnonzero(self._frames >= FRAMES).tolist()
        }


def detection_labels(taxonomy: Taxonomy) -> np.ndarray:
    """(classes of voxels,) int: the detection class with a category of each class of voxels; -1 for none."""
    label_of = taxonomy.labels_of_categories()
    found = [-1]  # others
    for each in taxonomy.point_classes:
        own = {label_of.get(category, -1) for category in each.categories or (each.name,)}
        found.append(own.pop() if len(own) == 1 else -1)
    return np.array([*found, -1])  # free
