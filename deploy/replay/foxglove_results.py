"""What was perceived as messages for Foxglove, such as those of an MCAP file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from foxglove_schemas_protobuf.CameraCalibration_pb2 import CameraCalibration
from foxglove_schemas_protobuf.Color_pb2 import Color
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.CubePrimitive_pb2 import CubePrimitive
from foxglove_schemas_protobuf.FrameTransform_pb2 import FrameTransform
from foxglove_schemas_protobuf.FrameTransforms_pb2 import FrameTransforms
from foxglove_schemas_protobuf.Grid_pb2 import Grid
from foxglove_schemas_protobuf.ImageAnnotations_pb2 import ImageAnnotations
from foxglove_schemas_protobuf.LinePrimitive_pb2 import LinePrimitive
from foxglove_schemas_protobuf.Log_pb2 import Log
from foxglove_schemas_protobuf.PackedElementField_pb2 import PackedElementField
from foxglove_schemas_protobuf.Point2_pb2 import Point2
from foxglove_schemas_protobuf.Point3_pb2 import Point3
from foxglove_schemas_protobuf.PointCloud_pb2 import PointCloud
from foxglove_schemas_protobuf.PointsAnnotation_pb2 import PointsAnnotation
from foxglove_schemas_protobuf.Pose_pb2 import Pose
from foxglove_schemas_protobuf.Quaternion_pb2 import Quaternion
from foxglove_schemas_protobuf.SceneEntity_pb2 import SceneEntity
from foxglove_schemas_protobuf.SceneEntityDeletion_pb2 import SceneEntityDeletion
from foxglove_schemas_protobuf.SceneUpdate_pb2 import SceneUpdate
from foxglove_schemas_protobuf.TextPrimitive_pb2 import TextPrimitive
from foxglove_schemas_protobuf.Vector2_pb2 import Vector2
from foxglove_schemas_protobuf.Vector3_pb2 import Vector3
from mcap_protobuf.writer import Writer

from deploy.replay.pictures import box_edges, draw_layers, jpeg, raster_colours
from perception.frame import Camera, Frame
from perception.geometry import quaternions
from perception.io.files import atomic_file
from perception.scene.scene import SceneFrame
from perception.tasks.drawing import BoxLayer, Layer, PointLayer, RasterLayer, VoxelLayer, colours_of
from perception.tasks.task import Task
from perception.taxonomy import rgb

Stamped = TypeVar("Stamped", bound=Any)
ROAD = -0.05  # m, height of raster layers, below points on the road


def scene_update(layer: BoxLayer, frame_id: str, timestamp: int) -> SceneUpdate:
    """The boxes of a layer at a time (us) as cubes with a text above each. They replace the topic's earlier content."""
    update = SceneUpdate(deletions=[_at(timestamp, SceneEntityDeletion(type=SceneEntityDeletion.ALL))])
    boxes, opacity = layer.boxes, 0.15 if layer.style == "annotated" else 0.35
    for i, (class_, name, detail) in enumerate(zip(layer.classes(), layer.ids, layer.details, strict=True)):
        width, length, height = boxes.sizes[i].tolist()
        x, y, z = boxes.centers[i].tolist()
        pose, colour = _pose(boxes.rotations[i], boxes.centers[i]), layer.colours[class_]
        above = Pose(position=Vector3(x=x, y=y, z=z + height / 2 + 0.6), orientation=Quaternion(w=1))
        entity = _at(timestamp, SceneEntity(frame_id=frame_id, id=name, frame_locked=False))
        entity.cubes.append(
            CubePrimitive(pose=pose, size=Vector3(x=length, y=width, z=height), color=_colour(colour, opacity))
        )
        text = f"{class_.replace('_', ' ')} {detail}".rstrip()
        entity.texts.append(
            TextPrimitive(pose=above, billboard=True, font_size=0.7, color=_colour(colour, 1), text=text)
        )
        if np.isfinite(boxes.velocities[i]).all():
            end = (boxes.centers[i] + boxes.velocities[i]).tolist()  # where it is in 1 s
            entity.lines.append(
                LinePrimitive(
                    type=LinePrimitive.LINE_STRIP, pose=Pose(orientation=Quaternion(w=1)), thickness=0.1,
                    points=[Point3(x=x, y=y, z=z), Point3(x=end[0], y=end[1], z=end[2])],
                    color=_colour(colour, 1),
                )
            )  # fmt: skip
        update.entities.append(entity)
    return update


def image(camera: Camera, frame_id: str) -> CompressedImage:
    return _at(camera.timestamp, CompressedImage(frame_id=frame_id, data=jpeg(camera), format="jpeg"))


