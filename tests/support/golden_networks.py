"""A network at every precision whose golden frames are tested."""

from functools import cache

import numpy as np
import onnx
from exported import QUIET, checkpoint_of, folder
from tiny import write_tiny

from deploy.bundle import Bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from deploy.precision.frames import Drives
from deploy.tolerances import Precision
from perception.config import Image, find_config, load_config
from perception.tasks import TASKS, configured

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@cache
def small(precision: Precision = "fp32") -> Bundle:
    """The layers of `tiny` for all tasks, with a view of 51 m and pictures of 192 x 64 pixels.

    Without subcells: a weight of one subcell of a class shows only in detections at such subcells.
    """
    tiny = load_config(find_config("tiny"))
    lidar = tiny.model.lidar.model_copy(update={"max_pillars": 3000})
    camera = tiny.model.camera.model_copy(update={"image": Image(height=64, width=192)})
    grid = tiny.grid.model_copy(update={"x": (-25.6, 25.6), "y": (-25.6, 25.6), "z": (-5.0, 3.0)})
    model = tiny.model.model_copy(update={"lidar": lidar, "camera": camera})
    own = {**tiny.tasks, "detection": tiny.tasks["detection"].model_copy(update={"subcells": 1})}
    voxels = {"x": (-25.6, 25.6), "y": (-25.6, 25.6), "z": (-1.0, 2.2), "cell": 0.8}
    others = {name: voxels if name == "occupancy" else {} for name in TASKS.keys() - tiny.tasks}
    tasks = configured({**own, **others})
    config = tiny.model_copy(update={"name": "small", "grid": grid, "model": model, "tasks": tasks})
    drives = None
    if precision == "int8":
        drives = Drives(folder() / "drives", "v1.0-tiny")
        write_tiny(drives.root)
    out = folder() / f"small-{precision}"
    return export(checkpoint_of(config), out, console=QUIET, precision=precision, calibration=drives)


@cache
def weights(precision: Precision) -> dict[str, np.ndarray]:
    """Of the convolutions, by name; in INT8 the whole numbers that are dequantised to them."""
    graph = onnx.load(small(precision).onnx).graph
    made = {node.output[0]: node for node in graph.node}
    found = {node.input[1] for node in graph.node if node.op_type in ("Conv", "ConvTranspose")}
    found = {made[name].input[0] if name in made else name for name in found}
    return {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name in found}


@cache
def engine(precision: Precision) -> OnnxRuntimeEngine:
    """The small network, with an input for the weights of every convolution; without it they are as exported."""
    model = onnx.load(small(precision).onnx)
    for name, weight in weights(precision).items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, weight.shape))
    return OnnxRuntimeEngine(model.SerializeToString())


def flipped(weight: np.ndarray, precision: Precision = "fp32") -> np.ndarray:
    """With the sign of the weight of the largest magnitude turned over; in a graph in INT8 of all.

    One of thousands of weights moves the outputs of INT8 no further than two engines are apart.
    """
    if precision == "int8":
        return -weight
    changed = weight.copy()
    changed.reshape(-1)[np.abs(weight).argmax()] *= -1
    return changed
