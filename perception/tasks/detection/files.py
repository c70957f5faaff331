"""The files of detection in a replay: all detections and all tracks, as nuScenes submissions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from perception.frame import Boxes, Frame
from perception.tasks.detection.submission import SubmissionWriter
from perception.tasks.detection.tracker import Tracks
from perception.tasks.detection.tracking import TrackWriter
from perception.taxonomy import Taxonomy

RESULTS, TRACKS, TRACKING = "results.json", "tracks.json", "tracking_metrics.json"
SUBMISSION = "results_nusc.json"


class ResultFiles(NamedTuple):
    results: SubmissionWriter
    tracks: TrackWriter

    @classmethod
    @contextmanager
    def open(cls, folder: Path, sensors: Sequence[str], taxonomy: Taxonomy) -> Iterator[ResultFiles]:
        """Writers of both files, which appear atomically when the block ends; errors as in `ResultsWriter.open`."""
        with (
            SubmissionWriter.open(folder / RESULTS, sensors, taxonomy) as results,
            TrackWriter.open(folder / TRACKS, sensors, taxonomy) as tracks,
        ):
            yield cls(results, tracks)

    def add(self, frame: Frame, result: Boxes, state: Tracks) -> None:
        self.results.add(frame, result)
        self.tracks.add(frame.token, state)
