"""Speed of CenterPoint on pillars, from points to boxes: mmdet3d and the imported network, in torch and exported."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import torch
import typer
from benchmark import KEYFRAMES, NuScenes, Rounds, measure_times, medians

from deploy.onnx_export import run, to_onnx
from deploy.precision.calibrate import ranges
from deploy.precision.quantise import CPU, activations, quantisable, quantise
from perception.checkpoint import load_model
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Conditions
from perception.mmdet3d.centerpoint import NAMES
from perception.mmdet3d.importing import import_checkpoint
from perception.sensors.inputs import InputSpec, prepare, without_padding
from perception.tasks.detection.task import DetectionTask
from perception.tasks.task import to_prediction

OUTPUTS = [f"detection/{output.name}" for output in DetectionTask.outputs]
THREADS = 2
SIDE = 2048  # of the matrices whose product measures the machine's peak


def mmdet3d(
    data: NuScenes = KEYFRAMES,
    scenes: Annotated[str, typer.Option(help="Keyframes.")] = "scene-0103:0-4",
    rounds: Rounds = 5,
) -> dict[str, Any]:
    """Compare the speed with mmdet3d on real keyframes: medians of alternating rounds, without the first one.

    Both start with points in memory. mmdet3d runs its data_preprocessor and `predict`, with NMS; ours is `prepare`, the
    deployed network without padding, and `to_prediction`. All blocks are INT8 in INT8. The shares of pre- and
    postprocessing are of the exported FP32 network's time.
    """
    from centerpoints import build, flat, predict, raw, save, spread  # imports mmdet3d

    torch.set_num_threads(THREADS)
    tables = NuScenesTables(data, "v1.0-mini")
    frames = [tables.frame(t, Reads("lidar", 9, cameras=False)) for t in tables.samples(selectors=[scenes])]
    theirs, points = build(), frames[-1].points
    if points is None:
        raise SystemExit(f"{data}: {scenes} ends with a keyframe without LiDAR")
    spread(theirs, points)
    with tempfile.TemporaryDirectory() as folder:
        import_checkpoint(flat("circle"), save(theirs), Path(folder) / "run")
        model, config = load_model(Path(folder) / "run")
    spec = InputSpec.of(config)
    inputs = [prepare(frame, spec) for frame in frames]
    deployed = model.deployed(Conditions())
    flops = [run(each, without_padding(inputs[0]))[1] for each in (model, deployed)]
    graph = to_onnx(deployed, inputs[0], OUTPUTS)
    measured = ranges(graph, activations(graph.graph), inputs[:2])
    integers = quantise(graph, [*quantisable(graph.graph)], measured, CPU)
    sessions = {name: _session(each.SerializeToString(), THREADS) for name, each in
                (("fp32", graph), ("int8", integers))}  # fmt: skip
    stages: dict[str, list[float]] = {"preprocess": [], "engine": [], "postprocess": []}

    def exported(name: str) -> Callable[[Any], Any]:
        def whole(frame: Any) -> Any:
            begin = time.perf_counter()
            arrays = prepare(frame, spec)
            prepared = time.perf_counter()
            outputs = dict(zip(OUTPUTS, sessions[name].run(OUTPUTS, without_padding(arrays)), strict=True))
            computed = time.perf_counter()
            prediction = to_prediction(model.tasks, outputs)
            if name == "fp32":
                for stage, seconds in zip(
                    stages, np.diff([begin, prepared, computed, time.perf_counter()]), strict=True
                ):
                    stages[stage].append(float(seconds))
            return prediction

        return whole

    @torch.inference_mode()
    def in_torch(frame: Any) -> Any:
        tensors = {name: torch.from_numpy(array) for name, array in without_padding(prepare(frame, spec)).items()}
        outputs = {name: value.numpy() for name, value in deployed.predict(tensors).items()}
        return to_prediction(model.tasks, outputs)

    sides: Mapping[str, Callable[[Any], Any]] = {
        "mmdet3d": lambda frame: predict(theirs, frame.points),
        "torch": in_torch,
        "fp32": exported("fp32"),
        "int8": exported("int8"),
    }
    times = measure_times(sides, rounds, [time.perf_counter, time.process_time], frames, discarded=1)
    seconds, processor = medians(times), medians(times, clock=1)
    whole = statistics.median(map(sum, zip(*stages.values(), strict=True)))
    return {
        **{f"{name}_speedup": seconds["mmdet3d"] / seconds[name] for name in ("fp32", "int8", "torch")},
        "max_abs_difference": max(_difference(theirs, model, raw, frame, spec) for frame in frames[:2]),
        "sgemm_gflops": sgemm(),
        "network_gflop": flops[0] / 1e9,  # of the first frame
        "exported_gflop": flops[1] / 1e9,  # boxes are regressed at the peaks only
        "preprocess_share": statistics.median(stages["preprocess"]) / whole,
        "postprocess_share": statistics.median(stages["postprocess"]) / whole,
        "seconds": seconds,
        "processor_seconds": processor,  # of all threads of this process
        "pillars": [int((each["pillar_counts"] > 0).sum()) for each in inputs],
        "rounds": rounds,
        "threads": THREADS,
    }


def _session(content: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def _difference(theirs: Any, model: Any, raw: Callable[..., Any], frame: Any, spec: InputSpec) -> float:
    """The largest difference between the maps of the heads."""
    ours = model({name: torch.from_numpy(array) for name, array in prepare(frame, spec).items()})
    largest = 0.0
    for i, task in enumerate(raw(theirs, frame.points)):
        for name, other in NAMES.items():
            wanted = task[other][:, [1, 0, 2]] if name == "size" else task[other]
            largest = max(largest, float((ours[f"group{i}_{name}"] - wanted).abs().max()))
    return largest


def sgemm() -> float:
    """The best of ten float32 products of large matrices, in GFLOP per second."""
    a, b = torch.randn(2, SIDE, SIDE)
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - begin)
    return 2 * SIDE**3 / best / 1e9
