"""Which objects of a data set may move, and which returns are of them. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.datasets.occupancy.objects import MARGIN, Motion, owners
from perception.datasets.occupancy.returns import NONE, UNKNOWN, Returns
from perception.errors import InputError
from perception.frame import Boxes
from perception.taxonomy import Taxonomy

_ROAD = 0.2  # m above the bottom of a box, where points without a class are the road's


class Movable:
    """The annotated objects of a data set that may move, and the point classes that they have."""

    def __init__(self, source: Keyframes) -> None:
        self._source, taxonomy = source, source.taxonomy
        self._moves = np.array([*(not each.static for each in taxonomy.classes), True])  # by label; the last of -1
        self._class_of_label = _point_classes(taxonomy)
        self._classes = np.setdiff1d(self._class_of_label[self._moves], NONE)

    def boxes(self, sample: str) -> Boxes:
        """In the global frame, with the label -1 for those of no detection class; InputError without annotations."""
        truth = self._source.truth(sample)
        boxes, others = truth.boxes(), truth.obstacles()
        if boxes is None:
            raise InputError(
                f"{self._source.dataroot}: keyframe {sample} has no boxes, and what moves would leave a trail; "
                "annotate drives that have them"
            )
        return boxes if others is None else Boxes.joined(boxes, others)

    def assigned(self, returns: Returns, motion: Motion, seconds: float) -> Assigned:
        """Which returns are of which object.

        A return in the box of an object that may move is the object's if its class is one that such objects have.
        Without a class it is, too, unless it is at the bottom of the box. Returns in any box get their class from it
        if they have none.

        Args:
            motion: of the boxes in the `seconds` before the keyframe.
        """
        shares = np.where(returns.own, 1, 1 - returns.ages / seconds)
        owner, local = owners(returns.points, shares, motion, MARGIN)
        bottoms = np.append(-motion.end.sizes[:, 2] / 2, 0)[owner]
        thing = np.isin(returns.classes, self._classes)
        low = (returns.classes == UNKNOWN) & (local[:, 2] < bottoms + _ROAD)
        label = np.append(motion.end.labels, -1)[owner]
        given = (returns.classes == UNKNOWN) & (owner >= 0) & ~low
        classes = np.where(given, self._class_of_label[label], returns.classes)
        owner = np.where((thing | (returns.classes < 0)) & ~low & self._moves[label], owner, -1)
        return Assigned(shares, owner, local, classes.astype(np.int16), (owner < 0) & ~thing)


@dataclass(frozen=True)
class Assigned:
    """Of N returns."""

    shares: np.ndarray  # (N,) of the time from the keyframe before; 1 at the keyframe
    owner: np.ndarray  # (N,) int64 index of the box, -1 for none
    local: np.ndarray  # (N, 3) m in the frame of that box
    classes: np.ndarray  # (N,) int16, with those that follow from the box
    static: np.ndarray  # (N,) bool: of nothing that may move; neither: of an object's class, but in no box


def _point_classes(taxonomy: Taxonomy) -> np.ndarray:
    """(C + 1,) point class of each detection class, by their categories in the data set; NONE where there is none, and
    for label -1."""
    labels = taxonomy.point_labels_of_categories()
    found = [[labels[c] for c in each.categories or (each.name,) if c in labels] for each in taxonomy.classes]
    return np.array([*((each[0] if each else NONE) for each in found), NONE], np.int16)
