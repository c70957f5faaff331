"""The settings of a replay: its drives, and how they are replayed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deploy.recordings.choice import Selection
from deploy.trust import Trust
from perception.errors import InputError
from perception.frame import Conditions

LONGEST_LATENCY = 10.0  # s, of streaming scores


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
        segment: s; longer drives are cut into segments (`Segment`); None: they are not.
        real_time: whether frames are replayed at the recorded pace.
        latency: whether latencies are measured as on a vehicle: at the recorded pace, with no other work.
        viewers: names in deploy.replay.folder.VIEWERS for which to write a file.
        streaming: also score detections when they come out (`deploy.replay.streaming`), so many seconds after their
            frame, or as `latency` measures; None: not.
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
    segment: float | None = None
    streaming: float | Literal["measured"] | None = None

    def __post_init__(self) -> None:
        if self.segment is not None and not 0 < self.segment < math.inf:
            raise InputError(f"--segment {self.segment:g}: give the seconds of a segment, such as 60")
        if self.streaming == "measured" and not self.latency:
            raise InputError("--streaming measured: needs --latency, which measures; or give milliseconds")
        if isinstance(self.streaming, float) and not 0 <= self.streaming <= LONGEST_LATENCY:
            raise InputError(f"--streaming {1e3 * self.streaming:g}: give milliseconds up to {1e3 * LONGEST_LATENCY:g}")


def parse_streaming(text: str) -> float | Literal["measured"] | None:
    """`Settings.streaming` of the option: milliseconds or `measured`; "" for none. InputError if it is neither."""
    if not text or text == "measured":
        return "measured" if text else None
    try:
        return 1e-3 * float(text)
    except ValueError:
        raise InputError(f"--streaming {text}: give milliseconds, such as 200, or measured") from None