def image_annotations(layers: Iterable[BoxLayer], projection: np.ndarray, camera: Camera) -> ImageAnnotations:
    """The edges of the boxes of layers inside a picture; the projection (3, 4) is to recorded pixels."""
    message = ImageAnnotations()
    for layer in layers:
        edges, inside = box_edges(layer.boxes, projection, camera.image.shape)
        classes = layer.classes()
        for i in np.flatnonzero(inside).tolist():
            ends = edges[i][np.isfinite(edges[i]).all(axis=(1, 2))].reshape(-1, 2).tolist()
            lines = PointsAnnotation(
                type=PointsAnnotation.LINE_LIST,
                points=[Point2(x=x, y=y) for x, y in ends],
                outline_color=_colour(layer.colours[classes[i]], 1),
                thickness=2,
            )
            message.points.append(_at(camera.timestamp, lines))
    return message


def calibration(camera: Camera, frame_id: str) -> CameraCalibration:
    height, width = camera.image.shape[:2]
    message = CameraCalibration(
        frame_id=frame_id, width=width, height=height, K=camera.intrinsics.ravel().tolist(), R=np.eye(3).ravel(),
        P=np.concatenate([camera.intrinsics, np.zeros((3, 1))], axis=1).ravel().tolist(),
    )  # fmt: skip
    return _at(camera.timestamp, message)


def transform(parent: str, child: str, parent_from_child: np.ndarray, timestamp: int) -> FrameTransform:
    pose = _pose(parent_from_child[:3, :3], parent_from_child[:3, 3])
    message = FrameTransform(
        parent_frame_id=parent, child_frame_id=child, translation=pose.position, rotation=pose.orientation
    )
    return _at(timestamp, message)


def raster_grid(layer: RasterLayer, frame_id: str, timestamp: int) -> Grid:
    """A raster layer in the report's colours, at the height of the road; columns run along x, as in BevGrid."""
    grid, (_, columns) = layer.grid, layer.grid.shape
    message = Grid(
        frame_id=frame_id, pose=_pose(np.eye(3), np.array([grid.x[0], grid.y[0], ROAD])), column_count=columns,
        cell_size=Vector2(x=grid.cell, y=grid.cell), row_stride=4 * columns, cell_stride=4,
        fields=_fields(("red", "green", "blue", "alpha"), PackedElementField.UINT8, 1),
        data=raster_colours(layer).tobytes(),
    )  # fmt: skip
    return _at(timestamp, message)


def point_cloud(points: np.ndarray, frame_id: str, timestamp: int) -> PointCloud:
    """Points (N, 5) of a Frame, with x y z and intensity."""
    message = PointCloud(
        frame_id=frame_id, pose=_pose(np.eye(3), np.zeros(3)), point_stride=16,
        fields=_fields(("x", "y", "z", "intensity"), PackedElementField.FLOAT32, 4),
        data=points[:, :4].astype("<f4").tobytes(),
    )  # fmt: skip
    return _at(timestamp, message)


def class_cloud(layer: PointLayer | VoxelLayer, frame_id: str, timestamp: int) -> PointCloud:
    """Points, or the centres of voxels, in the colours of their classes: x y z, red green blue alpha.

    Voxels are no cubes, since those take seven times as many bytes in a message; a viewer can draw points as cubes.
    """
    points = layer.points if isinstance(layer, PointLayer) else layer.centers
    data = np.zeros(len(points), [("place", "<f4", 3), ("colour", "u1", 4)])
    data["place"], data["colour"][:, :3], data["colour"][:, 3] = points, colours_of(layer), 255
    places = _fields(("x", "y", "z"), PackedElementField.FLOAT32, 4)
    colours = _fields(("red", "green", "blue", "alpha"), PackedElementField.UINT8, 1, start=12)
    message = PointCloud(
        frame_id=frame_id, pose=_pose(np.eye(3), np.zeros(3)), point_stride=16,
        fields=[*places, *colours], data=data.tobytes(),
    )  # fmt: skip
    return _at(timestamp, message)


def _at(timestamp: int, message: Stamped) -> Stamped:
    message.timestamp.FromMicroseconds(timestamp)
    return message


def _fields(
    names: tuple[str, ...], kind: PackedElementField.NumericType.ValueType, size: int, start: int = 0
) -> list[PackedElementField]:
    return [PackedElementField(name=name, offset=start + size * i, type=kind) for i, name in enumerate(names)]


def _pose(rotation: np.ndarray, translation: np.ndarray) -> Pose:
    w, x, y, z = quaternions(rotation[None])[0].tolist()
    position = dict(zip("xyz", translation.tolist(), strict=True))
    return Pose(position=Vector3(**position), orientation=Quaternion(w=w, x=x, y=y, z=z))


def _colour(colour: str, opacity: float) -> Color:
    red, green, blue = (each / 255 for each in rgb(colour))
    return Color(r=red, g=green, b=blue, a=opacity)


