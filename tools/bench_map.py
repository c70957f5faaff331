"""The fused map against the truth, beside the map of each frame, on drives that the demo's network has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from benchmark import DEMO

from perception.datasets.sources import open_source
from perception.predict import TorchPredictor


def map(quick: bool) -> dict[str, Any]:
    """Figures of each layer on the changing drive of 12 s, and on the held-out drives of two keyframes each."""
    predictor, most = TorchPredictor.load(DEMO / "conditions"), 2 if quick else None
    return {
        "layers": figures(predictor, DEMO / "changing", "all", most),
        "two_keyframes": figures(predictor, DEMO / "drives", "sim_val", most),
    }


def figures(predictor: TorchPredictor, data: Path, split: str, most: int | None) -> dict[str, dict[str, float]]:
    """By layer: IoU and Brier score of each frame's and of the fused map, and their shares of cells above 0.5."""
    source = open_source(data, None, predictor.spec.rig, predictor.taxonomy)
    task, reads = predictor.model.tasks["map"], predictor.spec.reads._replace(truth=("map",))
    memory, drive, frames = task.memory(), "", 0
    sums = {name: np.zeros((2, len(predictor.taxonomy.map_names))) for name in ("both", "either", "error", "above")}
    truths = np.zeros(len(predictor.taxonomy.map_names))
    for token in source.samples(split)[:most]:
        frame = source.frame(token, reads)
        if frame.scene != drive:
            memory, drive = task.memory(), frame.scene
        assert memory is not None
        truth = frame.truth["map"].rasterize(frame, task.grid) > 0
        result = predictor(frame).results["map"]
        for i, probabilities in enumerate((result, memory.update(frame, result))):
            found, error = probabilities >= 0.5, np.square(probabilities - truth)
            for name, cells in (("both", found & truth), ("either", found | truth), ("error", error), ("above", found)):
                sums[name][i] += cells.sum(axis=(1, 2))
        truths, frames = truths + truth.sum(axis=(1, 2)), frames + 1
    cells = frames * task.grid.shape[0] * task.grid.shape[1]
    table = {"share_truth": truths / cells}
    for i, name in enumerate(("frame", "fused")):
        table[f"iou_{name}"] = sums["both"][i] / np.maximum(sums["either"][i], 1)
        table[f"brier_{name}"], table[f"share_{name}"] = sums["error"][i] / cells, sums["above"][i] / cells
    return {
        layer: {name: round(float(values[i]), 4) for name, values in table.items()}
        for i, layer in enumerate(predictor.taxonomy.map_names)
    }
