"""What counts as a found unknown obstacle, and what as a false alarm. numpy only.

Of the clusters of a frame: an annotated obstacle with LiDAR or RADAR points in the grid is found by a cluster that
touches its box grown by a voxel; a cluster that touches no annotated obstacle grown by GROWN is a false alarm.

Of the obstacles that are followed over a drive (obstacles.json): an annotated obstacle with points is found in a frame
if the centre of one of them is within REACH of its footprint. One of them is a false alarm if it never is within REACH
of any annotated object, detection classes included: those are objects too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from perception.errors import InputError
from perception.frame import Boxes, Frame
from perception.geometry import quaternions
from perception.grid import VoxelGrid
from perception.io.files import FrameFile, read_frame_file
from perception.tasks.metric import Counts, Range, Score, Weights
from perception.tasks.occupancy.obstacles import PROBABILITY, ObstacleClusters, Obstacles, distances
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


class WithObstacles(Protocol):
    """State of a memory that follows obstacles."""

    @property
    def obstacles(self) -> Obstacles: ...

    @property
    def unexplained(self) -> np.ndarray:
        """(2, classes) int, from `count_unexplained_voxels`."""
        ...


class ObstacleWriter:
    """Writes obstacles.json frame by frame, in bounded memory."""

    def __init__(self, file: FrameFile) -> None:
        self._file = file

    @classmethod
    @contextmanager
    def open(cls, folder: Path, taxonomy: Taxonomy) -> Iterator[ObstacleWriter]:
        """A writer of the file in the folder, which appears atomically when the block ends."""
        with FrameFile.open(folder / OBSTACLES, "the obstacles", {"classes": taxonomy.class_names}, "frames") as file:
            yield cls(file)

    def add(self, frame: Frame, result: object, state: WithObstacles) -> None:
        """Append a frame."""
        entry = {"obstacles": _to_rows(state.obstacles), "voxels": state.unexplained.tolist()}
        self._file.add(frame.token, entry)


class FrameObstacles(NamedTuple):
    """What obstacles.json has of one frame."""

    ids: np.ndarray  # (N,) int
    centers: np.ndarray  # (N, 3) m, global frame
    voxels: np.ndarray  # (2, classes) int


def read_obstacles(folder: Path, tokens: Sequence[str]) -> list[FrameObstacles]:
    """The frames with these tokens; one at a time is held as Python objects."""
    path = folder / OBSTACLES
    try:
        place, found = {token: i for i, token in enumerate(tokens)}, dict[int, FrameObstacles]()
        for token, entry in read_frame_file(path):
            if token in place:
                found[place[token]] = _read(entry)
        return [found[i] for i in range(len(tokens))]
    except (InputError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: cannot be read or lacks a frame of the replay; replay again") from None


def _read(entry: Mapping[str, Any]) -> FrameObstacles:
    obstacles = entry["obstacles"]
    centers = np.array([each["translation"] for each in obstacles], np.float64).reshape(-1, 3)
    ids = np.array([each["id"] for each in obstacles], np.int64)
    return FrameObstacles(ids, centers, np.array(entry["voxels"], np.int64))


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
REACH = 1.0  # m on the ground
DISTANCES = (10.0, 20.0, 30.0, 40.0)  # m, bounds of the ranges that recall is given for
CURVE = (0.3, PROBABILITY, 0.7, 0.9, 0.95, 0.99, 0.995, 0.999)  # probabilities that obstacles are scored at


def find_touched(boxes: Boxes, clusters: ObstacleClusters, grid: VoxelGrid, margin: float) -> list[np.ndarray]:
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
    found = np.array([len(each) > 0 for each in find_touched(own, clusters, grid, grid.cell)], bool)
    near = find_touched(annotated, clusters, grid, GROWN)
    known = np.isin(np.arange(len(clusters.voxels)), np.concatenate([*near, np.zeros(0, np.int64)]))
    alarms = np.linalg.norm(clusters.centers[~known, :2], axis=1)
    return ObstacleScore(np.linalg.norm(own.centers[:, :2], axis=1), found, alarms)


def driven(positions: np.ndarray, scenes: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Metres along the positions (F, 2) of frames in order of time.

    Args:
        scenes: (F,) tell their drives apart.
        weights: (F,) how often the drive of each frame counts; None: once.
    """
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    if weights is not None:
        steps = steps * weights[1:]
    return float(steps[scenes[1:] == scenes[:-1]].sum())


def within(distances: np.ndarray, range: Range) -> np.ndarray:
    """(N,) bool of distances (N,) m: those in the range from the vehicle."""
    low, high = range or (0.0, np.inf)
    return np.asarray((distances >= low) & (distances < high))


def obstacle_rows(boxes: Boxes) -> np.ndarray:
    """(N, 6) x, y, width, length, yaw and points of boxes."""
    return np.column_stack([boxes.centers[:, :2], boxes.sizes[:, :2], boxes.yaws, boxes.num_points])


