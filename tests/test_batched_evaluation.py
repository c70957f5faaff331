"""Evaluation in batches: the same submission as frame by frame, and the same one-line errors."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_tiny
from networks import model
from refusals import one_line_error
from rich.console import Console

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.evaluation.evaluate import Breakdown, evaluate
from perception.predict import TorchPredictor


def predictor(batch: int, workers: int = 0) -> TorchPredictor:
    network = model()
    data = network.config.data.model_copy(update={"workers": workers})
    network.config = network.config.model_copy(update={"data": data})
    return TorchPredictor(network, batch)


def test_batches_have_the_results_of_single_frames(recorded_root: Path, tmp_path: Path) -> None:
    tables, found = NuScenesTables(recorded_root, "v1.0-tiny"), []
    for batch, workers in ((1, 0), (2, 1)):
        each, out = predictor(batch, workers), tmp_path / str(batch)
        sliced = Breakdown(corruptions=["lidar_missing"])
        scores = evaluate(each, tables, "all", (), out, each.spec, Console(file=io.StringIO()), sliced)
        results = json.loads((out / "results_nusc.json").read_text())["results"]
        boxes = [[*box["translation"], *box["size"], *box["rotation"], *box["velocity"], box["detection_score"]]
                 for token in tables.samples() for box in results[token]]  # fmt: skip
        found.append((list(results), np.array(boxes), scores))
    (tokens, single, scores), (others, batched, again) = found
    assert tokens == others
    assert len(single) > 30
    np.testing.assert_allclose(batched, single, rtol=1e-4, atol=1e-4)
    without_lidar = [each["robustness"]["corruptions"]["lidar_missing"]["levels"][0] for each in (scores, again)]
    assert without_lidar[1] == pytest.approx(without_lidar[0], abs=1e-4)
    assert without_lidar[0]["mAP"] != scores["mAP"]


def test_a_damaged_file_in_a_worker_is_one_line(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    file = next((tmp_path / "samples" / "CAM_FRONT").iterdir())
    file.write_bytes(b"damaged")
    tables, each = NuScenesTables(tmp_path, "v1.0-tiny"), predictor(2, workers=1)
    with one_line_error(at=file, says=""):
        evaluate(each, tables, "all", (), tmp_path / "out", each.spec, Console(file=io.StringIO()))
