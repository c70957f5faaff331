"""Write the results of a replay to a recording for Rerun."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deploy.replay.pictures import draw_layers, jpeg, raster_colours
from perception.errors import InputError
from perception.frame import Frame
from perception.geometry import quaternions
from perception.io.files import atomic_file
from perception.scene.scene import SceneFrame
from perception.tasks.drawing import BoxLayer, Layer, PointLayer, RasterLayer, VoxelLayer, colours_of
from perception.tasks.task import Task
from perception.taxonomy import rgb

try:
    import rerun
except ImportError:
    raise InputError("rerun-sdk is not installed here: pip install 'tessera-perception[viewer]'") from None


class RerunWriter:
    """Writes results.rrd.

    world/LAYER                        the tasks' layers in the global frame, such as tracks
    world/vehicle                      the reference frame, with the points
    world/vehicle/LAYER                the tasks' layers in it: boxes such as detections and annotations, points with
                                       the colours of their classes, voxels as cubes
    world/vehicle/CAMERA               pictures, at the poses of the cameras
    LAYER                              raster layers from above, such as map
    conditions, route, health          believed conditions, active modules, sensor health, with reasons
    """

    def __init__(self, recording: rerun.RecordingStream, tasks: Mapping[str, Task[Any]]) -> None:
        self._recording, self._tasks = recording, tasks

    @classmethod
    @contextmanager
    def open(cls, path: Path, tasks: Mapping[str, Task[Any]]) -> Iterator[RerunWriter]:
        """Open a writer of the file `path`, which appears when the block ends."""
        recording = rerun.RecordingStream("tessera")
        with atomic_file(path, "the recording") as file:
            recording.save(file.name)
            recording.log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
            try:
                yield cls(recording, tasks)
            finally:
                recording.flush()
                recording.disconnect()

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """Write the next frame, with what was perceived in it."""
        log = self._recording.log
        self._recording.set_time("time", timestamp=frame.timestamp * 1e-6)
        log("world/vehicle", _transform(frame.global_from_reference))
        for _, layer in draw_layers(self._tasks, frame, seen):
            log(*_to_components(layer))
        points = np.zeros((0, 3)) if frame.points is None else frame.points[:, :3]
        log("world/vehicle/points", rerun.Points3D(points))
        reference_from_global = np.linalg.inv(frame.global_from_reference)
        for name, camera in frame.cameras.items():
            height, width = camera.image.shape[:2]
            pose = reference_from_global @ camera.global_from_ego @ camera.ego_from_camera
            log(f"world/vehicle/{name}", _transform(pose))
            log(f"world/vehicle/{name}", rerun.Pinhole(image_from_camera=camera.intrinsics, resolution=[width, height]))
            log(f"world/vehicle/{name}", rerun.EncodedImage(contents=jpeg(camera), media_type="image/jpeg"))
        for topic, lines in _words(seen).items():
            log(topic, rerun.TextDocument("\n".join(lines)))


def _words(seen: SceneFrame) -> dict[str, list[str]]:
    return {
        "conditions": [f"{kind}: {belief.value or 'unknown'} ({belief.why})" for kind, belief in seen.beliefs.items()],
        "route": [f"{name}: {routed.weight:g} ({routed.why})" for name, routed in seen.route.items()],
        "health": [f"{name}: {health.words} {health.reasons}" for name, health in seen.health.items()],
    }


def _to_components(layer: Layer) -> tuple[str, rerun.AsComponents]:
    """The path and the content of a layer."""
    if isinstance(layer, RasterLayer):
        return layer.name, rerun.Image(raster_colours(layer)[::-1])
    parent = "world" if isinstance(layer, BoxLayer) and layer.style == "tracked" else "world/vehicle"
    path = f"{parent}/{layer.name}"
    if isinstance(layer, BoxLayer):
        return path, _boxes(layer.visible())
    if isinstance(layer, PointLayer):
        return path, rerun.Points3D(layer.points, colors=colours_of(layer))
    return path, _cubes(layer)


def _cubes(layer: VoxelLayer) -> rerun.Boxes3D:
    half = np.broadcast_to(layer.edges / 2, layer.centers.shape)
    return rerun.Boxes3D(centers=layer.centers, half_sizes=half, colors=colours_of(layer), fill_mode="solid")


def _boxes(layer: BoxLayer) -> rerun.Boxes3D:
    boxes, classes = layer.boxes, layer.classes()
    return rerun.Boxes3D(
        centers=boxes.centers,
        sizes=boxes.sizes[:, [1, 0, 2]],  # along the heading, across it, up
        quaternions=quaternions(boxes.rotations)[:, [1, 2, 3, 0]],  # x y z w
        labels=[f"{name} {detail}".rstrip() for name, detail in zip(classes, layer.details, strict=True)],
        colors=np.array([rgb(layer.colours[name]) for name in classes], np.uint8).reshape(-1, 3),
    )


def _transform(parent_from_child: np.ndarray) -> rerun.Transform3D:
    return rerun.Transform3D(translation=parent_from_child[:3, 3], mat3x3=parent_from_child[:3, :3])
