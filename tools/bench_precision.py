"""Speed of INT8 on a CPU, and the losses of score in FP16 and INT8."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import torch
import typer
from benchmark import QUIET, Rounds, measure_times, medians

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


def precision(
    config: Annotated[str, typer.Option(help="For the speed.")] = "nuscenes/centerpoint",
    rounds: Rounds = 15,
    checkpoint: Annotated[Path, typer.Option(help="For the scores.")] = Path("runs/demo/run"),
    data: Annotated[Path, typer.Option(help="Simulated drives to score on.")] = Path("runs/demo/drives"),
    version: str = "v1.0-sim",
    conditions: Annotated[str, typer.Option(help="Of the drives.")] = "clear,day,boston",
    frames: Annotated[int | None, typer.Option(help="Score only so many keyframes, evenly spread.")] = None,
) -> dict[str, Any]:
    """The speed of INT8 compared with FP32 for a whole frame, and the losses of score on drives."""
    result = speed(config, rounds)
    if checkpoint.exists():
        result |= losses(checkpoint, data, version, [value for value in conditions.split(",") if value], frames)
    else:
        print(f"{checkpoint}: is not there, so only the speed is measured; `make demo` makes it", file=sys.stderr)
    return result


def speed(configuration: str, rounds: int) -> dict[str, Any]:
    """Seconds from points to boxes with random weights, all blocks in INT8; medians of alternating rounds."""
    config = load_config(find_config(configuration))
    spec = InputSpec.of(config)
    frame = _dense(spec)
    inputs = prepare(frame, spec)
    torch.manual_seed(0)
    model = PerceptionModel(config).deployed(Conditions())
    with torch.no_grad():
        outputs = list(model.predict({name: torch.from_numpy(array) for name, array in inputs.items()}))
    whole = to_onnx(model, inputs, outputs)
    measured = ranges(whole, activations(whole.graph), [inputs])
    graphs = {"fp32": whole, "int8": quantise(whole, [*quantisable(whole.graph)], measured, CPU)}
    contents = {name: graph.SerializeToString() for name, graph in graphs.items()}
    engines = {name: OnnxRuntimeEngine(content) for name, content in contents.items()}
    alone = {name: _single_threaded(content) for name, content in contents.items()}

    def whole_frame(run: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[object], object]:
        return lambda _: to_prediction(model.tasks, run(prepare(frame, spec)))

    wall = medians(measure_times({name: whole_frame(engine.run) for name, engine in engines.items()}, rounds))
    cpu = medians(measure_times({name: whole_frame(run) for name, run in alone.items()}, rounds, [time.process_time]))
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


def _dense(spec: InputSpec) -> Frame:
    frames = [synthetic_frame(spec.grid.reference, spec.rig, seed) for seed in range(SWEEPS)]
    return reduce(Frame.with_further_points, frames)


def losses(checkpoint: Path, data: Path, version: str, conditions: Sequence[str], frames: int | None) -> dict[str, Any]:
    """NDS, mAP and mIoU of every precision on the validation drives under these conditions.

    INT8 is calibrated on the training drives under the same conditions.

    Args:
        frames: score only this many, evenly spread; None: all.
    """
    tables = NuScenesTables(data, version)
    names = {s: _keyframes(tables, s, conditions) for s in ("sim_train", "sim_val")}
    scored = [names["sim_val"][i] for i in _spread(len(names["sim_val"]), frames)]
    scores = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in PRECISIONS:
            drives = Drives(data, version, names["sim_train"]) if kind == "int8" else None
            bundle = export(checkpoint, Path(folder) / kind, console=QUIET, precision=kind, calibration=drives)
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


def _keyframes(tables: NuScenesTables, split: str, conditions: Sequence[str]) -> list[str]:
    """Selectors of the split's keyframes under these conditions."""
    selectors, chosen = [], {*with_conditions(tables, tables.samples(split), conditions)}
    for scene in tables.scenes(split):
        tokens = tables.samples(selectors=[scene])
        selectors += [f"{scene}:{i}-{i + 1}" for i, token in enumerate(tokens) if token in chosen]
    return selectors


def _spread(total: int, most: int | None) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, total - 1, min(total, most or total))})
