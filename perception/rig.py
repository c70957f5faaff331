"""The sensors of a vehicle as data: names and order of its cameras and LiDARs, and how they are mounted. numpy only.

A network needs only the names of the cameras, in the order of its inputs. Mounts and lenses are for the simulator and,
where a map of topics says so, for recordings that do not bring their calibration.

The vehicle's frame (ego): x ahead, y left, z up, on the ground below the rear axle.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from perception.errors import InputError
from perception.io.section import Contents, Range, Section, load_section
from perception.io.shipped import named_file

GROUPS = ("lidar", "cameras", "all")  # names for several sensors, which no sensor may have
DISTORTIONS = (0, 4, 5, 8)  # numbers of OpenCV's coefficients
FARTHEST = 105.0  # m, of the simulated world around a sensor

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=60)]
Vector = tuple[Finite, Finite, Finite]


# The limits of the health monitor for each kind of sensor. docs/health.md says how they were measured. A rig gives
# others for its own sensors, as in `health: {min_points: 500}`. Parameters of the features themselves (such as the
# number of rows sampled) are beside their computation.


class CameraLimits(Section):
    """A camera with 8-bit colour images, JPEG or raw."""

    frozen: float = 0.25  # s without a new image; cameras may be slower than the frames
    late: float = 0.15  # s between the times of image and frame
    dark_level: int = 10  # of 255: pixels below it are dark
    bright_level: int = 245  # of 255: pixels above it are bright
    nearly_all: float = 0.99  # share of dark, or bright, pixels
    mostly_dark: float = 0.5  # share of dark pixels where the others are noise
    shapeless: float = 0.95  # texture, which is 1 for white noise
    smooth: float = 0.02  # texture above that of a smooth gradient, 0.25
    seam: float = 30.0  # grey levels between the last row of a JPEG block and the first row of the next
    torn: float = 0.17  # share of a row of blocks with seams to the rows above and below
    noisy: float = 12.0  # grey levels, standard deviation


class LidarLimits(Section):
    """A spinning LiDAR; the defaults are for an HDL-32E on a car's roof at 20 Hz."""

    # Limits of the monitor.
    frozen: float = 0.25  # s without new points
    late: float = 0.15  # s between the newest point and the frame
    far: float = 500.0  # m, beyond which a point cannot be a measurement
    impossible: float = 0.01  # share of points that are not finite, beyond `far` or of an intensity below 0
    garbled: float = 0.03  # share of garbled sectors of azimuth, see `beyond`
    rough: float = 0.03  # m, roughness of the ground nearby
    min_points: int = 2000  # of a sweep
    thinned: float = 0.7  # share of the usual number of points, and of their usual density nearby
    usual: float = 60.0  # s, time constant with which the usual numbers decrease
    broken: float = 0.6  # share of ground points with both neighbours on their ring
    tilted: float = 1.5  # degrees between the ground and the vehicle's x-y plane
    raised: float = 0.2  # m between the ground and the vehicle's origin
    levelled: float = 1.25  # s, window of the median of the ground plane; at least 3 frames

    # Definitions of garbled sector, ground and ring.
    sectors: int = 180  # of azimuth; each is the width of a packet
    beyond: float = 50.0  # m; most beams meet the ground nearer
    beyond_share: float = 0.3  # of the returns of a garbled sector lie beyond
    bright: float = 70.0  # mean intensity of a garbled sector
    near: Range = (3.0, 12.0)  # m from the vehicle's origin, where ground points are dense
    level: float = 1.0  # m above and below the vehicle's origin in which ground is searched
    cell_points: int = 5  # minimum for the spread of a 1 x 1 m cell
    ring: Range = (5.0, 12.0)  # m; nearer, range noise is as large as a step along the ring
    flat: float = 0.3  # m above and below the vehicle's origin in which points are ground
    min_ground_points: int = 200  # to look for gaps
    step_quantile: float = 0.25  # of the distances to the nearest point, taken as the step along a ring
    max_step: float = 1.6  # steps between neighbours; a lost point leaves 2


@dataclass(frozen=True)
class Sensors:
    """The names of sensors in the order of a rig; the first LiDAR is the reference.

    Attributes:
        lidar_limits, camera_limits: sensor -> limits of its health, where they are not the usual ones.
    """

    lidars: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    scanners: Mapping[str, str] = field(default_factory=dict)  # sensor -> its kind, of further kinds
    lidar_limits: Mapping[str, LidarLimits] = field(default_factory=dict, compare=False)
    camera_limits: Mapping[str, CameraLimits] = field(default_factory=dict, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.lidars, *self.cameras, *self.scanners)

    def of(self, kinds: Collection[str]) -> Sensors:
        """The sensors of some kinds."""
        return replace(
            self,
            lidars=self.lidars if "lidar" in kinds else (),
            cameras=self.cameras if "camera" in kinds else (),
            scanners={name: kind for name, kind in self.scanners.items() if kind in kinds},
        )


