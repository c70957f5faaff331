"""The files that a replay writes frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from deploy.manifest import Manifest
from deploy.replay.folder import VIEWERS
from deploy.replay.results import STATISTICS
from deploy.replay.statistics import StatisticsWriter
from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.files import atomic_file
from perception.frame import Frame
from perception.scene.scene import SceneFrame
from perception.tasks.task import FrameWriter


class ViewerWriter(Protocol):
    """Writes the file of a viewer."""

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """Write the next frame, with what was perceived in it."""


def require_viewers(names: Sequence[str]) -> None:
    """Raise InputError if one of the names is not in VIEWERS."""
    for name in names:
        if name not in VIEWERS:
            raise InputError(f"{name}: no file is written for this viewer; choose from {', '.join(VIEWERS)}")


class Writers(NamedTuple):
    """All writers of a replay."""

    tasks: Mapping[str, FrameWriter]  # of the tasks' own files
    statistics: StatisticsWriter
    viewers: Sequence[ViewerWriter]

    def add(self, frame: Frame, seen: SceneFrame, known: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the next frame to all files; returns its statistics. `known`: its statistics in an earlier run."""
        for name, writer in self.tasks.items():
            writer.add(frame, seen.prediction.results[name], seen.states.get(name))
        for viewer in self.viewers:
            viewer.add(frame, seen)
        return self.statistics.add(frame, seen.prediction, known)


def open_writers(
    files: ExitStack, out: Path, manifest: Manifest, source: Keyframes | None, viewers: Sequence[str]
) -> Writers:
    """Open the writers for the folder `out`; complete files appear when `files` is closed.

    Args:
        source: of the annotations; None if the drive has none.
        viewers: names in VIEWERS.

    Raises:
        InputError: a viewer's package is not installed, or the folder cannot be written.
    """
    tasks = manifest.heads
    own = {name: task.writer(out, manifest.sensors) for name, task in tasks.items()}
    return Writers(
        {name: files.enter_context(writer) for name, writer in own.items() if writer is not None},
        StatisticsWriter(
            files.enter_context(atomic_file(out / STATISTICS, "the statistics")), manifest.sensors, tasks, source
        ),
        [files.enter_context(_viewer(name, out / VIEWERS[name], manifest)) for name in viewers],
    )


def _viewer(name: str, path: Path, manifest: Manifest) -> AbstractContextManager[ViewerWriter]:
    if name == "rerun":
        from deploy.replay.rerun_results import RerunWriter

        return RerunWriter.open(path, manifest.heads)
    from deploy.replay.foxglove_results import FoxgloveWriter

    return FoxgloveWriter.open(path, manifest.heads, manifest.rig.sensors.lidars[0])
