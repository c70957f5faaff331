"""The messages of one perceived frame, with points and voxels as clouds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deploy.live.messages.free_space import FreeSpace, occupancy_grid
from deploy.live.messages.objects import detected_objects, detections_3d, tracked_objects
from deploy.manifest import Manifest
from deploy.recordings.ros_types import encode, header, make, point_cloud
from perception.frame import Boxes, Frame, Prediction
from perception.geometry import move
from perception.scene.scene import SceneFrame
from perception.tasks.occupancy.labels import ego_from_reference
from perception.tasks.published import Cloud

NAMESPACE, DIAGNOSTICS = "/perception", "/diagnostics"


class Message(NamedTuple):
    topic: str
    type_name: str  # such as vision_msgs/msg/Detection3DArray
    data: bytes  # CDR with its four bytes about the encoding


class Diagnostic(NamedTuple):
    """A diagnostic_msgs/DiagnosticStatus."""

    name: str
    level: int  # 0 OK, 1 WARN, 2 ERROR, 3 STALE
    message: str
    values: Mapping[str, str]


class Messages:
    """Makes the messages of frames in order of time, of what each of the network's tasks has to publish.

    Args:
        frame_id: of the vehicle: x ahead, y left, z up from the ground.
        global_frame: of the vehicle's poses; tracks are in it.
    """

    def __init__(self, manifest: Manifest, frame_id: str = "base_link", global_frame: str = "map") -> None:
        self._taxonomy, self._tasks, self._name = manifest.taxonomy, manifest.heads, manifest.name
        self._vehicle, self._global = frame_id, global_frame
        self._space = FreeSpace(manifest.heads)

    def detections(self, frame: Frame, prediction: Prediction) -> Iterator[Message]:
        """The detected objects of one frame, as the network saw it, in the vehicle's frame."""
        results, detecting = prediction.results, [task for task in self._tasks.values() if task.thresholds is not None]
        if detecting:
            found = Boxes.joined(*(task.published(results[task.name]) for task in detecting))
            boxes = found.transformed(ego_from_reference(frame))
            about = header(frame.timestamp, self._vehicle, frame.nanoseconds)
            yield _message("objects/vision", detections_3d(about, boxes, self._taxonomy))
            yield _message("objects/detected", detected_objects(about, boxes, self._taxonomy))

    def scene(self, frame: Frame, seen: SceneFrame) -> Iterator[Message]:
        """Tracks in the global frame; free space, points and voxels in the vehicle's; durations of the stages."""
        for name, state in seen.states.items():
            if (tracks := self._tasks[name].tracks(state)) is not None:
                about = header(frame.timestamp, self._global, frame.nanoseconds)
                yield _message("objects/tracked", tracked_objects(about, tracks, seen.scene, self._taxonomy))
        about, ego = header(frame.timestamp, self._vehicle, frame.nanoseconds), ego_from_reference(frame)
        cells = self._space.cells(seen.states, self._followed(frame, seen))
        if cells is not None and self._space.grid is not None:
            yield _message("free_space", occupancy_grid(about, ego, self._space.grid, cells))
        for name, task in self._tasks.items():
            cloud = task.cloud(frame, seen.prediction.results.get(name), seen.states.get(name))
            if cloud is not None:
                yield _message(name, classified_cloud(about, ego, cloud))
        for stage, seconds in {**seen.seconds, "total": sum(seen.seconds.values())}.items():
            duration = make("autoware_internal_debug_msgs/msg/Float64Stamped", stamp=about.stamp, data=1000 * seconds)
            yield _message(f"latency/{stage}_ms", duration)

    def diagnostics(self, stamp: int, statuses: Sequence[Diagnostic]) -> Message:
        """The state of the process at a time (us)."""
        content = [
            make(
                "diagnostic_msgs/msg/DiagnosticStatus",
                level=each.level,
                name=_readable(each.name),
                message=_readable(each.message),
                hardware_id=self._name,
                values=[
                    make("diagnostic_msgs/msg/KeyValue", key=_readable(key), value=_readable(value))
                    for key, value in each.values.items()
                ],
            )
            for each in statuses
        ]
        array = make("diagnostic_msgs/msg/DiagnosticArray", header=header(stamp, ""), status=content)
        return Message(DIAGNOSTICS, array.__msgtype__, encode(array))

    def _followed(self, frame: Frame, seen: SceneFrame) -> Boxes:
        """The objects that the tasks follow, in the frame's reference."""
        parts = [self._tasks[name].objects(state) for name, state in seen.states.items()]
        return Boxes.joined(Boxes.none(), *parts).transformed(np.linalg.inv(frame.global_from_reference))


def _readable(text: str) -> str:
    """The text, with a question mark for what is no Unicode: the name of a file may be any bytes."""
    return text.encode(errors="replace").decode()


def _message(topic: str, content: Any) -> Message:
    return Message(f"{NAMESPACE}/{topic}", content.__msgtype__, encode(content))


# Aligned, since readers may cast the bytes to a structure.
_POINT = np.dtype([*((axis, "<f4") for axis in "xyz"), ("probability", "<f4"), ("class_id", "u1")], align=True)


def classified_cloud(header: Any, header_from_points: np.ndarray, cloud: Cloud) -> Any:
    """PointCloud2 with the fields x y z (m), probability, and class_id."""
    moved = cloud.points[:, :3].astype(np.float32)
    move(moved, header_from_points.astype(np.float32))
    rows = np.zeros(len(moved), _POINT)
    for axis, name in enumerate("xyz"):
        rows[name] = moved[:, axis]
    rows["class_id"], rows["probability"] = cloud.classes, cloud.probabilities
    return point_cloud(header, rows)
