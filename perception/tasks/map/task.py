"""The HD map around the vehicle: BEV segmentation into overlapping layers."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.frame import Arrays, Frame
from perception.grid import BevGrid
from perception.io.section import Positive, Weight
from perception.tasks.drawing import RasterLayer
from perception.tasks.map.memory import MapMemory
from perception.tasks.metric import RING, Counts, GateMetric, Recorded, RingMetric, Score, Subject, Unmeasured, Weights
from perception.tasks.outputs import Area, Output
from perception.tasks.published import FREE, TAKEN, UNKNOWN
from perception.tasks.task import Task, TaskConfig
from perception.taxonomy import Taxonomy

if TYPE_CHECKING:
    from rich.table import Table

    from perception.tasks.network import TaskNetwork


# float32, as the probabilities are: in float64, 0.35 would not reach 0.35.
THRESHOLDS = np.array([0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65], np.float32)

DRIVABLE = "drivable_area"  # layer
_PRIOR = 1e-5  # largest rounding of a probability where nothing was observed


def ious(counts: np.ndarray) -> np.ndarray:
    """(..., layers) IoU of counts (..., 3, layers) of intersection, union and true cells; NaN without true cells."""
    intersection, union, true = np.moveaxis(counts.astype(np.float64), -2, 0)
    return np.divide(intersection, union, out=np.full_like(union, np.nan), where=true > 0)


def predict_cells(probabilities: np.ndarray) -> np.ndarray:
    """(layers, rows, columns) bool: cells where each class has a probability of at least 0.5."""
    return np.asarray(probabilities >= np.float32(0.5))


def count_rings(predicted: np.ndarray, truth: np.ndarray, grid: BevGrid) -> np.ndarray:
    """(3, layers, K) cells of intersection, union and truth (layers, rows, columns) in rings around the vehicle."""
    order, starts = _rings(grid)
    true = truth.astype(bool)
    cells = np.stack([predicted & true, predicted | true, true]).reshape(3, len(true), -1)
    return np.add.reduceat(cells[..., order], starts, axis=2, dtype=np.int64)


@lru_cache(maxsize=8)
def _rings(grid: BevGrid) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the cells from near to far, and the index of the first cell of each ring among them."""
    distance = np.linalg.norm(grid.centers().astype(np.float64), axis=2).ravel()
    order = np.argsort(distance, kind="stable")
    ring = (distance[order] // RING).astype(np.int64)
    return order, np.searchsorted(ring, np.arange(ring[-1] + 1))


def count_thresholds(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(7, 3, layers) cells of intersection, union and truth (layers, rows, columns) at each of THRESHOLDS."""
    true, given = truth.astype(bool), probabilities.astype(np.float32)
    every = [given >= threshold for threshold in THRESHOLDS]
    return np.array(
        [[np.count_nonzero(cells, axis=(1, 2)) for cells in (found & true, found | true, true)] for found in every]
    )


def pack(cells: np.ndarray) -> dict[str, Any]:
    """Cells (layers, rows, columns) bool for JSON."""
    bits = zlib.compress(np.packbits(cells).tobytes(), 9)
    return {"shape": cells.shape, "bits": base64.b64encode(bits).decode()}


def unpack(packed: Mapping[str, Any]) -> np.ndarray:
    bits = np.frombuffer(zlib.decompress(base64.b64decode(packed["bits"])), np.uint8)
    count = int(np.prod(packed["shape"]))
    return np.unpackbits(bits, count=count).reshape(packed["shape"]).astype(bool)


class MapMetric(RingMetric[np.ndarray]):
    """IoU at a probability of 0.5, and BEVFusion's IoU over all frames (Liu et al., 2023, arXiv:2205.13542).

    BEVFusion sums intersections and unions over the frames, and reports for each class the best IoU over seven
    thresholds, chosen on the scored frames.

    mIoU   mean over the classes that occur
    IoU    by class
    """

    truth = ("map",)
    main = "mIoU"
    shown = ("mIoU", "IoU")
    gates: ClassVar[Mapping[str, GateMetric]] = {
        "IoU": GateMetric(
            "map_names",
            step=RING,
            overall="mIoU",
            missing="there is no map of the drive, or the network has none",
            item="mapped cell",
        )
    }
    agreements: ClassVar[Mapping[str, GateMetric]] = {"map": GateMetric("map_names", ranged=False)}
    _latest: tuple[Frame | None, np.ndarray | None] = None, None  # frame, and the map around it

    def counts(self, frame: Frame, result: np.ndarray) -> dict[str, Any]:
        """`counts` (3, layers, rings), see `count_rings`; None for a frame without a map."""
        grid, truth = self._truth(frame, result)
        return {"counts": None if truth is None else count_rings(predict_cells(result), truth, grid)}

    def _truth(self, frame: Frame, result: np.ndarray) -> tuple[BevGrid, np.ndarray | None]:
        """The grid of the result, and the cells (layers, rows, columns) of the map on it; None without a map."""
        grid = self.grid.coarser(self.grid.shape[0] // result.shape[1])
        if self._latest[0] is not frame:
            area: MapExpansion | None = frame.truth.get("map")
            self._latest = frame, None if area is None else area.rasterize(frame, grid)
        return grid, self._latest[1]

    def details(self, frame: Frame, result: np.ndarray) -> dict[str, Any]:
        """`thresholds` (7, 3, layers), see `count_thresholds`; None for a frame without a map."""
        _, truth = self._truth(frame, result)
        return {"thresholds": None if truth is None else count_thresholds(result, truth)}

    def outputs(self, result: np.ndarray) -> dict[str, Any]:
        return {"cells": pack(predict_cells(result))}

    def ious(self, counts: np.ndarray) -> np.ndarray:
        return ious(counts)

    def names(self) -> Sequence[str]:
        return self.taxonomy.map_names

    def report(self, counts: Sequence[Counts]) -> dict[str, Any]:
        """`map`: `iou_max` and `iou_0.5`, each {class: IoU, "mean": over the classes}; None if no frame has a map.

        A class without true cells in all frames has no IoU: it is None and not in the mean.
        """
        known = [each["thresholds"] for each in counts if each["thresholds"] is not None]
        if not known:
            return {"map": None}
        per_threshold = ious(np.sum(known, axis=0))
        best, fixed = per_threshold.max(axis=0), per_threshold[THRESHOLDS == 0.5][0]
        return {"map": {"iou_max": self._by_name(best), "iou_0.5": self._by_name(fixed)}}

    def _by_name(self, values: np.ndarray) -> dict[str, float | None]:
        present = ~np.isnan(values)
        mean = float(values[present].mean()) if present.any() else None
        return Score(values[None], self.taxonomy.map_names).first() | {"mean": mean}

    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        if scores["map"] is None:
            return []
        columns = {"IoU max": scores["map"]["iou_max"], "IoU 0.5": scores["map"]["iou_0.5"]}
        return [self.class_table("map", self.taxonomy.map_names, columns)]

    def agreement(self, here: Recorded, there: Recorded, weights: Weights, subject: Subject) -> tuple[float, str]:
        """IoU between the cells of both replays, of a class or the mean over the classes in either."""
        names = np.array(self.taxonomy.map_names)
        both = either = np.zeros(len(names))
        for i in np.flatnonzero(weights.frames):
            own, other = here.frames[i], there.frames[i]
            if own is not None and other is not None:
                cells, theirs = unpack(own["cells"]), unpack(other["cells"])
                if cells.shape != theirs.shape:
                    raise Unmeasured("the networks' maps have different grids")
                both, either = both + (cells & theirs).sum(axis=(1, 2)), either + (cells | theirs).sum(axis=(1, 2))
        chosen = either > 0 if subject.class_ is None else names == subject.class_
        if not either[chosen].any():
            what = f" of {subject.class_}" if subject.class_ else ""
            raise Unmeasured(f"neither replay shows a map{what}{subject.where}")
        return float((both[chosen] / either[chosen]).mean()), ""


class MapHead(TaskConfig):
    channels: Positive = 64  # of the head's hidden layer
    weight: Weight = 4.0  # of the loss, a mean over cells, to sums over objects

    def require_taxonomy(self, taxonomy: Taxonomy) -> None:
        if not taxonomy.map_layers:
            raise ValueError(f"the taxonomy {taxonomy.name} has no map layers")


class MapTask(Task[np.ndarray]):
    """BEV map segmentation; its result is (layers, rows, columns) probabilities."""

    name = "map"
    truth = ("map",)
    metric = MapMetric
    Config = MapHead

    def __init__(self, config: MapHead, grid: BevGrid, taxonomy: Taxonomy) -> None:
        super().__init__(config, grid, taxonomy)
        unit = "probability of each layer, on `head_grid`"
        self.outputs = (
            Output(name="probabilities", kind="raster", unit=unit, names=taxonomy.map_names, area=Area.of(grid)),
        )

    def network(self, channels: int) -> TaskNetwork:
        from perception.tasks.map.network import MapSegmentationHead

        return MapSegmentationHead(channels, self.config.channels, len(self.taxonomy.map_layers), self.config.weight)

    def labels(self, frame: Frame) -> dict[str, np.ndarray]:
        """`cells` (layers, rows, columns) uint8, and whether the location has a map (`known`)."""
        area: MapExpansion | None = frame.truth.get("map")
        if area is None:
            return {
                "cells": np.zeros((len(self.taxonomy.map_layers), *self.grid.shape), np.uint8),
                "known": np.array(False),
            }
        return {"cells": area.rasterize(frame, self.grid), "known": np.array(True)}

    def from_arrays(self, arrays: Arrays) -> np.ndarray:
        return arrays["probabilities"]

    def memory(self) -> MapMemory:
        return MapMemory(self.grid, [layer.share for layer in self.taxonomy.map_layers])

    @property
    def ground(self) -> BevGrid | None:
        return self.grid if DRIVABLE in self.taxonomy.map_names else None

    def cells(self, state: np.ndarray, grid: BevGrid) -> np.ndarray:
        index = self.taxonomy.map_names.index(DRIVABLE)
        cells = np.where(predict_cells(state[index]), FREE, TAKEN)
        cells[np.abs(state[index] - self.taxonomy.map_layers[index].share) < _PRIOR] = UNKNOWN
        return cells

    def draw(self, frame: Frame, result: np.ndarray, state: np.ndarray | None) -> list[RasterLayer]:
        return [RasterLayer("map", result if state is None else state, self.grid, self.taxonomy.map_colours())]

    @staticmethod
    def arrays(result: np.ndarray) -> dict[str, np.ndarray]:
        return {"probabilities": result}
