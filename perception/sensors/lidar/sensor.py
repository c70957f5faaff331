"""The LiDARs of a vehicle: pillars of their points, and single points of the keyframe. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np

from perception.datasets import sweeps
from perception.frame import Frame
from perception.io.section import Section
from perception.sensors import native
from perception.sensors.lidar.config import Lidar
from perception.sensors.lidar.pillars import group
from perception.sensors.sensor import InputArray, Sensor


class PillarRules(Section):
    """How points become pillars; cells are rows (along y) times columns (along x)."""

    rows: int
    columns: int
    cell: float  # m
    x: tuple[float, float]  # m; a point is inside from the first to before the second
    y: tuple[float, float]
    z: tuple[float, float]
    most: int  # pillars
    points: int  # of a pillar: the first ones in the order of the frame
    overflow: Literal["fullest", "first"]  # the pillars that stay if there are more


class SweepRules(Section):
    """Which earlier sweeps are added to the keyframe's, and which points are left out."""

    most: int  # earlier sweeps of each LiDAR
    oldest: float  # s before the frame
    own: float  # m from the sensor along x and along y: nearer points are of the vehicle, where the rig has no `own`


class LidarSensor(Sensor[Lidar]):
    Config = Lidar
    fact = "lidar"
    presence = "pillar_counts"

    @cached_property
    def inputs(self) -> Mapping[str, InputArray]:  # type: ignore[override]
        pillars, cells = (1, self.config.max_pillars), self.grid.cells
        point = "x y z m, intensity 0-255, dt s"
        cell, outside = "row * columns + column on the pillar grid", "rows * columns"
        arrays = {
            "pillar_points": InputArray(
                (*pillars, self.config.points_per_pillar, 5),
                np.float32,
                f"{point}; reference frame, grouped by pillar, zeros as padding",
            ),
            "pillar_counts": InputArray(pillars, np.int32, "points in the pillar; 0: padding"),
            "pillar_cells": InputArray(pillars, np.int32, f"{cell}; {outside}: padding", cells),
        }
        if self.points:
            places = (1, self.points)
            arrays["points"] = InputArray(
                (*places, 5), np.float32, f"{point}; the keyframe's first points in their order, zeros as padding"
            )
            arrays["point_cells"] = InputArray(places, np.int32, f"{cell}; {outside}: outside, and padding", cells)
        return arrays

    def fill(self, frame: Frame, inputs: Mapping[str, np.ndarray], affines: Mapping[str, np.ndarray]) -> None:
        points = np.zeros((0, 5), np.float32) if frame.points is None else frame.points
        of_points = np.empty(len(points), np.int32) if self.points else None
        grouped = native.NATIVE.group if native.NATIVE else group
        pillars, counts, cells = (inputs[f"pillar_{name}"][0] for name in ("points", "counts", "cells"))
        grouped(points, self.grid, pillars, counts, cells, self.config.overflow, of_points)
        if of_points is not None:
            self._fill_points(inputs["points"][0], inputs["point_cells"][0], frame, of_points)

    def _fill_points(self, places: np.ndarray, of_places: np.ndarray, frame: Frame, cells: np.ndarray) -> None:
        count = 0
        if frame.points is not None:
            chosen = np.flatnonzero(frame.of_keyframe)[: len(places)]
            count = len(chosen)
            places[:count], of_places[:count] = np.take(frame.points, chosen, axis=0), cells[chosen]
        places[count:], of_places[count:] = 0, self.grid.cells

    @classmethod
    def sees(cls, frame: Frame) -> bool:
        return frame.points is not None and len(frame.points) > 0

    @classmethod
    def hidden(cls, frame: Frame) -> Frame:
        return frame.without_points()

    def rules(self) -> dict[str, Section]:
        grid, (rows, columns) = self.grid, self.grid.shape
        pillars = PillarRules(
            rows=rows,
            columns=columns,
            cell=grid.cell,
            x=grid.x,
            y=grid.y,
            z=grid.z,
            most=self.config.max_pillars,
            points=self.config.points_per_pillar,
            overflow=self.config.overflow,
        )
        return {
            "sweeps": SweepRules(most=self.config.sweeps, oldest=sweeps.OLDEST, own=sweeps.ROOF),
            "pillars": pillars,
        }

    def network(self) -> Any:
        from perception.sensors.lidar.network import PillarEncoder, VoxelFeatureEncoder

        kind = VoxelFeatureEncoder if self.config.encoder == "padded" else PillarEncoder
        return kind(self.config, self.grid)
