"""What a replay sums up over its frames, besides the files that it writes frame by frame."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deploy.replay.faults import Drop, Fault, HiddenClass, parse_faults
from deploy.replay.latency import Latency
from deploy.replay.provenance import DriveUsed, ReplayProvenance
from deploy.replay.report import NO_DRIVE, DriveRange, Report
from deploy.replay.results import LATENCY, REPORT, SOURCES
from deploy.replay.settings import Settings
from deploy.runtime import Runtime
from perception.errors import InputError
from perception.frame import Frame
from perception.io.files import write_atomically
from perception.rig import Sensors
from perception.scene.health.monitor import SensorHealth
from perception.scene.scene import SceneFrame

_MISSED = "objects missed"  # what a scene that doubts a class has found


@dataclass
class _Record:
    fault: Fault | HiddenClass
    sensor: str  # as health names it, or the class
    expected: frozenset[str]  # with any of these statuses the fault is detected
    frames: int = 0  # that had the fault
    detected: int = 0  # of them, those with an expected status
    delays: dict[str, float] = field(default_factory=dict)  # s from the start of the fault to each status
    begin: int | None = None  # us, the drive's first frame with the fault
    seen: set[str] = field(default_factory=set)  # in this drive

    def add(self, now: int, statuses: set[str]) -> None:
        """Add a frame with the fault. The longest delay over all drives is kept."""
        self.begin = now if self.begin is None else self.begin
        for status in statuses - self.seen:
            self.delays[status] = max(self.delays.get(status, 0.0), 1e-6 * (now - self.begin))
        self.seen |= statuses
        self.frames += 1
        self.detected += bool(statuses & self.expected)


class FaultDetections:
    """Compares what the scene finds, by sensors' health and doubts, with the injected faults, frame by frame."""

    def __init__(self, faults: Sequence[Fault], hidden: Sequence[HiddenClass] = ()) -> None:
        self._records = [
            _Record(fault, sensor, fault.kind.expected_statuses) for fault in faults for sensor in fault.sensors
        ]
        self._records += [_Record(fault, fault.name, frozenset({_MISSED})) for fault in hidden]
        self._scene = ""

    def add(
        self, frame: Frame, seconds: float, health: Mapping[str, SensorHealth], doubted: Collection[str] = ()
    ) -> None:
        """Add the next frame, `seconds` after the start of its drive; of doubted classes objects seem to be missed."""
        if frame.scene != self._scene:
            self._scene = frame.scene
            for each in self._records:
                each.begin, each.seen = None, set()
        found = {name: {str(finding.status) for finding in each.findings} for name, each in health.items()}
        for each in self._records:
            statuses = found.get(each.sensor)
            if isinstance(each.fault, HiddenClass):
                statuses = {_MISSED} if each.fault.name in doubted else set()
            if statuses is not None and each.fault.start <= seconds < each.fault.end:
                each.add(frame.timestamp, statuses)

    def part(self) -> list[dict[str, Any]]:
        """What was counted for each fault and sensor or class, for `join`."""
        return [{"frames": each.frames, "detected": each.detected, "delays": each.delays} for each in self._records]

    def join(self, part: Sequence[Mapping[str, Any]]) -> None:
        """Add what was counted in later drives with the same faults."""
        for each, other in zip(self._records, part, strict=True):
            each.frames += other["frames"]
            each.detected += other["detected"]
            for status, seconds in other["delays"].items():
                each.delays[status] = max(each.delays.get(status, 0.0), seconds)

    def to_rows(self) -> list[dict[str, Any]]:
        """For each fault and sensor or class: its frames, frames with detection, and s until each status."""
        return [
            {
                "fault": each.fault.text,
                "sensor": each.sensor,
                "frames": each.frames,
                "detected": each.detected,
                "delays": {status: round(seconds, 2) for status, seconds in each.delays.items()},
            }
            for each in self._records
        ]

    @property
    def dropped(self) -> set[str]:
        """Names of the sensors that a fault drops in every frame."""
        return {
            each.sensor
            for each in self._records
            if isinstance(each.fault, Fault) and isinstance(each.fault.kind, Drop) and each.fault.is_permanent
        }

    def absent(self) -> tuple[str, ...]:
        """The faults that occurred in no frame, for example after the end of every drive."""
        present = {each.fault.text for each in self._records if each.frames}
        return tuple({each.fault.text: None for each in self._records if each.fault.text not in present})


class ReplayTotals:
    """Report, detected faults, latencies and counts. Those of one drive are joined to those of the replay.

    Without a place in the replay they are for `join`. `behind` is how many s the replay was behind real time at most;
    None: it was not in real time.
    """

    def __init__(self, runtime: Runtime, settings: Settings, place: DriveRange = NO_DRIVE) -> None:
        manifest = runtime.bundle.manifest
        self.report = Report(manifest, runtime.target, place)
        self.faults = FaultDetections(*parse_faults(settings.faults, manifest.rig.sensors, manifest.taxonomy))
        self.latency = Latency()
        self.counts: list[dict[str, Any]] = []
        self.behind: float | None = None
        self._frames = Counter[str]()  # by scene

    def add(self, frame: Frame, seconds: float, seen: SceneFrame) -> None:
        """Add the next frame, so many seconds after the start of its drive, and what was perceived in it."""
        self._frames[frame.scene] += 1
        self.report.add(frame, seen)
        self.faults.add(frame, seconds, seen.health, seen.doubts)
        self.latency.add(frame, seen.seconds)  # last, since it counts the completely written frames

    def pass_by(self, frame: Frame, seconds: float, seen: SceneFrame) -> None:
        """Add the next frame, as `add`, if its results are not written."""
        self.faults.add(frame, seconds, seen.health, seen.doubts)
        self.latency.pass_by(frame)

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
        return len(self.latency)

    def require_data(self, sensors: Sensors, recorded: Collection[str]) -> None:
        """Raise InputError for sensors of the network that no frame of the drives has, although they are `recorded`.

        A fault that drops a sensor throughout asks for a replay without it, unless nothing else is left.
        """
        frames, missing = sum(counts["frames"] for counts in self.counts), Counter[str]()
        for counts in self.counts:
            missing.update(counts["missing"])
        lost = [name for name in sensors.names if frames and missing[name] == frames]
        if len(lost) < len(sensors.names):
            lost = [name for name in lost if name in recorded and name not in self.faults.dropped]
        if lost:
            first = next((line for counts in self.counts for line in counts["damage"]), "no file or message of them")
            raise InputError(
                f"{', '.join(lost)}: missing in all {frames} frames of the drives ({first}); to replay without one "
                f"leave it out of --topics, or add --fault drop:{lost[0]}"
            )

    def write(self, out: Path, begun: ReplayProvenance, resumed: int) -> None:
        """Write latency.json, sources.json, report.html and, last, replay.json, as `begun` before the first frame.

        An earlier run had perceived the first `resumed` frames.
        """
        latency = self.latency.summary()
        late = {} if self.behind is None else {"behind": round(1e3 * self.behind, 3)}
        write_atomically(out / LATENCY, json.dumps(latency | late, indent=2).encode())
        write_atomically(out / SOURCES, json.dumps(self.counts, indent=2).encode())
        provenance = begun.model_copy(
            update={
                "drives": tuple(DriveUsed(name=name, frames=number) for name, number in self._frames.items()),
                "frames": len(self),
                "absent_faults": self.faults.absent(),
                "resumed_at_frame": resumed,
                "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
        )
        page = self.report.html(latency, provenance.brief(), self.faults.to_rows())
        write_atomically(out / REPORT, page.encode())
        provenance.write(out)
