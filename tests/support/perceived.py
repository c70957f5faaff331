"""Networks with chosen tasks, and boxes and frames of a vehicle whose LiDAR is turned."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from exported import bundle
from occupied import SMALL

from deploy.live.messages.messages import Message
from deploy.manifest import Manifest
from deploy.recordings.ros_types import TYPES
from perception.frame import Boxes, Frame
from perception.tasks import TASKS

OPTIONS: dict[str, dict[str, Any]] = {
    "points": {"max_points": 500, "channels": 8},
    "occupancy": {"x": SMALL.x, "y": SMALL.y, "z": SMALL.z, "cell": SMALL.cell, "channels": 8},
}
STAMP = 1_500_000_000_123_456


def manifest_of(*tasks: str) -> Manifest:
    """Of a network with these tasks."""
    configs = {name: TASKS[name].Config(**OPTIONS.get(name, {})).model_dump(mode="json") for name in tasks}
    content = bundle().manifest.model_dump(mode="json") | {"tasks": configs}
    return Manifest.model_validate_json(Manifest.model_validate(content, strict=False).model_dump_json())


def frame_at(pose: np.ndarray, mount: np.ndarray, time: int = STAMP) -> Frame:
    """A frame of a LiDAR that is mounted so (4, 4) on a vehicle at a pose (4, 4)."""
    return Frame("f", time, "lidar", pose @ mount, pose, None, {})


def rigid(x: float, y: float, z: float, yaw: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    pose[:3, 3] = x, y, z
    return pose


def boxes_of(*rows: Sequence[float]) -> Boxes:
    """From rows of label, x y z, w l h, yaw, vx vy, score."""
    r = np.array(rows, np.float64).reshape(-1, 11)
    none = np.full(len(r), -1)
    return Boxes.from_yaws(r[:, 1:4], r[:, 4:7], r[:, 7], r[:, 8:10], r[:, 0].astype(int), none, r[:, 10])


def read(message: Message) -> Any:
    """The message by its bytes, which are those of what was read."""
    content: Any = TYPES.deserialize_cdr(message.data, message.type_name)
    assert bytes(TYPES.serialize_cdr(content, message.type_name)) == message.data
    return content


def xyz(v: Any) -> list[float]:
    return [v.x, v.y, v.z]


def xyzw(q: Any) -> list[float]:
    return [*xyz(q), q.w]
