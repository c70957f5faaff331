"""What is replayed, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.replay.faults import Fault
from deploy.replay.selection import Selection
from deploy.trust import Trust
from perception.frame import Conditions


@dataclass(frozen=True)
class Source:
    """Recorded drives.

    Args:
        path: a nuScenes dataroot, a .mcap or .db3 file, or a rosbag2's folder.
        version: of the tables of a dataroot; None for a recording.
        scenes: of a dataroot: names, or keyframes such as `scene-0103:0-4`; empty for every scene.
        topics: a YAML file that says which topics of a recording are which sensor.
    """

    path: Path
    version: str | None = None
    scenes: Sequence[str] = ()
    topics: Path | None = None


@dataclass(frozen=True)
class Settings:
    """How drives are replayed.

    Args:
        target: the engine of the bundle that runs.
        trust: who must have signed the bundle, and how old it may be; None takes it unsigned and of any age.
        faults: of the sensors, in this order.
        conditions: that the vehicle gets with every frame instead of the drive's tags; None: the tags.
        selection: the part of every drive that is replayed.
        real_time: whether no frame is given to the network before the vehicle had it.
        latency: whether latencies are measured as a vehicle would see them: at the drive's pace, with nothing beside.
        viewers: for which to write a file, see deploy.replay.folder.VIEWERS.
    """

    target: str = "cpu"
    trust: Trust | None = None
    faults: Sequence[Fault] = ()
    conditions: Conditions | None = None
    selection: Selection = field(default_factory=Selection)
    real_time: bool = False
    latency: bool = False
    viewers: Sequence[str] = ()
