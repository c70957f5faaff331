"""Speed of INT8 on a CPU, and the losses of score in FP16 and INT8."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from bench_networks import deployed_graph
from benchmark import DEMO, Commands, median_seconds

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import synthetic_frame
from deploy.precision.calibrate import ranges
from deploy.precision.quantise import CPU, activations, quantisable, quantise
from perception.config import find_config, load_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Frame
from perception.sensors.inputs import prepare
from perception.tasks import tasks_of
from perception.tasks.task import to_prediction
from perception.training.optimize import with_conditions

SWEEPS = 20  # synthetic frames that have as many points as a nuScenes keyframe with nine sweeps
CONDITIONS = ("clear", "day", "boston")  # of the demo's drives that are scored


def precision(quick: bool) -> dict[str, Any]:
    """The speed of INT8 compared with FP32 for a whole frame of `nuscenes/centerpoint`, and the losses of the demo."""
    measured = speed("tiny", 1) if quick else speed("nuscenes/centerpoint", 15)
    return measured | losses(2 if quick else None)


def speed(configuration: str, rounds: int) -> dict[str, Any]:
    """Seconds from points to boxes with random weights, all blocks in INT8."""
    config = load_config(find_config(configuration))
    spec, tasks = config.spec, tasks_of(config.tasks, config.head_grid, config.taxonomy)
    sweeps = [synthetic_frame(spec.grid.reference, spec.rig, seed) for seed in range(SWEEPS)]
    frame = reduce(Frame.with_further_points, sweeps)
    inputs = prepare(frame, spec)
    whole, _ = deployed_graph(config, inputs)
    measured = ranges(whole, activations(whole.graph), [inputs])
    graphs = {"fp32": whole, "int8": quantise(whole, [*quantisable(whole.graph)], measured, CPU)}

    def whole_frame(run: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[object], object]:
        return lambda _: to_prediction(tasks, run(prepare(frame, spec)))

    engines = {name: OnnxRuntimeEngine(graph.SerializeToString()) for name, graph in graphs.items()}
    seconds = median_seconds({name: whole_frame(engine.run) for name, engine in engines.items()}, rounds)
    return {"int8_speedup": seconds["fp32"] / seconds["int8"], "seconds": seconds, "rounds": rounds}


def losses(frames: int | None) -> dict[str, Any]:
    """NDS, mAP and mIoU of the demo's network in every precision on the validation drives under CONDITIONS.

    INT8 is calibrated on the training drives under the same conditions.

    Args:
        frames: calibrate with and score only the first ones; None: all.
    """
    data, scores = DEMO / "drives", {}
    training, scored = (",".join(_keyframes(data, split)[:frames]) for split in ("sim_train", "sim_val"))
    with tempfile.TemporaryDirectory() as folder:
        commands = Commands(Path(folder))
        for kind in ("fp32", "fp16", "int8"):
            bundle, out = Path(folder) / kind, Path(folder) / f"{kind}-scores"
            calibration = ("--calibrate", data, "--scenes", training) if kind == "int8" else ()
            commands.call(kind, "export", DEMO / "run", "--precision", kind, *calibration, "--out", bundle)
            words = ("evaluate", bundle, "--data", data, "--scenes", scored, "--out", out)
            metrics = commands.json(f"evaluate_{kind}", *words)
            scores[kind] = {"nds": metrics["NDS"], "map": metrics["mAP"], "miou": metrics["map"]["iou_max"]["mean"]}
    return {
        f"{kind}_{name}_loss": scores["fp32"][name] - score
        for kind in ("fp16", "int8")
        for name, score in scores[kind].items()
    } | {"scores": scores}


def _keyframes(data: Path, split: str) -> list[str]:
    """Selectors of the split's keyframes under CONDITIONS."""
    tables, selectors = NuScenesTables(data, "v1.0-sim"), []
    chosen = {*with_conditions(tables, tables.samples(split), CONDITIONS)}
    for scene in tables.scenes(split):
        tokens = tables.samples(selectors=[scene])
        selectors += [f"{scene}:{i}-{i + 1}" for i, token in enumerate(tokens) if token in chosen]
    return selectors
