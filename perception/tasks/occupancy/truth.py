"""Results and annotations on the grid of the annotations. numpy only."""

from __future__ import annotations

import numpy as np

from perception.datasets.keyframes import Keyframes, Reads
from perception.frame import Boxes, Frame
from perception.tasks.occupancy.labels import lookup
from perception.tasks.occupancy.result import OccupancyResult
from perception.voxels import VoxelGrid


def ego_from_reference(frame: Frame) -> np.ndarray:
    """(4, 4) of the frame at its time; after augmentation its reference is another one, and this a similarity."""
    return np.asarray(np.linalg.inv(frame.global_from_ego) @ frame.global_from_reference)


def on_grid_of_truth(frame: Frame, result: OccupancyResult, grid: VoxelGrid, free: int) -> np.ndarray:
    """(levels, rows, columns) predicted classes on a grid in the ego frame; free outside the grid of the result."""
    index, inside = lookup(grid, result.grid, np.linalg.inv(ego_from_reference(frame)))
    return np.where(inside, result.classes.reshape(-1)[index], np.uint8(free))


def obstacles_of(frame: Frame, source: Keyframes) -> Boxes | None:
    """Annotated obstacles in the frame's reference; None without annotations."""
    annotated = source.truth(frame.token).obstacles()
    return None if annotated is None else annotated.transformed(np.linalg.inv(frame.global_from_reference))


def lidar_places(source: Keyframes, scene: str) -> np.ndarray:
    """(N, 3) m, where the reference LiDAR was at each keyframe of a drive, in the global frame."""
    tokens = source.samples(None, [scene])
    frames = (source.frame(token, Reads("lidar", annotations=False, lidar=False, cameras=False)) for token in tokens)
    return np.array([frame.global_from_reference[:3, 3] for frame in frames])
