"""Whether the sensors' health detects the faults that were injected, and after how long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy.replay.faults import Fault
from perception.frame import Frame
from perception.scene.health.monitor import SensorHealth, Status


@dataclass
class _Record:
    """A fault of one sensor, over all drives."""

    fault: Fault
    sensor: str  # as health names it
    frames: int = 0  # that had the fault
    detected: int = 0  # of them, those with an expected health status
    delays: dict[Status, float] = field(default_factory=dict)  # s from the start of the fault to each health status
    begin: int | None = None  # us, the drive's first frame with the fault
    seen: set[Status] = field(default_factory=set)  # in this drive

    def add(self, now: int, health: SensorHealth) -> None:
        """Add a frame with the fault. The longest delay over all drives is kept."""
        self.begin = now if self.begin is None else self.begin
        statuses = {each.status for each in health.findings}
        for status in statuses - self.seen:
            self.delays[status] = max(self.delays.get(status, 0.0), 1e-6 * (now - self.begin))
        self.seen |= statuses
        self.frames += 1
        self.detected += bool(statuses & self.fault.kind.expected_statuses)


class FaultDetections:
    """Compares sensor health with the injected faults, frame by frame."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._records = [_Record(fault, sensor) for fault in faults for sensor in fault.sensors]
        self._scene, self._starts = "", dict[str, int]()  # us, of each drive's first frame

    def record_starts(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Yield the same frames, and record the start of each drive, from which the faults' windows count."""
        for frame in frames:
            self._starts.setdefault(frame.scene, frame.timestamp)
            yield frame

    def add(self, frame: Frame, health: Mapping[str, SensorHealth]) -> None:
        """Add the health of the sensors in one of these frames."""
        if frame.scene != self._scene:
            self._scene = frame.scene
            for each in self._records:
                each.begin, each.seen = None, set()
        seconds = 1e-6 * (frame.timestamp - self._starts.setdefault(frame.scene, frame.timestamp))
        for each in self._records:
            if each.sensor in health and each.fault.start <= seconds < each.fault.end:
                each.add(frame.timestamp, health[each.sensor])

    def listed(self) -> list[dict[str, Any]]:
        """For each fault and sensor: its frames, frames with detection, and s until each health status."""
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
