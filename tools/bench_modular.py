"""Latency and memory of modules in one graph, folded, and as separate networks."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx.utils
from rich.console import Console

from deploy.bundle import Bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from perception.config import find_config, load_config, parse_config
from perception.model import PerceptionModel
from perception.training.checkpoint import save_model

DOMAINS = ("rain", "fog", "night", "singapore")
# Slots of the modules. They cost most in the first stage: on its fine grid a layer of `tiny` has 32 channels, and four
# modules of rank 4 add half as many.
PLACES = {"banked": "trunk.*", "banked_behind_stage0": "trunk.stage[!0]*,trunk.lift*"}
SWITCHES = 100


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", default="tiny")
    command.add_argument("--rounds", type=int, default=30)
    command.set_defaults(run=modular)


def modular(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare two tasks and four domains in one graph with the base and with separate networks, in ONNX Runtime.

    Weights are random. Banked: a low-rank module of rank 4 for each domain at every slot of the trunk, and at all but
    those of its first stage, switched by an input. Folded: the module of one domain in the weights. Separate: a network
    per task and domain, of which a frame needs two. Latency is that of the engine, with alternating rounds. Memory is
    what a process gains by opening the networks and running each once. Frames with and without a switch alternate too.
    """
    with tempfile.TemporaryDirectory() as folder:
        graphs = _graphs(arguments.config, Path(folder))
        inputs = {name: dict(np.load(path.with_suffix(".npz"))) for name, path in graphs.items()}
        one = ("base", "folded", *PLACES, "detection rain", "map rain")
        engines = {name: OnnxRuntimeEngine(graphs[name]) for name in one}
        seconds: dict[str, list[float]] = {name: [] for name in one}
        for _ in range(arguments.rounds + 2):
            for name, engine in engines.items():
                seconds[name].append(_seconds(engine, inputs[name]))
        medians = {name: statistics.median(values[2:]) for name, values in seconds.items()}
        steady, switching = [], []
        for i in range(SWITCHES):
            for domain, times in ((0, steady), (i % len(DOMAINS), switching)):
                route = {"route": np.eye(len(DOMAINS), dtype=np.float32)[[domain]]}
                times.append(_seconds(engines["banked"], inputs["banked"] | route))
        separate = [path for name, path in graphs.items() if " " in name]
        memory = {name: _memory(paths) for name, paths in {
            "base": [graphs["base"]], "banked": [graphs["banked"]], "separate": separate}.items()}  # fmt: skip
    return {
        "latency_ratio_banked": medians["banked"] / medians["base"],
        "latency_ratio_banked_behind_stage0": medians["banked_behind_stage0"] / medians["base"],
        "latency_ratio_folded": medians["folded"] / medians["base"],
        "latency_ratio_separate": (medians["detection rain"] + medians["map rain"]) / medians["base"],
        "memory_ratio_banked": memory["banked"] / memory["base"],
        "memory_ratio_separate": memory["separate"] / memory["base"],
        "switch_ms": 1000 * max(0.0, statistics.median(switching) - statistics.median(steady)),
        "p99_ms_steady": 1000 * float(np.percentile(steady, 99)),
        "p99_ms_switching": 1000 * float(np.percentile(switching, 99)),
        "seconds": medians,
        "megabytes": memory,
        "rounds": arguments.rounds,
    }


def _seconds(engine: OnnxRuntimeEngine, inputs: dict[str, np.ndarray]) -> float:
    start = time.perf_counter()
    engine.run(inputs)
    return time.perf_counter() - start


def _graphs(name: str, folder: Path) -> dict[str, Path]:
    """The compared graphs, each with its golden inputs in an .npz file beside it."""
    every: list[list[str]] = [[], *([domain] for domain in DOMAINS)]
    graphs = {}
    for place, slots in PLACES.items():
        run = _run(name, slots.split(","), folder / f"run-{place}")
        graphs[place] = export(run, folder / place, every, console=Console(quiet=True)).onnx
    run = folder / "run-banked"
    graphs["base"] = export(run, folder / "base", console=Console(quiet=True)).onnx
    for domain in DOMAINS:
        bundle = export(run, folder / domain, [[domain]], console=Console(quiet=True))
        if domain == DOMAINS[0]:
            graphs["folded"] = bundle.onnx
        for task, head in bundle.manifest.heads.items():
            outputs = [f"{task}/{output.name}" for output in head.outputs]
            graphs[f"{task} {domain}"] = file = folder / f"{task}-{domain}.onnx"
            onnx.utils.extract_model(bundle.onnx, file, [tensor.name for tensor in bundle.manifest.inputs], outputs)
            np.savez(file.with_suffix(".npz"), **bundle.golden()[0])
    for path in graphs.values():
        if path.parent != folder:
            np.savez(path.with_suffix(".npz"), **Bundle.load(path.parent).golden()[0])
    return graphs


def _run(name: str, slots: list[str], folder: Path) -> Path:
    """A checkpoint of the configuration with a module for each domain at these slots."""
    modules = [{"kind": "low_rank", "name": domain, "rank": 4, "when": [domain], "slots": slots} for domain in DOMAINS]
    config = parse_config(load_config(find_config(name)).model_dump(mode="json") | {"modules": modules}, name)
    save_model(folder, config, PerceptionModel(config))
    return folder


MEMORY = """
import sys, resource, numpy as np
from deploy.bundle import Bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
held = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
before, engines = held(), []
for path in sys.argv[1:]:
    engines.append(OnnxRuntimeEngine(open(path, "rb").read()))
    engines[-1].run(dict(np.load(path.replace(".onnx", ".npz"))))
print(held() - before)
"""


def _memory(graphs: list[Path]) -> float:
    """Memory (MB) that a fresh process gains by running the graphs."""
    command = [sys.executable, "-c", MEMORY, *(str(path) for path in graphs)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
