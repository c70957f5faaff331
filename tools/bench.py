"""Benchmarks. Each measures all sides in one run, alternating them, and quotes medians.

python tools/bench.py adapt --evidence runs/evidence --json
python tools/bench.py evaluator --data runs/demo/drives --json
python tools/bench.py modular --config tiny
python tools/bench.py pillars --json
python tools/bench.py precision --checkpoint runs/evidence/base --data runs/evidence/drives --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx.utils
import torch
from bench_evaluator import evaluator
from bench_pillars import pillars
from bench_precision import precision
from evidence_models import Models
from evidence_plan import STEPS, WAYS
from rich.console import Console

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from perception.config import find_config, load_config, parse_config
from perception.data.loader import FrameDataset
from perception.model import PerceptionModel
from perception.training import settings
from perception.training.checkpoint import save_model
from perception.training.loop import losses_of


def adapt(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds for each training step of each way to adapt, on the evidence's base and rainy drives.

    A step is what a training repeats: take two frames from memory, augment and prepare them, forward, backward,
    clip, optimizer. The first two rounds do not count.
    """
    evidence = Models(arguments.evidence)
    models = {way: evidence.prepared(0, "rain", way) for way in WAYS}
    for model in models.values():
        model.to(memory_format=torch.channels_last)  # as the training loop has it
    optimizers = {way: settings.optimizer_of(model, 1e-4, 0.01) for way, model in models.items()}
    dataset = FrameDataset(evidence.tables, evidence.tokens("sim_train", "rain"), evidence.config(0, steps=STEPS))
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    loading: list[float] = []
    for sample in range(2):
        dataset[sample]
    for _ in range(arguments.rounds + 2):
        for way, model in models.items():
            start = time.perf_counter()
            batch = dataset.collate([dataset[0], dataset[1]])
            loading.append(time.perf_counter() - start)
            with torch.autocast("cpu", torch.bfloat16):
                dense = model(batch.inputs, batch.conditions)
            losses = losses_of(model.config, {k: v.float() for k, v in dense.items()}, batch)
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_([p for _, p in settings.trainable(model)], 35.0)
            optimizers[way].step()
            optimizers[way].zero_grad()
            seconds[way].append(time.perf_counter() - start)
    medians = {way: statistics.median(values[2:]) for way, values in seconds.items()}
    return {
        "seconds_per_step": medians,
        "ratio_to_full": {way: value / medians["full fine-tune"] for way, value in medians.items()},
        "of_which_loading": statistics.median(loading),
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
    }


DOMAINS = ("rain", "fog", "night", "singapore")
TASKS = {"detection": ["boxes", "scores", "labels", "attributes"], "map": ["map"]}


def modular(arguments: argparse.Namespace) -> dict[str, Any]:
    """What two tasks and four domains cost in one graph, in ONNX Runtime: against the base and separate networks.

    Random weights. Banked: a low-rank module of rank 4 for each domain at every slot of the trunk, switched by an
    input. Folded: the module of one domain in the weights. Separate: a network for each task and domain, of which a
    frame needs two. Latency is the engine's alone; the rounds alternate. Memory is what a process gains by opening
    the networks and running each once.
    """
    with tempfile.TemporaryDirectory() as folder:
        graphs = _graphs(arguments.config, Path(folder))
        inputs = {name: dict(np.load(path.with_suffix(".npz"))) for name, path in graphs.items()}
        one = ("base", "folded", "banked", "detection rain", "map rain")
        engines = {name: OnnxRuntimeEngine(graphs[name]) for name in one}
        seconds: dict[str, list[float]] = {name: [] for name in one}
        for _ in range(arguments.rounds + 2):
            for name, engine in engines.items():
                seconds[name].append(_seconds(engine, inputs[name]))
        medians = {name: statistics.median(values[2:]) for name, values in seconds.items()}
        turned = [inputs["banked"] | {"route": np.eye(4, dtype=np.float32)[[i % 4]]} for i in range(arguments.rounds)]
        switching = statistics.median(_seconds(engines["banked"], each) for each in turned)
        separate = [path for name, path in graphs.items() if " " in name]
        memory = {name: _memory(paths) for name, paths in {
            "base": [graphs["base"]], "banked": [graphs["banked"]], "separate": separate}.items()}  # fmt: skip
    return {
        "latency_ratio_banked": medians["banked"] / medians["base"],
        "latency_ratio_folded": medians["folded"] / medians["base"],
        "latency_ratio_separate": (medians["detection rain"] + medians["map rain"]) / medians["base"],
        "memory_ratio_banked": memory["banked"] / memory["base"],
        "memory_ratio_separate": memory["separate"] / memory["base"],
        "switch_ms": 1000 * max(0.0, switching - medians["banked"]),
        "seconds": medians,
        "megabytes": memory,
        "rounds": arguments.rounds,
    }


