"""A task that no line of the product knows: how many LiDAR points fall into each cell, three channels by height."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from perception.frame import Arrays, Frame
from perception.grid import BevGrid
from perception.loss import Loss
from perception.modules.slot import Slot
from perception.tasks.drawing import Layer, PointLayer, RasterLayer, VoxelLayer
from perception.tasks.metric import Counts, GateMetric, Metric, Score, Weights
from perception.tasks.network import TaskNetwork
from perception.tasks.outputs import Output
from perception.tasks.task import Memory, Task, TaskConfig

BANDS = ("low", "middle", "high")
COLOURS = ("#ff0000", "#00ff00", "#0000ff")
EDGES = (-np.inf, 0.5, 1.5, np.inf)  # m


def find_occupied(frame: Frame, grid: BevGrid) -> np.ndarray:
    """(3, rows, columns) float32: 1 where a point lies in the cell, in that band of heights."""
    cells = np.zeros((len(BANDS), *grid.shape), np.float32)
    if frame.points is not None:
        points = frame.points[grid.inside(frame.points)]
        column, row = grid.continuous(points).astype(np.int64).T
        cells[np.digitize(points[:, 2], EDGES[1:-1]), row, column] = 1
    return cells


def voxels_of(result: np.ndarray, grid: BevGrid) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """(3, rows, columns, 3) centres of the cells' cubes, one band above the other; and the index of those occupied."""
    centers = np.zeros((*result.shape, 3))
    centers[..., :2] = grid.centers()
    centers[..., 2] = (grid.cell * np.arange(len(BANDS)))[:, None, None]
    return centers, np.nonzero(result > 0.5)


class Accuracy(Metric[np.ndarray]):
    """The share of cells that are right at a probability of one half; all frames count alike."""

    shown = ("toy_accuracy",)
    gates: ClassVar[Mapping[str, GateMetric]] = {"toy": GateMetric(ranged=False, overall="toy_accuracy")}

    def counts(self, frame: Frame, result: np.ndarray) -> dict[str, Any]:
        grid = self.grid.coarser(self.grid.shape[0] // result.shape[1])
        return {"accuracy": float(((result > 0.5) == find_occupied(frame, grid)).mean())}

    def scores(self, counts: Sequence[Counts | None], weights: Weights) -> dict[str, Score]:
        by_scene = weights.sums(counts, lambda own: np.array([own["accuracy"], 1.0]))
        sums = weights.drawn(by_scene)
        return {"toy_accuracy": Score(sums[:, 0] / sums[:, 1], (), by_scene[:, 1:], by_scene)}

    def report(self, counts: Sequence[Counts]) -> dict[str, Any]:
        return {"toy_accuracy": float(np.mean([each["accuracy"] for each in counts]))}

    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        table = Table(title="toy")
        table.add_column("toy accuracy")
        table.add_row(f"{scores['toy_accuracy']:.3f}")
        return [table]


class Highest(Memory[np.ndarray]):
    """The highest probability of each cell so far, wherever the vehicle has gone meanwhile."""

    def __init__(self) -> None:
        self.highest = np.float32(0)

    def update(self, frame: Frame, result: np.ndarray) -> np.ndarray:
        self.highest = np.maximum(self.highest, result)
        return self.highest


class Toy(Task[np.ndarray]):
    name = "toy"
    Config = TaskConfig
    metric = Accuracy
    outputs = (Output(name="cells", kind="raster", unit="probability that a point lies there", names=BANDS),)

    def network(self, channels: int) -> TaskNetwork:
        return ToyHead(channels)

    def labels(self, frame: Frame) -> dict[str, np.ndarray]:
        return {"cells": find_occupied(frame, self.grid)}

    def from_arrays(self, arrays: Arrays) -> np.ndarray:
        return arrays["cells"]

    def draw(self, frame: Frame, result: np.ndarray, state: np.ndarray) -> list[Layer]:
        """The cells; the keyframe's points by band; and a voxel in every cell and band that is likely occupied."""
        colours = dict(zip(BANDS, COLOURS, strict=True))
        points = np.zeros((0, 5), np.float32) if frame.points is None else frame.keyframe_points
        bands = np.digitize(points[:, 2], EDGES[1:-1])
        voxels, (band, row, column) = voxels_of(result, self.grid)
        return [
            RasterLayer("occupied", result, self.grid, colours),
            PointLayer("heights", points[:, :3], bands, colours),
            VoxelLayer("blocks", voxels[band, row, column], band, np.full(3, self.grid.cell), colours),
        ]

    def memory(self) -> Highest:
        return Highest()


class ToyHead(TaskNetwork):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.last = Slot("heads.toy.output", nn.Conv2d(channels, len(BANDS), 1))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"logits": self.last(features)}

    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"cells": dense["logits"].sigmoid()}

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        entropy = nn.functional.binary_cross_entropy_with_logits(dense["logits"], labels["cells"], reduction="none")
        each = entropy.mean(dim=(1, 2, 3))
        return {"cells": Loss(each, torch.ones_like(each))}


class Gauge(Task[Mapping[str, np.ndarray]]):
    """Numbers near 200 of the frame and of its cells, and the index of the highest of a cell; each is a result."""

    name = "gauge"
    Config = TaskConfig
    metric = Accuracy
    outputs = (
        Output(name="reading", kind="value", unit="m", names=("length", "width"), scale=200),
        Output(name="field", kind="raster", unit="m", names=BANDS, scale=200),
        Output(name="highest", kind="labels", unit="index of the highest", names=BANDS),
    )

    def network(self, channels: int) -> TaskNetwork:
        return GaugeHead(channels)

    def labels(self, frame: Frame) -> dict[str, np.ndarray]:
        return {}

    def from_arrays(self, arrays: Arrays) -> Arrays:
        return arrays

    @staticmethod
    def arrays(result: Arrays) -> dict[str, np.ndarray]:
        return dict(result)


class GaugeHead(TaskNetwork):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.last = Slot("heads.gauge.output", nn.Conv2d(channels, len(BANDS), 1))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"field": 200 + 20 * self.last(features)}

    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        field = dense["field"]
        return {"reading": field.mean(dim=(2, 3))[:, :2], "field": field, "highest": field.argmax(dim=1)}

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        return {}
