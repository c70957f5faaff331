"""What the LiDARs returned, and which object each return is of."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from perception.datasets.keyframes import Keyframes, Reads
from perception.errors import InputError
from perception.frame import Boxes, Frame
from perception.geometry import axes_and_angles
from perception.taxonomy import Taxonomy

NONE, UNKNOWN = -1, -2  # annotated as none of the point classes; not annotated
MARGIN = 0.1  # m, by which parts of an object, such as mirrors, may be outside its box
_ROAD = 0.2  # m above the bottom of a box, where points without a class are the road's
_OWN_VEHICLE = 1.5  # m from the LiDAR, within which it meets the roof that it stands on


@dataclass(frozen=True)
class Returns:
    """N returns, in one frame of reference."""

    points: np.ndarray  # (N, 3) float64 m
    origins: np.ndarray  # (N, 3) float64 m, where the LiDAR was when it measured the point
    classes: np.ndarray  # (N,) int16 index of the point class, NONE or UNKNOWN
    ages: np.ndarray  # (N,) s, from the point to the keyframe
    sweeps: np.ndarray  # (N,) uint8 as `Frame.sweep_of_point`
    lidars: np.ndarray  # (N,) uint8 as `Frame.lidar_of_point`

    @property
    def own(self) -> np.ndarray:
        """(N,) bool: of the keyframe, not of an earlier sweep."""
        return np.asarray(self.sweeps == 0)

    def select(self, index: np.ndarray) -> Returns:
        return Returns(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def transformed(self, to_from: np.ndarray) -> Returns:
        """The same returns in another frame of reference: to_from (4, 4), rigid."""
        return replace(self, points=move_points(self.points, to_from), origins=move_points(self.origins, to_from))

    def raised(self, heights: np.ndarray) -> Returns:
        """The same returns, each with its ray raised by a height (N,), m."""
        up = np.stack([np.zeros_like(heights), np.zeros_like(heights), heights], axis=1)
        return replace(self, points=self.points + up, origins=self.origins + up)


def move_points(points: np.ndarray, to_from: np.ndarray) -> np.ndarray:
    """(N, 3) points in another frame of reference: to_from (4, 4), rigid."""
    return np.asarray(points @ to_from[:3, :3].T + to_from[:3, 3])


def returns_of(frame: Frame, source: Keyframes, sweeps: int) -> Returns:
    """The returns of a frame in the global frame, without those from the own vehicle.

    Between the times of its path a LiDAR moves along a straight line.

    Args:
        frame: with points, read with this number of earlier sweeps.
    """
    assert frame.points is not None
    points = move_points(frame.points[:, :3].astype(np.float64), frame.global_from_reference)
    ages = frame.points[:, 4].astype(np.float64)
    lidars = np.zeros(len(points), np.uint8) if frame.lidar_of_point is None else frame.lidar_of_point
    origins = np.full_like(points, np.nan)
    paths = source.recording(frame.token, Reads(sweeps=sweeps, cameras=False)).lidar_paths()
    for index, (times, places) in paths.items():
        seconds, mine = 1e-6 * (times - frame.timestamp), lidars == index
        origins[mine] = np.stack([np.interp(-ages[mine], seconds, axis) for axis in places.T], axis=1)
    given, own = frame.class_of_point, frame.of_keyframe
    classes = np.full(len(points), UNKNOWN, np.int16) if given is None else np.where((given >= 0) | own, given, UNKNOWN)
    assert frame.sweep_of_point is not None
    found = Returns(points, origins, classes.astype(np.int16), ages, frame.sweep_of_point, lidars)
    return found.select(~(np.linalg.norm(points - origins, axis=1) < _OWN_VEHICLE))


class BoxMotion(NamedTuple):
    """N boxes that move along straight lines and turn evenly from `start` to `end`; the same objects in both."""

    start: Boxes
    end: Boxes


def motion_between(before: Boxes, after: Boxes, seconds: float) -> BoxMotion:
    """The motion of all boxes from one keyframe to the next, in one frame of reference.

    An object that only one of them has moves with its velocity there; it stands still if that is unknown. Objects
    without an id are different ones.
    """
    row = {name: n for n, name in enumerate(before.instances.tolist()) if name}
    at = np.array([row.get(name, -1) for name in after.instances.tolist()], np.int64)
    gone = before.select(np.setdiff1d(np.arange(len(before)), at[at >= 0]))
    both, new = after.select(at >= 0), after.select(at < 0)
    start = Boxes.joined(before.select(at[at >= 0]), _shift_boxes(new, -seconds), gone)
    return BoxMotion(start, Boxes.joined(both, new, _shift_boxes(gone, seconds)))


def _shift_boxes(boxes: Boxes, seconds: float) -> Boxes:
    fields = dict(vars(boxes))
    fields["centers"] = boxes.centers + seconds * np.nan_to_num(boxes.velocities)
    return Boxes(**fields)


def owners(points: np.ndarray, shares: np.ndarray, motion: BoxMotion, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """The box that each point is in, and where in it.

    Args:
        points: (N, 3) m.
        shares: (N,) when each was measured: 0 at the motion's start, 1 at its end.
        margin: m, added on each side of a box.

    Returns:
        (N,) int64 index of the box, the first if there are several, -1 for none; (N, 3) m in the box's own frame: x is
        its heading, the origin its middle.
    """
    order = np.argsort(points[:, 0], kind="stable")
    owner, local = np.full(len(points), -1, np.int64), np.zeros_like(points)
    start, end = motion
    middles, half = (start.centers + end.centers) / 2, end.sizes[:, [1, 0, 2]] / 2 + margin
    radii = np.linalg.norm(half, axis=1) + np.linalg.norm(end.centers - start.centers, axis=1) / 2
    axes, angles = axes_and_angles(start.rotations.transpose(0, 2, 1) @ end.rotations)
    firsts = np.searchsorted(points[:, 0], middles[:, 0] - radii, sorter=order)
    lasts = np.searchsorted(points[:, 0], middles[:, 0] + radii, side="right", sorter=order)
    for n in range(len(end)):
        near = order[firsts[n] : lasts[n]]
        near = near[(np.abs(points[near] - middles[n]) <= radii[n]).all(axis=1) & (owner[near] < 0)]
        share = shares[near, None]
        offset = points[near] - start.centers[n] - share * (end.centers[n] - start.centers[n])
        place = _turn_back(offset @ start.rotations[n], axes[n], angles[n] * share)
        inside = (np.abs(place) <= half[n]).all(axis=1)
        owner[near[inside]], local[near[inside]] = n, place[inside]
    return owner, local


def _turn_back(points: np.ndarray, axis: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """(N, 3) points, each turned about the axis by minus its angle (N, 1), rad: Rodrigues' formula."""
    across = np.cross(axis, points)
    return np.asarray(points - np.sin(angles) * across + (1 - np.cos(angles)) * np.cross(axis, across))


class Movable:
    """The annotated objects of a data set that may move, and the point classes that they have."""

    def __init__(self, source: Keyframes) -> None:
        self._source, taxonomy = source, source.taxonomy
        self._moves = np.array([*(not each.static for each in taxonomy.classes), True])  # by label; the last of -1
        self._class_of_label = _point_classes(taxonomy)
        self._classes = np.setdiff1d(self._class_of_label[self._moves], NONE)

    def boxes(self, sample: str) -> Boxes:
        """In the global frame, with the label -1 for those of no detection class; InputError without annotations."""
        recording = self._source.recording(sample)
        boxes, others = recording.annotated("boxes"), recording.annotated("obstacles")
        if boxes is None:
            raise InputError(
                f"{self._source.dataroot}: keyframe {sample} has no boxes, and what moves would leave a trail; "
                "annotate drives that have them"
            )
        return boxes if others is None else Boxes.joined(boxes, others)

    def assign(self, returns: Returns, motion: BoxMotion, seconds: float) -> Assigned:
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