def _boxes(rows: Any) -> Boxes:
    values = np.array(rows, np.float64).reshape(-1, 6)
    zeros = np.zeros(len(values))
    centers, sizes = (np.column_stack([values[:, start : start + 2], zeros]) for start in (0, 2))
    return Boxes.from_yaws(centers, sizes, values[:, 4], np.zeros((len(values), 2)), zeros, zeros, zeros)


def match_obstacles(centers: np.ndarray, truth: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """For each annotated obstacle whether it is found, (A,), and for each predicted one whether it is real, (P,).

    Args:
        centers: (P, >=2) m of the predicted obstacles, global frame.
        truth: `obstacles` and `objects` of detection classes of the frame, as `obstacle_rows` in the global frame.
    """
    obstacles, objects = _boxes(truth["obstacles"]), _boxes(truth["objects"])
    found = (distances(centers, obstacles) <= REACH).any(axis=0)
    real = (distances(centers, Boxes.joined(obstacles, objects)) <= REACH).any(axis=1)
    return found, real


# ---- counts of frames


def share(by_scene: np.ndarray | None, weights: Weights, classes: Sequence[str] = ()) -> Score:
    """The share of successes.

    Args:
        by_scene: (S, 2), or (S, 2, classes), the number of successes in each scene, and how many there could be; None:
            there is nothing to count.
    """
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


def count_followed(counts: Sequence[Counts | None], weights: Weights) -> np.ndarray | None:
    """(S, 2) annotated obstacles that those of obstacles.json find, and all of them; None without the file."""

    def of(own: Counts) -> np.ndarray | None:
        if own["followed"] is None or not own["truth"]:
            return None if own["followed"] is None else np.zeros(2)
        rows = np.array(own["truth"]["obstacles"], np.float64).reshape(-1, 6)
        counted = (rows[:, 5] > 0) & _within(rows, own, weights.range)
        found, _ = match_obstacles(own["followed"].centers, own["truth"])
        return np.array([(found & counted).sum(), counted.sum()])

    return weights.sums(counts, of)


def real(counts: Sequence[Counts | None], weights: Weights) -> np.ndarray | None:
    """(S, 2) ids of obstacles.json that are no false alarms, and all of them; None without the file."""
    seen: dict[tuple[int, int], bool] = {}  # by scene and id, whether it was real in any frame
    for i in np.flatnonzero(weights.frames):
        own = counts[i]
        if own is None or not own["truth"] or own["followed"] is None:
            continue
        followed: FrameObstacles = own["followed"]
        _, is_real = match_obstacles(followed.centers, own["truth"])
        inside = _within(followed.centers, own, weights.range)
        for name, each in zip(followed.ids[inside].tolist(), is_real[inside].tolist(), strict=True):
            key = int(weights.scenes[i]), name
            seen[key] = seen.get(key, False) or each
    by_scene = weights.sums(counts, lambda own: None if own["followed"] is None else np.zeros(2))
    if by_scene is not None:
        for (scene, _), each in seen.items():
            by_scene[scene] += each, 1
    return by_scene


def count_explained(counts: Sequence[Counts | None], weights: Weights) -> np.ndarray | None:
    """(S, 2, classes) occupied voxels that objects explain, and all of them; None without obstacles.json."""

    def of(own: Counts) -> np.ndarray | None:
        if own["followed"] is None:
            return None
        occupied, lost = own["followed"].voxels
        return np.stack([occupied - lost, occupied])

    return weights.sums(counts, of)


def _within(places: np.ndarray, own: Counts, range: Range) -> np.ndarray:
    """(P,) bool of places (P, >=2) in the global frame: those in the range from the vehicle."""
    return within(np.linalg.norm(places[:, :2] - own["ego"], axis=1), range)


def false_alarms(counts: Sequence[Counts | None], weights: Weights) -> np.ndarray:
    """(R,) clusters that are no annotated obstacle, per 100 m; NaN for a vehicle that stood still."""
    known = [(i, own) for i in np.flatnonzero(weights.frames) if (own := counts[i]) is not None and own["curve"]]
    alarms = weights.sums(counts, lambda own: _alarms(own, weights.range))
    if alarms is None:
        return np.full(len(weights.draws), np.nan)
    places = np.array([own["ego"] for _, own in known])
    drives = np.unique([own["scene"] for _, own in known], return_inverse=True)[1]
    own_scenes = weights.scenes[[i for i, _ in known]]
    metres = np.array([driven(places, drives, each[own_scenes]) for each in weights.draws])
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
    places, scenes = np.array([each["ego"] for each in known]), [each["scene"] for each in known]
    metres = driven(places, np.unique(scenes, return_inverse=True)[1])
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
