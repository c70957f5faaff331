"""The C++ runtime beside the Python runtime, on the demo's bundle and changing drive; `make cpp` builds it."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmark import DEMO, median_seconds
from recorded_engine import add_recorded_plan, count_allocations, golden_runs

from deploy.bundle import Bundle
from deploy.runtime import Runtime
from perception.datasets.sources import open_source
from perception.frame import Frame
from perception.grid import BevGrid
from perception.sensors.lidar.pillars import group

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "deploy" / "cpp" / "python"))
POINTS, PILLARS = 300_000, (30_000, 20)
BOXES = ("centers", "sizes", "rotations", "velocities", "labels", "attributes", "scores")
OUTSIDE_ENGINE = ("preprocess", "postprocess")


def cpp(quick: bool) -> dict[str, Any]:
    """Whether all results of the drive are identical, and what steps without the network take.

    A step without the network is preprocessing, steering and postprocessing of a frame in memory; both runtimes step
    frame by frame in turn. Allocations are the most of a frame once all were seen twice, with an engine of recorded
    outputs. Pillars are 300,000 points on a grid of 128 x 128 cells, one core.
    """
    os.environ.setdefault("TESSERA_LIBRARY", str(ROOT / "runs" / "cpp" / "release" / "libtessera.so"))
    native: Any = importlib.import_module("tessera_runtime")
    bundle = DEMO / "bundle"
    python = Runtime(bundle, checks=False)
    drive = open_source(DEMO / "changing", None, python.bundle.spec.rig)
    frames = [drive.frame(token, python.bundle.spec.reads) for token in drive.samples()[: 3 if quick else None]]
    seconds: dict[str, list[float]] = {"python": [], "cpp": []}
    steps: list[float] = []
    given: list[tuple[Frame, tuple[str, ...]]] = []
    identical = True
    with native.Runtime(bundle) as runtime:
        for _ in range(1 if quick else 5):
            python.restart()
            runtime.restart()
            for frame in frames:
                scene = python.step(frame)
                known = scene.conditions.known()
                given.append((frame, known))
                start = time.perf_counter()
                arrays = runtime.step(frame, known)
                steps.append(time.perf_counter() - start)
                identical &= _equal(arrays, scene.prediction.results)
                seconds["python"].append(sum(scene.seconds[stage] for stage in OUTSIDE_ENGINE))
                seconds["cpp"].append(sum(runtime.seconds()[stage] for stage in OUTSIDE_ENGINE))
    middle = {name: float(np.median(each)) for name, each in seconds.items()}
    return {
        "identical": identical,
        "frames": len(frames),
        **{f"{name}_without_network_ms": 1000 * each for name, each in middle.items()},
        "step_without_network_ratio": middle["cpp"] / middle["python"],
        "p99_over_p50": float(np.percentile(steps, 99) / np.median(steps)),
        "allocations_per_frame": _allocations(bundle, given[: len(frames)]),
        **_pillars(native, 1 if quick else 20),
    }


def _allocations(bundle: Path, frames: Sequence[tuple[Frame, Sequence[str]]]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        copied = Bundle.load(shutil.copytree(bundle, Path(folder) / "bundle"))
        add_recorded_plan(copied, golden_runs(copied))
        return max(count_allocations(copied.path, frames, Path(os.environ["TESSERA_LIBRARY"]).parent))


def _equal(arrays: Mapping[str, np.ndarray], results: Mapping[str, Any]) -> bool:
    """Whether boxes, map and conditions have the same bytes."""
    expected = {f"detection/{name}": getattr(results["detection"], name) for name in BOXES}
    values = [each for kind in results["conditions"].values() for each in kind]
    expected |= {"map/probabilities": results["map"], "conditions/probabilities": np.array(values, np.float64)}
    return all(arrays[name].tobytes() == np.ascontiguousarray(each).tobytes() for name, each in expected.items())


def _pillars(native: Any, rounds: int) -> dict[str, Any]:
    """Milliseconds of both, and whether their pillars are equal."""
    rng, grid = np.random.default_rng(0), BevGrid()
    places, intensities = rng.normal(0, [20, 20, 1], (POINTS, 3)), rng.uniform(0, 255, (POINTS, 1))
    points = np.concatenate([places, intensities, np.zeros((POINTS, 1))], axis=1).astype(np.float32)
    python, cpp = _empty(), _empty()
    sides = {"python": lambda _: group(points, grid, *python), "cpp": lambda _: native.group(points, grid, *cpp)}
    median = median_seconds(sides, rounds, discarded=0)
    equal = all(np.array_equal(*pair) for pair in zip(python, cpp, strict=True))
    return {"pillars_equal": equal, "pillars_ms": 1000 * median["cpp"], "pillars_python_ms": 1000 * median["python"]}


def _empty() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.empty((*PILLARS, 5), np.float32), np.empty(PILLARS[0], np.int32), np.empty(PILLARS[0], np.int32)
