"""Networks on a CPU: modules in one graph, further tasks, and the pillars of a frame."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx.utils
import torch
from benchmark import QUIET, median_seconds, with_tasks

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from deploy.golden import synthetic_frame
from deploy.onnx_export import run, to_onnx
from perception.checkpoint import save_model
from perception.config import Config, find_config, load_config, parse_config
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.sensors.inputs import no_sensors, prepare
from perception.sensors.lidar.pillars import group

# ----- modules in one graph, folded, and as separate networks

DOMAINS = ("rain", "fog", "night", "singapore")
SWITCHES = 100


def modular(quick: bool) -> dict[str, Any]:
    """Compare two tasks and four domains in one graph with the base and with separate networks, in ONNX Runtime.

    Weights of `tiny` are random. Banked: a low-rank module of rank 4 for each domain at every slot of the trunk,
    switched by an input. Folded: the module of one domain in the weights. Separate: a network per task and domain, of
    which a frame needs two. Latency is that of the engine. Megabytes are what a process gains by opening the network
    and running it once. Frames with and without a switch alternate too.
    """
    rounds = 1 if quick else 30
    with tempfile.TemporaryDirectory() as folder:
        graphs = _graphs(Path(folder))
        inputs = {name: dict(np.load(path.with_suffix(".npz"))) for name, path in graphs.items()}
        engines = {name: OnnxRuntimeEngine(graph) for name, graph in graphs.items()}
        median = median_seconds({name: runner(each, inputs[name]) for name, each in engines.items()}, rounds)
        banked = [inputs["banked"] | {"route": route[None]} for route in np.eye(len(DOMAINS), dtype=np.float32)]
        switched: dict[str, Callable[[int], object]] = {
            "steady": lambda _: engines["banked"].run(banked[0]),
            "switching": lambda i: engines["banked"].run(banked[i % len(DOMAINS)]),
        }
        frames = range(len(DOMAINS) if quick else SWITCHES)
        switching = median_seconds(switched, 1, inputs=frames, discarded=0)
        memory = {name: _megabytes(graphs[name]) for name in ("base", "banked")}
    return {
        "latency_ratio_banked": median["banked"] / median["base"],
        "latency_ratio_folded": median["folded"] / median["base"],
        "latency_ratio_separate": sum(median[each] for each in median if "alone" in each) / median["base"],
        "memory_ratio_banked": memory["banked"] / memory["base"],
        "switch_ms": 1000 * max(0.0, switching["switching"] - switching["steady"]),
        "seconds": median,
        "megabytes": memory,
        "rounds": rounds,
    }


def runner(engine: OnnxRuntimeEngine, inputs: dict[str, np.ndarray]) -> Callable[[object], object]:
    """Runs the same frame again and again, with a state if the engine has one."""
    state = engine.new_state()
    return lambda _: engine.run(inputs, state)


def random_run(name: str, modules: list[dict[str, Any]], folder: Path) -> Path:
    """A checkpoint of the configuration with modules and random weights."""
    config = parse_config(load_config(find_config(name)).model_dump(mode="json") | {"modules": modules}, name)
    save_model(folder, config, PerceptionModel(config))
    return folder


def _graphs(folder: Path) -> dict[str, Path]:
    """The compared graphs, each with its golden inputs in an .npz file beside it."""
    modules = [
        {"kind": "low_rank", "name": domain, "rank": 4, "when": [domain], "slots": ["trunk.*"]} for domain in DOMAINS
    ]
    checkpoint = random_run("tiny", modules, folder / "run")
    routes: dict[str, list[list[str]]] = {
        "base": [[]],
        "banked": [[], *([domain] for domain in DOMAINS)],
        "folded": [[DOMAINS[0]]],
    }
    bundles = {name: export(checkpoint, folder / name, each, console=QUIET) for name, each in routes.items()}
    for each in bundles.values():
        np.savez(each.onnx.with_suffix(".npz"), **each.golden()[0])
    graphs, bundle = {name: each.onnx for name, each in bundles.items()}, bundles["folded"]
    for task, head in bundle.manifest.heads.items():
        outputs = [f"{task}/{output.name}" for output in head.outputs]
        graphs[f"{task} alone"] = file = folder / f"{task}.onnx"
        onnx.utils.extract_model(bundle.onnx, file, [tensor.name for tensor in bundle.manifest.inputs], outputs)
        np.savez(file.with_suffix(".npz"), **bundle.golden()[0])
    return graphs


GROWTH = """
import sys, resource, numpy as np
from deploy.engines.onnxruntime import OnnxRuntimeEngine
held = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
before, engine = held(), OnnxRuntimeEngine(open(sys.argv[1], "rb").read())
engine.run(dict(np.load(sys.argv[1].replace(".onnx", ".npz"))))
print(held() - before)
"""


def _megabytes(graph: Path) -> float:
    """Memory (MB) that a fresh process gains by running the graph."""
    command = [sys.executable, "-c", GROWTH, str(graph)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# ----- what further tasks cost a network that is deployed: operations, and time in ONNX Runtime

TIMED, COUNTED = "tiny", "nuscenes/fusion"
TASKS = {  # the larger network with the voxels of Occ3D
    TIMED: ("tasks/points", "tasks/occupancy_coarse"),
    COUNTED: ("tasks/points", "tasks/occupancy"),
}


def tasks(quick: bool) -> dict[str, Any]:
    """Each further task alone, and all, against the configuration as it is; folded, random weights, one street.

    `cpu` is the median processor time of all threads of `tiny`, without making the inputs; `operations` counts a
    multiplication and an addition as two, `sized_operations` those of `nuscenes/fusion`. All are ratios to the network
    without further tasks.
    """
    networks = _with_each(TIMED)
    sized = networks if quick else _with_each(COUNTED)
    variants = {
        name: runner(OnnxRuntimeEngine(graph.SerializeToString()), inputs)
        for name, (graph, inputs, _) in networks.items()
    }
    seconds = median_seconds(variants, 1 if quick else 30, time.process_time)
    return {
        "cpu": {name: value / seconds["base"] for name, value in seconds.items()},
        "operations": {name: each[2] / networks["base"][2] for name, each in networks.items()},
        "sized_operations": {name: each[2] / sized["base"][2] for name, each in sized.items()},
        "seconds": seconds,
    }


def _with_each(name: str) -> dict[str, tuple[onnx.ModelProto, dict[str, np.ndarray], int]]:
    """Graph, inputs of a frame and operations of the configuration, with each task alone and with all."""
    found, files = {}, TASKS[name]
    for variant, added in {"base": (), **{file: (file,) for file in files}, "all": files}.items():
        config = with_tasks(name, added)
        inputs = prepare(synthetic_frame(config.grid.reference, config.rig), config.spec)
        graph, operations = deployed_graph(config, inputs)
        found[variant] = graph, inputs, operations
    return found


def deployed_graph(config: Config, inputs: dict[str, np.ndarray]) -> tuple[onnx.ModelProto, int]:
    """The exported network with random weights, and its operations."""
    torch.manual_seed(config.seed)
    model = PerceptionModel(config).deployed(Conditions())
    outputs, flops = run(model, dict(inputs))
    return to_onnx(model, inputs, list(outputs)), flops


# ----- the points of ten LiDAR sweeps in pillars, as for every frame on the vehicle

SWEEPS, BEAMS, FIRINGS = 10, 32, 940  # 300,800 points


def pillars(quick: bool) -> dict[str, Any]:
    """Milliseconds to group a cloud on the grid of `nuscenes/fusion`: processor time of one thread, of many rounds."""
    chosen, points = load_config(find_config("nuscenes/fusion")), street()
    grid = chosen.grid.build()
    inputs = no_sensors(replace(chosen.spec, configs={"lidar": chosen.model.sensors["lidar"]}))
    buffers = [inputs[f"pillar_{name}"][0] for name in ("points", "counts", "cells")]
    sides = {"pillars": lambda _: group(points, grid, *buffers)}
    seconds = median_seconds(sides, 1 if quick else 50, time.thread_time)["pillars"]
    return {"points": len(points), "ms": 1000 * seconds}


def street() -> np.ndarray:
    """(N, 5) float32 points of ten sweeps of a 32-beam scanner that drives along a street at 10 m/s.

    Like nuScenes' LiDAR it has beams from -30.67 to 10.67 degrees, 1.84 m above flat ground. Obstacles are at 6 to 70 m
    and 14 firings wide. The density falls with distance as in a real cloud.
    """
    rng = np.random.default_rng(0)
    tangent = np.tan(np.radians(np.linspace(-30.67, 10.67, BEAMS)))[:, None]
    ground = np.divide(-1.84, tangent, where=tangent < 0, out=np.full_like(tangent, np.inf))
    sweeps = []
    for sweep in range(SWEEPS):
        azimuth = rng.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi, FIRINGS, endpoint=False)
        obstacle = rng.uniform(6, 70, FIRINGS // 14 + 1).repeat(14)[:FIRINGS]
        distance = np.minimum(ground, obstacle) + rng.normal(0, 0.02, (BEAMS, FIRINGS))
        x, y = distance * np.cos(azimuth) - 0.5 * sweep, distance * np.sin(azimuth)
        z, intensity = 1.84 + distance * tangent, rng.uniform(0, 255, distance.shape)
        age = np.full(distance.shape, 0.05 * sweep)
        sweeps.append(np.stack([x, y, z, intensity, age], axis=-1).reshape(-1, 5))
    return np.concatenate(sweeps).astype(np.float32)
