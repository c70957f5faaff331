"""Association of detections with what is followed: optimal assignment by distance, in the stages of ByteTrack."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def associate(
    tracks: np.ndarray, detections: np.ndarray, gate: float, reach: np.ndarray | float = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """One-to-one pairs of tracks and detections with a distance below gate and reach.

    The assignment that maximises the sum of gate minus distance.

    Args:
        tracks: (T, 2) m, predicted centres in the ground plane.
        detections: (D, 2) m.
        gate: m.
        reach: (T,) m, of each track.

    Returns:
        (M,) indices of tracks and (M,) of their detections.
    """
    difference = tracks[:, None] - detections
    distance = np.hypot(difference[..., 0], difference[..., 1])
    near = distance < np.minimum(gate, np.reshape(reach, (-1, 1)))
    gain = np.where(near, gate - distance, 0.0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    paired = near[rows, columns]
    return rows[paired], columns[paired]


def associate_in_stages(
    tracks: np.ndarray,
    confirmed: np.ndarray,
    detections: np.ndarray,
    sure: np.ndarray,
    gate: float,
    reach: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """`associate` in stages, such that detections with low scores get only the remaining tracks.

    After ByteTrack (Zhang et al., ECCV 2022, algorithm 1): confirmed tracks with sure detections, remaining confirmed
    tracks with the other detections, then unconfirmed tracks with all remaining detections.

    Args:
        confirmed: (T,) bool.
        sure: (D,) bool.
    """
    own, theirs = [], []
    old, new = np.ones(len(tracks), bool), np.ones(len(detections), bool)  # those in no pair yet
    for which, of in ((confirmed, sure), (confirmed, ~sure), (~confirmed, np.ones_like(sure))):
        left, right = np.flatnonzero(old & which), np.flatnonzero(new & of)
        rows, columns = associate(tracks[left], detections[right], gate, reach[left])
        own.append(left[rows])
        theirs.append(right[columns])
        old[own[-1]] = new[theirs[-1]] = False
    return np.concatenate(own), np.concatenate(theirs)
