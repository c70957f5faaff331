"""Which detection belongs to which track: the best assignment by distance, and ByteTrack's stages of it."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def associate(
    tracks: np.ndarray, detections: np.ndarray, gate: float, reach: np.ndarray | float = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of tracks and detections, each in one pair at most, that are closer to each other than gate and reach.

    Of all ways to pair them, the one with the largest sum of what each pair is closer than the gate.

    Args:
        tracks: (T, 2) m, expected centres in the ground plane.
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
    """`associate`, where a detection that is not sure gets only what is left.

    After ByteTrack (Zhang et al., ECCV 2022, algorithm 1): first the confirmed tracks choose among the sure
    detections, then those that remain among the others, and at last the tracks that are not confirmed among all that
    remain.

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
