"""IoU of the HD map, per class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.frame import Frame
from perception.grid import BevGrid
from perception.strict_json import shown
from perception.tasks.map.iou import MapIou, count_rings, ious, predicted_cells
from perception.tasks.metric import Metric, Sample, lowest_ious
from perception.tasks.rings import rings

if TYPE_CHECKING:
    from rich.table import Table


class MapMetric(Metric[np.ndarray]):
    """BEVFusion's IoU over all frames (`MapIou`), and IoU at a probability of 0.5 for subsets of frames and ranges."""

    main = "mIoU"

    def __init__(self, source: Keyframes, grid: BevGrid) -> None:
        super().__init__(source, grid)
        self._names = source.taxonomy.map_names
        self._whole = MapIou(self._names)
        self._counts: list[np.ndarray | None] = []  # of each frame; None for frames without a map

    def add(self, frame: Frame, result: np.ndarray) -> None:
        area = self.source.map(frame.location)
        self._counts.append(None)
        if area is not None:
            grid = self.grid.coarser(self.grid.shape[0] // result.shape[1])
            truth = area.rasterize(frame, grid)
            self._whole.add(result, truth)
            self._counts[-1] = count_rings(predicted_cells(result), truth, grid)

    def scores(self) -> dict[str, Any]:
        """`map`: the result of `MapIou.result`; None if no frame has a map."""
        return {"map": self._whole.result()}

    def part(self, frames: np.ndarray, bounds: tuple[float, float] | None = None) -> dict[str, Any]:
        """`mIoU`, the mean over the classes that occur, and `IoU` by class."""
        known = [each for each, chosen in zip(self._counts, frames, strict=True) if chosen and each is not None]
        cells = np.sum([each[..., rings(bounds)].sum(axis=2) for each in known], axis=0)
        shares = ious(cells if known else np.zeros((3, len(self._names))))
        return {
            "mIoU": None if np.isnan(shares).all() else float(np.nanmean(shares)),
            "IoU": dict(zip(self._names, (None if np.isnan(each) else float(each) for each in shares), strict=True)),
        }

    def worst(self, count: int) -> list[Sample]:
        """The frames with the lowest `mIoU`."""
        return lowest_ious("mIoU", (None if each is None else ious(each.sum(axis=2)) for each in self._counts), count)

    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        """IoU per map class: the best over BEVFusion's thresholds, and at 0.5."""
        from rich.table import Table

        if scores["map"] is None:
            return []
        highest, fixed = scores["map"]["iou_max"], scores["map"]["iou_0.5"]
        table = Table(title="map", show_footer=True)
        table.add_column("class", footer="mean")
        table.add_column("IoU max", shown(highest["mean"]), justify="right")
        table.add_column("IoU 0.5", shown(fixed["mean"]), justify="right")
        for name in self._names:
            table.add_row(name, shown(highest[name]), shown(fixed[name]))
        return [table]
