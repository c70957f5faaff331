"""obstacles.json of a replay: the unknown obstacles of every frame, and how much occupied space objects explain.

{"classes": ["car", ...],
 "frames": {TOKEN: {"obstacles": [{"id": 3, "translation": [x, y, z], "size": [width, length, height],
                                   "rotation": [w, x, y, z], "probability": 0.9, "frames": 12, "unseen": 0}, ...],
                    "voxels": [[120, ...], [7, ...]]}, ...}}

Places are m in the global frame, as in nuScenes' submissions; an id lasts over a drive; `frames` counts those that saw
the obstacle, `unseen` those since the last one. `voxels` are, by class, those occupied and those that no object
explains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from perception.errors import InputError
from perception.files import FrameFile
from perception.frame import Frame
from perception.rotations import quaternions
from perception.tasks.occupancy.obstacles import Obstacles
from perception.taxonomy import Taxonomy

OBSTACLES = "obstacles.json"


class WithObstacles(Protocol):
    """State of a memory that follows obstacles."""

    @property
    def obstacles(self) -> Obstacles: ...

    @property
    def unexplained(self) -> np.ndarray:
        """(2, classes) int, from `unexplained_voxels`."""
        ...


class ObstacleWriter:
    """Writes obstacles.json frame by frame, in bounded memory."""

    def __init__(self, file: FrameFile) -> None:
        self._file = file

    @classmethod
    @contextmanager
    def open(cls, folder: Path, taxonomy: Taxonomy) -> Iterator[ObstacleWriter]:
        """A writer of the file in the folder, which appears atomically when the block ends.

        Raises:
            InputError: the disk is full or the folder not writable.
        """
        with FrameFile.open(folder / OBSTACLES, "the obstacles", {"classes": taxonomy.class_names}, "frames") as file:
            yield cls(file)

    def add(self, frame: Frame, result: object, state: WithObstacles) -> None:
        """Append a frame."""
        entry = {"obstacles": _listed(state.obstacles), "voxels": state.unexplained.tolist()}
        self._file.add(frame.token, entry)


class FrameObstacles(NamedTuple):
    """What obstacles.json has of one frame."""

    ids: np.ndarray  # (N,) int
    centers: np.ndarray  # (N, 3) m, global frame
    voxels: np.ndarray  # (2, classes) int


def read_obstacles(folder: Path, tokens: Sequence[str]) -> list[FrameObstacles]:
    """The frames with these tokens.

    Raises:
        InputError: the file is missing, damaged or lacks a frame.
    """
    path = folder / OBSTACLES
    try:
        frames = json.loads(path.read_text(encoding="utf-8"))["frames"]
        return [_read(frames[token]) for token in tokens]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: cannot be read or lacks a frame of the replay; replay again") from None


def _read(entry: Mapping[str, Any]) -> FrameObstacles:
    obstacles = entry["obstacles"]
    centers = np.array([each["translation"] for each in obstacles], np.float64).reshape(-1, 3)
    ids = np.array([each["id"] for each in obstacles], np.int64)
    return FrameObstacles(ids, centers, np.array(entry["voxels"], np.int64))


def _listed(obstacles: Obstacles) -> list[dict[str, object]]:
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
