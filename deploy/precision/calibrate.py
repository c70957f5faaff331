"""Measure the ranges of activations on recorded frames, for all layouts of an INT8 graph."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization.calibrate import CalibrationDataReader, PercentileCalibrater

PERCENTILE = 99.99  # of the values; the others are clipped
_BINS = 2048

Inputs = Mapping[str, np.ndarray]


def ranges(model: onnx.ModelProto, tensors: Iterable[str], frames: Iterable[Inputs]) -> dict[str, tuple[float, float]]:
    """Measure the range (low, high) of each tensor on the frames; it always contains 0.

    Args:
        model: an FP32 graph.
        tensors: names of activations.
        frames: inputs of the graph, for at least one frame.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # the calibrater prints
        calibrater = _Calibrater(model, sorted(tensors), Path(folder))
        for inputs in frames:  # one at a time, because collect_data keeps all activations of its frames in memory
            calibrater.collect_data(_Reader(inputs))
        found = calibrater.compute_data()
    return {name: (min(0.0, float(each.lowest)), max(0.0, float(each.highest))) for name, each in found.items()}


class _Calibrater(PercentileCalibrater):
    """ONNX Runtime's calibrater for tensors selected by name."""

    def __init__(self, model: onnx.ModelProto, tensors: list[str], folder: Path) -> None:
        self._chosen = tensors
        onnx.save(model, folder / "model.onnx")
        augmented = str(folder / "augmented.onnx")
        super().__init__(folder / "model.onnx", None, augmented, symmetric=False, num_bins=_BINS, percentile=PERCENTILE)
        self.augment_graph()
        self.create_inference_session()

    def select_tensors_to_calibrate(self, model: onnx.ModelProto) -> tuple[set[str], dict[str, onnx.ValueInfoProto]]:
        known = {value.name: value for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
        return {*self._chosen}, {name: known[name] for name in self._chosen}


class _Reader(CalibrationDataReader):
    """Provides one frame to the calibrater."""

    def __init__(self, inputs: Inputs) -> None:
        self._left = [dict(inputs)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None
