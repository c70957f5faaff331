"""What a replay sums up over its frames, besides the files that it writes frame by frame."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deploy.replay.fault_detection import FaultDetections
from deploy.replay.faults import parse_faults
from deploy.replay.latency import THROUGHPUT, VEHICLE, Latency
from deploy.replay.provenance import DriveUsed, ReplayProvenance
from deploy.replay.report import NO_DRIVE, DriveRange, Report
from deploy.replay.results import LATENCY, REPORT, SOURCES
from deploy.replay.settings import Settings
from deploy.runtime import Runtime
from perception.files import write_atomically
from perception.frame import Frame
from perception.scene.scene import SceneFrame


class ReplayTotals:
    """Report, detected faults, latencies and counts. Those of one drive are joined to those of the replay.

    Args:
        place: of the drive in the replay; the default has no frame and is for `join`.

    Attributes:
        counts: `Counts.summary` of each drive.
        behind: s that the replay was behind real time at most; None: it was not in real time.
    """

    def __init__(self, runtime: Runtime, settings: Settings, place: DriveRange = NO_DRIVE) -> None:
        manifest = runtime.bundle.manifest
        self.report = Report(manifest, runtime.target, place)
        self.faults = FaultDetections(*parse_faults(settings.faults, manifest.rig.sensors, manifest.taxonomy))
        self.latency = Latency(VEHICLE if settings.latency else THROUGHPUT)
        self.counts: list[dict[str, Any]] = []
        self.behind: float | None = None
        self._frames = Counter[str]()  # by scene

    def add(self, frame: Frame, seconds: float, seen: SceneFrame) -> None:
        """Add the next frame, so many seconds after the start of its drive, and what was perceived in it."""
        self._frames[frame.scene] += 1
        self.report.add(frame, seen)
        self.faults.add(frame, seconds, seen.health, seen.doubts)
        self.latency.add(frame, seen.seconds)  # last, since it counts the completely written frames

    def to_json(self) -> dict[str, Any]:
        """Everything, for `join`."""
        return {
            "report": self.report.part(),
            "latency": self.latency.part(),
            "faults": self.faults.part(),
            "counts": self.counts,
            "behind": self.behind,
            "frames": self._frames,
        }

    def join(self, part: Mapping[str, Any]) -> None:
        """Append the totals of a later drive."""
        self.report.join(part["report"])
        self.latency.join(part["latency"])
        self.faults.join(part["faults"])
        self.counts += part["counts"]
        self._frames.update(part["frames"])
        if part["behind"] is not None:
            self.behind = max(self.behind or 0.0, part["behind"])

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.latency)

    def write(self, out: Path, begun: ReplayProvenance, resumed: int) -> None:
        """Write latency.json, sources.json, report.html and, last, replay.json.

        Args:
            begun: from before the first frame.
            resumed: number of frames that an earlier run had perceived.
        """
        latency = self.latency.summary()
        late = {} if self.behind is None else {"behind": round(1e3 * self.behind, 3)}
        write_atomically(out / LATENCY, json.dumps(latency | late, indent=2).encode())
        write_atomically(out / SOURCES, json.dumps(self.counts, indent=2).encode())
        provenance = begun.model_copy(
            update={
                "drives": tuple(DriveUsed(name=name, frames=number) for name, number in self._frames.items()),
                "frames": len(self),
                "resumed_at_frame": resumed,
                "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
        )
        page = self.report.html(latency, provenance.brief(), self.faults.listed())
        write_atomically(out / REPORT, page.encode())
        provenance.write(out)
