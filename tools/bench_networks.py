"""Networks on a CPU: modules in one graph, further tasks, and the pillars of a frame."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx.utils
import torch
from benchmark import QUIET, measure_times, medians, with_tasks

from deploy.bundle import Bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from deploy.golden import synthetic_frame
from deploy.onnx_export import run, to_onnx
from perception.checkpoint import save_model
from perception.config import Config, find_config, load_config, parse_config
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, no_sensors, prepare
from perception.sensors.lidar.pillars import group

# ----- modules in one graph, folded, and as separate networks

DOMAINS = ("rain", "fog", "night", "singapore")
SWITCHES = 100


def modular(quick: bool) -> dict[str, Any]:
    """Compare two tasks and four domains in one graph with the base and with separate networks, in ONNX Runtime.

    Weights of `tiny` are random. Banked: a low-rank module of rank 4 for each domain at every slot of the trunk,
    switched by an input. Folded: the module of one domain in the weights. Separate: a network per task and domain, of
    which a frame needs two. Latency is that of the engine. Megabytes are what a process gains by opening the networks
    and running each once. Frames with and without a switch alternate too.
    """
    rounds = 1 if quick else 30
    with tempfile.TemporaryDirectory() as folder:
        graphs = _graphs(Path(folder))
        inputs = {name: dict(np.load(path.with_suffix(".npz"))) for name, path in graphs.items()}
        one = ("base", "folded", "banked", "detection rain", "map rain")
        engines = {name: OnnxRuntimeEngine(graphs[name]) for name in one}
        median = medians(measure_times({name: runner(engines[name], inputs[name]) for name in one}, rounds))
        banked = [inputs["banked"] | {"route": route[None]} for route in np.eye(len(DOMAINS), dtype=np.float32)]
        switched: dict[str, Callable[[int], object]] = {
            "steady": lambda _: engines["banked"].run(banked[0]),
            "switching": lambda i: engines["banked"].run(banked[i % len(DOMAINS)]),
        }
        frames = range(len(DOMAINS) if quick else SWITCHES)
        (steady,), (switching,) = measure_times(switched, 1, inputs=frames, discarded=0).values()
        separate = [path for name, path in graphs.items() if " " in name]
        sides = {"base": [graphs["base"]], "banked": [graphs["banked"]], "separate": separate}
        memory = {name: _megabytes(paths) for name, paths in sides.items()}
    return {
        "latency_ratio_banked": median["banked"] / median["base"],
        "latency_ratio_folded": median["folded"] / median["base"],
        "latency_ratio_separate": (median["detection rain"] + median["map rain"]) / median["base"],
        "memory_ratio_banked": memory["banked"] / memory["base"],
        "memory_ratio_separate": memory["separate"] / memory["base"],
        "switch_ms": 1000 * max(0.0, float(np.median(switching) - np.median(steady))),
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
    every: list[list[str]] = [[], *([domain] for domain in DOMAINS)]
    graphs = {
        "base": export(checkpoint, folder / "base", console=QUIET).onnx,
        "banked": export(checkpoint, folder / "banked", every, console=QUIET).onnx,
    }
    for domain in DOMAINS:
        bundle = export(checkpoint, folder / domain, [[domain]], console=QUIET)
        if domain == DOMAINS[0]:
            graphs["folded"] = bundle.onnx
        for task, head in bundle.manifest.heads.items():
            outputs = [f"{task}/{output.name}" for output in head.outputs]
            graphs[f"{task} {domain}"] = file = folder / f"{task}-{domain}.onnx"
            onnx.utils.extract_model(bundle.onnx, file, [tensor.name for tensor in bundle.manifest.inputs], outputs)
            np.savez(file.with_suffix(".npz"), **bundle.golden()[0])
    for name in ("base", "banked", "folded"):
        np.savez(graphs[name].with_suffix(".npz"), **Bundle.load(graphs[name].parent).golden()[0])
    return graphs


GROWTH = """
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


def _megabytes(graphs: list[Path]) -> float:
    """Memory (MB) that a fresh process gains by running the graphs."""
    command = [sys.executable, "-c", GROWTH, *(str(path) for path in graphs)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# ----- what further tasks cost a network that is deployed: operations, and time in ONNX Runtime

TIMED, TASKS = "tiny", ("tasks/points", "tasks/occupancy_coarse")
COUNTED, LARGE = "nuscenes/fusion", ("tasks/points", "tasks/occupancy")  # with the voxels of Occ3D


def tasks(quick: bool) -> dict[str, Any]:
    """Each further task alone, and all, against the configuration as it is; folded, random weights, one street.

    `with modules`: all, and each task reads the trunk with the modules of its own, so that the trunk runs for it again.
    `cpu` is the median processor time of all threads, without making the inputs; `operations` counts a multiplication
    and an addition as two. Both are ratios to the network without further tasks.
    """
    rounds = 1 if quick else 30
    flops, engines = _deploy(TIMED, TASKS)
    variants = {name: runner(engine, inputs) for name, (engine, inputs) in engines.items()}
    seconds = medians(measure_times(variants, rounds, [time.process_time]))
    counted, _ = (flops, engines) if quick else _deploy(COUNTED, LARGE)
    return {
        "config": TIMED,
        "cpu": {name: value / seconds["base"] for name, value in seconds.items()},
        "operations": {name: count / flops["base"] for name, count in flops.items()},
        "seconds": seconds,
        "rounds": rounds,
        "sized": COUNTED,
        "sized_operations": {name: count / counted["base"] for name, count in counted.items()},
    }


Engines = dict[str, tuple[OnnxRuntimeEngine, dict[str, np.ndarray]]]  # with the inputs of one frame


def _deploy(name: str, files: Sequence[str]) -> tuple[dict[str, int], Engines]:
    """Operations and engine of the configuration, with each task alone, and with all."""
    flops: dict[str, int] = {}
    engines: Engines = {}
    variants: dict[str, Sequence[str]] = {"base": (), **{file: (file,) for file in files}, "all": files}
    for variant, added in {**variants, "with modules": files}.items():
        config = with_tasks(name, added, modules=variant == "with modules")
        inputs = prepare(synthetic_frame(config.grid.reference, config.rig), InputSpec.of(config))
        flops[variant], engine = _engine(config, inputs)
        engines[variant] = engine, inputs
    return flops, engines


def _engine(config: Config, inputs: dict[str, np.ndarray]) -> tuple[int, OnnxRuntimeEngine]:
    """Operations of the exported network, and its engine."""
    torch.manual_seed(config.seed)
    model = PerceptionModel(config).deployed(Conditions())
    outputs, flops = run(model, dict(inputs))
    return flops, OnnxRuntimeEngine(to_onnx(model, inputs, list(outputs)).SerializeToString())


# ----- the points of ten LiDAR sweeps in pillars, as for every frame on the vehicle

SWEEPS, BEAMS, FIRINGS = 10, 32, 940  # 300,800 points


def pillars(quick: bool) -> dict[str, Any]:
    """Milliseconds to group a cloud on the grid of `nuscenes/fusion`: processor time of one thread, of many rounds."""
    chosen, points = load_config(find_config("nuscenes/fusion")), street()
    grid = chosen.grid.build()
    inputs = no_sensors(InputSpec(grid, chosen.model.lidar, None, chosen.rig))
    buffers = [inputs[f"pillar_{name}"][0] for name in ("points", "counts", "cells")]
    sides = {"pillars": lambda _: group(points, grid, *buffers)}
    seconds = measure_times(sides, 1 if quick else 50, [time.thread_time])
    return {"points": len(points), "ms": 1000 * medians(seconds)["pillars"]}


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
