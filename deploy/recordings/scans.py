"""The latest scans of sensors of further kinds, which are neither LiDARs nor cameras."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np

from deploy.recordings.latest import message_stamp
from deploy.recordings.messages import CorruptMessage, check_name
from deploy.recordings.topics import ScannerTopic
from perception.frame import Arrays, Scan
from perception.sensors import SENSORS

_MOST = 32  # scans


class Received(NamedTuple):
    """A scan as received."""

    stamp: int  # us
    nanoseconds: int  # beyond the stamp
    frame: str  # of the sensor
    arrays: Arrays  # in that frame


class Scans:
    """A bounded number of scans of a sensor of a further kind (`perception.sensors.SENSORS`)."""

    def __init__(self, topic: ScannerTopic, kind: str) -> None:
        self.topic, self.kind = topic, kind
        self._scans: deque[Received] = deque(maxlen=_MOST)

    def read(self, message: Any) -> Received:
        """The scan in a message. CorruptMessage if it is none."""
        try:
            arrays = SENSORS[self.kind].received(message)
            frame, nanoseconds = message.header.frame_id, int(message.header.stamp.nanosec) % 1000
        except (AttributeError, TypeError, ValueError):
            raise CorruptMessage("a message that is not of its kind of sensor") from None
        offset = round(1e6 * self.topic.offset)
        return Received(message_stamp(message) + offset, nanoseconds, check_name(frame), arrays)

    def add(self, scan: Received) -> None:
        self._scans.append(scan)

    def forget(self, since: int) -> None:
        """Drop all scans if the clock was set back, so that it showed this stamp (us) again."""
        if any(each.stamp >= since for each in self._scans):
            self._scans.clear()

    def nearest(self, stamp: int, tolerance: int) -> Received | None:
        near = [each for each in self._scans if abs(each.stamp - stamp) <= tolerance]
        return min(near, key=lambda each: (abs(each.stamp - stamp), each.stamp), default=None)

    def placed(self, scan: Received, reference_from_sensor: np.ndarray) -> Scan:
        """The scan in a frame's reference, given (4, 4) at the scan's time."""
        return SENSORS[self.kind].moved(Scan(self.kind, scan.stamp, scan.arrays), reference_from_sensor)
