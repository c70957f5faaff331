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
from benchmark import QUIET, Rounds, measure_times, medians

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
from perception.training.adapt import read_task

# ----- modules in one graph, folded, and as separate networks

DOMAINS = ("rain", "fog", "night", "singapore")
# Slots of the modules. They cost most in the first stage: on its fine grid a layer of `tiny` has 32 channels, and four
# modules of rank 4 add half as many.
PLACES = {"banked": "trunk.*", "banked_behind_stage0": "trunk.stage[!0]*,trunk.lift*"}
SWITCHES = 100
MEMORY = {"name": "memory", "kind": "memory"}


def modular(config: str = "tiny", rounds: Rounds = 30) -> dict[str, Any]:
    """Compare two tasks and four domains in one graph with the base and with separate networks, in ONNX Runtime.

    Weights are random. Banked: a low-rank module of rank 4 for each domain at every slot of the trunk, and at all but
    those of its first stage, switched by an input. Folded: the module of one domain in the weights. Separate: a network
    per task and domain, of which a frame needs two. Latency is that of the engine, with alternating rounds. Megabytes
    are what a process gains by opening the networks and running each once. Frames with and without a switch alternate
    too.
    """
    with tempfile.TemporaryDirectory() as folder:
        graphs = _graphs(config, Path(folder))
        inputs = {name: dict(np.load(path.with_suffix(".npz"))) for name, path in graphs.items()}
        one = ("base", "folded", *PLACES, "detection rain", "map rain")
        engines = {name: OnnxRuntimeEngine(graphs[name]) for name in one}
        median = medians(measure_times({name: _with(engine, inputs[name]) for name, engine in engines.items()}, rounds))
        banked = [inputs["banked"] | {"route": route[None]} for route in np.eye(len(DOMAINS), dtype=np.float32)]
        switched: dict[str, Callable[[int], object]] = {
            "steady": lambda _: engines["banked"].run(banked[0]),
            "switching": lambda i: engines["banked"].run(banked[i % len(DOMAINS)]),
        }
        (steady,), (switching,) = measure_times(switched, 1, inputs=range(SWITCHES), discarded=0).values()
        separate = [path for name, path in graphs.items() if " " in name]
        sides = {"base": [graphs["base"]], "banked": [graphs["banked"]], "separate": separate}
        memory = {name: _memory(paths) for name, paths in sides.items()}
    return {
        "latency_ratio_banked": median["banked"] / median["base"],
        "latency_ratio_banked_behind_stage0": median["banked_behind_stage0"] / median["base"],
        "latency_ratio_folded": median["folded"] / median["base"],
        "latency_ratio_separate": (median["detection rain"] + median["map rain"]) / median["base"],
        "memory_ratio_banked": memory["banked"] / memory["base"],
        "memory_ratio_separate": memory["separate"] / memory["base"],
        "switch_ms": 1000 * max(0.0, float(np.median(switching) - np.median(steady))),
        "p99_ms_steady": 1000 * float(np.percentile(steady, 99)),
        "p99_ms_switching": 1000 * float(np.percentile(switching, 99)),
        "seconds": median,
        "megabytes": memory,
        "rounds": rounds,
    }


STRIDES = (1, 2, 4)  # sides of a cell of a memory's state, in cells of the fused map


def remembering(config: str = "tiny", rounds: Rounds = 30) -> dict[str, Any]:
    """Latency of a network with a memory relative to the base, in ONNX Runtime; the state stays in the engine.

    `latency_ratio` is that of a state with the cells of the fused map, `latency_ratios` of all strides.
    """
    networks = {"base": [], **{f"stride_{each}": [MEMORY | {"stride": each}] for each in STRIDES}}
    with tempfile.TemporaryDirectory() as folder:
        engines = {}
        for name, modules in networks.items():
            run = _run(config, modules, Path(folder) / f"run-{name}")
            bundle = export(run, Path(folder) / name, console=QUIET)
            engines[name] = _with(OnnxRuntimeEngine(bundle.onnx), dict(bundle.golden()[0]))
        median = medians(measure_times(engines, rounds))
    ratios = {name: seconds / median["base"] for name, seconds in median.items() if name != "base"}
    return {"latency_ratio": ratios["stride_1"], "latency_ratios": ratios, "seconds": median, "rounds": rounds}


def _with(engine: OnnxRuntimeEngine, inputs: dict[str, np.ndarray]) -> Callable[[object], object]:
    state = engine.new_state()
    return lambda _: engine.run(inputs, state)


def _graphs(name: str, folder: Path) -> dict[str, Path]:
    """The compared graphs, each with its golden inputs in an .npz file beside it."""
    every: list[list[str]] = [[], *([domain] for domain in DOMAINS)]
    graphs = {}
    for place, slots in PLACES.items():
        run = _run(name, [_domain_module(domain, slots.split(",")) for domain in DOMAINS], folder / f"run-{place}")
        graphs[place] = export(run, folder / place, every, console=QUIET).onnx
    run = folder / "run-banked"
    graphs["base"] = export(run, folder / "base", console=QUIET).onnx
    for domain in DOMAINS:
        bundle = export(run, folder / domain, [[domain]], console=QUIET)
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


