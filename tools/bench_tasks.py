"""What further tasks cost a network that is deployed: operations, and time in ONNX Runtime."""

from __future__ import annotations

import argparse
import resource
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import synthetic_frame
from deploy.onnx_export import run, to_onnx
from perception.config import Config, find_config, load_config, parse_config
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, prepare
from perception.training.adapt import read_task

TIMED, TASKS = "tiny", ("tasks/points", "tasks/occupancy_coarse")
COUNTED, LARGE = "nuscenes/fusion", ("tasks/points", "tasks/occupancy")  # with the voxels of Occ3D


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rounds", type=int, default=30)
    command.set_defaults(run=tasks)


def tasks(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each further task alone, and all, against the configuration as it is; folded, random weights, one street.

    `with modules`: all, and each task reads the trunk with the modules of its own, so that the trunk runs for it again.

    `cpu` is the median processor time of all threads, with alternating rounds, without making the inputs; `operations`
    counts a multiplication and an addition as two. Both are ratios to the network without further tasks.
    """
    flops, engines = _deployed(TIMED, TASKS)
    seconds = _seconds(engines, arguments.rounds)
    counted, _ = _deployed(COUNTED, LARGE)
    return {
        "config": TIMED,
        "cpu": {name: value / seconds["base"] for name, value in seconds.items()},
        "operations": {name: count / flops["base"] for name, count in flops.items()},
        "seconds": seconds,
        "rounds": arguments.rounds,
        "sized": COUNTED,
        "sized_operations": {name: count / counted["base"] for name, count in counted.items()},
    }


def with_tasks(name: str, files: Sequence[str], modules: bool = False) -> Config:
    """A configuration with the tasks of configs/FILE.yaml, and the modules that run for each of these alone."""
    content = load_config(find_config(name)).model_dump(mode="json")
    for file in files:
        added = read_task(find_config(file))
        content["tasks"] |= added["tasks"]
        if modules:
            content["modules"] += [
                {**module, "when": [*module.get("when", ()), *added["tasks"]]} for module in added["modules"]
            ]
    return parse_config(content, name)


Engines = dict[str, tuple[OnnxRuntimeEngine, dict[str, np.ndarray]]]  # with the inputs of one frame


def _deployed(name: str, files: Sequence[str]) -> tuple[dict[str, int], Engines]:
    """Operations and engine of the configuration, with each task alone, and with all."""
    flops: dict[str, int] = {}
    engines: Engines = {}
    variants: dict[str, Sequence[str]] = {"base": (), **{file: (file,) for file in files}, "all": files}
    for variant, added in {**variants, "with modules": files}.items():
        config = with_tasks(name, added, modules=variant == "with modules")
        inputs = prepare(synthetic_frame(config.grid.reference, config.rig), InputSpec.of(config))
        flops[variant], engine = deployed_graph(config, inputs)
        engines[variant] = engine, inputs
    return flops, engines


def deployed_graph(config: Config, inputs: dict[str, np.ndarray]) -> tuple[int, OnnxRuntimeEngine]:
    """Operations of the exported network, and its engine."""
    torch.manual_seed(config.seed)
    model = PerceptionModel(config).deployed(Conditions())
    outputs, flops = run(model, dict(inputs))
    return flops, OnnxRuntimeEngine(to_onnx(model, inputs, list(outputs)).SerializeToString())


def _seconds(engines: Engines, rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds + 2):
        for name, (engine, inputs) in engines.items():
            start = _processor()
            engine.run(inputs)
            taken[name].append(_processor() - start)
    return {name: statistics.median(values[2:]) for name, values in taken.items()}


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
