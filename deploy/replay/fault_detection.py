"""What health said of the faults that were injected, and when: whether a vehicle would have known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy.replay.faults import Fault
from perception.frame import Frame
from perception.scene.health.monitor import SensorHealth, Status


@dataclass
class _Suffered:
    """A fault of one sensor, over all drives."""

    fault: Fault
    sensor: str  # as health names it
    frames: int = 0  # that had the fault
    told: int = 0  # of them, those in which health named it
    said: dict[Status, float] = field(default_factory=dict)  # all that health said meanwhile: s from the fault's begin
    begun: int | None = None  # us, of the drive's first frame with the fault
    heard: set[Status] = field(default_factory=set)  # in this drive

    def add(self, now: int, health: SensorHealth) -> None:
        """A frame with the fault. Of several drives the longest delay counts."""
        self.begun = now if self.begun is None else self.begun
        names = {each.status for each in health.findings}
        for name in names - self.heard:
            self.said[name] = max(self.said.get(name, 0.0), 1e-6 * (now - self.begun))
        self.heard |= names
        self.frames, self.told = self.frames + 1, self.told + bool(names & self.fault.kind.told_as)


class Told:
    """Listens to what health says while drives are replayed with faults."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._suffered = [_Suffered(fault, sensor) for fault in faults for sensor in fault.sensors]
        self._scene, self._starts = "", dict[str, int]()  # us, of each drive's first frame

    def watched(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames of the drives as recorded, from whose first ones the faults' windows count."""
        for frame in frames:
            self._starts.setdefault(frame.scene, frame.timestamp)
            yield frame

    def add(self, frame: Frame, health: Mapping[str, SensorHealth]) -> None:
        """What health says at one of these frames."""
        if frame.scene != self._scene:
            self._scene = frame.scene
            for each in self._suffered:
                each.begun, each.heard = None, set()
        seconds = 1e-6 * (frame.timestamp - self._starts.setdefault(frame.scene, frame.timestamp))
        for each in self._suffered:
            if each.sensor in health and each.fault.start <= seconds < each.fault.end:
                each.add(frame.timestamp, health[each.sensor])

    def listed(self) -> list[dict[str, Any]]:
        """For each fault and sensor its frames, in how many health named it, and after how long health said what."""
        return [
            {
                "fault": each.fault.text,
                "sensor": each.sensor,
                "frames": each.frames,
                "told": each.told,
                "said": {name: round(seconds, 2) for name, seconds in each.said.items()},
            }
            for each in self._suffered
        ]
