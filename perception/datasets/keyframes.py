"""The interface of data sets of recorded drives for training and evaluation. numpy only."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from perception.errors import InputError
from perception.frame import Boxes, Conditions, Frame
from perception.grid import Reference
from perception.rig import Rig
from perception.taxonomy import Taxonomy
from perception.voxels import Occupancy

if TYPE_CHECKING:
    from perception.datasets.nuscenes.map_expansion import MapExpansion


class Reads(NamedTuple):
    """What is read of a keyframe.

    Attributes:
        reference: the frame of reference of points and boxes, at the LiDAR's time.
        sweeps: number of earlier LiDAR sweeps to add, compensated for the vehicle's motion.
        annotations: whether to read the boxes, and the classes of points if the taxonomy has some.
        lidar: whether to read the LiDAR.
        cameras: whether to read the images.
        least_width: pixels. Images may be reduced in size while they stay at least as wide; 0: as recorded.
        change: made to the frame that was read, such as a corruption; None: none.
    """

    reference: Reference = "ego"
    sweeps: int = 0
    annotations: bool = True
    lidar: bool = True
    cameras: bool = True
    least_width: int = 0
    change: Callable[[Frame], Frame] | None = None


class Keyframes(Protocol):
    """Drives of keyframes with tokens: nuScenes' tables, or infos of mmdet3d."""

    dataroot: Path  # the folder of samples/ and, if present, maps/
    version: str  # of the tables; for infos the file's name
    taxonomy: Taxonomy  # of its annotations, map and conditions
    rig: Rig  # of the vehicle

    def scenes(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Names of the drives in a split (None or 'all': all drives), or of the selected ones among them."""
        ...

    def samples(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Tokens of the keyframes, drive by drive, in order of time; selectors as in `select_samples`."""
        ...

    def scene(self, sample: str) -> str:
        """Name of the drive of a keyframe."""
        ...

    def timestamp(self, sample: str) -> int:
        """Time of a keyframe, us."""
        ...

    def conditions(self, sample: str) -> Conditions:
        """The known conditions of a keyframe; reads no file."""
        ...

    def boxes(self, sample: str) -> Boxes | None:
        """Annotations of a keyframe in the global frame; None if the data set has no annotations."""
        ...

    def bicycle_racks(self) -> Mapping[str, list[list[float]]]:
        """Annotated bicycle racks by token of the keyframe, each x y z, width length height (m), rotation w x y z,
        in the global frame. The detection metric ignores bicycles and motorcycles inside them."""
        ...

    def map(self, location: str) -> MapExpansion | None:
        """The HD map of a location; None without one."""
        ...

    def obstacles(self, sample: str) -> Boxes | None:
        """Annotated objects of none of the classes in the global frame, with the label -1; None without annotations."""
        return None

    def has_point_classes(self, sample: str) -> bool:
        """Whether `Frame.class_of_point` of a keyframe is annotated; reads no sensor file."""
        return False

    def has_occupancy(self, sample: str) -> bool:
        """Whether the voxels of a keyframe are annotated; reads no file."""
        return False

    def occupancy(self, sample: str) -> Occupancy | None:
        """Annotated voxels of a keyframe, in the ego frame at its time; None if they are not annotated."""
        return None

    def lidar_paths(self, sample: str, sweeps: int = 0) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """For each LiDAR of the rig where its rays begin, around a keyframe and this number of earlier sweeps.

        Returns:
            (M,) times, us, ascending, and (M, 3) places then, m in the global frame; M is 0 for a LiDAR without data.
        """
        ...

    def stamps(self, sample: str, reads: Reads) -> Sequence[tuple[str, int, int]]:
        """Path, size and time of change (ns) of all that a frame with annotations is read from; -1 where it is missing.

        Those of tables are from when they were opened.
        """
        ...

    def frame(self, sample: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        """The sensor data of a keyframe; sensors without a file are missing in the frame.

        Raises:
            InputError: a damaged file, or an unknown keyframe.
        """
        ...


def select_scenes(names: list[str], selectors: Sequence[str], where: str) -> list[str]:
    """The drives that the selectors name; all without selectors.

    Args:
        where: source of the drives, for the error.

    Raises:
        InputError: a selector names an unknown drive.
    """
    chosen = [_parse_selector(selector)[0] for selector in selectors]
    for name in chosen:
        if name not in names:
            raise InputError(f"{name}: no such scene in {where}; it has {shortened(names)}")
    return list(dict.fromkeys(chosen)) if selectors else names


def select_samples(keyframes: Mapping[str, Sequence[str]], names: Sequence[str], selectors: Sequence[str]) -> list[str]:
    """Tokens of the keyframes, drive by drive, in order of time.

    Args:
        keyframes: drive -> tokens.
        names: selected drives, see `select_scenes`.
        selectors: names of scenes, or `scene-0103:0-4` for its keyframes 0, 1, 2 and 3.

    Raises:
        InputError: a range that the scene does not have.
    """
    if not selectors:
        return [token for name in names for token in keyframes[name]]
    tokens: dict[str, None] = {}
    for selector in selectors:
        name, start, stop = _parse_selector(selector)
        of_scene = keyframes[name]
        if stop is not None and not start < stop <= len(of_scene):
            last = len(of_scene) - 1
            raise InputError(f"{selector}: {name} has keyframes 0 to {last}; in FIRST-END the end is left out")
        tokens.update(dict.fromkeys(of_scene[start:stop]))
    return list(tokens)


def _parse_selector(selector: str) -> tuple[str, int, int | None]:
    """('scene-0103', 0, 4) for 'scene-0103:0-4'; the end is None for a whole scene."""
    match = re.fullmatch(r"([^:]+)(?::(\d+)-(\d+))?", selector)
    if match is None:
        raise InputError(f"{selector}: not a selector; write a scene's name, or NAME:FIRST-END for some keyframes")
    name, start, stop = match.groups()
    return name, int(start or 0), None if stop is None else int(stop)


def shortened(names: list[str]) -> str:
    """The names in one line, only the first ones if there are many."""
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])}, ... ({len(names)} in all)"
