"""Unknown obstacles: what is there and of no known class. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import label

from perception.frame import Boxes
from perception.tasks.occupancy.result import OccupancyResult
from perception.voxels import VoxelGrid

PROBABILITY = 0.5  # of the class others, above which a voxel is of a cluster
LEAST = 1  # voxels of a cluster
GROWN = 1.0  # m, around an annotated obstacle where a cluster is no false alarm
DISTANCES = (10.0, 20.0, 30.0, 40.0)  # m, bounds of the ranges that recall is given for


@dataclass(frozen=True)
class ObstacleClusters:
    """N clusters of voxels that hold something of no known class; they touch by side or corner, seen from above.

    Attributes:
        centers: (N, 3) m, of the boxes around them along the axes of the grid.
        sizes: (N, 3) m, of these boxes along x, y and z.
        voxels: (N,) number of voxels.
        probabilities: (N,) mean of their probabilities.
        cells: (rows, columns) int, 1 + index of the cluster that a column of voxels belongs to; 0 for none.
    """

    centers: np.ndarray
    sizes: np.ndarray
    voxels: np.ndarray
    probabilities: np.ndarray
    cells: np.ndarray


def obstacle_clusters(
    result: OccupancyResult, grid: VoxelGrid, probability: float = PROBABILITY, least: int = LEAST
) -> ObstacleClusters:
    """The unknown obstacles in a result.

    Args:
        grid: of the result.
        probability: of the class others, above which a voxel is of a cluster.
        least: voxels of a cluster.
    """
    with np.errstate(invalid="ignore"):
        chosen = result.others > probability
    cells, count = label(chosen.any(axis=0), structure=np.ones((3, 3)))
    level, row, column = np.nonzero(chosen)
    owner = cells[row, column] - 1
    voxels = np.bincount(owner, minlength=count)
    sums = np.bincount(owner, weights=result.others[level, row, column], minlength=count)
    place = np.stack([column, row, level], axis=1)
    lowest, highest = np.full((count, 3), np.iinfo(np.int64).max), np.full((count, 3), -1)
    np.minimum.at(lowest, owner, place)
    np.maximum.at(highest, owner, place)
    kept = np.flatnonzero(voxels >= least)
    names = np.zeros(count + 1, np.int64)
    names[1 + kept] = 1 + np.arange(len(kept))
    corner = np.array([grid.x[0], grid.y[0], grid.z[0]])
    low, high = (corner + each[kept] * grid.edges for each in (lowest, highest + 1))
    return ObstacleClusters((low + high) / 2, high - low, voxels[kept], sums[kept] / voxels[kept], names[cells])


def touched(boxes: Boxes, clusters: ObstacleClusters, grid: VoxelGrid, margin: float) -> list[np.ndarray]:
    """For each box the indices of the clusters with a column of voxels whose centre is in it, seen from above.

    Args:
        boxes: in the reference frame of the grid.
        margin: m by which the boxes are grown on all sides.
    """
    row, column = np.nonzero(clusters.cells)
    owner = clusters.cells[row, column] - 1
    places = np.array([grid.x[0], grid.y[0]]) + (np.stack([column, row], axis=1) + 0.5) * grid.cell
    found = []
    for center, size, rotation in zip(boxes.centers, boxes.sizes, boxes.rotations, strict=True):
        heading = rotation[:2, 0] / np.linalg.norm(rotation[:2, 0])
        offset = places - center[:2]
        along, across = offset @ heading, offset @ np.array([-heading[1], heading[0]])
        inside = (np.abs(along) <= size[1] / 2 + margin) & (np.abs(across) <= size[0] / 2 + margin)
        found.append(np.unique(owner[inside]))
    return found


@dataclass(frozen=True)
class ObstacleScore:
    """The annotated obstacles of one frame, and the false alarms.

    Attributes:
        distances: (N,) m, of the annotated obstacles from the vehicle.
        found: (N,) bool.
        alarms: (M,) m, distances of the clusters that are no annotated obstacle.
    """

    distances: np.ndarray
    found: np.ndarray
    alarms: np.ndarray


def score_obstacles(clusters: ObstacleClusters, grid: VoxelGrid, annotated: Boxes) -> ObstacleScore:
    """Compare clusters with the annotated obstacles.

    An obstacle in the grid with a LiDAR point is found by a cluster that touches its box grown by a voxel. A cluster
    that touches no annotated obstacle grown by GROWN, with points or without, is a false alarm.

    Args:
        annotated: in the reference frame of the grid.
    """
    x, y = annotated.centers[:, 0], annotated.centers[:, 1]
    counted = (x >= grid.x[0]) & (x < grid.x[1]) & (y >= grid.y[0]) & (y < grid.y[1]) & (annotated.num_points > 0)
    own = annotated.select(np.flatnonzero(counted))
    found = np.array([len(each) > 0 for each in touched(own, clusters, grid, grid.cell)], bool)
    near = touched(annotated, clusters, grid, GROWN)
    known = np.isin(np.arange(len(clusters.voxels)), np.concatenate([*near, np.zeros(0, np.int64)]))
    alarms = np.linalg.norm(clusters.centers[~known, :2], axis=1)
    return ObstacleScore(np.linalg.norm(own.centers[:, :2], axis=1), found, alarms)


def driven(positions: np.ndarray, scenes: np.ndarray) -> float:
    """Metres along the positions (F, 2) of frames in order of time; scenes (F,) tell their drives apart."""
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    return float(steps[scenes[1:] == scenes[:-1]].sum())