def _seconds(engine: OnnxRuntimeEngine, inputs: dict[str, np.ndarray]) -> float:
    start = time.perf_counter()
    engine.run(inputs)
    return time.perf_counter() - start


def _graphs(name: str, folder: Path) -> dict[str, Path]:
    """The graphs that are compared, each with its golden inputs in an .npz file beside it."""
    modules = [{"kind": "low_rank", "name": domain, "rank": 4, "when": [domain]} for domain in DOMAINS]
    config = parse_config(load_config(find_config(name)).model_dump(mode="json") | {"modules": modules}, name)
    save_model(folder / "run", config, PerceptionModel(config))
    routes = {"base": [[]], "banked": [[], *([domain] for domain in DOMAINS)]} | {d: [[d]] for d in DOMAINS}
    graphs = {}
    for kind, served in routes.items():
        bundle = export(folder / "run", folder / kind, served, console=Console(quiet=True))
        if kind not in DOMAINS:
            graphs[kind] = bundle.onnx
        elif kind == DOMAINS[0]:
            graphs["folded"] = bundle.onnx
        for task, outputs in TASKS.items() if kind in DOMAINS else ():
            graphs[f"{task} {kind}"] = folder / f"{task}-{kind}.onnx"
            names = [tensor.name for tensor in bundle.manifest.inputs]
            onnx.utils.extract_model(bundle.onnx, graphs[f"{task} {kind}"], names, outputs)
        for path in (bundle.onnx, *(folder / f"{task}-{kind}.onnx" for task in TASKS)):
            np.savez(path.with_suffix(".npz"), **bundle.golden()[0])
    return graphs


MEMORY = """
import sys, resource, numpy as np
from deploy.engines.onnxruntime import OnnxRuntimeEngine
held = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
before, engines = held(), []
for path in sys.argv[1:]:
    engines.append(OnnxRuntimeEngine(open(path, "rb").read()))
    engines[-1].run(dict(np.load(path.replace(".onnx", ".npz"))))
print(held() - before)
"""


def _memory(graphs: list[Path]) -> float:
    """Megabytes that a fresh process gains."""
    command = [sys.executable, "-c", MEMORY, *(str(path) for path in graphs)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("adapt", help="time per step of every way to adapt")
    command.add_argument("--evidence", type=Path, default=Path("runs/evidence"), help="folder of tools/evidence.py")
    command.add_argument("--rounds", type=int, default=15)
    command.set_defaults(run=adapt)
    command = commands.add_parser("modular", help="latency and memory of two tasks and four domains in one graph")
    command.add_argument("--config", default="tiny")
    command.add_argument("--rounds", type=int, default=30)
    command.set_defaults(run=modular)
    command = commands.add_parser("pillars", help="time to group ten LiDAR sweeps into pillars, on one core")
    command.add_argument("--config", default="nuscenes/fusion")
    command.add_argument("--rounds", type=int, default=50)
    command.set_defaults(run=pillars)
    command = commands.add_parser("precision", help="speed of INT8 on a CPU, and scores lost in FP16 and INT8")
    command.add_argument("--config", default="nuscenes/lidar", help="for the speed")
    command.add_argument("--rounds", type=int, default=15)
    command.add_argument("--checkpoint", type=Path, help="for the scores; without one only the speed is measured")
    command.add_argument("--data", type=Path, default=Path("runs/evidence/drives"), help="simulated drives to score on")
    command.add_argument("--version", default="v1.0-sim")
    command.add_argument("--conditions", default="clear,day,boston", help="of the drives")
    command.add_argument("--frames", type=int, help="score only so many keyframes, evenly spread")
    command.set_defaults(run=precision)
    command = commands.add_parser("evaluator", help="speed and memory of scoring a submission, against the devkit")
    command.add_argument("--data", type=Path, default=Path("runs/demo/drives"), help="annotated drives")
    command.add_argument("--version", help="default: the only one")
    command.add_argument("--rounds", type=int, default=3)
    command.set_defaults(run=evaluator)
    for each in commands.choices.values():
        each.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    result = arguments.run(arguments)
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()