def _domain_module(domain: str, slots: list[str]) -> dict[str, Any]:
    return {"kind": "low_rank", "name": domain, "rank": 4, "when": [domain], "slots": slots}


def _run(name: str, modules: list[dict[str, Any]], folder: Path) -> Path:
    """A checkpoint of the configuration with modules."""
    config = parse_config(load_config(find_config(name)).model_dump(mode="json") | {"modules": modules}, name)
    save_model(folder, config, PerceptionModel(config))
    return folder


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


def _memory(graphs: list[Path]) -> float:
    """Memory (MB) that a fresh process gains by running the graphs."""
    command = [sys.executable, "-c", GROWTH, *(str(path) for path in graphs)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# ----- what further tasks cost a network that is deployed: operations, and time in ONNX Runtime

TIMED, TASKS = "tiny", ("tasks/points", "tasks/occupancy_coarse")
COUNTED, LARGE = "nuscenes/fusion", ("tasks/points", "tasks/occupancy")  # with the voxels of Occ3D


def tasks(rounds: Rounds = 30) -> dict[str, Any]:
    """Each further task alone, and all, against the configuration as it is; folded, random weights, one street.

    `with modules`: all, and each task reads the trunk with the modules of its own, so that the trunk runs for it again.

    `cpu` is the median processor time of all threads, with alternating rounds, without making the inputs; `operations`
    counts a multiplication and an addition as two. Both are ratios to the network without further tasks.
    """
    flops, engines = _deploy(TIMED, TASKS)
    variants = {name: _with(engine, inputs) for name, (engine, inputs) in engines.items()}
    seconds = medians(measure_times(variants, rounds, [time.process_time]))
    counted, _ = _deploy(COUNTED, LARGE)
    return {
        "config": TIMED,
        "cpu": {name: value / seconds["base"] for name, value in seconds.items()},
        "operations": {name: count / flops["base"] for name, count in flops.items()},
        "seconds": seconds,
        "rounds": rounds,
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


def _deploy(name: str, files: Sequence[str]) -> tuple[dict[str, int], Engines]:
    """Operations and engine of the configuration, with each task alone, and with all."""
    flops: dict[str, int] = {}
    engines: Engines = {}
    variants: dict[str, Sequence[str]] = {"base": (), **{file: (file,) for file in files}, "all": files}
    for variant, added in {**variants, "with modules": files}.items():
        config = with_tasks(name, added, modules=variant == "with modules")
        inputs = prepare(synthetic_frame(config.grid.reference, config.rig), InputSpec.of(config))
        flops[variant], engine = export_graph(config, inputs)
        engines[variant] = engine, inputs
    return flops, engines


def export_graph(config: Config, inputs: dict[str, np.ndarray]) -> tuple[int, OnnxRuntimeEngine]:
    """Operations of the exported network, and its engine."""
    torch.manual_seed(config.seed)
    model = PerceptionModel(config).deployed(Conditions())
    outputs, flops = run(model, dict(inputs))
    return flops, OnnxRuntimeEngine(to_onnx(model, inputs, list(outputs)).SerializeToString())


# ----- the points of ten LiDAR sweeps in pillars, as for every frame on the vehicle

SWEEPS, BEAMS, FIRINGS = 10, 32, 940  # 300,800 points


def pillars(config: str = "nuscenes/fusion", rounds: Rounds = 50) -> dict[str, Any]:
    """Milliseconds to group a cloud on the grid of a configuration: median of all rounds but the first two.

    It is the processor time of `group`, which runs in one thread, without reading the sweeps.
    """
    chosen = load_config(find_config(config))
    lidar, grid, points = chosen.model.lidar, chosen.grid.build(), street()
    if lidar is None:
        raise SystemExit(f"{config} has no LiDAR")
    inputs = no_sensors(InputSpec(grid, lidar, None, chosen.rig))
    buffers = [inputs[f"pillar_{name}"][0] for name in ("points", "counts", "cells")]
    seconds = measure_times({"pillars": lambda _: group(points, grid, *buffers)}, rounds, [time.thread_time])
    return {"points": len(points), "ms": 1000 * medians(seconds)["pillars"]}


def street(seed: int = 0) -> np.ndarray:
    """(N, 5) float32 points of ten sweeps of a 32-beam scanner that drives along a street at 10 m/s.

    Like nuScenes' LiDAR it has beams from -30.67 to 10.67 degrees, 1.84 m above flat ground. Obstacles are at 6 to 70 m
    and 14 firings wide. The density falls with distance as in a real cloud. Equal seeds give equal clouds.
    """
    rng = np.random.default_rng(seed)
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
