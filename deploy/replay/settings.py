"""The settings of a replay: its drives, which of their frames, and how they are replayed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.trust import Trust
from perception.errors import InputError
from perception.frame import Conditions


@dataclass(frozen=True)
class Selection:
    """A part of every drive.

    Args:
        start: s since the first frame of the drive.
        end: s; later frames are left out.
        every: select every Nth of these frames.

    Raises:
        InputError: no frame can be selected.
    """

    start: float = 0.0
    end: float = math.inf
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise InputError(f"--start {self.start:g} --end {self.end:g}: give seconds with 0 <= START < END")
        if self.every < 1:
            raise InputError(f"--every {self.every}: give 1 for every frame, 2 for every second one, ...")

    def expected(self, frames: int, seconds: float) -> int:
        """How many of the frames of a drive are selected, if they come at a steady rate.

        Args:
            seconds: from the first to the last of them.
        """
        period = seconds / max(frames - 1, 1)
        if period <= 0:
            return -(-frames // self.every)
        first = math.ceil(self.start / period)
        end = frames if math.isinf(self.end) else min(frames, math.ceil(self.end / period))
        return -(-max(end - first, 0) // self.every)


class DriveTime:
    """The time since the first frame of a drive."""

    def __init__(self) -> None:
        self._starts: dict[str, int] = {}  # us, by scene, since a recording may have several

    def __call__(self, scene: str, timestamp: int) -> float:
        """Seconds since the first frame of the scene, which is the first one that is asked for."""
        return 1e-6 * (timestamp - self._starts.setdefault(scene, timestamp))


class FrameChoice:
    """Decides which frames of a drive are read. It is asked once for each frame, in their order.

    Args:
        selection: None: all, also those before the start by a clock that was set.

    Attributes:
        time: since the start of the drive.
        over: no later frame is chosen.
    """

    def __init__(self, selection: Selection | None = None) -> None:
        self._selection, self.time, self.over = selection, DriveTime(), False
        self._first: int | None = None  # us
        self._inside = Counter[str]()  # frames between start and end, by scene

    def __call__(self, scene: str, timestamp: int) -> bool:
        """Whether the next frame is chosen; its time in us."""
        seconds, selection = self.time(scene, timestamp), self._selection
        if selection is None:
            return True
        self._first = timestamp if self._first is None else self._first
        self.over = self.over or 1e-6 * (timestamp - self._first) >= selection.end
        if self.over or not selection.start <= seconds < selection.end:
            return False
        self._inside[scene] += 1
        return (self._inside[scene] - 1) % selection.every == 0


@dataclass(frozen=True)
class Source:
    """Recorded drives.

    Args:
        path: a nuScenes dataroot, a .mcap or .db3 file, or a rosbag2's folder.
        version: version of a dataroot's tables; None for a recording.
        scenes: names of a dataroot's scenes, or keyframes such as `scene-0103:0-4`; empty for every scene.
        topics: YAML file that maps the topics of a recording to sensors.
    """

    path: Path
    version: str | None = None
    scenes: Sequence[str] = ()
    topics: Path | None = None


@dataclass(frozen=True)
class Settings:
    """How drives are replayed.

    Args:
        target: the target whose engine runs.
        trust: who must have signed the bundle, and how old it may be; None accepts it unsigned and of any age.
        faults: faults as `Fault.parse` and `HiddenClass.parse` take them, injected in this order.
        conditions: used for every frame instead of the drive's tags; None: the tags.
        evidence: YAML file of the sources of evidence for the conditions; None: tags, then what is recognised.
        selection: the part of every drive that is replayed.
        real_time: whether frames are replayed at the recorded pace.
        latency: whether latencies are measured as on a vehicle: at the recorded pace, with no other work.
        viewers: names in deploy.replay.folder.VIEWERS for which to write a file.
    """

    target: str = "cpu"
    trust: Trust | None = None
    faults: Sequence[str] = ()
    conditions: Conditions | None = None
    evidence: Path | None = None
    selection: Selection = field(default_factory=Selection)
    real_time: bool = False
    latency: bool = False
    viewers: Sequence[str] = ()
