"""What training and evaluation need of recorded drives, whatever they are stored as. numpy only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from perception.errors import InputError
from perception.frame import Boxes, Conditions, Frame
from perception.grid import Reference

if TYPE_CHECKING:
    from perception.datasets.nuscenes.map_expansion import MapExpansion


class Keyframes(Protocol):
    """Drives of keyframes, each known by its token: nuScenes' tables, or infos of mmdet3d."""

    dataroot: Path  # the folder of samples/, and of maps/ where there are any
    version: str  # of the tables; of infos the file's name

    def scenes(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Names of the drives of a split (None or 'all': every drive), of those only the selected ones."""
        ...

    def samples(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Tokens of the keyframes, drive by drive in order of time; selectors as `select_samples`."""
        ...

    def scene(self, sample: str) -> str:
        """Name of the drive that a keyframe is from."""
        ...

    def timestamp(self, sample: str) -> int:
        """When a keyframe was taken, us."""
        ...

    def conditions(self, sample: str) -> Conditions:
        """What is known of the circumstances of a keyframe; reads no file."""
        ...

    def boxes(self, sample: str) -> Boxes | None:
        """Annotations of a keyframe in the global frame; None where there are none at all."""
        ...

    def bicycle_racks(self) -> Mapping[str, list[list[float]]]:
        """Annotated bicycle racks by token of the keyframe, as `read_bicycle_racks`."""
        ...

    def map(self, location: str) -> MapExpansion | None:
        """The HD map of a location; None where there is none."""
        ...

    def frame(
        self,
        sample: str,
        grid_reference: Reference = "ego",
        sweeps: int = 0,
        annotations: bool = True,
        *,
        lidar: bool = True,
        cameras: bool = True,
    ) -> Frame:
        """What the sensors recorded at a keyframe; a sensor whose file is absent is missing in the frame."""
        ...


def select_scenes(names: list[str], selectors: Sequence[str], where: str) -> list[str]:
    """Of these drives those that the selectors name; all without selectors.

    Args:
        where: the drives are, for the error.

    Raises:
        InputError: a selector names none of them.
    """
    chosen = [_parse_selector(selector)[0] for selector in selectors]
    for name in chosen:
        if name not in names:
            raise InputError(f"{name}: no such scene in {where}; it has {shortened(names)}")
    return list(dict.fromkeys(chosen)) if selectors else names


def select_samples(keyframes: Mapping[str, Sequence[str]], names: Sequence[str], selectors: Sequence[str]) -> list[str]:
    """Tokens of the keyframes, drive by drive in order of time.

    Args:
        keyframes: tokens of each drive.
        names: drives to take, see `select_scenes`.
        selectors: names of scenes, or `scene-0103:0-4` for its keyframes 0, 1, 2 and 3.

    Raises:
        InputError: a range that the scene does not have.
    """
    if not selectors:
        return [token for name in names for token in keyframes[name]]
    tokens: dict[str, None] = {}
    for selector in selectors:
        name, start, stop = _parse_selector(selector)
        own = keyframes[name]
        if stop is not None and not start < stop <= len(own):
            raise InputError(f"{selector}: {name} has keyframes 0 to {len(own) - 1}; in FIRST-END the end is left out")
        tokens.update(dict.fromkeys(own[start:stop]))
    return list(tokens)


def _parse_selector(selector: str) -> tuple[str, int, int | None]:
    """('scene-0103', 0, 4) of 'scene-0103:0-4'; the end is None where the selector names a whole scene."""
    match = re.fullmatch(r"([^:]+)(?::(\d+)-(\d+))?", selector)
    if match is None:
        raise InputError(f"{selector}: not a selector; write a scene's name, or NAME:FIRST-END for some keyframes")
    name, start, stop = match.groups()
    return name, int(start or 0), None if stop is None else int(stop)


def shortened(names: list[str]) -> str:
    """The names in a line, of many only the first."""
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])}, ... ({len(names)} in all)"
