"""Where the vehicle can drive, from what all tasks remember, as nav_msgs/OccupancyGrid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from deploy.recordings.ros_types import make, quaternion, vector
from perception.frame import Boxes
from perception.grid import BevGrid
from perception.tasks.map.task import MapTask, predict_cells
from perception.tasks.occupancy.rays import OCCUPIED, body_levels
from perception.tasks.occupancy.result import OccupancyResult, levels_of, probabilities_of
from perception.tasks.occupancy.task import OccupancyTask
from perception.tasks.task import Task

DRIVABLE = "drivable_area"  # layer of the map
FREE, TAKEN, UNKNOWN = 0, 100, -1  # of a cell
_PRIOR = 1e-5  # largest rounding of a map's probability where nothing was observed
_UNOBSERVED = probabilities_of(levels_of(np.array([0.5], np.float32)))[0]  # of a fused voxel
_BITS = 8  # of the fraction of a pixel


class FreeSpace:
    """Combines the map's drivable area, the occupied voxels, and the objects that are followed.

    A cell is taken if any of these says so, and free if both map and voxels say so, as far as the network has them.
    Beyond the voxels nothing is free. `grid` is the grid of the map, or else of the voxels' columns; None without both.
    """

    def __init__(self, tasks: Mapping[str, Task[Any]]) -> None:
        self.grid: BevGrid | None = None
        self._layer: int | None = None
        self._voxels: _Columns | None = None
        for task in tasks.values():
            if isinstance(task, MapTask) and DRIVABLE in task.taxonomy.map_names:
                self.grid, self._layer = task.grid, task.taxonomy.map_names.index(DRIVABLE)
                self._share = task.taxonomy.map_layers[self._layer].share
        for task in tasks.values():
            if isinstance(task, OccupancyTask):
                voxels = task.voxels
                self.grid = self.grid or BevGrid(voxels.x, voxels.y, voxels.z, voxels.cell, voxels.reference)
                self._voxels = _Columns(task, self.grid)

    def cells(self, states: Mapping[str, Any], objects: Boxes) -> np.ndarray | None:
        """(rows, columns) int8 on the grid, given the states of the tasks' memories and the objects that are followed.

        Objects are in the frame's reference. None if the network has neither map nor voxels.
        """
        said = []
        if self._layer is not None:
            said.append(self._of_map(states[MapTask.name][self._layer]))
        if self._voxels is not None:
            said.append(self._voxels.cells(states[OccupancyTask.name].fused))
        if self.grid is None:
            return None
        every = np.stack(said)
        cells = np.where((every == FREE).all(axis=0), FREE, UNKNOWN).astype(np.int8)
        cells[(every == TAKEN).any(axis=0)] = TAKEN
        cells[_covered(objects, self.grid)] = TAKEN
        return cells

    def _of_map(self, probabilities: np.ndarray) -> np.ndarray:
        cells = np.where(predict_cells(probabilities), FREE, TAKEN)
        cells[np.abs(probabilities - self._share) < _PRIOR] = UNKNOWN
        return cells


class _Columns:
    def __init__(self, task: OccupancyTask, grid: BevGrid) -> None:
        voxels = task.voxels
        self._body = body_levels(voxels, task.config.body)
        self._solid = np.array([name not in task.config.flat for name in task.classes[:-1]] + [False])
        centers = grid.centers().reshape(-1, 2)
        low = np.full((len(centers), 1), voxels.z[0])
        self._column, self._inside = (each.reshape(grid.shape) for each in voxels.indices(np.hstack([centers, low])))
        places = grid.continuous(voxels.centers()[0].reshape(-1, 3))
        on_grid = ((places >= 0) & (places < grid.shape[::-1])).all(axis=1)
        column, row = np.where(on_grid[:, None], np.floor(places), 0).astype(np.int64).T
        self._cell = np.where(on_grid, row * grid.shape[1] + column, grid.cells)  # of each column's centre

    def cells(self, fused: OccupancyResult) -> np.ndarray:
        """(rows, columns) taken where a voxel at the height of the vehicle's body is solid, free where none is."""
        occupied, classes = fused.occupied[self._body], fused.classes[self._body]
        taken = ((occupied > OCCUPIED) & self._solid[classes]).any(axis=0).ravel()
        known = (occupied != _UNOBSERVED).any(axis=0).ravel()
        cells = np.where(self._inside & known[self._column], FREE, UNKNOWN)
        cells[self._inside & taken[self._column]] = TAKEN
        within = np.append(cells.ravel(), UNKNOWN)  # one more for columns beyond the grid
        within[self._cell[taken]] = TAKEN
        return within[:-1].reshape(cells.shape)


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
