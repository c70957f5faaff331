"""Which sensors of a drive can be trusted right now, told from signs that are cheap to measure. numpy and OpenCV only.

A camera that is turned against the LiDAR, and a LiDAR that is turned against most cameras, are told from `alignment`,
which says what cannot be; a tilted or lifted LiDAR from the ground as well. Where the LiDAR is none of the sensors, or
has another fault, nothing new is said of turned cameras.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from perception.data.tables import LIDAR
from perception.frame import Camera, Frame
from perception.scene.alignment import Alignment
from perception.scene.scan import unbroken
from perception.scene.signs import BEYOND, BRIGHT, DARK, FAR, SweepSigns, picture_signs, sweep_signs

# The worst first.
Status = Literal[
    "ok", "missing", "dark", "saturated", "frozen", "late", "corrupt", "noisy", "blurred", "thinned", "miscalibrated"
]

# Real drives by day, and simulated ones by day and night, in rain and fog, stay clear of all of these limits.
FROZEN = 0.25  # s that the same content may be given again: a camera may be slower than the frames
LATE = 0.15  # s between a sensor's time and the frame's; nuScenes' cameras fire up to 0.045 s before the LiDAR
ALL = 0.99  # of the pixels, that are dark or bright
MOSTLY = 0.5  # of the pixels; simulated nights have 0.16 at most that are dark
SHAPELESS = 0.95  # texture, of noise alone
SMOOTH = 0.27  # texture: 0.32 and more of sharp pictures, under 0.27 after a Gaussian blur of 3 pixels
TORN = 0.17  # share of a row of blocks: 0.16 in one of 1,152 simulated pictures, 0 in real ones; where a fifth of the
# rows is damaged 97 % have more, where a tenth is 80 %
NOISY = 12.0  # grey levels: 0.4 of real pictures by day, 8 of simulated ones by night
ROUGH = 0.03  # m: streets have 0.005 at most, under noise of 0.05 m on the points it is 0.045
IMPOSSIBLE = 0.01  # share of the points
GARBLED = 0.03  # share of the azimuth; healthy sweeps have none
FEW = 2000  # points of a sweep; an HDL-32E gives 20,000 to 28,000
# Share of what lately was usual. Out of town there are fewer points, but those on the ground nearby are as dense.
THINNED = 0.7
BROKEN = 0.6  # share of the ground's points; see `scan.unbroken`: 0.45 to 0.53 where three in ten returns are lost
USUAL = 60.0  # s in which fewer points become usual
# The mean of some frames, since springs and the road's own shape move the ground by 1.1 degrees and 0.08 m.
TILTED = 1.5  # degrees between the ground and the vehicle's x-y plane
RAISED = 0.2  # m between the ground and the vehicle's origin
LEVELLED = 1.25  # s, and at least 3 frames, of which the ground is the median
HELD = 1.0  # s that a finding which chance may hide in a frame outlives its last sign


@dataclass(frozen=True)
class SensorHealth:
    """How one sensor is doing."""

    status: Status
    since: int  # us, time of the first frame of this status
    reason: str  # '' while ok
    also: tuple[SensorHealth, ...] = ()  # what else is wrong with it

    @property
    def findings(self) -> tuple[SensorHealth, ...]:
        """All that is wrong with it, the worst first."""
        return () if self.status == "ok" else (self, *self.also)

    @property
    def words(self) -> str:
        """All statuses in one word or several, such as 'late + blurred'."""
        return " + ".join(each.status for each in (self, *self.also))

    @property
    def reasons(self) -> str:
        return "; ".join(each.reason for each in (self, *self.also))


Findings = Iterator[tuple[Status, str]]
_WORST_FIRST = get_args(Status)[1:]
_PASSING = _WORST_FIRST[5:]  # chance may hide these in a frame


@dataclass
class _Seen:
    """What a sensor gave last."""

    content: bytes
    timestamp: int | None  # us, its own
    first: int  # us, time of the first frame that had it


@dataclass
class _Finding:
    since: int  # us, time of the first frame that showed it
    last: int  # us, and of the last one
    reason: str


class HealthMonitor:
    """Watches the sensors of one drive.

    Args:
        sensors: the network's: LIDAR_TOP and names of cameras.
    """

    def __init__(self, sensors: Sequence[str]) -> None:
        self.sensors = tuple(sensors)
        self._health: dict[str, SensorHealth] = {}
        self._found: dict[str, dict[Status, _Finding]] = {name: {} for name in self.sensors}
        self._seen: dict[str, _Seen] = {}
        self._usual = np.zeros(2)  # points of a sweep, and their density on the ground nearby, lately
        self._counted: int | None = None  # us, when they were counted last
        self._whole = False  # whether a sweep so far had no gaps
        self._grounds: deque[tuple[int, float, float, float]] = deque(maxlen=64)  # time (us), slopes and height
        self._alignment = Alignment()

    def update(self, frame: Frame) -> dict[str, SensorHealth]:
        """Health of every sensor at the time of a frame."""
        signs = sweep_signs(frame) if LIDAR in self.sensors and frame.points is not None and len(frame.points) else None
        said: dict[str, dict[Status, str]] = {}
        for name in self.sensors:
            if name == LIDAR:
                findings = self._lidar(frame, signs)
            elif name in frame.cameras:
                findings = self._camera(name, frame.cameras[name], frame.timestamp)
            else:
                findings = iter([("missing", "no picture")])
            said[name] = dict(findings)
        self._align(frame, signs, said)
        self._health = {name: self._joined(name, said[name], frame.timestamp) for name in self.sensors}
        return dict(self._health)

    def _align(self, frame: Frame, signs: SweepSigns | None, said: dict[str, dict[Status, str]]) -> None:
        """Adds what is said of sensors that are turned against one another; all others but well ones have no say."""
        if signs is not None and not said[LIDAR]:
            self._alignment.update(frame, signs, [name for name in said if name != LIDAR and not said[name]])
        if self._alignment.lidar is not None and LIDAR in said:
            said[LIDAR].setdefault(
                "miscalibrated", f"turned by {self._alignment.lidar:.1f} degrees against most cameras"
            )
        for name, degrees in self._alignment.cameras.items():
            said[name]["miscalibrated"] = f"turned by {degrees:.1f} degrees against the LiDAR"

    def _joined(self, name: str, said: dict[Status, str], now: int) -> SensorHealth:
        """The health of a sensor from what this frame and those before it say, the worst first."""
        before = self._found[name]
        found = {
            status: _Finding(before[status].since if status in before else now, now, reason)
            for status, reason in said.items()
        }
        if not {"missing", "dark", "saturated"} & found.keys():  # where nothing can be seen, nothing else is said
            held = {s: f for s, f in before.items() if s in _PASSING and now - f.last < 1e6 * HELD}
            found = {status: {**held, **found}[status] for status in _WORST_FIRST if status in held | found}
        self._found[name] = found
        if not found:
            old = self._health.get(name)
            return old if old is not None and old.status == "ok" else SensorHealth("ok", now, "")
        worst, *also = (SensorHealth(status, each.since, each.reason) for status, each in found.items())
        return SensorHealth(worst.status, worst.since, worst.reason, tuple(also))

    def _camera(self, name: str, camera: Camera, now: int) -> Findings:
        """What is wrong with a camera that gave a picture, the worst first."""
        signs = picture_signs(camera.image)
        stuck = self._stuck(name, signs.sample, camera.timestamp, now)
        late = 1e-6 * abs(now - camera.timestamp)
        if dark := signs.dark >= ALL:
            yield "dark", f"nearly all pixels are below {DARK} of 255"
        elif dark := signs.dark > MOSTLY and signs.texture > SHAPELESS:
            yield "dark", f"most pixels are below {DARK} of 255, and the rest is noise"
        elif signs.bright >= ALL:
            yield "saturated", f"nearly all pixels are above {BRIGHT} of 255"
        elif stuck > FROZEN:
            yield "frozen", f"the same picture for {stuck:.2f} s"
        if late > LATE:
            yield "late", f"taken {late:.2f} s {'before' if camera.timestamp < now else 'after'} the frame"
        if dark or signs.bright >= ALL:
            return
        if signs.torn > TORN:
            yield "corrupt", f"a row of blocks does not fit the others in {signs.torn:.0%} of its width"
        if signs.noise > NOISY:
            yield "noisy", f"noise of {signs.noise:.0f} grey levels"
        if signs.texture <= SMOOTH:
            yield "blurred", "no fine texture"

    def _lidar(self, frame: Frame, signs: SweepSigns | None) -> Findings:
        """What is wrong with the LiDAR, the worst first."""
        if frame.points is None or signs is None:
            yield "missing", "no points" if frame.points is None else "a sweep without a return"
            return
        usual = self._usual_counts(signs, frame.timestamp)
        stuck = self._stuck(LIDAR, frame.points[:4096, :4].tobytes(), None, frame.timestamp)
        if stuck > FROZEN:
            yield "frozen", f"the same points for {stuck:.2f} s"
        if signs.age > LATE:
            yield "late", f"the newest point is {signs.age:.2f} s older than the frame"
        if signs.impossible > IMPOSSIBLE:
            yield "corrupt", f"{signs.impossible:.0%} of the points are not finite or beyond {FAR:.0f} m"
        elif signs.garbled > GARBLED:
            yield "corrupt", f"returns beyond {BEYOND:.0f} m in {signs.garbled:.0%} of the azimuth, as no street has"
        if signs.roughness > ROUGH:
            yield "noisy", f"the ground nearby is rough by {signs.roughness:.2f} m"
        if signs.points < FEW:
            yield "thinned", f"{signs.points} points"
        elif signs.points < THINNED * usual[0] and signs.density < THINNED * usual[1]:
            yield "thinned", f"{signs.points} points, where {usual[0]:.0f} were usual"
        elif self._broken(frame, signs):
            yield "thinned", "gaps between the points on the ground"
        if signs.age <= LATE:  # the ground where the vehicle was before may be another
            yield from self._level(signs, frame.timestamp)

    def _broken(self, frame: Frame, signs: SweepSigns) -> bool:
        """Whether the scan has gaps that it has had since the drive began: counts are usual once it had none."""
        if self._whole or signs.age > LATE or signs.impossible > IMPOSSIBLE or signs.garbled > GARBLED:
            return False
        # Noise leaves no steps to see gaps by, and where the ground is not where it should be, something else is seen.
        if not (signs.roughness <= ROUGH and abs(signs.height) <= RAISED):
            return False
        share = unbroken(frame)
        self._whole = share >= BROKEN
        return share < BROKEN

    def _level(self, signs: SweepSigns, now: int) -> Findings:
        """Whether the LiDAR sees the ground where the calibration says that it is."""
        if not math.isnan(signs.height):
            self._grounds.append((now, *signs.tilt, signs.height))
        while self._grounds and now - self._grounds[0][0] > 1e6 * LEVELLED:
            self._grounds.popleft()
        if len(self._grounds) < 3:
            return
        _, along, across, height = np.median(self._grounds, axis=0)
        tilt = math.degrees(math.atan(math.hypot(along, across)))
        if tilt > TILTED or abs(height) > RAISED:
            yield "miscalibrated", f"the ground is tilted by {tilt:.1f} degrees, and at {height:.2f} m"

    def _stuck(self, name: str, content: bytes, timestamp: int | None, now: int) -> float:
        """Seconds since a sensor first gave this content, or anything with this timestamp."""
        seen = self._seen.get(name)
        if seen is None or (content != seen.content and (timestamp is None or timestamp != seen.timestamp)):
            seen = self._seen[name] = _Seen(content, timestamp, now)
        return 1e-6 * (now - seen.first)

    def _usual_counts(self, signs: SweepSigns, now: int) -> np.ndarray:
        """Points and density that are usual: the most lately, of which fewer make less within a minute."""
        counts = np.array([signs.points, signs.density], float)
        forgotten = 0.0 if self._counted is None else 1 - math.exp(-1e-6 * max(0, now - self._counted) / USUAL)
        self._usual = np.maximum(counts, self._usual + forgotten * (counts - self._usual))
        self._counted = now
        return self._usual
