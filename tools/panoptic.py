"""Panoptic quality of classes and objects of points. numpy only.

Kirillov et al., "Panoptic segmentation", CVPR 2019, equation 1; for points as in Fong et al., "Panoptic nuScenes",
2022:
segments with few points are neither missed nor false, points without an annotated class count nowhere.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perception.frame import Boxes

FEWEST = 15  # points of a segment that counts as missed or false, as in nuScenes' panoptic benchmark


class PanopticCounts(NamedTuple):
    """Segments of each class over some frames; a segment is an object, or all points of a class without objects."""

    overlap: np.ndarray  # (classes,) sum of the IoU of the matched segments
    matched: np.ndarray  # (classes,) pairs with an IoU above one half
    false: np.ndarray  # (classes,) predicted segments without a match
    missed: np.ndarray  # (classes,) annotated segments without a match

    def plus(self, other: PanopticCounts) -> PanopticCounts:
        """Of the frames of both."""
        return PanopticCounts(*(mine + others for mine, others in zip(self, other, strict=True)))

    def qualities(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(classes,) panoptic, segmentation and recognition quality; NaN for classes without segments."""
        number = self.matched + 0.5 * self.false + 0.5 * self.missed
        recognition = np.divide(self.matched, number, out=np.full(len(number), np.nan), where=number > 0)
        segmentation = np.divide(self.overlap, self.matched, out=np.zeros(len(number)), where=self.matched > 0)
        segmentation = np.where(number > 0, segmentation, np.nan)
        return recognition * segmentation, segmentation, recognition


def panoptic_counts(
    predicted: np.ndarray, objects: np.ndarray, truth: np.ndarray, true_objects: np.ndarray, classes: int
) -> PanopticCounts:
    """Matches the segments of one frame.

    Args:
        predicted: (M,) class of each point; values that are no class belong to no segment.
        objects: (M,) object of each point, any number; equal ones of one class are a segment.
        truth: (M,) annotated class; points with -1 are left out.
        true_objects: (M,) annotated object.
    """
    known = truth >= 0
    mine, my_class, my_size = _segments(predicted[known], objects[known], classes)
    theirs, their_class, their_size = _segments(truth[known], true_objects[known], classes)
    both = (mine >= 0) & (theirs >= 0)
    pairs, shared = np.unique(mine[both] * max(1, len(their_size)) + theirs[both], return_counts=True)
    i, j = np.divmod(pairs, max(1, len(their_size)))
    iou = shared / (my_size[i] + their_size[j] - shared)
    found = (iou > 0.5) & (my_class[i] == their_class[j])
    i, j, iou = i[found], j[found], iou[found]

    def count(of_class: np.ndarray, sizes: np.ndarray, matched: np.ndarray) -> np.ndarray:
        left = sizes >= FEWEST
        left[matched] = False
        return np.bincount(of_class[left], minlength=classes)

    overlap = np.bincount(their_class[j], weights=iou, minlength=classes)
    matched = np.bincount(their_class[j], minlength=classes)
    return PanopticCounts(overlap, matched, count(my_class, my_size, i), count(their_class, their_size, j))


def _segments(labels: np.ndarray, objects: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segment of each point (-1: none), and class and number of points of each segment."""
    segment = np.full(len(labels), -1, np.int64)
    there = np.flatnonzero((labels >= 0) & (labels < classes))
    keys = np.stack([labels[there].astype(np.int64), objects[there].astype(np.int64)], axis=1)
    found, place, sizes = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    segment[there] = place.reshape(-1)
    return segment, found[:, 0], sizes


def objects_of_points(points: np.ndarray, boxes: Boxes, chosen: np.ndarray) -> np.ndarray:
    """(M,) index of the box around each point (M, >=3), -1 for none; of several boxes the one with the nearest centre.

    Args:
        boxes: in the frame of reference of the points.
        chosen: (M, B) bool, or broadcast to it: the boxes that a point can belong to, such as those of its class.
    """
    nearest, owner = np.full(len(points), np.inf), np.full(len(points), -1)
    chosen = np.broadcast_to(chosen, (len(points), len(boxes)))
    half = boxes.sizes[:, [1, 0, 2]] / 2  # length, width, height
    for i in range(len(boxes)):
        offset = points[:, :3] - boxes.centers[i]
        distance = np.linalg.norm(offset, axis=1)
        near = np.flatnonzero(chosen[:, i] & (distance <= np.linalg.norm(half[i])) & (distance < nearest))
        inside = near[(np.abs(offset[near] @ boxes.rotations[i]) <= half[i]).all(axis=1)]
        nearest[inside], owner[inside] = distance[inside], i
    return owner
