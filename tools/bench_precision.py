"""Speed of INT8 on a CPU, and the losses of score in FP16 and INT8."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from benchmark import DEMO, QUIET, measure_times, medians

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from deploy.golden import synthetic_frame
from deploy.onnx_export import to_onnx
from deploy.precision.calibrate import Drives, ranges
from deploy.precision.quantise import CPU, activations, quantisable, quantise
from deploy.runtime import Runtime
from deploy.tolerances import Precision
from perception.config import find_config, load_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.evaluation.evaluate import evaluate
from perception.frame import Conditions, Frame
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, prepare
from perception.tasks.task import to_prediction
from perception.training.optimize import with_conditions

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
SWEEPS = 20  # synthetic frames that have as many points as a nuScenes keyframe with nine sweeps
VERSION, CONDITIONS = "v1.0-sim", ("clear", "day", "boston")  # of the demo's drives that are scored


def precision(quick: bool) -> dict[str, Any]:
    """The speed of INT8 compared with FP32 for a whole frame of `nuscenes/centerpoint`, and the losses of the demo."""
    measured = speed("tiny", 1) if quick else speed("nuscenes/centerpoint", 15)
    return measured | losses(2 if quick else None)


def speed(configuration: str, rounds: int) -> dict[str, Any]:
    """Seconds from points to boxes with random weights, all blocks in INT8."""
    config = load_config(find_config(configuration))
    spec = InputSpec.of(config)
    frame = reduce(
        Frame.with_further_points, [synthetic_frame(spec.grid.reference, spec.rig, seed) for seed in range(SWEEPS)]
    )
    inputs = prepare(frame, spec)
    torch.manual_seed(0)
    model = PerceptionModel(config).deployed(Conditions())
    with torch.no_grad():
        outputs = list(model.predict({name: torch.from_numpy(array) for name, array in inputs.items()}))
    whole = to_onnx(model, inputs, outputs)
    measured = ranges(whole, activations(whole.graph), [inputs])
    graphs = {"fp32": whole, "int8": quantise(whole, [*quantisable(whole.graph)], measured, CPU)}
    contents = {name: graph.SerializeToString() for name, graph in graphs.items()}

    def whole_frame(run: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[object], object]:
        return lambda _: to_prediction(model.tasks, run(prepare(frame, spec)))

    engines = {name: whole_frame(OnnxRuntimeEngine(content).run) for name, content in contents.items()}
    alone = {name: whole_frame(_single_threaded(content)) for name, content in contents.items()}
    wall = medians(measure_times(engines, rounds))
    cpu = medians(measure_times(alone, rounds, [time.process_time]))
    return {
        "int8_speedup": wall["fp32"] / wall["int8"],
        "int8_speedup_one_thread": cpu["fp32"] / cpu["int8"],  # processor time, less affected by other load
        "seconds": wall,
        "processor_seconds_one_thread": cpu,
        "rounds": rounds,
    }


def _single_threaded(content: bytes) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def losses(frames: int | None) -> dict[str, Any]:
    """NDS, mAP and mIoU of the demo's network in every precision on the validation drives under CONDITIONS.

    INT8 is calibrated on the training drives under the same conditions.

    Args:
        frames: calibrate with and score only the first ones; None: all.
    """
    data = DEMO / "drives"
    tables = NuScenesTables(data, VERSION)
    training, scored = (_keyframes(tables, split)[:frames] for split in ("sim_train", "sim_val"))
    scores = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in PRECISIONS:
            calibration = Drives(data, VERSION, training) if kind == "int8" else None
            bundle = export(DEMO / "run", Path(folder) / kind, console=QUIET, precision=kind, calibration=calibration)
            runtime = Runtime(bundle.path)
            metrics = evaluate(runtime, tables, "sim_val", scored, Path(folder) / f"{kind}-scores", bundle.spec, QUIET)
            scores[kind] = {
                "NDS": metrics["NDS"],
                "mAP": metrics["mAP"],
                "mIoU": metrics["map"]["iou_max"]["mean"],
                "tolerances": bundle.manifest.tolerances.model_dump(),
            }
    blocks = {block.name: [block.precision, round(block.error, 4)] for block in bundle.manifest.blocks}
    lost = {
        f"{kind}_{name}_loss": scores["fp32"][key] - scores[kind][key]
        for kind in ("fp16", "int8")
        for name, key in (("nds", "NDS"), ("map", "mAP"), ("miou", "mIoU"))
    }
    return lost | {"scores": scores, "blocks": blocks, "frames": len(scored)}


def _keyframes(tables: NuScenesTables, split: str) -> list[str]:
    """Selectors of the split's keyframes under CONDITIONS."""
    selectors, chosen = [], {*with_conditions(tables, tables.samples(split), CONDITIONS)}
    for scene in tables.scenes(split):
        tokens = tables.samples(selectors=[scene])
        selectors += [f"{scene}:{i}-{i + 1}" for i, token in enumerate(tokens) if token in chosen]
    return selectors
