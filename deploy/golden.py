"""The golden frame: one frame whose outputs are known, to prove that an engine computes the trained network.

It finds what matters to the outputs. In `tiny` with random weights that is the wrong sign of the largest weight of each
of the 37 convolutions. Of 60 weights drawn from all, when the head was still dense, it found the wrong sign of 58, the
wrong top bit of the exponent of 60, the double or the half of 56, and a relative change below 1 % of 14. It cannot find
a weight that this frame does not use, or a change too small to move an output by the tolerance: that no byte has
changed is for the hashes to say, and who made the bundle for a signature.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from perception.errors import InputError
from perception.frame import CAMERAS, Camera, Frame
from perception.grid import Reference

Arrays = Mapping[str, np.ndarray]
_DETECTIONS = ("boxes", "scores", "labels", "attributes")


def synthetic_frame(reference: Reference, seed: int = 0) -> Frame:
    """A frame of a flat street with a few blocks in it, seen by LiDAR and six cameras; the same for every seed.

    It resembles a drive enough to fill every input with values of their usual size: returns are weak, and the more
    the nearer, as those of a LiDAR that turns. On others a network's maps, and with them the rounding errors of
    engines, can be ten times as large as on drives. Pictures are blocks of colour with noise, so that no two cells of
    the network see the same and scores do not tie.
    """
    rng = np.random.default_rng(seed)
    distance, azimuth = np.exp(rng.uniform(np.log(2.5), np.log(50), 12000)), rng.uniform(-np.pi, np.pi, 12000)
    ground = np.column_stack([distance * np.cos(azimuth), distance * np.sin(azimuth), rng.normal(0, 0.03, 12000)])
    blocks = np.repeat(np.column_stack([rng.uniform(-40, 40, (40, 2)), rng.uniform(0.5, 1.5, 40)]), 100, axis=0)
    xyz = np.concatenate([ground, blocks + rng.uniform(-1, 1, blocks.shape) * [2.0, 1.0, 0.5]])
    n = len(xyz)
    intensity = np.minimum(rng.exponential(20, n), 255)  # nuScenes' mean is 17
    points = np.column_stack([xyz, intensity, rng.choice([0.0, 0.05, 0.1], n)]).astype(np.float32)
    cameras = {}
    for name, yaw in zip(CAMERAS, np.radians([0, -55, 55, 180, 110, -110]), strict=True):
        ego_from_camera = np.eye(4)
        # Columns are the camera's axes in the vehicle: right, down, along the optical axis.
        ego_from_camera[:3, :3] = np.array([[np.sin(yaw), 0, np.cos(yaw)], [-np.cos(yaw), 0, np.sin(yaw)], [0, -1, 0]])
        ego_from_camera[:3, 3] = [np.cos(yaw), np.sin(yaw), 1.5]
        coarse = rng.integers(0, 200, (9, 16, 3))
        image = coarse.repeat(100, axis=0).repeat(100, axis=1) + rng.integers(0, 56, (900, 1600, 1))
        intrinsics = np.array([[1260.0, 0, 800], [0, 1260, 450], [0, 0, 1]])
        cameras[name] = Camera(image.astype(np.uint8), intrinsics, ego_from_camera, np.eye(4), 0)
    return Frame(
        token=f"synthetic-{seed}",
        timestamp=0,
        reference=reference,
        global_from_reference=np.eye(4),
        global_from_ego=np.eye(4),
        points=points,
        cameras=cameras,
    )


def differences(
    expected: Arrays, actual: Arrays, tolerance: float, outliers: float = 0.0, recognised: float | None = None
) -> list[str]:
    """What is off between two engines' outputs for the same frame; empty when they agree.

    Dense outputs (`map`, `recognised`) and the sorted `scores` are compared number by number: sorting is continuous, so
    equal networks give equal sorted scores. Which detection stands at which rank is not: engines order equal scores as
    they please, and where scores tie at the end of the list they are free to choose who is in it. So every expected
    detection that scores clearly above the last one must be found, with its label, attribute and box, among those
    that score the same within the tolerance; the ones tied with the last are compared by score only. Where classes
    are in groups, each has its own list.

    Args:
        tolerance: largest difference allowed, absolute below 1 and relative above.
        outliers: share of each output's numbers, and of the detections, that may be off by more.
        recognised: largest difference allowed of `recognised`; None: the tolerance.
    """
    problems = []
    for name in expected:
        if name not in actual:
            problems.append(f"{name} is missing")
        elif actual[name].shape != expected[name].shape:
            problems.append(f"{name} has shape {actual[name].shape} instead of {expected[name].shape}")
        elif not np.isfinite(actual[name]).all():
            problems.append(f"{name} is not finite")
    if problems:
        return problems
    for name in ("scores", "map", "recognised"):
        if name in expected:
            off = _off(expected[name], actual[name])
            allowed = recognised if name == "recognised" and recognised is not None else tolerance
            if (off > allowed).mean() > outliers:
                problems.append(f"{name} is off by {np.quantile(off, 1 - outliers):.2g}")
    for i in np.ndindex(expected["scores"].shape[:-1]):  # of each frame, and group
        mine, other = ({name: side[name][i] for name in _DETECTIONS} for side in (expected, actual))
        lost, most = _lost_detections(mine, other, tolerance), expected["scores"].shape[-1]
        if len(lost) > outliers * most:
            problems.append(f"{len(lost)} of {most} detections differ, first rank {lost[0]}")
    return problems


def _lost_detections(expected: Arrays, actual: Arrays, tolerance: float) -> np.ndarray:
    """Ranks of expected detections (arrays without batch dimension) that have no counterpart."""
    scores = expected["scores"].astype(np.float64)
    asked = np.flatnonzero(scores > scores[-1] + 2 * tolerance)
    by_score = np.argsort(actual["scores"], kind="stable")
    others = actual["scores"][by_score].astype(np.float64)
    first = np.searchsorted(others, scores[asked] - tolerance, "left")
    several = np.searchsorted(others, scores[asked] + tolerance, "right") - first  # that score the same
    mine = np.repeat(asked, several)
    theirs = by_score[np.arange(len(mine)) + np.repeat(first - np.cumsum(several) + several, several)]
    for name in ("labels", "attributes"):
        same = expected[name][mine] == actual[name][theirs]
        mine, theirs = mine[same], theirs[same]
    for number in range(expected["boxes"].shape[-1]):
        same = _off(expected["boxes"][mine, number], actual["boxes"][theirs, number]) <= tolerance
        mine, theirs = mine[same], theirs[same]
    return np.setdiff1d(asked, mine)


def _off(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    return np.abs(expected - actual) / np.maximum(1, np.abs(expected))


def require_agreement(
    expected: Arrays,
    actual: Arrays,
    who: str,
    tolerance: float,
    outliers: float = 0.0,
    recognised: float | None = None,
) -> None:
    """Raise InputError unless `who`'s outputs for the golden frame are the expected ones, see `differences`."""
    if problems := differences(expected, actual, tolerance, outliers, recognised):
        raise InputError(
            f"{who} does not compute the exported network (tolerance {tolerance:g}): {'; '.join(problems)}"
        )
