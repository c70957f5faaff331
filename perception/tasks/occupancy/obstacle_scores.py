"""What counts as a found unknown obstacle, and what as a false alarm. numpy only.

Of the clusters of a frame: an annotated obstacle with LiDAR or RADAR points in the grid is found by a cluster that
touches its box grown by a voxel; a cluster that touches no annotated obstacle grown by GROWN is a false alarm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perception.errors import InputError
from perception.frame import Boxes, Frame
from perception.geometry import quaternions
from perception.grid import VoxelGrid
from perception.io.files import FrameFile, read_frame_file
from perception.tasks.metric import Counts, Range, Score, Weights
from perception.tasks.occupancy.obstacles import PROBABILITY, ObstacleClusters, Obstacles
from perception.taxonomy import Taxonomy

# obstacles.json of a replay: the unknown obstacles of every frame, and how much occupied space objects explain.
#
# {"classes": ["car", ...],
#  "frames": {TOKEN: {"obstacles": [{"id": 3, "translation": [x, y, z], "size": [width, length, height],
#                                    "rotation": [w, x, y, z], "probability": 0.9, "frames": 12, "unseen": 0}, ...],
#                     "voxels": [[120, ...], [7, ...]]}, ...}}
#
# Places are m in the global frame, as in nuScenes' submissions; an id lasts over a drive; `frames` counts those that
# saw the obstacle, `unseen` those since the last one. `voxels` are, by class, those occupied and those that no object
# explains.

OBSTACLES = "obstacles.json"


class ObstacleWriter:
    def __init__(self, file: FrameFile) -> None:
        self._file = file

    @classmethod
    @contextmanager
    def open(cls, folder: Path, taxonomy: Taxonomy) -> Iterator[ObstacleWriter]:
        """A writer of the file in the folder, which appears atomically when the block ends."""
        with FrameFile.open(folder / OBSTACLES, "the obstacles", {"classes": taxonomy.class_names}, "frames") as file:
            yield cls(file)

    def add(self, frame: Frame, result: object, state: Any) -> None:
        """Append a frame by the `obstacles` and `unexplained` voxels of an `OccupiedSpace`."""
        entry = {"obstacles": _to_rows(state.obstacles), "voxels": state.unexplained.tolist()}
        self._file.add(frame.token, entry)


def read_voxels(folder: Path, tokens: Sequence[str]) -> Sequence[np.ndarray | None]:
    """(2, classes) int of each frame in obstacles.json: occupied voxels that objects explain, and all of them.

    None for all frames if the file cannot be read or lacks one of them.
    """
    found = dict.fromkeys(tokens)
    try:
        for token, entry in read_frame_file(folder / OBSTACLES):
            if token in found:
                occupied, lost = np.array(entry["voxels"], np.int64)
                found[token] = np.stack([occupied - lost, occupied])
    except (InputError, ValueError, KeyError, TypeError):
        return [None] * len(tokens)
    return [*found.values()] if all(each is not None for each in found.values()) else [None] * len(tokens)


def _to_rows(obstacles: Obstacles) -> list[dict[str, object]]:
    boxes = obstacles.boxes
    columns = {
        "id": obstacles.ids,
        "translation": boxes.centers,
        "size": boxes.sizes,
        "rotation": quaternions(boxes.rotations),
        "probability": boxes.scores,
        "frames": obstacles.hits,
        "unseen": obstacles.unseen,
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


GROWN = 1.0  # m, around an annotated obstacle where a cluster is no false alarm
DISTANCES = (10.0, 20.0, 30.0, 40.0)  # m, bounds of the ranges that recall is given for
CURVE = (0.3, PROBABILITY, 0.7, 0.9, 0.95, 0.99, 0.995, 0.999)  # probabilities that obstacles are scored at


def find_touched(boxes: Boxes, clusters: ObstacleClusters, grid: VoxelGrid, margin: float) -> list[np.ndarray]:
    """For each box, grown by `margin` m on all sides, the indices of the clusters with a column of voxels in it."""
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
    """The annotated obstacles of one frame, and the false alarms."""

    distances: np.ndarray  # (N,) m, of the annotated obstacles from the vehicle
    found: np.ndarray  # (N,) bool
    alarms: np.ndarray  # (M,) m, distances of the clusters that are no annotated obstacle


def score_obstacles(clusters: ObstacleClusters, grid: VoxelGrid, annotated: Boxes) -> ObstacleScore:
    """Compare clusters with the annotated obstacles, in the reference frame of the grid.

    An obstacle in the grid with a LiDAR point is found by a cluster that touches its box grown by a voxel. A cluster
    that touches no annotated obstacle grown by GROWN, with points or without, is a false alarm.
    """
    x, y = annotated.centers[:, 0], annotated.centers[:, 1]
    counted = (x >= grid.x[0]) & (x < grid.x[1]) & (y >= grid.y[0]) & (y < grid.y[1]) & (annotated.num_points > 0)
    own = annotated.select(np.flatnonzero(counted))
    found = np.array([len(each) > 0 for each in find_touched(own, clusters, grid, grid.cell)], bool)
    near = find_touched(annotated, clusters, grid, GROWN)
    known = np.isin(np.arange(len(clusters.voxels)), np.concatenate([*near, np.zeros(0, np.int64)]))
    alarms = np.linalg.norm(clusters.centers[~known, :2], axis=1)
    return ObstacleScore(np.linalg.norm(own.centers[:, :2], axis=1), found, alarms)


def driven(known: Sequence[Counts], weights: np.ndarray | int = 1) -> float:
    """Metres along the positions of frames in order of time, by how often the drive of each counts (F,)."""
    positions, scenes = np.array([own["ego"] for own in known]), np.array([own["scene"] for own in known])
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1) * np.broadcast_to(weights, len(known))[1:]
    return float(steps[scenes[1:] == scenes[:-1]].sum())


def within(distances: np.ndarray, range: Range) -> np.ndarray:
    """(N,) bool of distances (N,) m: those in the range from the vehicle."""
    low, high = range or (0.0, np.inf)
    return np.asarray((distances >= low) & (distances < high))


def share(by_scene: np.ndarray | None, weights: Weights, classes: Sequence[str] = ()) -> Score:
    """The share of successes; by_scene (S, 2), or (S, 2, classes), has their number and that of all cases."""
    if by_scene is None:
        return Score(np.full((len(weights.draws), len(classes)) if classes else len(weights.draws), np.nan), classes)
    drawn = weights.drawn(by_scene)
    part, whole = drawn[:, 0], drawn[:, 1]
    values = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return Score(values, classes, by_scene[:, 1] if classes else by_scene[:, 1:], by_scene)


def count_recalled(counts: Sequence[Counts | None], weights: Weights) -> np.ndarray | None:
    """(S, 2) annotated obstacles that clusters find, and all of them; None without annotations."""

    def of(own: Counts) -> np.ndarray | None:
        if own["obstacles"] is None:
            return None
        away, found = np.array(own["obstacles"], np.float64).reshape(-1, 2).T
        inside = within(away, weights.range)
        return np.array([found[inside].sum(), inside.sum()])

    return weights.sums(counts, of)


def false_alarms(counts: Sequence[Counts | None], weights: Weights) -> np.ndarray:
    """(R,) clusters that are no annotated obstacle, per 100 m; NaN for a vehicle that stood still."""
    known = [(i, own) for i in np.flatnonzero(weights.frames) if (own := counts[i]) is not None and own["curve"]]
    alarms = weights.sums(counts, lambda own: _alarms(own, weights.range))
    if alarms is None:
        return np.full(len(weights.draws), np.nan)
    own_scenes, frames = weights.scenes[[i for i, _ in known]], [own for _, own in known]
    metres = np.array([driven(frames, each[own_scenes]) for each in weights.draws])
    return np.divide(100 * weights.drawn(alarms), metres, out=np.full(len(metres), np.nan), where=metres > 0)


def _alarms(own: Counts, range: Range) -> np.ndarray | None:
    """(), the number of alarms in the range at PROBABILITY; None without annotations."""
    if own["curve"] is None:
        return None
    return np.asarray(within(own["curve"][CURVE.index(PROBABILITY)].alarms, range).sum())


def obstacle_report(counts: Sequence[Counts]) -> dict[str, Any] | None:
    """Recall and false alarms at PROBABILITY, `metres`, and `curve`: the same at each of CURVE.

    `by_distance` is the recall up to each of DISTANCES. None without annotated obstacles.
    """
    known = [each for each in counts if each["curve"] is not None]
    if not known:
        return None
    metres = driven(known)
    curve = [
        {"probability": probability, **_recall([each["curve"][i] for each in known], metres)}
        for i, probability in enumerate(CURVE)
    ]
    return {**curve[CURVE.index(PROBABILITY)], "metres": metres, "curve": curve}


def _recall(scores: Sequence[ObstacleScore], metres: float) -> dict[str, Any]:
    away, found = (np.concatenate([getattr(each, name) for each in scores]) for name in ("distances", "found"))
    alarms = sum(len(each.alarms) for each in scores)

    def recall(inside: np.ndarray) -> float | None:
        return float(found[inside].mean()) if inside.any() else None

    return {
        "obstacles": len(away),
        "recall": recall(away < np.inf),
        "by_distance": {f"within {d:g} m": recall(away < d) for d in DISTANCES},
        "false_alarms": alarms,
        "false_alarms_per_100_m": 100 * alarms / metres if metres else None,
    }
