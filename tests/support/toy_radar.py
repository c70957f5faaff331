"""A sensor that no line of the product knows: a radar, whose returns have velocities; and drives that have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perception.datasets.keyframes import NO_SENSORS, Reads, Recording, assemble
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.tables import only_version
from perception.frame import Frame, Scan
from perception.grid import BevGrid
from perception.io.section import Positive, Section
from perception.modules.slot import Slot
from perception.rig import Rig
from perception.sensors.lidar.network import scatter_pillars
from perception.sensors.network import SensorNetwork
from perception.sensors.sensor import InputArray, Sensor
from perception.taxonomy import Taxonomy

NAME = "RADAR_FRONT"
ROW = np.dtype([(name, "<f4") for name in ("x", "y", "z", "vx", "vy")])  # m and m/s, in the sensor's frame


class Radar(Section):
    returns: Positive = 16
    channels: Positive = 8


class RadarSensor(Sensor[Radar]):
    Config = Radar
    fact = "radar"
    presence = "radar_returns"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        places = (1, self.config.returns)
        self.inputs = {
            "radar_returns": InputArray((*places, 5), np.float32, "x y z m, vx vy m/s; zeros as padding"),
            "radar_cells": InputArray(places, np.int32, "cell of the return; all cells: padding", self.grid.cells),
        }

    def fill(self, frame: Frame, inputs: Mapping[str, np.ndarray], affines: Mapping[str, np.ndarray]) -> None:
        """Of the returns in a cell the first."""
        rows = [scan.arrays["returns"] for scan in frame.scans.values() if scan.kind == self.fact]
        returns = np.concatenate([np.zeros((0, 5)), *rows])
        returns = returns[self.grid.inside(returns)]
        column, row = self.grid.continuous(returns).astype(np.int64).T
        cells, first = np.unique(row * self.grid.shape[1] + column, return_index=True)
        count = min(len(cells), self.config.returns)
        inputs["radar_returns"][0, :count], inputs["radar_cells"][0, :count] = returns[first[:count]], cells[:count]
        inputs["radar_returns"][0, count:], inputs["radar_cells"][0, count:] = 0, self.grid.cells

    @classmethod
    def moved(cls, scan: Scan, similarity: np.ndarray) -> Scan:
        returns, turn = scan.arrays["returns"].astype(np.float64), similarity[:3, :3]
        velocities = np.concatenate([returns[:, 3:], np.zeros((len(returns), 1))], axis=1) @ turn.T
        moved = np.concatenate([returns[:, :3] @ turn.T + similarity[:3, 3], velocities[:, :2]], axis=1)
        return replace(scan, arrays={"returns": moved.astype(np.float32)})

    @classmethod
    def received(cls, message: Any) -> Mapping[str, np.ndarray]:
        rows = np.asarray(message.data, np.uint8).view(ROW)
        return {"returns": np.stack([rows[name] for name in ROW.names or ()], axis=1)}

    def example(self, rng: np.random.Generator) -> Mapping[str, Scan]:
        low, high = np.array([self.grid.x, self.grid.y, (-1, 1), (-5, 5), (-5, 5)]).T
        returns = rng.uniform(low, high, (12, 5))
        return {NAME: Scan(self.fact, 0, {"returns": returns.astype(np.float32)})}

    def network(self) -> RadarNetwork:
        return RadarNetwork(self.config, self.grid)


class RadarNetwork(SensorNetwork):
    def __init__(self, config: Radar, grid: BevGrid) -> None:
        super().__init__()
        self.channels, self.shape = config.channels, grid.shape
        self.features = Slot("radar.features", nn.Linear(5, config.channels))

    def forward(self, inputs: Mapping[str, Tensor], training: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        returns = inputs["radar_returns"]
        features = torch.relu(self.features(returns.flatten(0, 1) / 10)).unflatten(0, returns.shape[:2])
        return scatter_pillars(features, inputs["radar_cells"].long(), self.shape), {}


def rig_with_radar(rig: Rig) -> Rig:
    """On the vehicle's origin."""
    mount = {"position": [0.0, 0.0, 0.0]}
    return Rig.model_validate({**rig.model_dump(), "scanners": [{"name": NAME, "kind": "radar", "mount": mount}]})


class RadarDrives(NuScenesTables):
    """The drives of nuScenes' tables, with a radar that returns the centre of each annotated box, and its velocity."""

    def __init__(self, data: Path, version: str | None, rig: Rig | None, taxonomy: Taxonomy | None) -> None:
        super().__init__(data, version or only_version(data), rig, taxonomy)
        self.rig = rig_with_radar(self.rig)

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        found = super().recording(token, reads)

        def scan(reference_from_global: np.ndarray) -> Scan:
            boxes = found.annotated("boxes").transformed(reference_from_global)
            velocities = np.nan_to_num(boxes.velocities[:, :2])
            returns = np.concatenate([boxes.centers, velocities], axis=1).astype(np.float32)
            return Scan("radar", found.timestamp, {"returns": returns})

        return replace(found, scans={NAME: scan})

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        return assemble(self.recording(token, reads), reads)
