"""Write the results of a replay to an MCAP file for Foxglove."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from foxglove_schemas_protobuf.FrameTransforms_pb2 import FrameTransforms
from foxglove_schemas_protobuf.Log_pb2 import Log
from mcap_protobuf.writer import Writer

from deploy.replay import foxglove_messages as messages
from deploy.replay.pictures import draw_layers
from perception.files import atomic_file
from perception.frame import Frame
from perception.scene.scene import SceneFrame
from perception.tasks.drawing import BoxLayer, Layer, RasterLayer
from perception.tasks.task import Task

MAP, EGO = "map", "base_link"
CHUNK = 4 << 20  # bytes


class FoxgloveWriter:
    """Writes results.mcap.

    /tf                       map, base_link, the frames of LiDAR and cameras, at the time of the keyframe
    /LAYER                    the tasks' layers: boxes as cubes (/detections, /tracks, /annotations), rasters as grids
                              (/map), points and the centres of voxels as clouds in their classes' colours
    /LIDAR                    the keyframe's points of all LiDARs, under the name of the rig's first
    /CAMERA/image, .../camera_info, .../annotations   pictures, calibration, edges of the detections
    /log                      changes of believed conditions, active modules and sensor health
    """

    def __init__(self, writer: Writer, tasks: Mapping[str, Task[Any]], lidar: str) -> None:
        self._writer, self._tasks, self._lidar = writer, tasks, lidar
        self._logged: dict[str, str] = {}  # latest value in /log by name

    @classmethod
    @contextmanager
    def open(cls, path: Path, tasks: Mapping[str, Task[Any]], lidar: str) -> Iterator[FoxgloveWriter]:
        """Open a writer of the file `path`, which appears when the block ends.

        Args:
            tasks: the network's tasks by name.
            lidar: name of the reference LiDAR.

        Raises:
            InputError: the folder cannot be written.
        """
        with atomic_file(path, "the recording") as file:
            writer = Writer(file, chunk_size=CHUNK)
            yield cls(writer, tasks, lidar)
            writer.finish()

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """Write the next frame, with what was perceived in it."""
        nanoseconds = frame.timestamp * 1000
        drawn = [layer for _, layer in draw_layers(self._tasks, frame, seen)]
        layers = [layer.visible() if isinstance(layer, BoxLayer) else layer for layer in drawn]
        for topic, message in (*self._pictures(frame, layers), *self._around(frame, layers), *self._changes(seen)):
            self._writer.write_message(topic, message, nanoseconds, nanoseconds)

    def _around(self, frame: Frame, layers: Iterable[Layer]) -> Iterator[tuple[str, Any]]:
        reference, time = EGO if frame.reference == "ego" else self._lidar, frame.timestamp
        for layer in layers:
            if isinstance(layer, BoxLayer):
                own = MAP if layer.style == "tracked" else reference
                yield f"/{layer.name}", messages.scene_update(layer, own, time)
            elif isinstance(layer, RasterLayer):
                yield f"/{layer.name}", messages.raster_grid(layer, reference, time)
            else:
                yield f"/{layer.name}", messages.class_cloud(layer, reference, time)
        if frame.points is not None:
            yield f"/{self._lidar.lower()}", messages.point_cloud(frame.keyframe_points, reference, time)

    def _pictures(self, frame: Frame, layers: Iterable[Layer]) -> Iterator[tuple[str, Any]]:
        """Transforms at the time of the keyframe, and the cameras' pictures, calibration and box edges."""
        ego_from_global = np.linalg.inv(frame.global_from_ego)
        frames = [
            messages.transform(MAP, EGO, frame.global_from_ego, frame.timestamp),
            messages.transform(EGO, self._lidar, ego_from_global @ frame.global_from_reference, frame.timestamp),
        ]
        if frame.reference == "ego":
            frames.pop()
        # A camera is placed where it took its picture, so that the keyframe's boxes align with the picture.
        frames += [
            messages.transform(
                EGO, name, ego_from_global @ camera.global_from_ego @ camera.ego_from_camera, frame.timestamp
            )
            for name, camera in frame.cameras.items()
        ]
        yield "/tf", FrameTransforms(transforms=frames)
        perceived = [each for each in layers if isinstance(each, BoxLayer) and each.style == "perceived"]
        for name, camera in frame.cameras.items():
            topic = f"/{name.lower()}"
            yield f"{topic}/image", messages.image(camera, name)
            yield f"{topic}/camera_info", messages.calibration(camera, name)
            projection = frame.image_from_reference(name)
            yield f"{topic}/annotations", messages.image_annotations(perceived, projection, camera)

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
                message = Log(level=level, name=name, message=text)
                message.timestamp.FromMicroseconds(seen.timestamp)
                yield "/log", message
