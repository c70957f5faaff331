"""PandaSet's frames to the front and to the rear, for a network that sees only what is ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from perception.datasets.keyframes import Reads, Truth
from perception.datasets.pandaset import PandaSet
from perception.frame import Frame

REAR = "-rear"
_TURN = np.diag([-1.0, -1.0, 1.0, 1.0])


class TwoViews:
    """The frames of a data set, each a second time turned by half a turn, with its token and -rear."""

    def __init__(self, drives: PandaSet) -> None:
        self._drives = drives

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drives, name)

    def samples(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Both views of the selected frames."""
        return [token for each in self._drives.samples(split, selectors) for token in (each, each + REAR)]

    def scene(self, sample: str) -> str:
        return self._drives.scene(sample.removesuffix(REAR))

    def truth(self, sample: str) -> Truth:
        return self._drives.truth(sample.removesuffix(REAR))

    def frame(self, sample: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        frame = self._drives.frame(sample.removesuffix(REAR), reads)
        if not sample.endswith(REAR):
            return frame
        points = None if frame.points is None else frame.points * np.array([-1, -1, 1, 1, 1], np.float32)
        return replace(
            frame,
            token=sample,
            points=points,
            boxes=None if frame.boxes is None else frame.boxes.transformed(_TURN),
            global_from_reference=frame.global_from_reference @ _TURN,
        )
