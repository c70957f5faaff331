"""What a verdict needs of every frame beside the detections: where it was, what was there, what the map got right."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.racks import read_racks
from perception.frame import Frame, Prediction
from perception.grid import BevGrid
from perception.tasks.map.counts import count_rings, predicted_cells


class Truth:
    """What the tables of a nuScenes dataroot know of a frame; faults of its sensors do not touch it."""

    def __init__(self, tables: NuScenesTables) -> None:
        self.tables = tables

    @cached_property
    def _racks(self) -> dict[str, list[list[float]]]:
        return read_racks(self.tables.dataroot, self.tables.version)

    def boxes(self, token: str) -> list[list[float | None]] | None:
        """Rows of label, x y z, w l h, yaw, vx vy, attribute, score, points; global. None: not annotated."""
        boxes = self.tables.boxes(token)
        if boxes is None:
            return None
        rows = np.column_stack(
            [
                boxes.labels, boxes.centers, boxes.sizes, boxes.yaws, boxes.velocities[:, :2],
                boxes.attributes, boxes.scores, boxes.num_points,
            ]
        )  # fmt: skip
        return [[None if math.isnan(number) else number for number in row] for row in rows.tolist()]

    def racks(self, token: str) -> list[list[float]]:
        return self._racks.get(token, [])


class StatisticsWriter:
    """Writes statistics.jsonl, one line for each frame.

    Args:
        sensors: what the network takes, of "camera" and "lidar".
        grid: of its map; None where it has no map head.
        truth: None where the drive has no annotations.
    """

    def __init__(self, file: BinaryIO, sensors: Sequence[str], grid: BevGrid | None, truth: Truth | None) -> None:
        self._file, self.truth = file, truth
        self._sensors, self._grid = set(sensors), grid

    def add(self, frame: Frame, prediction: Prediction) -> None:
        self._file.write(json.dumps(self.line(frame, prediction), allow_nan=False).encode() + b"\n")

    def line(self, frame: Frame, prediction: Prediction) -> dict[str, Any]:
        cameras = bool(frame.cameras) and "camera" in self._sensors
        return {
            "token": frame.token,
            "scene": frame.scene,
            "timestamp": frame.timestamp,
            "conditions": frame.conditions.known(),
            "ego": frame.global_from_ego[:2, 3].tolist(),
            "blind": not cameras and not (frame.points is not None and "lidar" in self._sensors),
            "boxes": self.truth and self.truth.boxes(frame.token),
            "racks": self.truth.racks(frame.token) if self.truth else [],
            "map": self._map(frame, prediction),
            "not_finite": dict(prediction.not_finite),
        }

    def _map(self, frame: Frame, prediction: Prediction) -> dict[str, Any] | None:
        """The predicted cells, and (3, 6, rings) counts against the truth where there is a map."""
        if "map" not in prediction.results or self._grid is None:
            return None
        predicted = predicted_cells(prediction.results["map"])
        expansion = self.truth.tables.map(frame.location) if self.truth else None
        counts = None
        if expansion is not None:
            counts = count_rings(predicted, expansion.rasterize(frame, self._grid), self._grid).tolist()
        return {"cells": pack(predicted), "counts": counts}


def pack(cells: np.ndarray) -> dict[str, Any]:
    """Cells (6, rows, columns) bool as JSON holds them."""
    bits = zlib.compress(np.packbits(cells).tobytes(), 9)
    return {"shape": cells.shape, "bits": base64.b64encode(bits).decode()}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """The cells that were packed."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(packed["bits"])), np.uint8)
    count = int(np.prod(packed["shape"]))
    return np.unpackbits(bits, count=count).reshape(packed["shape"]).astype(bool)
