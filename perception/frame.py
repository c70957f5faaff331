"""Sensor data of one moment, and what was perceived in it. numpy only.

Matrices are named by their frames of reference: `a_from_b` (4, 4) maps homogeneous points of b to a.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from perception.errors import InputError
from perception.geometry import inverse, move, product, unit_headings
from perception.grid import Reference

Arrays = Mapping[str, np.ndarray]  # inputs, outputs or labels by name
_CORNERS = np.array(  # of a box, in half lengths, widths and heights
    [[1, 1, 1], [1, -1, 1], [1, -1, -1], [1, 1, -1], [-1, 1, 1], [-1, -1, 1], [-1, -1, -1], [-1, 1, -1]]
)
PER_POINT = ("points", "sweep_of_point", "lidar_of_point", "class_of_point")  # of Frame, all of one length


class Conditions(Mapping[str, str]):
    """The known conditions of a frame: kind -> value, such as weather -> rain. Unknown kinds are absent."""

    def __init__(self, /, **values: str | None) -> None:  # "self" may be a kind
        self._values = {kind: value for kind, value in values.items() if value is not None}

    def __getitem__(self, kind: str) -> str:
        return self._values[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"Conditions({', '.join(f'{kind}={value!r}' for kind, value in self._values.items())})"

    def known(self) -> tuple[str, ...]:
        return tuple(self._values.values())


def reduce_intrinsics(intrinsics: np.ndarray, reduction: float) -> np.ndarray:
    """(3, 3) intrinsics of an image whose pixels each stand for `reduction` recorded ones along both axes."""
    shift = 0.5 / reduction - 0.5  # integer coordinates are pixel centres
    return np.array([[1 / reduction, 0, shift], [0, 1 / reduction, shift], [0, 0, 1]]) @ intrinsics


@dataclass(frozen=True)
class Boxes:
    """N boxes in one frame of reference: annotations or detections.

    Rotations are full matrices, so that transformations between frames of reference are exact although the vehicle
    pitches and rolls.
    """

    centers: np.ndarray  # (N, 3) m
    sizes: np.ndarray  # (N, 3) m: width, length, height
    rotations: np.ndarray  # (N, 3, 3) box to reference; x is the heading
    velocities: np.ndarray  # (N, 3) m/s; NaN where unknown
    labels: np.ndarray  # (N,) int, index of the class
    attributes: np.ndarray  # (N,) int, index of the attribute; -1 where there is none
    scores: np.ndarray  # (N,) in [0, 1]; 1 for annotations
    num_points: np.ndarray  # (N,) int, LiDAR + radar points inside; -1 for detections
    instances: np.ndarray  # (N,) str, token of the object; '' for detections

    @staticmethod
    def none() -> Boxes:
        triple, pair, single = np.zeros((0, 3)), np.zeros((0, 2)), np.zeros(0)
        return Boxes.from_yaws(triple, triple, single, pair, single, single, single)

    @staticmethod
    def from_yaws(
        centers: np.ndarray,
        sizes: np.ndarray,
        yaws: np.ndarray,
        velocities: np.ndarray,
        labels: np.ndarray,
        attributes: np.ndarray,
        scores: np.ndarray,
    ) -> Boxes:
        """Upright detections: yaws (N,) rad about z, velocities (N, 2) m/s in the ground plane."""
        headings = np.stack([np.sin(yaws), np.cos(yaws)], axis=-1)
        return Boxes.from_headings(centers, sizes, headings, velocities, labels, attributes, scores)

    @staticmethod
    def from_headings(
        centers: np.ndarray,
        sizes: np.ndarray,
        headings: np.ndarray,
        velocities: np.ndarray,
        labels: np.ndarray,
        attributes: np.ndarray,
        scores: np.ndarray,
    ) -> Boxes:
        """Upright detections: headings (N, 2) sine and cosine of the yaw, times any positive factor; 0 0 is yaw 0.

        Calls no trigonometric function, because numpy's results may differ in the last bit between calls, and makes
        contiguous arrays, because BLAS results depend on the memory layout.
        """
        n = len(centers)
        rotations = np.zeros((n, 3, 3))
        sin, cos = unit_headings(np.asarray(headings, np.float64)).T
        rotations[:, 0, 0], rotations[:, 0, 1] = cos, -sin
        rotations[:, 1, 0], rotations[:, 1, 1] = sin, cos
        rotations[:, 2, 2] = 1
        return Boxes(
            centers=np.ascontiguousarray(centers, np.float64),
            sizes=np.ascontiguousarray(sizes, np.float64),
            rotations=rotations,
            velocities=np.concatenate([velocities, np.zeros((n, 1))], axis=1).astype(np.float64),
            labels=np.asarray(labels, np.int64),
            attributes=np.asarray(attributes, np.int64),
            scores=np.asarray(scores, np.float64),
            num_points=np.full(n, -1, np.int64),
            instances=np.full(n, "", "U32"),
        )

    @staticmethod
    def joined(*parts: Boxes) -> Boxes:
        return Boxes(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Boxes)})

    def __len__(self) -> int:
        return len(self.centers)

    @property
    def yaws(self) -> np.ndarray:
        """(N,) rad: yaw of the heading in the ground plane."""
        return np.arctan2(self.rotations[:, 1, 0], self.rotations[:, 0, 0])

    @property
    def headings(self) -> np.ndarray:
        """(N, 2) sine and cosine of the yaws."""
        return unit_headings(self.rotations[:, [1, 0], 0])

    def select(self, index: np.ndarray) -> Boxes:
        return Boxes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def transformed(self, to_from: np.ndarray) -> Boxes:
        """The same boxes in another frame of reference: to_from (4, 4), rigid."""
        rotation, translation = to_from[:3, :3], to_from[:3, 3]
        return replace(
            self,
            centers=self.centers @ rotation.T + translation,
            rotations=rotation @ self.rotations,
            velocities=self.velocities @ rotation.T,
        )

    def under_similarity(self, similarity: np.ndarray) -> Boxes:
        """The boxes after a similarity (4, 4), see `Frame.transformed`; after a rigid one as of `transformed`."""
        linear = similarity[:3, :3]
        determinant = np.linalg.det(linear).round(12)
        scale = np.cbrt(abs(determinant))
        # Boxes are symmetric, so flipping a box's y axis as well keeps the rotation proper.
        flip = np.diag([1.0, np.sign(determinant), 1.0])
        return replace(
            self,
            centers=self.centers @ linear.T + similarity[:3, 3],
            sizes=self.sizes * scale,
            rotations=(linear / scale) @ self.rotations @ flip,
            velocities=self.velocities @ linear.T,
        )

    def corners(self) -> np.ndarray:
        """(N, 8, 3) corners in the devkit's order: four of the front face, then four of the rear."""
        local = self.sizes[:, None, [1, 0, 2]] / 2 * _CORNERS
        return local @ self.rotations.transpose(0, 2, 1) + self.centers[:, None]


