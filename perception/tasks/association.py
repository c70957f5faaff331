"""Association of detections with what is followed: optimal assignment, in the stages of ByteTrack."""

from __future__ import annotations

import numpy as np


def assign(gain: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M,) rows and (M,) columns of the `allowed` one-to-one pairs with the largest sum of gains (T, D)."""
    from scipy.optimize import linear_sum_assignment  # late: scipy.optimize takes half a second to import

    rows, columns = linear_sum_assignment(np.where(allowed, gain, 0.0), maximize=True)
    paired = allowed[rows, columns]
    return rows[paired], columns[paired]


def associate(tracks: np.ndarray, detections: np.ndarray, gate: float) -> tuple[np.ndarray, np.ndarray]:
    """`assign` tracks (T, 2) m and detections (D, 2) m that are nearer than the gate (m), by gate - distance."""
    difference = tracks[:, None] - detections
    distance = np.hypot(difference[..., 0], difference[..., 1])
    return assign(gate - distance, distance < gate)


def associate_in_stages(
    gain: np.ndarray, allowed: np.ndarray, confirmed: np.ndarray, sure: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`assign` in stages, such that detections (D,) with low scores get only the remaining tracks (T,).

    After ByteTrack (Zhang et al., ECCV 2022, algorithm 1): confirmed tracks with sure detections, remaining confirmed
    tracks with the other detections, then unconfirmed tracks with all remaining detections.
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
