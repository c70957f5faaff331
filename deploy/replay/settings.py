"""The settings of a replay: its drives, and how they are replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.recordings.choice import Selection
from deploy.trust import Trust
from perception.frame import Conditions


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
        viewer: whether to write results.mcap for Foxglove and Rerun.
    """

    target: str = "cpu"
    trust: Trust | None = None
    faults: Sequence[str] = ()
    conditions: Conditions | None = None
    evidence: Path | None = None
    selection: Selection = field(default_factory=Selection)
    real_time: bool = False
    viewer: bool = False
