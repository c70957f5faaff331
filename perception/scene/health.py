"""Which sensors of a drive can be trusted right now, told from a small sample of what they say. numpy only.

Checks are cheap, so they see what is gross: a sensor that is gone, stuck, late, dark, blinded, blurred or thinned out.
A camera that is slightly out of place looks healthy to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from perception.data.tables import LIDAR
from perception.frame import Frame

Status = Literal["ok", "missing", "dark", "saturated", "frozen", "late", "degraded"]

# Real drives by day, and simulated ones by day and night, in rain and fog, stay clear of all of these limits.
FROZEN = 0.25  # s that the same content may be given again: a camera may be slower than the frames
LATE = 0.15  # s between a sensor's time and the frame's; nuScenes' cameras fire up to 0.045 s before the LiDAR
ROWS = 16  # of a picture that are looked at
DARK, BRIGHT = 10, 245  # of 255: all but 1 % of the pixels are darker, or brighter
ALL = 0.99
# A picture's mean difference over 1 pixel by that over 4: 0.25 of a smooth slope, 0.32 and more of sharp pictures,
# under 0.27 after a Gaussian blur of 3 pixels.
SMOOTH = 0.27
EVERY = 16  # one point in so many is looked at
SWEEP = 0.04  # s: points that are not older are the latest sweep's; earlier ones come and go
FEW = 2000  # points of a sweep; an HDL-32E gives 20,000 to 28,000
THINNED = 0.5  # share of the points that lately were usual
USUAL = 60.0  # s in which fewer points become usual
FAR = 500.0  # m; a point beyond is no measurement
CORRUPT = 0.01  # share of the points that are no measurements


@dataclass(frozen=True)
class SensorHealth:
    """How one sensor is doing."""

    status: Status
    since: int  # us, time of the first frame of this status
    reason: str  # '' while ok


@dataclass
class _Seen:
    """What a sensor gave last."""

    content: bytes
    timestamp: int | None  # us, its own
    first: int  # us, time of the first frame that had it


class HealthMonitor:
    """Watches the sensors of one drive.

    Args:
        sensors: the network's: LIDAR_TOP and names of cameras.
    """

    def __init__(self, sensors: Sequence[str]) -> None:
        self.sensors = tuple(sensors)
        self._health: dict[str, SensorHealth] = {}
        self._seen: dict[str, _Seen] = {}
        self._usual = 0.0  # points of a sweep, lately
        self._counted: int | None = None  # us, when they were counted last

    def update(self, frame: Frame) -> dict[str, SensorHealth]:
        """Health of every sensor at the time of a frame."""
        for name in self.sensors:
            findings = self._lidar(frame) if name == LIDAR else self._camera(name, frame)
            status, reason = next(findings, ("ok", ""))
            before = self._health.get(name)
            since = before.since if before is not None and before.status == status else frame.timestamp
            self._health[name] = SensorHealth(status, since, reason)
        return dict(self._health)

    def _camera(self, name: str, frame: Frame) -> Iterator[tuple[Status, str]]:
        """What is wrong with a camera, the worst first."""
        if name not in frame.cameras:
            yield "missing", "no picture"
            return
        camera, now = frame.cameras[name], frame.timestamp
        step = max(1, len(camera.image) // ROWS)
        rows = np.ascontiguousarray(camera.image[step // 2 :: step, :, 1])  # green
        stuck = self._stuck(name, rows.tobytes(), camera.timestamp, now)
        if np.count_nonzero(rows < DARK) >= ALL * rows.size:
            yield "dark", f"nearly all pixels are below {DARK} of 255"
        if np.count_nonzero(rows > BRIGHT) >= ALL * rows.size:
            yield "saturated", f"nearly all pixels are above {BRIGHT} of 255"
        if stuck > FROZEN:
            yield "frozen", f"the same picture for {stuck:.2f} s"
        late = 1e-6 * abs(now - camera.timestamp)
        if late > LATE:
            yield "late", f"taken {late:.2f} s {'before' if camera.timestamp < now else 'after'} the frame"
        signed = rows.astype(np.int16)
        fine, coarse = (int(np.abs(signed[:, n:] - signed[:, :-n]).sum()) for n in (1, 4))
        if fine <= SMOOTH * coarse:
            yield "degraded", "blurred: no fine texture"

    def _lidar(self, frame: Frame) -> Iterator[tuple[Status, str]]:
        """What is wrong with the LiDAR, the worst first."""
        if frame.points is None or not len(frame.points):
            yield "missing", "no points"
            return
        sample = frame.points[::EVERY]
        newest = float(sample[:, 4].min())
        count = EVERY * np.count_nonzero(sample[:, 4] < newest + SWEEP)
        usual = self._usual_count(count, frame.timestamp)
        stuck = self._stuck(LIDAR, frame.points[: EVERY * 256, :4].tobytes(), None, frame.timestamp)
        if stuck > FROZEN:
            yield "frozen", f"the same points for {stuck:.2f} s"
        if newest > LATE:
            yield "late", f"the newest point is {newest:.2f} s older than the frame"
        measured = (np.abs(sample[:, :3].T) < FAR).all(axis=0)  # NaN is not
        corrupt = 1 - np.count_nonzero(measured) / len(sample)
        if corrupt > CORRUPT:
            yield "degraded", f"{corrupt:.0%} of the points are not finite or beyond {FAR:.0f} m"
        if count < FEW:
            yield "degraded", f"{count} points"
        if count < THINNED * usual:
            yield "degraded", f"{count} points, where {usual:.0f} were usual"

    def _stuck(self, name: str, content: bytes, timestamp: int | None, now: int) -> float:
        """Seconds since a sensor first gave this content, or anything with this timestamp."""
        seen = self._seen.get(name)
        if seen is None or (content != seen.content and (timestamp is None or timestamp != seen.timestamp)):
            seen = self._seen[name] = _Seen(content, timestamp, now)
        return 1e-6 * (now - seen.first)

    def _usual_count(self, count: int, now: int) -> float:
        """Points of a sweep that are usual: the most lately, of which fewer make less within a minute."""
        forgotten = 0.0 if self._counted is None else 1 - math.exp(-1e-6 * max(0, now - self._counted) / USUAL)
        self._usual = max(float(count), self._usual + forgotten * (count - self._usual))
        self._counted = now
        return self._usual