class JpegFile(NamedTuple):
    """A recorded JPEG file, and the image that was decoded from it."""

    content: bytes
    image: np.ndarray


class Warped(NamedTuple):
    """The network's picture of an image, warped in advance (inputs.fit_picture), and that image."""

    picture: np.ndarray  # (height, width, 3) uint8 RGB
    image: np.ndarray


@dataclass(frozen=True)
class Camera:
    """One camera's image, with its calibration and the vehicle's pose at the time of the image."""

    image: np.ndarray  # (H, W, 3) uint8 RGB, as recorded or reduced in size
    intrinsics: np.ndarray  # (3, 3) pixels of the image
    ego_from_camera: np.ndarray  # (4, 4); the camera looks along z, x is right and y down
    global_from_ego: np.ndarray  # (4, 4) at this camera's timestamp
    timestamp: int  # us
    file: JpegFile | None = None  # as recorded, if it was one
    ahead: Warped | None = None  # the network's picture, if it was warped in advance

    @property
    def jpeg(self) -> bytes | None:
        """The recorded file of this very image; None if the image was changed after decoding, or recorded otherwise."""
        return self.file.content if self.file is not None and self.file.image is self.image else None

    @property
    def warped(self) -> np.ndarray | None:
        """The network's picture of this very image, if it was warped in advance; None if the image has changed."""
        return self.ahead.picture if self.ahead is not None and self.ahead.image is self.image else None


