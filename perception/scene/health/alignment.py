"""Whether cameras and LiDAR look where the calibration says: the sweeps' edges against the pictures', over a drive.

Levinson and Thrun, "Automatic online calibration of cameras and lasers", RSS 2013, accept a calibration as long as no
other close by fits better. Here all turns up to 5.5 degrees are others, and what fits is summed over the last frames.

What cannot be seen: a camera that is turned about its own axis, whose edges go as far up as down; one that is shifted,
which moves what is 10 m away by as little as 0.3 degrees for 0.05 m; anything while the vehicle stands, since the same
edges again say nothing new; some at night in fog, and on open land, where there are too few edges. Six cameras that are
turned each in its own way may be taken for a turned LiDAR. If it is the LiDAR that turns while the vehicle drives,
cameras are blamed as well at first. docs/health.md says how much is found, and how soon.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from perception.frame import LIDAR, Camera, Frame
from perception.scene.health.edges import PARTS, REACH, SHIFTS, STEP, Edges, fit, range_edges
from perception.scene.health.features import SweepSigns, in_vehicle, latest_sweep
from perception.scene.health.limits import HealthLimits

AT_ONCE = 3  # cameras are looked at in a frame; when all were, it is judged
TURNS = STEP * np.arange(-REACH, REACH + 1)  # of the LiDAR about the vertical
TILTS = np.radians(np.arange(-3.0, 3.1))

_DOWN, _RIGHT = STEP * np.mgrid[-REACH : REACH + 1, -REACH : REACH + 1]  # rad, of every shift of a picture


@dataclass
class _Fit:
    """How well turns of one camera fit, summed over the frames; older frames count less."""

    parts: np.ndarray = field(default_factory=lambda: np.zeros((PARTS, SHIFTS, SHIFTS)))  # as `fit` gives them
    points: float = 0.0
    frames: int = 0
    vehicle_from_camera: np.ndarray = field(default_factory=lambda: np.eye(3))

    def add(self, frame: Frame, camera: Camera, edges: Edges, limits: HealthLimits) -> None:
        global_from_camera = camera.global_from_ego @ camera.ego_from_camera
        camera_from_vehicle = np.linalg.inv(global_from_camera) @ frame.global_from_ego
        parts, points = fit(camera, camera_from_vehicle, edges, limits.lidar)
        kept = 1 - limits.alignment.forgotten
        self.parts = kept * self.parts + parts
        self.points = kept * self.points + points
        self.frames, self.vehicle_from_camera = self.frames + 1, camera.ego_from_camera[:3, :3]


class Alignment:
    """Of the cameras and the LiDAR of one drive. Memory does not grow with it."""

    def __init__(self, limits: HealthLimits | None = None) -> None:
        self.lidar: float | None = None  # degrees that it is turned by, if it is
        self.cameras: dict[str, float] = {}  # name -> degrees, of those that are turned against the LiDAR
        # Of the cameras and the LiDAR, how near its limit each was when they were judged last: more than 1 is turned.
        self.loads: dict[str, float] = {}
        self._limits = limits or HealthLimits()
        self._fits: dict[str, _Fit] = {}
        self._round: set[str] = set()  # cameras that were looked at since
        self._begun: tuple[int, np.ndarray] | None = None  # time (us) and place of the frame with which this began

    def update(self, frame: Frame, signs: SweepSigns, healthy: Collection[str]) -> None:
        """Add a frame, if the vehicle has moved.

        Args:
            signs: of its sweep, in which all is well.
            healthy: cameras of the frame whose pictures are fit to be compared with it.
        """
        waiting = [name for name in healthy if name not in self._round]
        if not waiting or (not self._round and not self._moved(frame)):
            return
        ground, lidar = np.nan_to_num([*signs.tilt, signs.height]), self._limits.lidar
        origin = np.mean([camera.ego_from_camera[:3, 3] for camera in frame.cameras.values()], axis=0)
        edges = range_edges(in_vehicle(frame, latest_sweep(frame, lidar)), origin, ground, lidar)
        for name in waiting[:AT_ONCE]:
            self._fits.setdefault(name, _Fit()).add(frame, frame.cameras[name], edges, self._limits)
            self._round.add(name)
        if len(waiting) <= AT_ONCE:
            self._round.clear()
            self._judge()

    def _moved(self, frame: Frame) -> bool:
        """Whether the vehicle sees other edges than at the start of the last round; if so, a new round begins."""
        time, place = self._begun or (-math.inf, np.full(3, np.inf))
        here, limits = frame.global_from_ego[:3, 3], self._limits.alignment
        if abs(frame.timestamp - time) <= 1e6 * limits.later or np.linalg.norm(here - place) <= limits.moved:
            return False
        self._begun = frame.timestamp, here
        return True

    def _judge(self) -> None:
        still, fewest = self._limits.alignment.still, self._limits.alignment.fewest
        known = {name: each for name, each in self._fits.items() if each.frames >= fewest}
        common, evidence = self._common(list(known.values()))
        self.loads = {LIDAR: evidence if self.lidar is None else evidence / still}
        self.lidar = math.degrees(np.linalg.norm(common)) if self.loads[LIDAR] > 1 else None
        before, self.cameras = self.cameras, {}
        for name, each in known.items():
            degrees, evidence = self._turned(each, common)
            self.loads[name] = evidence / still if name in before else evidence
            if self.loads[name] > 1:
                self.cameras[name] = degrees

    def _turned(self, camera: _Fit, common: np.ndarray) -> tuple[float, float]:
        """Degrees that a camera seems turned by against a LiDAR that is itself turned by `common` (3,), and how sure
        that is: 1 is the limit.
        """
        down, right = _shift(camera.vehicle_from_camera, common)
        away, fits = np.hypot(_DOWN - down, _RIGHT - right).ravel(), camera.parts.sum(axis=0).ravel()
        best, tolerated = int(fits.argmax()), _best_of(fits, away <= self._tolerated)
        gains = camera.parts.reshape(PARTS, -1)[:, [best, tolerated]]
        return math.degrees(away[best]), self._evidence(gains[:, 0] - gains[:, 1], camera.points)

    def _common(self, fits: list[_Fit]) -> tuple[np.ndarray, float]:
        """Turn of the LiDAR (3,) rad about the vehicle's axes that most cameras agree on, and how sure it is: 1 is the
        limit. With too little agreement, or less than is enough for what was said before, the turn is 0.
        """
        limits, nothing = self._limits.alignment, np.zeros(3)
        if len(fits) < limits.several:
            return nothing, 0.0
        turns = np.stack(np.meshgrid(TILTS, TILTS, TURNS, indexing="ij"), axis=-1).reshape(-1, 3)
        places = []
        for each in fits:
            down, right = np.rint(_shift(each.vehicle_from_camera, turns) / STEP).astype(np.int64) + REACH
            places.append(down.clip(0, 2 * REACH) * SHIFTS + right.clip(0, 2 * REACH))
        looks = [each.parts.sum(axis=0).ravel()[place] for each, place in zip(fits, places, strict=True)]
        fitting = np.sum(looks, axis=0)
        best = int(fitting.argmax())
        tolerated = _best_of(fitting, np.linalg.norm(turns, axis=1) <= self._tolerated)
        gains, agreeing = [], 0
        for each, place in zip(fits, places, strict=True):
            parts = each.parts.reshape(PARTS, -1)[:, place[[best, tolerated]]]
            gains.append(parts[:, 0] - parts[:, 1])
            wants = gains[-1].sum() > limits.still * limits.sure * math.sqrt(each.points)
            agreeing += wants and self._turned(each, turns[best])[1] <= limits.still
        evidence = self._evidence(np.concatenate(gains), sum(each.points for each in fits))
        if agreeing < limits.several or agreeing <= len(fits) / 2:
            return nothing, min(evidence, agreeing / max(limits.several, len(fits) / 2))
        return (turns[best] if evidence > limits.still else nothing), evidence

    @property
    def _tolerated(self) -> float:
        return math.radians(self._limits.alignment.tolerated)

    def _evidence(self, gains: np.ndarray, points: float) -> float:
        """How sure it is that a turn whose parts fit better by so much (N,) than a tolerated one does so not by chance:
        1 is the limit of what is said anew.
        """
        gain, limits = gains.sum(), self._limits.alignment
        if gain <= 0:
            return 0.0
        return float(min(gain / (limits.sure * math.sqrt(points)), gain / (limits.agreed * np.linalg.norm(gains))))


def _shift(vehicle_from_camera: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """How far down and right (2, ...) rad a picture lies if the LiDAR is turned by a vector (..., 3) of the vehicle."""
    about = turn @ vehicle_from_camera
    return np.stack([about[..., 0], -about[..., 1]])


def _best_of(fits: np.ndarray, these: np.ndarray) -> int:
    """The index of the best fit among these (N,) bool."""
    return int(np.where(these, fits, -np.inf).argmax())
