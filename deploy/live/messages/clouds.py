"""Points and voxels with classes as sensor_msgs/PointCloud2."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.recordings.ros_types import make
from perception.geometry import move

# Aligned, since readers may cast the bytes to a structure.
_POINT = np.dtype([*((axis, "<f4") for axis in "xyz"), ("probability", "<f4"), ("class_id", "u1")], align=True)
_UINT8, _FLOAT32 = 2, 7  # datatypes of PointField
_FIELDS = [
    make(
        "sensor_msgs/msg/PointField",
        name=name,
        offset=_POINT.fields[name][1],  # type: ignore[index]
        datatype=_UINT8 if name == "class_id" else _FLOAT32,
        count=1,
    )
    for name in _POINT.names or ()
]


def classified_cloud(
    header: Any, header_from_points: np.ndarray, points: np.ndarray, classes: np.ndarray, probabilities: np.ndarray
) -> Any:
    """PointCloud2 with the fields x y z (m), probability, and class_id.

    Args:
        header_from_points: (4, 4) from the frame of the points to that of the header.
        points: (N, >=3) m.
        classes: (N,) uint8.
        probabilities: (N,) of the classes.
    """
    moved = points[:, :3].astype(np.float32)
    move(moved, header_from_points.astype(np.float32))
    rows = np.zeros(len(points), _POINT)
    for axis, name in enumerate("xyz"):
        rows[name] = moved[:, axis]
    rows["class_id"], rows["probability"] = classes, probabilities
    return make(
        "sensor_msgs/msg/PointCloud2",
        header=header,
        height=1,
        width=len(rows),
        fields=_FIELDS,
        is_bigendian=False,
        point_step=_POINT.itemsize,
        row_step=rows.nbytes,
        data=rows.view(np.uint8).reshape(-1),
        is_dense=True,
    )