@dataclass(frozen=True)
class Scan:
    """What a sensor measured that is neither LiDAR nor camera."""

    kind: str  # of sensor, as in `perception.sensors.SENSORS`, which says what the arrays are
    timestamp: int  # us
    arrays: Arrays  # of numbers by name, in the frame's reference


class Reading(NamedTuple):
    """What a signal of the vehicle was at one time."""

    timestamp: int  # us
    value: float | str


@dataclass(frozen=True)
class Frame:
    """The sensor data of one moment. A missing sensor is None, or has no entry.

    Points of several LiDARs, each at its own time, are joined in the reference frame: x y z (m), intensity (0-255), and
    dt (s), the time from the point, or its sweep, to the frame. It may be a little below 0 for LiDARs that measure
    after the reference. A data set gives sweeps latest first, the points of each in any order.
    """

    token: str
    timestamp: int  # us since 1970-01-01 UTC, of the reference LiDAR's keyframe
    reference: Reference
    global_from_reference: np.ndarray  # (4, 4) at the LiDAR keyframe's time
    global_from_ego: np.ndarray  # (4, 4) at the LiDAR keyframe's time
    points: np.ndarray | None  # (N, 5) float32 in the reference frame: x y z (m), intensity (0-255), dt (s)
    cameras: Mapping[str, Camera]  # name in the rig -> image; without missing cameras
    conditions: Conditions = Conditions()  # noqa: RUF009 - it is immutable
    pasted: int = 0  # of the boxes, the last ones: objects of other keyframes
    scene: str = ""  # name of the drive
    location: str = ""  # name of the map
    position: tuple[float, float] | None = None  # latitude, longitude of the vehicle, degrees, WGS 84
    lidar_of_point: np.ndarray | None = None  # (N,) uint8 index into the rig's LiDARs; None: the first's
    class_of_point: np.ndarray | None = None  # (N,) int16 annotated point class, as in the taxonomy; -1: none of them
    # Name of a signal (`perception.scene.signals`) -> its latest readings in order of time; the last one is enough.
    signals: Mapping[str, Sequence[Reading]] = field(default_factory=dict)
    # (N,) uint8: 0 for points of the keyframe's sweep of each LiDAR, 1 and more for earlier ones; required with points.
    sweep_of_point: np.ndarray | None = None
    # Kind of truth (`Recording.truth`) -> what is annotated, in the global frame: it stays when data are changed.
    truth: Mapping[str, Any] = field(default_factory=dict)
    scans: Mapping[str, Scan] = field(default_factory=dict)  # by name in the rig, of sensors of further kinds
    nanoseconds: int = 0  # 0 to 999, by which the message's stamp is later than `timestamp`
    placed: bool = True  # whether the poses are known; else they are the identity, and the frame is alone in its drive

    @cached_property
    def boxes(self) -> Boxes | None:
        """The annotated boxes in the reference frame, also of an augmented frame; None if they are not read."""
        annotated: Boxes | None = self.truth.get("boxes")
        return None if annotated is None else annotated.under_similarity(np.linalg.inv(self.global_from_reference))

    def _per_point(self) -> dict[str, np.ndarray]:
        return {name: each for name in PER_POINT if (each := getattr(self, name)) is not None}

    @property
    def of_keyframe(self) -> np.ndarray:
        """(N,) bool: which points are of the keyframe, not of an earlier sweep; the frame must have points."""
        assert self.points is not None
        if self.sweep_of_point is None or len(self.sweep_of_point) != len(self.points):
            raise ValueError(f"frame {self.token}: `sweep_of_point` does not say of each point which sweep it is of")
        return np.asarray(self.sweep_of_point == 0)

    @property
    def keyframe_points(self) -> np.ndarray:
        """The points (M, 5) of the keyframe, without earlier sweeps; the frame must have points."""
        assert self.points is not None
        return np.compress(self.of_keyframe, self.points, axis=0)  # indexing is slow along an axis of length five

    @property
    def keyframe_classes(self) -> np.ndarray | None:
        """(M,) annotated class of each of `keyframe_points`; None if they are not annotated."""
        if self.points is None or self.class_of_point is None:
            return None
        return self.class_of_point[self.of_keyframe]

    def select_points(self, index: np.ndarray | slice) -> Frame:
        """The frame with the points at the integer or boolean index (M,), in its order; the frame must have points."""
        assert self.points is not None
        rows = np.arange(len(self.points))[index]
        return replace(self, **{name: np.take(each, rows, axis=0) for name, each in self._per_point().items()})

    def with_further_points(self, further: Frame) -> Frame:
        """The frame with the points of another as well, in the order of their dt; both must have points.

        Per-point fields that only one of them has, such as classes, are dropped.
        """
        mine, others = self._per_point(), further._per_point()
        both = {name: np.concatenate([mine[name], others[name]]) for name in mine.keys() & others.keys()}
        joined = replace(self.without_points(), **both)
        return joined.select_points(np.argsort(both["points"][:, 4], kind="stable"))

    def without_points(self) -> Frame:
        nothing: dict[str, Any] = dict.fromkeys(PER_POINT)
        return replace(self, **nothing)

    def without(self, sensors: Collection[str], lidars: Sequence[str]) -> Frame:
        """The frame without some sensors, by their names; `lidars` are those of the rig, in its order."""
        cameras = {name: each for name, each in self.cameras.items() if name not in sensors}
        scans = {name: each for name, each in self.scans.items() if name not in sensors}
        frame = replace(self, cameras=cameras, scans=scans)
        hidden = [i for i, name in enumerate(lidars) if name in sensors]
        if frame.points is None or not hidden:
            return frame
        if frame.lidar_of_point is None:  # all are the first's
            return frame.without_points() if 0 in hidden else frame
        if len(hidden) == len(lidars):
            return frame.without_points()
        return frame.select_points(~np.isin(frame.lidar_of_point, hidden))

    def has_lidar(self, lidar: int) -> bool:
        """Whether a LiDAR, by its index in the rig, has points in the frame."""
        if self.points is None or self.lidar_of_point is None:
            return self.points is not None and lidar == 0
        return bool((self.lidar_of_point == lidar).any())

    def of_lidar(self, lidar: int) -> Frame:
        """The frame with the points of one LiDAR, by its index in the rig; without points if it has none."""
        if not self.has_lidar(lidar):
            return self.without_points()
        if self.lidar_of_point is None:
            return self
        return replace(self.select_points(self.lidar_of_point == lidar), lidar_of_point=None)

    def transformed(self, similarity: np.ndarray) -> Frame:
        """The frame with points and boxes under a similarity (4, 4), possibly with a reflection; images do not change.

        `global_from_reference` of the result is a similarity instead of a rigid transformation, so that the projections
        into images and the map are transformed as well.
        """
        points = None if self.points is None else self.points.copy()
        if points is not None:
            move(points, similarity.astype(np.float32))
        return replace(
            self,
            global_from_reference=product(self.global_from_reference, inverse(similarity)),
            points=points,
        )

    def image_from_reference(self, camera: str) -> np.ndarray:
        """(3, 4) projection of reference points (at the frame's time) to recorded pixels of this camera.

        It goes through the global frame, because the vehicle moves between the LiDAR sweep and the exposure.
        """
        c = self.cameras[camera]
        camera_from_global = inverse(product(c.global_from_ego, c.ego_from_camera))
        return product(c.intrinsics, product(camera_from_global, self.global_from_reference)[:3])


@dataclass(frozen=True)
class Prediction:
    """The outputs of the tasks for one frame, in the frame's reference."""

    results: Mapping[str, Any]  # task -> its result
    not_finite: Mapping[str, int] = field(default_factory=dict)  # output -> number of removed NaN or infinite values

    def require_finite(self, token: str) -> Prediction:
        """The prediction itself; raises InputError if any output was not finite, which scores would hide."""
        if self.not_finite:
            found = ", ".join(f"{count} of its {name}" for name, count in self.not_finite.items())
            raise InputError(f"sample {token}: the network gives numbers that are not finite ({found})")
        return self
