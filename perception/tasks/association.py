"""Association of detections with what is followed: optimal assignment, in the stages of ByteTrack."""

from __future__ import annotations

import numpy as np


def assign(gain: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One-to-one pairs of rows and columns with the largest sum of gains.

    Args:
        gain: (T, D), not negative where allowed.
        allowed: (T, D) bool.

    Returns:
        (M,) rows and (M,) their columns.
    """
    from scipy.optimize import linear_sum_assignment  # late: scipy.optimize takes half a second to import

    rows, columns = linear_sum_assignment(np.where(allowed, gain, 0.0), maximize=True)
    paired = allowed[rows, columns]
    return rows[paired], columns[paired]


def associate(tracks: np.ndarray, detections: np.ndarray, gate: float) -> tuple[np.ndarray, np.ndarray]:
    """One-to-one pairs of tracks and detections that are nearer than `gate`, with the largest sum of gate - distance.

    Args:
        tracks: (T, 2) m, centres in the ground plane.
        detections: (D, 2) m.
        gate: m.

    Returns:
        (M,) indices of tracks and (M,) of their detections.
    """
    difference = tracks[:, None] - detections
    distance = np.hypot(difference[..., 0], difference[..., 1])
    return assign(gate - distance, distance < gate)


def associate_in_stages(
    gain: np.ndarray, allowed: np.ndarray, confirmed: np.ndarray, sure: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`assign` in stages, such that detections with low scores get only the remaining tracks.

    After ByteTrack (Zhang et al., ECCV 2022, algorithm 1): confirmed tracks with sure detections, remaining confirmed
    tracks with the other detections, then unconfirmed tracks with all remaining detections.

    Args:
        gain, allowed: (T, D) as in `assign`.
        confirmed: (T,) bool.
        sure: (D,) bool.
    """
    own, theirs = [], []
    old, new = np.ones(len(confirmed), bool), np.ones(len(sure), bool)  # those in no pair yet
    for which, of in ((confirmed, sure), (confirmed, ~sure), (~confirmed, np.ones_like(sure))):
        left, right = np.flatnonzero(old & which), np.flatnonzero(new & of)
        rows, columns = assign(gain[np.ix_(left, right)], allowed[np.ix_(left, right)])
        own.append(left[rows])
        theirs.append(right[columns])
        old[own[-1]] = new[theirs[-1]] = False
    return np.concatenate(own), np.concatenate(theirs)
