"""Unknown obstacles: what is there, of no known class and explained by no object, followed over a drive. No torch here.

Obstacles are taken to be at rest: their places in the global frame are associated by distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import label

from perception.frame import Boxes
from perception.geometry import along_and_aside
from perception.tasks.association import associate
from perception.tasks.drawing import COUNTED_SCORE, BoxLayer
from perception.tasks.occupancy.result import OccupancyResult

PROBABILITY = 0.5  # of the class others, above which a voxel is of a cluster
PAIRS = 1 << 16  # of places and boxes; their offsets take 1 MB
MARGIN = 0.5  # m around an object, within which it explains what is there
GATE = 1.5  # m on the ground between an obstacle and a cluster of the next frame
HITS = 2  # frames that confirm an obstacle
MISSES = 3  # frames without it, after which an obstacle is dropped
GAIN = 0.3  # least weight of the newest frame in place and size
COLOURS: Mapping[str, str] = {"unknown obstacle": "#ff3df2"}


@dataclass(frozen=True)
class ObstacleClusters:
    """N clusters of voxels that hold something of no known class; they touch by side or corner, seen from above."""

    centers: np.ndarray  # (N, 3) m, of the boxes around them along the axes of the grid
    sizes: np.ndarray  # (N, 3) m, of these boxes along x, y and z
    voxels: np.ndarray  # (N,) number of voxels
    probabilities: np.ndarray  # (N,) mean of their probabilities
    cells: np.ndarray  # (rows, columns) int, 1 + index of the cluster that a column of voxels belongs to; 0 for none


def obstacle_clusters(result: OccupancyResult, probability: float = PROBABILITY) -> ObstacleClusters:
    """The clusters of the voxels in which the class others has more than this probability."""
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
    grid = result.grid
    corner = np.array([grid.x[0], grid.y[0], grid.z[0]])
    low, high = (corner + each * grid.edges for each in (lowest, highest + 1))
    return ObstacleClusters((low + high) / 2, high - low, voxels, sums / voxels, cells)


def distances(places: np.ndarray, boxes: Boxes) -> np.ndarray:
    """(P, N) m on the ground from places (P, >=2) to the footprints of N boxes in the same frame; 0 inside."""
    along, aside = along_and_aside(places, boxes.centers, boxes.rotations[:, [1, 0], 0])
    width, length = boxes.sizes[:, 0], boxes.sizes[:, 1]
    return np.hypot(np.maximum(np.abs(along) - length / 2, 0), np.maximum(np.abs(aside) - width / 2, 0))


def is_covered(places: np.ndarray, boxes: Boxes, margin: float) -> np.ndarray:
    """(P,) bool: places within `margin` (m) of the footprint of any box, PAIRS of them at a time."""
    found, some = np.zeros(len(places), bool), max(1, PAIRS // max(1, len(boxes)))
    for i in range(0, len(places), some):
        found[i : i + some] = (distances(places[i : i + some], boxes) <= margin).any(axis=1)
    return found


_OBSTACLE = np.dtype(
    [
        ("id", np.int64),
        ("hits", np.int64),  # frames with a cluster
        ("misses", np.int64),  # frames since the latest cluster
        ("center", np.float64, 3),  # m, global frame
        ("size", np.float64, 3),  # m: width, length, height
        ("rotation", np.float64, (3, 3)),  # of the latest cluster
        ("score", np.float64),  # probability that the space is occupied
    ]
)


@dataclass(frozen=True)
class Obstacles:
    """N unknown obstacles at one time, in order of their ids."""

    ids: np.ndarray  # (N,) int, unique in the drive, from 1 on
    boxes: Boxes  # in the global frame, with the label -1 and unknown velocity; scores: occupied probability
    hits: np.ndarray  # (N,) int, frames in which it was seen
    unseen: np.ndarray  # (N,) int, frames since it was seen; 0 if seen in this frame

    def layer(self) -> BoxLayer:
        boxes, ids = replace(self.boxes, labels=np.zeros(len(self.ids), np.int64)), [str(i) for i in self.ids.tolist()]
        shown = np.ones(len(ids), bool)
        return BoxLayer("obstacles", "tracked", boxes, COLOURS, shown, ids, ids, faded=self.unseen > 0)


def obstacle_boxes(centers: np.ndarray, sizes: np.ndarray, scores: np.ndarray) -> Boxes:
    """Boxes along the axes, of no class and with unknown velocity; sizes (N, 3) m: width, length, height."""
    count = len(centers)
    none, unknown = np.full(count, -1), np.full((count, 2), np.nan)
    return Boxes.from_yaws(centers, sizes, np.zeros(count), unknown, none, none, scores)


class ObstacleTracker:
    """Follows the unknown obstacles of one drive.

    A cluster within MARGIN of an object with at least COUNTED_SCORE is explained by it: a detector has unlikely objects
    nearly everywhere. The others are associated with obstacles within GATE, or begin new ones. An obstacle counts after
    HITS frames, until MISSES frames in sequence lack it; it is hidden while an object explains it. The same frames give
    bit-identical obstacles.
    """

    def __init__(self) -> None:
        self._obstacles = np.zeros(0, _OBSTACLE)
        self._next_id = 1

    def update(self, clusters: Boxes, objects: Boxes) -> Obstacles:
        """The obstacles after one more frame, from clusters (`obstacle_boxes`) and known objects, all in the global
        frame."""
        objects = objects.select(objects.scores >= COUNTED_SCORE)
        clusters = clusters.select(~is_covered(clusters.centers, objects, MARGIN))
        old = self._obstacles.copy()
        rows, columns = associate(old["center"][:, :2], clusters.centers[:, :2], GATE)
        old["misses"] += 1
        old[rows] = _update_obstacles(old[rows], clusters.select(columns))
        new = np.ones(len(clusters), bool)
        new[columns] = False
        born = _update_obstacles(np.zeros(int(new.sum()), _OBSTACLE), clusters.select(new))
        born["id"] = np.arange(self._next_id, self._next_id + len(born))
        self._next_id += len(born)
        self._obstacles = np.concatenate([old[old["misses"] < MISSES], born])
        known = self._obstacles[self._obstacles["hits"] >= HITS]
        return _output(known[~is_covered(known["center"], objects, MARGIN)])


def _update_obstacles(obstacles: np.ndarray, clusters: Boxes) -> np.ndarray:
    """The obstacles after their clusters: means over the frames, later with a weight of GAIN for the newest."""
    obstacles = obstacles.copy()
    obstacles["hits"] += 1
    obstacles["misses"] = 0
    gain = np.maximum(1 / obstacles["hits"], GAIN)
    obstacles["center"] += gain[:, None] * (clusters.centers - obstacles["center"])
    obstacles["size"] += gain[:, None] * (clusters.sizes - obstacles["size"])
    obstacles["score"] += gain * (clusters.scores - obstacles["score"])
    obstacles["rotation"] = clusters.rotations
    return obstacles


def _output(obstacles: np.ndarray) -> Obstacles:
    boxes = obstacle_boxes(obstacles["center"], obstacles["size"], obstacles["score"])
    return Obstacles(
        obstacles["id"].copy(),
        replace(boxes, rotations=obstacles["rotation"].copy()),
        obstacles["hits"].copy(),
        obstacles["misses"].copy(),
    )
