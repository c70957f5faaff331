"""Which returns are of which annotated object, while it moves. numpy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perception.frame import Boxes
from perception.rotations import axes_and_angles

MARGIN = 0.1  # m, by which parts of an object, such as mirrors, may be outside its box


class Motion(NamedTuple):
    """N boxes that move along straight lines and turn evenly from `start` to `end`; the same objects in both."""

    start: Boxes
    end: Boxes


def motion_between(before: Boxes, after: Boxes, seconds: float) -> Motion:
    """The motion of all boxes from one keyframe to the next, in one frame of reference.

    An object that only one of them has moves with its velocity there; it stands still if that is unknown. Objects
    without an id are different ones.
    """
    row = {name: n for n, name in enumerate(before.instances.tolist()) if name}
    at = np.array([row.get(name, -1) for name in after.instances.tolist()], np.int64)
    gone = before.select(np.setdiff1d(np.arange(len(before)), at[at >= 0]))
    both, new = after.select(at >= 0), after.select(at < 0)
    start = Boxes.joined(before.select(at[at >= 0]), _shifted(new, -seconds), gone)
    return Motion(start, Boxes.joined(both, new, _shifted(gone, seconds)))


def _shifted(boxes: Boxes, seconds: float) -> Boxes:
    fields = dict(vars(boxes))
    fields["centers"] = boxes.centers + seconds * np.nan_to_num(boxes.velocities)
    return Boxes(**fields)


def owners(points: np.ndarray, shares: np.ndarray, motion: Motion, margin: float) -> tuple[np.ndarray, np.ndarray]:
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
        place = _turned_back(offset @ start.rotations[n], axes[n], angles[n] * share)
        inside = (np.abs(place) <= half[n]).all(axis=1)
        owner[near[inside]], local[near[inside]] = n, place[inside]
    return owner, local


def _turned_back(points: np.ndarray, axis: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """(N, 3) points, each turned about the axis by minus its angle (N, 1), rad: Rodrigues' formula."""
    across = np.cross(axis, points)
    return np.asarray(points - np.sin(angles) * across + (1 - np.cos(angles)) * np.cross(axis, across))
