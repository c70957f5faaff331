"""Whether the scene detects the faults that were injected, and after how long."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy.replay.faults import Fault, HiddenClass
from perception.frame import Frame
from perception.scene.health.monitor import SensorHealth

_MISSED = "objects missed"  # what a scene that doubts a class has found


@dataclass
class _Record:
    """A fault of one sensor or class, over all drives."""

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
        """Add the next frame.

        Args:
            seconds: since the start of its drive, from which the faults' windows count.
            health: of the sensors.
            doubted: classes whose objects seem to be missed.
        """
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

    def listed(self) -> list[dict[str, Any]]:
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