class Mount(Section):
    """Where a sensor is, and where it looks: its rotation is Rz(yaw) Ry(pitch) Rx(roll), right-handed."""

    position: Vector = Field(strict=False)  # m, in the ego frame
    yaw: Finite = 0.0  # degrees, to the left
    pitch: Finite = 0.0  # degrees, down
    roll: Finite = 0.0  # degrees, to the right

    @property
    def ego_from_mount(self) -> np.ndarray:
        """(4, 4); the mount's x is ahead, y left, z up. Entries are rounded to 1e-12: right angles are exact."""
        (sy, sp, sr), (cy, cp, cr) = (f(np.radians([self.yaw, self.pitch, self.roll])) for f in (np.sin, np.cos))
        pose = np.eye(4)
        pose[:3, :3] = [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
        pose[:3, :3] = pose[:3, :3].round(12) + 0.0  # no negative zeros
        pose[:3, 3] = self.position
        return pose


class Lens(Section):
    """A pinhole camera, and the distortion of pictures that are recorded as taken."""

    # Pixels along x and y; one number for both.
    focal: Annotated[tuple[Positive, Positive], Contents(lambda: Positive | tuple[Positive, Positive])] = Field(
        strict=False
    )
    center: tuple[Finite, Finite] | None = Field(default=None, strict=False)  # pixels; None: the picture's middle
    distortion: tuple[Finite, ...] = Field(default=(), strict=False)  # k1 k2 p1 p2 [k3 [k4 k5 k6]], as OpenCV's

    @field_validator("focal", mode="before")
    @classmethod
    def _both(cls, focal: Any) -> Any:
        return (focal, focal) if isinstance(focal, (int, float)) else focal

    @field_validator("distortion")
    @classmethod
    def _require_known(cls, distortion: tuple[float, ...]) -> tuple[float, ...]:
        if len(distortion) not in DISTORTIONS:
            raise ValueError(f"has {len(distortion)} coefficients; OpenCV's models have 4, 5 or 8")
        return distortion


class RigSensor(Section):
    name: Name  # of the sensor, as the data set calls it
    mount: Mount | None = None
    delay: Finite = 0.0  # s, from the reference LiDAR's time to the exposure, or the end of the sweep

    @property
    def ego_from_sensor(self) -> np.ndarray:
        """(4, 4); the sensor must have a mount."""
        assert self.mount is not None
        return self.mount.ego_from_mount


class RigCamera(RigSensor):
    size: tuple[Count, Count] = Field(default=(1600, 900), strict=False)  # width and height in pixels, as recorded
    lens: Lens | None = None
    health: CameraLimits | None = None  # limits of the health monitor; None: the usual ones

    @property
    def intrinsics(self) -> np.ndarray:
        """(3, 3) pixels; without a lens, of one with a horizontal view of 64 degrees."""
        lens, (width, height) = self.lens or Lens(focal=(0.8 * self.size[0],) * 2), self.size
        x, y = lens.center or (width / 2, height / 2)
        return np.array([[lens.focal[0], 0, x], [0, lens.focal[1], y], [0, 0, 1]])

    @property
    def ego_from_sensor(self) -> np.ndarray:
        """(4, 4); the camera looks along z, x is right and y down. It must have a mount."""
        pose = super().ego_from_sensor
        pose[:3, :3] = np.stack([-pose[:3, 1], -pose[:3, 2], pose[:3, 0]], axis=1) + 0.0
        return pose


class Beams(Section):
    """The beams of a simulated spinning LiDAR; the defaults are the HDL-32E's."""

    elevation: tuple[Finite, Finite] = Field(default=(-30.67, 10.67), strict=False)  # degrees, lowest and highest ring
    rings: Count = 32  # number of beams, one above the other
    columns: Count = 1090  # firings per revolution
    first: Finite = 188.0  # degrees, azimuth in the sensor's frame at which a revolution starts; it runs clockwise
    reach: Annotated[float, Field(gt=1, le=FARTHEST)] = FARTHEST  # m


class RigLidar(RigSensor):
    beams: Beams = Beams()
    health: LidarLimits | None = None  # limits of the health monitor; None: those of an HDL-32E


class RigScanner(RigSensor):
    """A sensor that is neither LiDAR nor camera."""

    kind: Name  # as in `perception.sensors.SENSORS`

    @field_validator("kind")
    @classmethod
    def _require_further_kind(cls, kind: str) -> str:
        if kind in ("lidar", "camera"):
            raise ValueError(f"a {kind} is one of the rig's `{kind}s`")
        return kind


class Box(Section):
    """An upright box along the ego frame's axes."""

    center: Vector = Field(strict=False)  # m
    size: tuple[Positive, Positive, Positive] = Field(strict=False)  # m along x, y, z

    def contains(self, points: np.ndarray) -> np.ndarray:
        """(N,) bool: points (N, 3) in the ego frame that are inside."""
        off = [np.abs(points[:, axis] - self.center[axis]) <= self.size[axis] / 2 for axis in range(3)]
        return np.asarray(off[0] & off[1] & off[2])


class Rig(Section):
    """The sensors of one kind of vehicle. The first LiDAR is the reference: its time is the frame's."""

    name: Name  # of the kind of vehicle
    cameras: tuple[RigCamera, ...] = Field(default=(), strict=False)  # in the order of the networks' inputs
    lidars: tuple[RigLidar, ...] = Field(strict=False)  # the first one is the reference
    scanners: tuple[RigScanner, ...] = Field(default=(), strict=False)
    own: Box | None = None  # the own vehicle, cropped from the points; None: 1 m around each LiDAR, as in nuScenes
    body: tuple[Box, ...] = Field(default=(), strict=False)  # of the own vehicle, which blocks simulated beams

    @model_validator(mode="after")
    def _names(self) -> Rig:
        if not self.lidars:
            raise ValueError("`lidars` is empty; a rig has at least one LiDAR, whose time is the frame's")
        names = [name.lower() for name in self.sensors.names]  # topics are in lower case
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sensors are called {twice[0]!r}; names are unique, in upper and lower case alike")
        if reserved := sorted({*self.sensors.names} & {*GROUPS} or {*names} & {"vehicle"}):
            raise ValueError(f"a sensor is called {reserved[0]!r}, which stands for others; give it another name")
        return self

    @property
    def sensors(self) -> Sensors:
        """The names of all sensors."""
        return Sensors(
            tuple(each.name for each in self.lidars),
            tuple(each.name for each in self.cameras),
            {each.name: each.kind for each in self.scanners},
            {each.name: each.health for each in self.lidars if each.health is not None},
            {each.name: each.health for each in self.cameras if each.health is not None},
        )

    def require_calibration(self) -> None:
        """Raise InputError unless every sensor has a mount, and every camera a lens."""
        sensors: tuple[RigSensor, ...] = (*self.lidars, *self.cameras, *self.scanners)
        missing = [(each.name, "mount") for each in sensors if each.mount is None]
        missing += [(each.name, "lens") for each in self.cameras if each.lens is None]
        for name, what in missing:
            raise InputError(f"rig {self.name}: {name} has no `{what}`, its calibration; add it")

    def calibrate(self) -> Rig:
        """The rig with a mount for each sensor: those without look around evenly, from 1.6 m above the rear axle."""
        turn = 360 / max(1, len(self.cameras))
        here = (0.0, 0.0, 1.6)
        return self.model_copy(
            update={
                "lidars": tuple(
                    each.model_copy(update={"mount": each.mount or Mount(position=(0.0, 0.0, 1.84))})
                    for each in self.lidars
                ),
                "cameras": tuple(
                    each.model_copy(update={"mount": each.mount or Mount(position=here, yaw=i * turn)})
                    for i, each in enumerate(self.cameras)
                ),
            }
        )


def load_rig(rig: str | Path) -> Rig:
    """The rig with this name, such as `nuscenes`, or of this YAML file."""
    return load_section(Rig, named_file("rig", rig), "the rig")


def read_named_rig(content: Any) -> Any:
    """The content of a rig where a configuration names one, for a pydantic validator."""
    return load_rig(content) if isinstance(content, str) else content


def order_by_view(yaws: dict[str, float]) -> tuple[list[str], list[str]]:
    """Cameras to the front, then those to the rear, each from left to right, by the yaws (rad) of their axes."""
    turned = {name: (yaw + np.pi) % (2 * np.pi) - np.pi for name, yaw in yaws.items()}
    front = [name for name, yaw in turned.items() if abs(yaw) <= np.pi / 2 + 1e-6]
    rear = [name for name in turned if name not in front]
    return sorted(front, key=lambda name: -turned[name]), sorted(rear, key=lambda name: turned[name] % (2 * np.pi))


def require_cameras(found: Sequence[str], rig: Rig, where: str) -> None:
    """Raise InputError if a camera is none of the rig's."""
    strange = [name for name in found if name not in rig.sensors.cameras]
    if strange:
        known = ", ".join(rig.sensors.cameras) or "none"
        raise InputError(f"{where}: {strange[0]} is no camera of the rig {rig.name}; it has {known}")
