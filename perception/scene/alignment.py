"""Whether cameras and LiDAR look where the calibration says: the sweeps' edges against the pictures', over a drive.

Levinson and Thrun, "Automatic online calibration of cameras and lasers", RSS 2013, accept a calibration as long as no
other close by fits better. Here all turns up to 5.5 degrees are others, and what fits is summed over the last frames.

On simulated drives that had no say in the limits, in all weathers, by day and night, none of 224 healthy keyframes at
2 Hz had a finding. On one of two further drives a healthy camera had one, at 1.84 of AGREED, which was 1.7 until then;
so that drive had a say in it. What follows was measured with 1.7, and less is told with 2.0: on the drives
that set the limits 4 to 8 % fewer. A LiDAR turned about the vertical by 2 or 3 degrees was told in all drives after
2.5 s. A camera alone whose axis was turned by at least 80 % of 2 or 3 degrees was told in 92 % of the cases, 2.5 s
(median) to 3.9 s (90 %) after the drive began; of all six at once 74 % with 2 degrees, 96 % with 3; of 1 degree little
is told. What turns while the vehicle drives is told later, since what was seen before still counts: half of such
cameras within 4.5 s. If it is the LiDAR that does, cameras are blamed as well at first.

What cannot be told from it: a camera that is turned about its own axis, whose edges go as far up as down; one that is
shifted, which moves what is 10 m away by as little as 0.3 degrees for 0.05 m; anything while the vehicle stands, since
the same edges again say nothing new; some at night in fog, and on open land, where there are too few edges. Six cameras
that are turned each in its own way may be taken for a turned LiDAR (1 of 17 drives).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from perception.frame import Camera, Frame
from perception.scene.edges import PARTS, REACH, SHIFTS, STEP, Edges, fit, range_edges
from perception.scene.signs import SweepSigns, in_vehicle, latest_sweep

AT_ONCE = 3  # cameras are looked at in a frame; when all were, it is judged
MOVED = 1.0  # m, and
LATER = 0.4  # s later there are other edges to look at
FORGOTTEN = 0.15  # of all that was seen before, with each frame that is looked at: the last six or seven count
FEWEST = 3  # frames
TOLERATED = 0.9  # degrees
# By how much another turn fits better than any tolerated one: of healthy cameras none has both of these.
SURE = 1.4  # in roots of the number of points, and
AGREED = 2.0  # in the root of the squares of the parts' gains: at least four parts must want it
STILL = 0.5  # of both, for what was told before
SEVERAL = 3  # cameras, and more than half of them: what they have in common is the LiDAR's
TURNS = STEP * np.arange(-REACH, REACH + 1)  # of the LiDAR about the vertical
TILTS = np.radians(np.arange(-3.0, 3.1))

_DOWN, _RIGHT = STEP * np.mgrid[-REACH : REACH + 1, -REACH : REACH + 1]  # rad, of every shift of a picture


@dataclass
class _Fit:
    """Of one camera, all frames together, the older the less."""

    parts: np.ndarray = field(default_factory=lambda: np.zeros((PARTS, SHIFTS, SHIFTS)))  # as `fit` gives them
    points: float = 0.0
    frames: int = 0
    vehicle_from_camera: np.ndarray = field(default_factory=lambda: np.eye(3))

    def add(self, frame: Frame, camera: Camera, edges: Edges) -> None:
        global_from_camera = camera.global_from_ego @ camera.ego_from_camera
        parts, points = fit(camera, np.linalg.inv(global_from_camera) @ frame.global_from_ego, edges)
        self.parts = (1 - FORGOTTEN) * self.parts + parts
        self.points = (1 - FORGOTTEN) * self.points + points
        self.frames, self.vehicle_from_camera = self.frames + 1, camera.ego_from_camera[:3, :3]

    def turned(self, common: np.ndarray, told: bool) -> float | None:
        """Degrees that the camera is turned by against a LiDAR that is itself turned by `common` (3,); None: it is not.

        Args:
            told: before, so that less is enough.
        """
        down, right = _shift(self.vehicle_from_camera, common)
        away, fits = np.hypot(_DOWN - down, _RIGHT - right).ravel(), self.parts.sum(axis=0).ravel()
        best, tolerated = int(fits.argmax()), _best_of(fits, away <= math.radians(TOLERATED))
        gains = self.parts.reshape(PARTS, -1)[:, [best, tolerated]]
        return math.degrees(away[best]) if _better(gains[:, 0] - gains[:, 1], self.points, told) else None


class Alignment:
    """Of the cameras and the LiDAR of one drive. Memory does not grow with it."""

    def __init__(self) -> None:
        self.lidar: float | None = None  # degrees that it is turned by, if it is
        self.cameras: dict[str, float] = {}  # name -> degrees, of those that are turned against the LiDAR
        self._fits: dict[str, _Fit] = {}
        self._round: set[str] = set()  # cameras that were looked at since
        self._begun: tuple[int, np.ndarray] | None = None  # time (us) and place of the frame with which this began

    def update(self, frame: Frame, signs: SweepSigns, healthy: Collection[str]) -> None:
        """What another frame adds, if the vehicle moved on.

        Args:
            signs: of its sweep, in which all is well.
            healthy: cameras of the frame whose pictures are fit to be compared with it.
        """
        waiting = [name for name in healthy if name not in self._round]
        if not waiting or (not self._round and not self._moved(frame)):
            return
        ground = np.nan_to_num([*signs.tilt, signs.height])
        origin = np.mean([camera.ego_from_camera[:3, 3] for camera in frame.cameras.values()], axis=0)
        edges = range_edges(in_vehicle(frame, latest_sweep(frame)), origin, ground)
        for name in waiting[:AT_ONCE]:
            self._fits.setdefault(name, _Fit()).add(frame, frame.cameras[name], edges)
            self._round.add(name)
        if len(waiting) <= AT_ONCE:
            self._round.clear()
            self._judge()

    def _moved(self, frame: Frame) -> bool:
        """Whether the vehicle sees other edges than when a round last began; if so, one begins."""
        time, place = self._begun or (-math.inf, np.full(3, np.inf))
        here = frame.global_from_ego[:3, 3]
        if abs(frame.timestamp - time) <= 1e6 * LATER or np.linalg.norm(here - place) <= MOVED:
            return False
        self._begun = frame.timestamp, here
        return True

    def _judge(self) -> None:
        known = {name: each for name, each in self._fits.items() if each.frames >= FEWEST}
        common, sure = self._common(list(known.values()))
        self.lidar = math.degrees(np.linalg.norm(common)) if sure else None
        turned = {name: each.turned(common, name in self.cameras) for name, each in known.items()}
        self.cameras = {name: degrees for name, degrees in turned.items() if degrees is not None}

    def _common(self, fits: list[_Fit]) -> tuple[np.ndarray, bool]:
        """Turn of the LiDAR (3,) rad about the vehicle's axes that most cameras agree on, and whether it is sure."""
        nothing = np.zeros(3), False
        if len(fits) < SEVERAL:
            return nothing
        turns = np.stack(np.meshgrid(TILTS, TILTS, TURNS, indexing="ij"), axis=-1).reshape(-1, 3)
        places = []
        for each in fits:
            down, right = np.rint(_shift(each.vehicle_from_camera, turns) / STEP).astype(np.int64) + REACH
            places.append(down.clip(0, 2 * REACH) * SHIFTS + right.clip(0, 2 * REACH))
        looks = [each.parts.sum(axis=0).ravel()[place] for each, place in zip(fits, places, strict=True)]
        fitting = np.sum(looks, axis=0)
        best = int(fitting.argmax())
        tolerated = _best_of(fitting, np.linalg.norm(turns, axis=1) <= math.radians(TOLERATED))
        gains, agreeing = [], 0
        for each, place in zip(fits, places, strict=True):
            parts = each.parts.reshape(PARTS, -1)[:, place[[best, tolerated]]]
            gains.append(parts[:, 0] - parts[:, 1])
            agreeing += gains[-1].sum() > STILL * SURE * math.sqrt(each.points) and not each.turned(turns[best], True)
        points, gain = sum(each.points for each in fits), np.concatenate(gains)
        if agreeing < SEVERAL or agreeing <= len(fits) / 2 or not _better(gain, points, told=True):
            return nothing
        return turns[best], _better(gain, points, self.lidar is not None)


def _shift(vehicle_from_camera: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """How far down and right (2, ...) rad a picture lies if the LiDAR is turned by a vector (..., 3) of the vehicle."""
    about = turn @ vehicle_from_camera
    return np.stack([about[..., 0], -about[..., 1]])


def _best_of(fits: np.ndarray, these: np.ndarray) -> int:
    """Index of what fits best of these (N,) bool."""
    return int(np.where(these, fits, -np.inf).argmax())


def _better(gains: np.ndarray, points: float, told: bool) -> bool:
    """Whether a turn whose parts fit better by so much (N,) than a tolerated one is not by chance."""
    share, gain = STILL if told else 1.0, gains.sum()
    return bool(gain > share * SURE * math.sqrt(points) and gain > share * AGREED * np.linalg.norm(gains))
