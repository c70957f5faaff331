"""Files for viewers that others make."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from perception.errors import InputError
from perception.frame import Frame
from perception.grid import BevGrid
from perception.scene.scene import SceneFrame

FILES = {"foxglove": "results.mcap", "rerun": "results.rrd"}


class ViewerWriter(Protocol):
    """Writes the file of a viewer."""

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """The next frame, with what was perceived in it."""


def require_viewers(names: Sequence[str]) -> None:
    """Raise InputError where one of the names is no viewer."""
    for name in names:
        if name not in FILES:
            raise InputError(f"{name}: no file is written for this viewer; choose from {', '.join(FILES)}")


def open_viewer(name: str, folder: Path, map_grid: BevGrid | None) -> AbstractContextManager[ViewerWriter]:
    """The writer of `FILES[name]` in the folder; the file appears whole when the block ends.

    Args:
        map_grid: of the network's map; None if it has none.

    Raises:
        InputError: the viewer's package is not installed, or the folder cannot be written.
    """
    if name == "rerun":
        from deploy.replay.rerun_results import RerunWriter

        return RerunWriter(folder / FILES[name])
    from deploy.replay.foxglove_results import FoxgloveWriter

    return FoxgloveWriter(folder / FILES[name], map_grid)
