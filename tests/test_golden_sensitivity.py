"""The golden frame catches a single changed weight, in every layer, where all hashes hold."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from exported import QUIET, checkpoint_of, folder, rewritten

from deploy.bundle import Bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from deploy.golden import differences
from deploy.runtime import Runtime
from perception.config import Image, find_config, load_config
from perception.errors import InputError

SIGN = np.uint32(1 << 31)


@cache
def small() -> Bundle:
    """The layers of `tiny`, with a view of 51 m and pictures of 192 x 64 pixels."""
    tiny = load_config(find_config("tiny"))
    assert tiny.model.lidar is not None and tiny.model.camera is not None  # noqa: PT018
    lidar = tiny.model.lidar.model_copy(update={"max_pillars": 3000})
    camera = tiny.model.camera.model_copy(update={"image": Image(height=64, width=192)})
    grid = tiny.grid.model_copy(update={"x": (-25.6, 25.6), "y": (-25.6, 25.6)})
    model = tiny.model.model_copy(update={"lidar": lidar, "camera": camera})
    config = tiny.model_copy(update={"name": "small", "grid": grid, "model": model})
    return export(checkpoint_of(config), folder() / "small", console=QUIET)


@cache
def weights() -> dict[str, np.ndarray]:
    """Of the convolutions, by name."""
    return _weights(onnx.load(small().onnx))


@cache
def engine() -> OnnxRuntimeEngine:
    """The small network, with an input for the weights of every convolution; without it they are as exported."""
    model = onnx.load(small().onnx)
    for name, weight in weights().items():
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, weight.shape))
    return OnnxRuntimeEngine(model.SerializeToString())


def _weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    convolutions = {node.input[1] for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")}
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in convolutions}


def flipped(weight: np.ndarray, bit: np.uint32) -> np.ndarray:
    """With one bit of the weight of the largest magnitude turned over."""
    changed = weight.copy()
    changed.reshape(-1).view(np.uint32)[np.abs(weight).argmax()] ^= bit
    return changed


def test_as_exported_it_passes() -> None:
    inputs, outputs = small().golden()
    assert len(weights()) == small().manifest.operators["Conv"] + small().manifest.operators["ConvTranspose"] == 37
    assert differences(outputs, engine().run(inputs), 1e-4) == []


@pytest.mark.parametrize("part", ["camera", "fuse", "trunk", "heads"])
def test_one_weight_is_caught_in_every_convolution(part: str) -> None:
    inputs, outputs = small().golden()
    here = {name: weight for name, weight in weights().items() if name.startswith(f"model.{part}.")}
    assert here
    for name, weight in here.items():
        assert differences(outputs, engine().run(inputs | {name: flipped(weight, SIGN)}), 1e-4) != [], name


def test_a_bundle_with_one_changed_weight_is_refused_though_its_hashes_hold(tmp_path: Path) -> None:
    path = shutil.copytree(small().path, tmp_path / "bundle")
    model = onnx.load(small().onnx)
    name = "model.camera.backbone.layer3.0.conv2.layer.weight"  # the deepest layer, of 590,000 weights
    changed = flipped(_weights(model)[name], SIGN)
    next(t for t in model.graph.initializer if t.name == name).raw_data = changed.tobytes()
    Bundle.load(rewritten(path, onnx=model.SerializeToString()))
    with pytest.raises(InputError, match="does not compute the exported network"):
        Runtime(path)
