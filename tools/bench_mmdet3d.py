"""Speed of CenterPoint on pillars, from points to boxes: mmdet3d and the imported network, in torch and exported."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_networks as models  # imports mmdet3d
import onnxruntime
import torch
from benchmark import KEYFRAMES, median_seconds

from deploy.onnx_export import run, to_onnx
from deploy.precision.calibrate import ranges
from deploy.precision.quantise import CPU, activations, quantisable, quantise
from perception.checkpoint import load_model
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Conditions
from perception.mmdet3d.centerpoint import NAMES
from perception.sensors.inputs import InputSpec, prepare, without_padding
from perception.tasks.detection.task import DetectionTask
from perception.tasks.task import to_prediction

OUTPUTS = [f"detection/{output.name}" for output in DetectionTask.outputs]
SCENES, THREADS = "scene-0103:0-4", 2
SIDE = 2048  # of the matrices whose product measures the machine's peak


def mmdet3d(quick: bool) -> dict[str, Any]:
    """Compare the speed with mmdet3d on real keyframes, points in memory.

    mmdet3d runs its data_preprocessor and `predict`, with NMS; ours is `prepare`, the deployed network without padding,
    and `to_prediction`. All blocks are INT8 in INT8.
    """
    rounds = 1 if quick else 5
    torch.set_num_threads(THREADS)
    tables = NuScenesTables(KEYFRAMES, "v1.0-mini")
    frames = [tables.frame(t, Reads("lidar", 9, cameras=False)) for t in tables.samples(selectors=[SCENES])]
    frames = frames[: 1 if quick else None]
    theirs, points = models.build("circle"), frames[-1].points
    assert points is not None
    models.spread(theirs, points)
    with tempfile.TemporaryDirectory() as folder:
        model, config = load_model(models.imported(theirs, "circle", Path(folder)))
    spec = config.spec
    inputs = [prepare(frame, spec) for frame in frames]
    deployed = model.deployed(Conditions())
    flops = [run(each, without_padding(inputs[0]))[1] for each in (model, deployed)]
    graph = to_onnx(deployed, inputs[0], OUTPUTS)
    measured = ranges(graph, activations(graph.graph), inputs[:2])
    sessions = {"fp32": _session(graph), "int8": _session(quantise(graph, [*quantisable(graph.graph)], measured, CPU))}

    def exported(name: str) -> Callable[[Any], Any]:
        def whole(frame: Any) -> Any:
            arrays = without_padding(prepare(frame, spec))
            return to_prediction(model.tasks, dict(zip(OUTPUTS, sessions[name].run(OUTPUTS, arrays), strict=True)))

        return whole

    @torch.inference_mode()
    def in_torch(frame: Any) -> Any:
        tensors = {name: torch.from_numpy(array) for name, array in without_padding(prepare(frame, spec)).items()}
        outputs = {name: value.numpy() for name, value in deployed.predict(tensors).items()}
        return to_prediction(model.tasks, outputs)

    sides: dict[str, Callable[[Any], Any]] = {
        "mmdet3d": lambda frame: models.predict(theirs, frame.points),
        "torch": in_torch,
        "fp32": exported("fp32"),
        "int8": exported("int8"),
    }
    seconds = median_seconds(sides, rounds, inputs=frames, discarded=1)
    return {
        **{f"{name}_speedup": seconds["mmdet3d"] / seconds[name] for name in ("fp32", "int8", "torch")},
        "max_abs_difference": max(_difference(theirs, model, frame, spec) for frame in frames[:2]),
        "sgemm_gflops": _sgemm(),
        "network_gflop": flops[0] / 1e9,  # of the first frame
        "exported_gflop": flops[1] / 1e9,  # boxes are regressed at the peaks only
        "seconds": seconds,
    }


def _session(graph: Any) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 3
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def _difference(theirs: Any, model: Any, frame: Any, spec: InputSpec) -> float:
    """The largest difference between the maps of the heads."""
    ours = model({name: torch.from_numpy(array) for name, array in prepare(frame, spec).items()})
    largest = 0.0
    maps = models.maps_of(theirs, frame.points)
    for i in range(6):
        for name, other in NAMES.items():
            wanted = maps[f"{i}.{other}"][:, [1, 0, 2]] if name == "size" else maps[f"{i}.{other}"]
            largest = max(largest, float((ours[f"detection/group{i}_{name}"] - wanted).abs().max()))
    return largest


def _sgemm() -> float:
    """The best of ten float32 products of large matrices, in GFLOP per second."""
    a, b = torch.randn(2, SIDE, SIDE)
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - begin)
    return 2 * SIDE**3 / best / 1e9
