"""Unknown obstacles: occupied space that no object explains, followed over a drive. numpy only.

Obstacles are taken to be at rest: their places in the global frame are associated by distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from perception.frame import Boxes
from perception.tasks.association import associate
from perception.tasks.drawing import COUNTED_SCORE, BoxLayer
from perception.tasks.occupancy.footprints import covered

MARGIN = 0.5  # m around an object, within which it explains what is there
GATE = 1.5  # m on the ground between an obstacle and a cluster of the next frame
HITS = 2  # frames that confirm an obstacle
MISSES = 3  # frames without it, after which an obstacle is dropped
GAIN = 0.3  # least weight of the newest frame in place and size
COLOURS: Mapping[str, str] = {"unknown obstacle": "#ff3df2"}

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
        """The obstacles for the report and the viewers."""
        boxes, ids = replace(self.boxes, labels=np.zeros(len(self.ids), np.int64)), [str(i) for i in self.ids.tolist()]
        shown = np.ones(len(ids), bool)
        return BoxLayer("obstacles", "tracked", boxes, COLOURS, shown, ids, ids, faded=self.unseen > 0)


def cluster_boxes(centers: np.ndarray, sizes: np.ndarray, scores: np.ndarray) -> Boxes:
    """Clusters of voxels as boxes along the axes of their frame, with the label -1.

    Args:
        centers: (N, 3) m.
        sizes: (N, 3) m along x, y and z.
        scores: (N,) probability that the space is occupied.
    """
    return _boxes(centers, sizes[:, [1, 0, 2]], scores)


def _boxes(centers: np.ndarray, sizes: np.ndarray, scores: np.ndarray) -> Boxes:
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
        self._next = 1

    def update(self, clusters: Boxes, objects: Boxes) -> Obstacles:
        """The obstacles after one more frame.

        Args:
            clusters: occupied space of no known class, as from `cluster_boxes`, in the global frame.
            objects: known ones, in the global frame.
        """
        objects = objects.select(objects.scores >= COUNTED_SCORE)
        clusters = clusters.select(~covered(clusters.centers, objects, MARGIN))
        old = self._obstacles.copy()
        rows, columns = associate(old["center"][:, :2], clusters.centers[:, :2], GATE)
        old["misses"] += 1
        old[rows] = _seen(old[rows], clusters.select(columns))
        new = np.ones(len(clusters), bool)
        new[columns] = False
        born = _seen(np.zeros(int(new.sum()), _OBSTACLE), clusters.select(new))
        born["id"] = np.arange(self._next, self._next + len(born))
        self._next += len(born)
        self._obstacles = np.concatenate([old[old["misses"] < MISSES], born])
        known = self._obstacles[self._obstacles["hits"] >= HITS]
        return _output(known[~covered(known["center"], objects, MARGIN)])


def _seen(obstacles: np.ndarray, clusters: Boxes) -> np.ndarray:
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
    boxes = _boxes(obstacles["center"], obstacles["size"], obstacles["score"])
    return Obstacles(
        obstacles["id"].copy(),
        replace(boxes, rotations=obstacles["rotation"].copy()),
        obstacles["hits"].copy(),
        obstacles["misses"].copy(),
    )