MAP, EGO = "map", "base_link"
CHUNK = 4 << 20  # bytes
Write = Callable[[str, Any, int], None]  # topic, message, time (ns)


class FoxgloveWriter:
    """Writes the messages of results.mcap, of a live view too.

    /tf                       map, base_link, the frames of LiDAR and cameras, at the time of the keyframe
    /LAYER                    the tasks' layers: boxes as cubes (/detections, /tracks, /annotations), rasters as grids
                              (/map), points and the centres of voxels as clouds in their classes' colours
    /LIDAR                    the keyframe's points of all LiDARs, under the name of the rig's first
    /CAMERA/image, .../camera_info, .../annotations   pictures, calibration, edges of the detections
    /log                      changes of believed conditions, active modules and sensor health

    Args:
        write: takes each message.
        tasks: the network's tasks by name.
        lidar: name of the reference LiDAR; "": the vehicle has none.
    """

    def __init__(self, write: Write, tasks: Mapping[str, Task[Any]], lidar: str) -> None:
        self._write, self._tasks, self._lidar = write, tasks, lidar
        self._logged: dict[str, str] = {}  # latest value in /log by name

    @classmethod
    @contextmanager
    def open(cls, path: Path, tasks: Mapping[str, Task[Any]], lidar: str) -> Iterator[FoxgloveWriter]:
        """Open a writer of the file `path`, which appears when the block ends."""
        with atomic_file(path, "the recording") as file:
            writer = Writer(file, chunk_size=CHUNK)
            yield cls(lambda topic, message, time: writer.write_message(topic, message, time, time), tasks, lidar)
            writer.finish()

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """Write the next frame, with what was perceived in it."""
        nanoseconds = frame.timestamp * 1000
        drawn = [layer for _, layer in draw_layers(self._tasks, frame, seen)]
        layers = [layer.visible() if isinstance(layer, BoxLayer) else layer for layer in drawn]
        for topic, message in (*self._pictures(frame, layers), *self._around(frame, layers), *self._changes(seen)):
            self._write(topic, message, nanoseconds)

    def _around(self, frame: Frame, layers: Iterable[Layer]) -> Iterator[tuple[str, Any]]:
        reference, time = EGO if frame.reference == "ego" else self._lidar, frame.timestamp
        for layer in layers:
            if isinstance(layer, BoxLayer):
                own = MAP if layer.style == "tracked" else reference
                yield f"/{layer.name}", scene_update(layer, own, time)
            elif isinstance(layer, RasterLayer):
                yield f"/{layer.name}", raster_grid(layer, reference, time)
            else:
                yield f"/{layer.name}", class_cloud(layer, reference, time)
        if frame.points is not None:
            yield f"/{self._lidar.lower()}", point_cloud(frame.keyframe_points, reference, time)

    def _pictures(self, frame: Frame, layers: Iterable[Layer]) -> Iterator[tuple[str, Any]]:
        """Transforms at the time of the keyframe, and the cameras' pictures, calibration and box edges."""
        ego_from_global = np.linalg.inv(frame.global_from_ego)
        frames = [
            transform(MAP, EGO, frame.global_from_ego, frame.timestamp),
            transform(EGO, self._lidar, ego_from_global @ frame.global_from_reference, frame.timestamp),
        ]
        if frame.reference == "ego":
            frames.pop()
        # A camera is placed where it took its picture, so that the keyframe's boxes align with the picture.
        frames += [
            transform(EGO, name, ego_from_global @ camera.global_from_ego @ camera.ego_from_camera, frame.timestamp)
            for name, camera in frame.cameras.items()
        ]
        yield "/tf", FrameTransforms(transforms=frames)
        perceived = [each for each in layers if isinstance(each, BoxLayer) and each.style == "perceived"]
        for name, camera in frame.cameras.items():
            topic = f"/{name.lower()}"
            yield f"{topic}/image", image(camera, name)
            yield f"{topic}/camera_info", calibration(camera, name)
            projection = frame.image_from_reference(name)
            yield f"{topic}/annotations", image_annotations(perceived, projection, camera)

    def _changes(self, seen: SceneFrame) -> Iterator[tuple[str, Log]]:
        state = {"drive": (seen.scene, "", Log.INFO)}
        for kind, belief in seen.beliefs.items():
            state[kind] = (belief.value or "unknown", belief.why, Log.INFO)
        for module, routed in seen.route.items():
            state[module] = ("active" if routed.weight > 0 else "off", routed.why, Log.INFO)
        for sensor, health in seen.health.items():
            state[sensor] = (health.words, health.reasons, Log.INFO if health.status == "ok" else Log.WARNING)
        for name, (value, why, level) in state.items():
            if self._logged.get(name) != value:
                self._logged[name] = value
                text = f"{name}: {value}" + (f" ({why})" if why else "")
                yield "/log", _at(seen.timestamp, Log(level=level, name=name, message=text))
