"""The files that a replay writes frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from deploy.manifest import Manifest
from deploy.replay.folder import TRACKS
from deploy.replay.results import RESULTS, STATISTICS
from deploy.replay.statistics import StatisticsWriter, Truth
from deploy.replay.viewers import ViewerWriter, open_viewer
from perception.frame import Frame
from perception.scene.scene import SceneFrame
from perception.tasks.detection.submission import SubmissionWriter
from perception.tasks.detection.tracking import TrackWriter


class Writers(NamedTuple):
    """What takes in everything that was perceived in a frame."""

    results: SubmissionWriter
    tracks: TrackWriter
    statistics: StatisticsWriter
    viewers: Sequence[ViewerWriter]

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """The next frame."""
        self.results.add(frame, seen.prediction)
        self.tracks.add(frame.token, seen.tracks)
        self.statistics.add(frame, seen.prediction)
        for viewer in self.viewers:
            viewer.add(frame, seen)


def open_writers(
    files: ExitStack, out: Path, manifest: Manifest, truth: Truth | None, viewers: Sequence[str]
) -> Writers:
    """The writers of the folder `out`; the files appear whole when `files` is closed.

    Args:
        truth: None where the drive has no annotations.
        viewers: see deploy.replay.viewers.

    Raises:
        InputError: a viewer's package is not installed, or the folder cannot be written.
    """
    map_grid = None if manifest.map_grid is None else manifest.map_grid.build()
    return Writers(
        files.enter_context(SubmissionWriter(out / RESULTS, manifest.sensors)),
        files.enter_context(TrackWriter(out / TRACKS, manifest.sensors)),
        files.enter_context(StatisticsWriter(out / STATISTICS, manifest.sensors, map_grid, truth)),
        [files.enter_context(open_viewer(name, out, map_grid)) for name in viewers],
    )
