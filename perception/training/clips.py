"""Clips: the frames of a drive before a training frame, from which a network with a memory has its state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perception.config import Config
from perception.datasets.keyframes import Keyframes
from perception.datasets.views import view_of
from perception.sensors.state import Limits, Moment, state_inputs

Arrays = dict[str, np.ndarray]


class Clips:
    """The clips of a training: their frames, and what the memory is told of each.

    A clip has 1 to `frames` frames, as many for all samples of a step, and fewer at the beginning of a drive.
    """

    def __init__(self, tables: Keyframes, config: Config, limits: Limits) -> None:
        self._tables, self._seed, self._batch, self._limits = tables, config.seed, config.train.batch, limits
        parts = [part for module in config.modules for part in module.single() if part.kind == "memory"]
        self._frames = max(part.frames for part in parts)
        self._drives: dict[str, list[str]] = {}

    def tokens(self, token: str, position: int) -> list[str]:
        """The keyframes before this one in the clip at a position of the training, the oldest first."""
        scene = self._tables.scene(token)
        if scene not in self._drives:
            self._drives[scene] = self._tables.samples(None, [scene])
        drive = [each for each in self._drives[scene] if view_of(each) == view_of(token)]
        rng = np.random.default_rng([self._seed, 3, position // self._batch])
        place, before = drive.index(token), int(rng.integers(self._frames))
        return drive[max(0, place - before) : place]

    def state_inputs(self, moments: Sequence[Moment]) -> list[Arrays]:
        """The inputs of the memory on each frame of a clip; the first has no state."""
        before = [None, *moments[:-1]]
        return [state_inputs(*pair, self._limits) for pair in zip(before, moments, strict=True)]


def align_clips(clips: Sequence[Sequence[Arrays]]) -> list[list[Arrays]]:
    """The inputs of all clips by age, the oldest frames first.

    A clip that is shorter than others begins with its first frame again, of whose state nothing depends: it is not
    valid on the frame after it.
    """
    longest = max(len(clip) for clip in clips)
    return [[clip[max(0, age - longest + len(clip))] for clip in clips] for age in range(longest)]
