"""What tells the vehicles of a street apart: boxes do not overlap, and traffic moves along its headings. numpy only."""

from __future__ import annotations

import numpy as np

from perception.frame import Boxes
from perception.geometry import along_and_aside
from perception.tasks.detection.nms import greedy

# Arrays `tracks` are the tracker's. Headings are unit vectors (N, 2) in the ground plane: sine and cosine of the yaw.

LIKELY = 4.0  # standard deviations from its expected place, within which a track takes a detection
ELONGATED = 1.5  # an object that is longer than wide by this factor moves along its heading
ALONG = 0.9  # share of the variance of an unknown velocity that is along the heading, and not aside
# The velocity of a new vehicle is first that of the vehicles around it, with weights that fall to a quarter at LANE m
# aside and to a half at GAP m along. FIRM is the weight of "as fast as any other".
LANE, GAP = 1.5, 15.0  # m
FIRM = 0.2
SPREAD = 0.04  # variance of the speeds of vehicles in a row, as a share of that of all vehicles
PARALLEL = 0.9  # cosine of the angle between headings


def select_strongest(boxes: Boxes) -> Boxes:
    """The detections whose centre lies in no box of their class with a higher score."""
    order = np.argsort(-boxes.scores, kind="stable")
    sorted_boxes = boxes.select(order)
    places = sorted_boxes.centers, sorted_boxes.labels
    inside = cover(*places, *places, sorted_boxes.sizes, sorted_boxes.headings)
    return boxes.select(np.sort(order[greedy(len(order), lambda best, rest: inside[rest, best])]))


def drop_doubles(tracks: np.ndarray, now: int) -> np.ndarray:
    """The tracks, without undetected ones whose centre lies in the box of a detected older track of their class."""
    detected, hits, ids = tracks["seen"] == now, tracks["hits"], tracks["id"]
    mine, theirs = np.flatnonzero(~detected), np.flatnonzero(detected)
    inside = cover(
        *(tracks[name][mine] for name in ("centers", "label")),
        *(tracks[name][theirs] for name in ("centers", "label", "size", "heading")),
    )
    older = (hits[theirs] > hits[mine, None]) | ((hits[theirs] == hits[mine, None]) & (ids[theirs] < ids[mine, None]))
    remaining = np.ones(len(tracks), bool)
    remaining[mine] = ~(inside & older).any(axis=1)
    return tracks[remaining]


def cover(
    places: np.ndarray,
    labels: np.ndarray,
    centers: np.ndarray,
    others: np.ndarray,
    sizes: np.ndarray,
    directions: np.ndarray,
) -> np.ndarray:
    """(N, M) bool: which of N places lie, seen from above, in which of M boxes of the same class.

    Args:
        places: (N, 3) m, of the classes labels (N,).
        centers: (M, 3) m, of the classes others (M,), with sizes (M, 3) m and headings (M, 2).
    """
    along, aside = along_and_aside(places, centers, directions)
    inside = (np.abs(along) < sizes[:, 1] / 2) & (np.abs(aside) < sizes[:, 0] / 2)
    return inside & (labels[:, None] == others)


def gains(
    tracks: np.ndarray, centers: np.ndarray, seconds: float, position: float, gate: float
) -> tuple[np.ndarray, np.ndarray]:
    """(T, D) m gate minus distance of tracks of a class, predicted by `seconds`, and detections; which may be pairs.

    The distance is that from the expected place. For an elongated object the part aside of its heading weighs more as
    long as its velocity is uncertain, since it hardly moves sideways. The gate of a track of one detection is wider by
    the way that it may have gone.
    """
    variance = tracks["covariances"][:, 0] + position**2
    unknown = seconds**2 * tracks["covariances"][:, 2]
    narrow = np.sqrt(variance / np.maximum(variance - ALONG * unknown, position**2))
    along, aside = (each.T for each in along_and_aside(centers, tracks["centers"], tracks["heading"]))
    distance = np.hypot(along, aside * np.where(_elongated(tracks), narrow, 1.0)[:, None])
    gates = gate + np.where(tracks["hits"] == 1, np.sqrt(unknown), 0.0)
    allowed = distance < np.minimum(gates, LIKELY * np.sqrt(variance))[:, None]
    return gates[:, None] - distance, allowed


def expected_velocity(tracks: np.ndarray, around: np.ndarray, speed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) m/s mean and (N,) m^2/s^2 variance of unknown velocities of tracks, from tracks (M,) around them.

    Zero and speed^2 for objects that are not elongated; `speed` (N,) m/s is the deviation without anyone around.
    """
    around = around[_elongated(around)]
    along, aside = (each.T for each in along_and_aside(around["centers"], tracks["centers"], tracks["heading"]))
    cosine = (tracks["heading"][:, None] * around["heading"]).sum(axis=2)
    weights = 1 / (1 + np.square(along / GAP)) / np.square(1 + np.square(aside / LANE))
    weights = np.where((np.abs(cosine) > PARALLEL) & _elongated(tracks)[:, None], weights, 0.0)
    total = weights.sum(axis=1) + FIRM
    mean = (weights[:, :, None] * around["velocities"]).sum(axis=1) / total[:, None]
    return mean, np.minimum(FIRM / total + SPREAD, 1.0) * speed**2


def _elongated(tracks: np.ndarray) -> np.ndarray:
    return np.asarray(tracks["size"][:, 1] > ELONGATED * tracks["size"][:, 0])
