"""Keyframes of drives that are listed without splits, tags, maps and bicycle racks: what most formats lack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from perception.datasets.keyframes import Keyframes, select_samples, select_scenes
from perception.errors import InputError
from perception.frame import Conditions

if TYPE_CHECKING:
    from perception.datasets.nuscenes.map_expansion import MapExpansion


class ListedKeyframes(Keyframes):
    """Names drives and keyframes; subclasses read them.

    Args:
        where: the data set, for errors.
        samples: drive -> tokens of its keyframes in order of time.
    """

    def __init__(self, where: str, samples: Mapping[str, list[str]]) -> None:
        self._where, self._samples = where, samples
        self._scene = {token: name for name, tokens in samples.items() for token in tokens}

    def scenes(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Names of the selected drives; all without selectors.

        Raises:
            InputError: an unknown selector, or a split.
        """
        if split not in (None, "all"):
            raise InputError(f"{self._where}: has no split {split}; leave out --split, or select drives or frames")
        return select_scenes(list(self._samples), selectors, self._where)

    def samples(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Tokens of the keyframes, drive by drive in order of time; NAME:0-4 selects four of a drive.

        Raises:
            InputError: an unknown selector, or a split.
        """
        return select_samples(self._samples, self.scenes(split, selectors), selectors)

    def scene(self, sample: str) -> str:
        """Name of the drive of a keyframe."""
        return self._scene[sample]

    def conditions(self, sample: str) -> Conditions:
        """Unknown."""
        return Conditions()

    def bicycle_racks(self) -> Mapping[str, list[list[float]]]:
        """None are annotated."""
        return {}

    def map(self, location: str) -> MapExpansion | None:
        """There is none."""
        return None
