"""Evaluation in batches: the same predictions as frame by frame, and the same one-line errors."""

import io
from functools import partial
from pathlib import Path

import numpy as np
from networks import model
from refusals import one_line_error
from rich.console import Console
from tiny import write_tiny
from vocabulary import CAMERAS

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.evaluation.evaluate import evaluate
from perception.evaluation.predictions import Reader
from perception.evaluation.robustness import corrupted
from perception.frame import Frame, Prediction
from perception.predict import TorchPredictor


def predictor(batch: int, workers: int = 0) -> TorchPredictor:
    network = model()
    data = network.config.data.model_copy(update={"workers": workers})
    network.config = network.config.model_copy(update={"data": data})
    return TorchPredictor(network, batch)


def values(prediction: Prediction) -> np.ndarray:
    """(n,) all numbers of the boxes, ordered by place because rounding orders equal scores, and those of the map."""
    boxes = prediction.results["detection"]
    boxes = boxes.select(np.lexsort((boxes.labels, boxes.centers[:, 1], boxes.centers[:, 0])))
    parts = (boxes.centers, boxes.sizes, boxes.rotations, boxes.velocities, boxes.scores, prediction.results["map"])
    return np.concatenate([part.ravel() for part in parts])


def test_batches_have_the_results_of_single_frames(recorded_root: Path) -> None:
    tables, found = NuScenesTables(recorded_root, "v1.0-tiny"), []
    for change in (None, partial(corrupted, name="lidar_missing", level=1, cameras=CAMERAS)):
        each: dict[int, list[tuple[Frame, Prediction]]] = {}
        for batch, workers in ((1, 0), (2, 1)):
            predict = predictor(batch, workers)
            each[batch] = list(predict.predictions(Reader(tables, predict.spec, change), tables.samples()))
        assert [frame.token for frame, _ in each[2]] == tables.samples()
        assert all(frame.points is not None for frame, _ in each[2])  # as recorded
        for (_, single), (_, batched) in zip(each[1], each[2], strict=True):
            np.testing.assert_allclose(values(batched), values(single), rtol=1e-3, atol=1e-3)
            found.append(values(batched)[-100:])
    assert len({one.round(3).tobytes() for one in found}) == 6  # each frame and change has its own


def test_a_damaged_file_in_a_worker_is_one_line(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    file = next((tmp_path / "samples" / "CAM_FRONT").iterdir())
    file.write_bytes(b"damaged")
    tables, each = NuScenesTables(tmp_path, "v1.0-tiny"), predictor(2, workers=1)
    with one_line_error(at=file, says=""):
        evaluate(each, tables, "all", (), tmp_path / "out", each.spec, Console(file=io.StringIO()))
