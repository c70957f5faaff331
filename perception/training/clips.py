"""Clips: the frames of a drive before a training frame, from which a network with a memory has its state."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from perception.config import Config
from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.frame import Frame
from perception.modules.memories import memories_of
from perception.modules.spec import Module
from perception.sensors import SENSORS, sensor_facts
from perception.state import Limits

AnyFrame = TypeVar("AnyFrame")


def find_clip(moments: Mapping[str, int], token: str, spacings: Sequence[float]) -> list[str]:
    """The tokens of frames before a frame of a drive, the oldest first: `Keyframes.frame` reads each.

    Each is the frame nearest to the asked time before the one after it, if it is within half of the drive's
    `frame_period`. Where there is none, at the drive's beginning or in a gap, the clip has fewer frames.

    Args:
        spacings: s from each frame of the clip to the next; the last is to the frame of the token.
    """
    tokens, times = [*moments], np.array([*moments.values()], np.int64)
    place, found = tokens.index(token), list[str]()
    if place == 0:
        return found
    half = 0.5e6 * frame_period(moments)
    if (shortest := 1e6 * min(spacings, default=np.inf)) < half:
        raise InputError(
            f"frame {token}: its drive has a frame every {2e-6 * half:g} s, so none is {1e-6 * shortest:g} s before "
            f"another; give spacings from {1e-6 * half:g} s, or drives with more frames (perception simulate --rate 10)"
        )
    for spacing in reversed(spacings):
        if place == 0:
            break
        off = np.abs(times[:place] - (times[place] - 1e6 * spacing))
        place = int(off.argmin())
        if off[place] > half:
            break
        found.insert(0, tokens[place])
    return found


def frame_period(moments: Mapping[str, int]) -> float:
    """Duration-weighted 90th percentile of the gaps between frames, in s; 0 for a single frame.

    The median would be short where a few sweeps follow each keyframe, while most of the drive has no frame.
    """
    gaps = np.sort(np.diff(np.array([*moments.values()], np.int64)))
    within = np.cumsum(gaps)
    return float(gaps[np.searchsorted(10 * within, 9 * within[-1])]) / 1e6 if len(gaps) else 0.0


def draw_spacings(rng: np.random.Generator, frames: int, spacing: tuple[float, float]) -> list[float]:
    """Random times (s) from `spacing` for a training clip of 1 to `frames` frames, as `find_clip` takes them."""
    return rng.uniform(*spacing, int(rng.integers(frames))).tolist()


class Clip(NamedTuple):
    """A training frame with those before it."""

    tokens: Sequence[str]  # of its frames, the oldest first; the last one is the training frame
    outage: bool = False  # whether the clips of the step end in an outage, those that have earlier frames
    missing: str = ""  # the kind of sensor that the last frames lack
    lost: int = 0  # number of these, the training frame among them; the first frame of a clip is none of them

    def without(self, frame: Frame, age: int) -> Frame:
        """The frame, so many frames before the training frame, without the sensor that it lacks."""
        return SENSORS[self.missing].hidden(frame) if age < self.lost else frame


class Clips:
    """The clips of a training: their frames, and what the memory is told of each.

    A clip has 1 to `frames` frames, as many and as far apart for all samples of a step, but fewer at the beginning of a
    drive, and no nearer to each other than the drive's frames are.

    Args:
        trained: names of the modules that train; None: all.
    """

    def __init__(
        self, tables: Keyframes, config: Config, limits: Limits, trained: Collection[str] | None = None
    ) -> None:
        self._tables, self._seed, self._batch, self._limits = tables, config.seed, config.train.batch, limits
        self._frames = max(memory.frames for memory in memories_of(*config.modules))
        # A memory that does not train learns nothing from an outage, and what trains beside it needs its sensors.
        taught = [m for m in config.modules if memories_of(m) and (trained is None or m.name in trained)]
        self._trains = bool(taught)
        spacings = [memory.spacing for memory in memories_of(*(taught or config.modules))]
        self._spacing = min(least for least, _ in spacings), max(most for _, most in spacings)
        self._outages = max((memory.outages for memory in memories_of(*taught)), default=0.0)
        self._sensors = _lost_in_outages(config.spec.sensors, taught)
        self._moments: dict[str, Mapping[str, int]] = {}

    def trained_spacing(self, tokens: Iterable[str]) -> tuple[float, float] | None:
        """The least and the largest time (s) from frame to frame of the clips, if a memory trains.

        They are those of the memories' options, as far as the drives of these frames have frames.
        """
        if not self._trains:
            return None
        tokens, (least, most), seconds = [*tokens], self._spacing, self._limits.seconds
        if not any(self._has_state(token) for token in tokens):
            raise InputError(
                f"{self._tables.dataroot}: none of these keyframes has a frame up to {seconds:g} s before it, so a "
                "memory would not train; give it more `seconds`, or drives with more frames (perception simulate "
                "--rate 10)"
            )
        drives = {self._tables.scene(token): token for token in tokens}.values()
        periods = [frame_period(self._of_drive(token)) for token in drives]
        least = max(least, min((each for each in periods if each), default=0.0))
        return least, max(least, min(most, seconds))

    def _has_state(self, token: str) -> bool:
        """Whether a frame has one before it of which it uses the state."""
        moments = self._of_drive(token)
        earlier = find_clip(moments, token, [max(self._spacing[0], frame_period(moments))])
        return bool(earlier) and moments[token] - moments[earlier[0]] <= 1e6 * self._limits.seconds

    def clip(self, token: str, position: int) -> Clip:
        """The clip that ends with this frame, at a position of the training."""
        moments = self._of_drive(token)
        rng = np.random.default_rng([self._seed, 3, position // self._batch])
        # Mostly clips: a frame alone teaches a memory on a frozen base nothing.
        spacings = draw_spacings(rng, self._frames, self._spacing) or draw_spacings(rng, self._frames, self._spacing)
        tokens = [*find_clip(moments, token, np.maximum(spacings, frame_period(moments)).tolist()), token]
        # Of the whole step, which leaves the running statistics as they are (`optimize.statistics_kept`).
        rng = np.random.default_rng([self._seed, 4, position // self._batch])
        outage = bool(self._sensors) and rng.random() < self._outages
        if not outage or len(tokens) == 1:
            return Clip(tokens, outage)
        return Clip(tokens, outage, str(rng.choice(self._sensors)), int(rng.integers(1, len(tokens))))

    def _of_drive(self, token: str) -> Mapping[str, int]:
        scene = self._tables.scene(token)
        if scene not in self._moments:
            self._moments[scene] = self._tables.moments(token)
        return self._moments[scene]


def _lost_in_outages(sensors: Iterable[str], memories: Sequence[Module]) -> list[str]:
    """The sensors of a network whose absence teaches one of the memories: in which it runs, by its `when`."""

    def teaches(fact: str, when: Sequence[str]) -> bool:
        lacked = [each for each in sensor_facts() if f"no-{each}" in when]
        return fact in lacked if lacked else fact not in when

    return [kind for kind in sensors if any(teaches(SENSORS[kind].fact, module.when) for module in memories)]


def pad(frames: Sequence[AnyFrame], length: int) -> list[AnyFrame]:
    """Return this many frames of a clip, the oldest first.

    Shorter clips repeat their first frame. Its state is never used: `state_valid` is 0 on the next frame.
    """
    return [frames[0]] * (length - len(frames)) + [*frames]
