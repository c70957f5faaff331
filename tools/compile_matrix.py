"""Compile every configuration x kind x precision x GPU with NVIDIA's compiler, without a GPU.

A kind is a network with a module folded into its weights, banked (switched by an input), or banked and with a memory.

    python tools/compile_matrix.py --configs tiny,nuscenes/lidar
    python tools/compile_matrix.py --configs tiny,nuscenes/fusion --tasks tasks/recognise,tasks/points,tasks/occupancy

Weights are random and INT8 ranges are 1, which makes no difference to the compiler. Exit code 1 if it rejects a graph.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from benchmark import with_tasks

from deploy.engines.tensorrt import build_engine
from deploy.golden import synthetic_frame
from deploy.onnx_export import to_onnx
from deploy.precision.convert import to_half
from deploy.precision.quantise import TENSORRT, activations, quantisable, quantise
from deploy.targets import find_target
from perception.config import parse_config
from perception.errors import InputError
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.sensors.inputs import prepare
from perception.state import NEXT, Moment, state_inputs

CONFIGS = "tiny,nuscenes/centerpoint,nuscenes/lidar,nuscenes/camera,nuscenes/fusion"
TARGETS = ("rtx-ampere", "rtx-ada")
KINDS = ("folded", "banked", "memory")
MODULE = {"name": "rain", "kind": "low_rank", "slots": ["trunk.*", "heads.*"], "rank": 4, "when": ["rain"]}


def make_graph(name: str, kind: str, tasks: list[str]) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    """The FP32 graph, with tasks of further configurations, and the shapes of its inputs."""
    modules = [MODULE, {"name": "memory", "kind": "memory", "stride": 2}] if kind == "memory" else [MODULE]
    config = parse_config(with_tasks(name, tasks).model_dump(mode="json") | {"modules": modules}, name)
    spec = config.spec
    frame = synthetic_frame(config.grid.reference, config.rig)
    inputs, routes, model = prepare(frame, spec), [Conditions(weather="rain")], PerceptionModel(config)
    if kind != "folded":
        routes.append(Conditions())
        inputs["route"] = np.ones((1, 1), np.float32)
    outputs = [f"{name}/{each.name}" for name, task in model.tasks.items() for each in task.outputs]
    if spec.memory is not None:
        states = {name: state.numpy() for name, state in model.no_states(1).items()}
        inputs |= {**states, **state_inputs(None, Moment.of(frame), spec.memory)}
        outputs += [NEXT + name for name in states]
    model = model.deployed(*routes)
    with torch.no_grad():
        return to_onnx(model, inputs, outputs), {name: array.shape for name, array in inputs.items()}


def convert(graph: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    if precision == "fp16":
        return to_half(graph)
    if precision == "int8":
        ranges = dict.fromkeys(activations(graph.graph), (-1.0, 1.0))
        return quantise(graph, [*quantisable(graph.graph)], ranges, TENSORRT)
    return graph


def compile_all(configs: list[str], tasks: list[str], kinds: list[str]) -> Iterator[dict[str, Any]]:
    for config, kind in itertools.product(configs, kinds):
        whole, shapes = make_graph(config, kind, tasks)
        for precision in ("fp32", "fp16", "int8"):
            content = convert(whole, precision).SerializeToString()
            for target in TARGETS:
                row = {"config": config, "kind": kind, "precision": precision, "target": target}
                start = time.perf_counter()
                try:
                    plan = build_engine(content, find_target(target), inputs=shapes)
                except InputError as error:
                    yield row | {"refused": str(error)}
                    continue
                size, seconds = len(plan.content) / 1e6, time.perf_counter() - start
                yield row | {"layers": plan.layers, "megabytes": round(size, 1), "seconds": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default=CONFIGS, help=f"names of configurations (default: {CONFIGS})")
    parser.add_argument("--tasks", default="", help="configurations of further tasks, such as tasks/recognise")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"some of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    arguments = parser.parse_args()
    rows = []
    tasks = arguments.tasks.split(",") if arguments.tasks else []
    for row in compile_all(arguments.configs.split(","), tasks, arguments.kinds.split(",")):
        rows.append(row)
        print(*row.values(), file=sys.stderr if arguments.json else sys.stdout, flush=True)
    if arguments.json:
        print(json.dumps(rows))
    sys.exit(any("refused" in row for row in rows))


if __name__ == "__main__":
    main()
