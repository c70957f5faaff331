"""Where the vehicle can drive, from what all tasks remember, as nav_msgs/OccupancyGrid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from deploy.recordings.ros_types import make, quaternion, vector
from perception.frame import Boxes
from perception.grid import BevGrid
from perception.tasks.published import FREE, TAKEN, UNKNOWN
from perception.tasks.task import Task

_BITS = 8  # of the fraction of a pixel


class FreeSpace:
    """Combines what the tasks say of the ground, such as the map and the voxels, and the objects that are followed.

    A cell is taken if any of these says so, and free if all tasks that tell say so. `grid` is the ground of the first
    of them; None if no task tells.
    """

    def __init__(self, tasks: Mapping[str, Task[Any]]) -> None:
        grounds = {name: task.ground for name, task in tasks.items()}
        self._tasks = {name: task for name, task in tasks.items() if grounds[name] is not None}
        self.grid = next(map(grounds.get, self._tasks), None)

    def cells(self, states: Mapping[str, Any], objects: Boxes) -> np.ndarray | None:
        """(rows, columns) int8 on the grid, given the states of the tasks' memories and the objects that are followed.

        Objects are in the frame's reference. None without a grid.
        """
        if self.grid is None:
            return None
        every = np.stack([task.cells(states[name], self.grid) for name, task in self._tasks.items()])
        cells = np.where((every == FREE).all(axis=0), FREE, UNKNOWN).astype(np.int8)
        cells[(every == TAKEN).any(axis=0)] = TAKEN
        cells[_covered(objects, self.grid)] = TAKEN
        return cells


def _covered(objects: Boxes, grid: BevGrid) -> np.ndarray:
    """(rows, columns) bool: cells that the footprint of an object touches."""
    canvas = np.zeros(grid.shape, np.uint8)
    outlines = objects.corners()[:, [2, 3, 7, 6]]  # those of the bottom, in turn
    for outline in outlines:
        pixels = (grid.continuous(outline) - 0.5) * (1 << _BITS)  # OpenCV's integers are the centres of pixels
        cv2.fillConvexPoly(canvas, np.rint(pixels).astype(np.int32), (1,), shift=_BITS)
    return canvas.astype(bool)


def occupancy_grid(header: Any, header_from_reference: np.ndarray, grid: BevGrid, cells: np.ndarray) -> Any:
    """OccupancyGrid of cells (rows, columns) int8, on the ground of the header's frame, which is at z 0."""
    corner = header_from_reference @ [grid.x[0], grid.y[0], 0.0, 1.0]
    yaw = float(np.arctan2(header_from_reference[1, 0], header_from_reference[0, 0]))
    turn = quaternion(np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
    origin = make("geometry_msgs/msg/Pose", position=vector([*corner[:2], 0.0], "Point"), orientation=turn)
    rows, columns = cells.shape
    about = make(
        "nav_msgs/msg/MapMetaData",
        map_load_time=header.stamp,
        resolution=grid.cell,
        width=columns,
        height=rows,
        origin=origin,
    )
    data = np.ascontiguousarray(cells, np.int8).reshape(-1)
    return make("nav_msgs/msg/OccupancyGrid", header=header, info=about, data=data)
