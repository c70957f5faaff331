"""What a replay collects besides the files that it writes frame by frame. That of successive drives can be joined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.replay.fault_detection import FaultDetections
from deploy.replay.latency import THROUGHPUT, Latency
from deploy.replay.provenance import DriveUsed
from deploy.replay.report import Report, Shown
from deploy.replay.sources import Drive
from perception.frame import Frame
from perception.scene.scene import SceneFrame


class Collected:
    """Report, detected faults, latencies and counts of a replay.

    Args:
        mode: of `Latency`.

    Attributes:
        not_finite: frames with a NaN or infinity in an output.
        counts: summary of each drive's `Counts`, and the same in a line of text.
        drives: those replayed.
        recalled: frames that a journal had.
    """

    def __init__(
        self,
        report: Report,
        faults: FaultDetections,
        mode: str = THROUGHPUT,
    ) -> None:
        self.report, self.faults, self.latency = report, faults, Latency(mode)
        self.not_finite, self.recalled = 0, 0
        self.counts: list[tuple[dict[str, Any], str]] = []
        self.drives: list[DriveUsed] = []

    def add(self, frame: Frame, seen: SceneFrame, known: Mapping[str, Any] | None = None) -> Shown:
        """Add the next frame, and what was perceived in it; returns and takes what `Report.add` does."""
        self.not_finite += bool(seen.prediction.not_finite)
        shown = self.report.add(frame, seen, known)
        self.faults.add(frame, seen.health, seen.doubts)
        self.latency.add(frame, seen.seconds)  # last, since it counts the completely written frames
        return shown

    def read(self, drive: Drive) -> None:
        """Add the counts of a drive that has been read to its end."""
        self.counts.append((drive.counts.summary(), drive.counts.line()))

    def part(self) -> dict[str, Any]:
        """Everything as JSON, for `join`."""
        return {
            "report": self.report.part(),
            "latency": self.latency.part(),
            "faults": self.faults.part(),
            "not_finite": self.not_finite,
            "recalled": self.recalled,
            "counts": self.counts,
            "drives": [each.model_dump(mode="json") for each in self.drives],
        }

    def join(self, part: Mapping[str, Any]) -> None:
        """Append what was collected in later drives."""
        self.report.join(part["report"])
        self.latency.join(part["latency"])
        self.faults.join(part["faults"])
        self.not_finite += part["not_finite"]
        self.recalled += part["recalled"]
        self.counts += [(summary, line) for summary, line in part["counts"]]
        self.drives += [DriveUsed.model_validate(each) for each in part["drives"]]
