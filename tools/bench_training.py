"""Training: the cameras' depth with and without supervision, and a step's processor time by the allocator's setting."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from benchmark import KEYFRAMES, SHARED, NuScenes, Rounds

from perception.checkpoint import load_model
from perception.commands.common import KEEP_MEMORY
from perception.config import Config, find_config, load_config, parse_config
from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.model import PerceptionModel
from perception.sensors.camera.depth import depth_labels
from perception.sensors.camera.pretrained import PACKAGE, PACKAGED
from perception.sensors.inputs import InputSpec, prepare
from perception.training import loop

# ----- error of the cameras' depth against the LiDAR on real keyframes

TRAINED, HELD_BACK = "scene-0103:0-2", "scene-0103:2-4"
LITE0 = {"backbone": PACKAGED, "weights": PACKAGE}
# Options of `model.camera`, and of its depth.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "without": ({}, {}),
    "with": ({}, {"supervision": 3.0}),
    "with_intrinsics": ({}, {"supervision": 3.0, "intrinsics": True}),
    "imagenet_without": (LITE0, {}),
    "imagenet_with": (LITE0, {"supervision": 3.0}),
    "imagenet_with_intrinsics": (LITE0, {"supervision": 3.0, "intrinsics": True}),
}


def depth(
    data: NuScenes = KEYFRAMES,
    config: str = "nuscenes/overfit_camera",
    steps: int = 80,
    ways: Annotated[str, typer.Option(help=f"Of {','.join(WAYS)}.")] = "without,with",
) -> dict[str, Any]:
    """For each way to train on two keyframes: median of |depth - LiDAR| / LiDAR over the cells with points in two
    others, `expected` for the depth's expectation, `most_likely` for its most likely bin.

    `cell_median` is the error without any network: each cell's median depth in the two keyframes, where it has one.
    """
    tables = NuScenesTables(data, "v1.0-mini")
    content = load_config(find_config(config)).model_dump(mode="json")
    result: dict[str, Any] = {"steps": steps}
    for way in ways.split(","):
        chosen, start = _config(content, way, steps), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            model, _ = load_model(loop.train(chosen, tables, None, Path(folder)))
        result[way] = _errors(model, tables) | {"processor_seconds": round(time.process_time() - start)}
    known, seen = (np.stack([labels for _, labels in _keyframes(model, tables, part)]) for part in (TRAINED, HELD_BACK))
    places = np.broadcast_to((known > 0).any(axis=0), seen.shape)
    median = np.nanmedian(np.where(known > 0, known, np.nan)[:, places[0]], axis=0)
    filled = np.zeros(seen.shape)
    filled[places] = np.tile(median, len(seen))
    return result | {"cell_median": _relative(filled, np.where(places, seen, 0)), "cells": int((seen > 0).sum())}


def _config(content: dict[str, Any], way: str, steps: int) -> Config:
    camera, options = WAYS[way]
    own = content["model"]["camera"] | camera
    own["depth"] = own["depth"] | options
    train = content["train"] | {"steps": steps, "batch": 2, "checkpoint_every": steps}
    data = content["data"] | {"scenes": [TRAINED]}
    return parse_config(content | {"model": content["model"] | {"camera": own}, "data": data, "train": train}, way)


def _keyframes(model: PerceptionModel, tables: Keyframes, part: str) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Inputs of the network, and labels (N, h, w) of its depth."""
    spec, found = InputSpec.of(model.config), []
    assert spec.camera is not None
    stride = model.camera.backbone.feature_info.reduction()[0]
    cells = (spec.camera.image.height // stride, spec.camera.image.width // stride)
    for token in tables.samples(selectors=[part]):
        frame = tables.frame(token, Reads(spec.grid.reference))
        inputs = prepare(frame, spec)
        projections = inputs["image_from_reference"][0]
        found.append((inputs, depth_labels(frame.points, projections, spec.camera.image, cells, spec.camera.depth)))
    return found


def _errors(model: PerceptionModel, tables: Keyframes) -> dict[str, float]:
    camera = InputSpec.of(model.config).camera
    assert camera is not None
    bins = camera.depth
    centres = bins.near + (torch.arange(bins.bins) + 0.5) * (bins.far - bins.near) / bins.bins
    found = []
    for inputs, labels in _keyframes(model, tables, HELD_BACK):
        given = (torch.from_numpy(inputs[name]) for name in ("images", "image_from_reference"))
        with torch.no_grad():
            shares = model.camera(*given)[1][0].softmax(dim=1)  # N D h w
        found.append((torch.einsum("ndhw,d->nhw", shares, centres), centres[shares.argmax(dim=1)], labels))
    expected, likely, seen = (np.stack([np.asarray(each) for each in part]) for part in zip(*found, strict=True))
    return {"expected": _relative(expected, seen), "most_likely": _relative(likely, seen)}


def _relative(depths: np.ndarray, seen: np.ndarray) -> float:
    """Median of |depth - LiDAR| / LiDAR over the cells with points."""
    known = seen > 0
    return float(np.median(np.abs(depths[known] - seen[known]) / seen[known]))


# ----- processor time of a training step without and with the allocator's setting (`keep_memory`)

SHORT, LONG = 2, 12  # steps; the difference leaves start and end of a run out
FRAMES = "002:0-16"  # frames of PandaSet
KITTI = Path(__file__).parents[1] / "configs" / "kitti" / "pointpillars.yaml"


class Used(NamedTuple):
    seconds: float  # of the processors, in user mode and in the kernel
    kernel: float
    megabytes: float  # largest resident memory


def train(
    drives: Annotated[Path, typer.Option(help="For tiny.")] = Path("runs/demo/drives"),
    pandaset: Annotated[Path, typer.Option(help="For the module of the KITTI network.")] = SHARED / "pandaset",
    weights: Path = SHARED / "pointpillars_kitti" / "pointpillars.safetensors",
    rounds: Rounds = 3,
) -> dict[str, Any]:
    """Processor-seconds of a step of `perception train configs/tiny.yaml` and of `perception adapt` on PandaSet.

    Each run is a command of its own; a step is the difference between 12 and 2 steps, by 10. The sides alternate.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        subprocess.run(
            [*_perception(), "import-pointpillars", KITTI, weights, "--out", out / "kitti"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        commands = {
            "tiny": ["train", find_config("tiny"), "--data", drives],
            "kitti": [
                "adapt", out / "kitti", "--data", pandaset, "--rig", "pandaset_64", "--split", "all",
                "--scenes", FRAMES, "--add", "low_rank:pandaset", "--slots", "trunk.stage*.?,trunk.lift?,heads.*",
                "--option", "rank=1",
            ],
        }  # fmt: skip
        result: dict[str, Any] = {}
        for threads in ("1", "all"):
            steps = {name: _compare(command, threads, out, rounds) for name, command in commands.items()}
            result["one_thread" if threads == "1" else "all_threads"] = steps
    single = result["one_thread"]
    return {
        "cpu_seconds_per_step": {
            name: {side: values[side]["seconds"] for side in ("default", "kept")} for name, values in single.items()
        },
        **{f"speedup_{name}": values["speedup"] for name, values in single.items()},
        **result,
        "rounds": rounds,
    }


def _compare(command: list[Any], threads: str, out: Path, rounds: int) -> dict[str, Any]:
    """Medians of both sides, and the ratios of their seconds and of their memory."""
    used: dict[str, list[Used]] = {"default": [], "kept": []}
    for _ in range(rounds):
        for side, values in used.items():
            short, long = (_run([*command, "--steps", count], threads, side, out) for count in (SHORT, LONG))
            steps = LONG - SHORT
            seconds, kernel = (long.seconds - short.seconds) / steps, (long.kernel - short.kernel) / steps
            values.append(Used(seconds, kernel, long.megabytes))
    medians = {
        side: {name: statistics.median(getattr(each, name) for each in values) for name in Used._fields}
        for side, values in used.items()
    }
    default, kept = medians["default"], medians["kept"]
    return {
        **medians,
        "speedup": default["seconds"] / kept["seconds"],
        "memory_ratio": kept["megabytes"] / default["megabytes"],
    }


def _run(command: list[Any], threads: str, side: str, out: Path) -> Used:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {KEEP_MEMORY: "0" if side == "default" else "1"}
    if threads == "1":
        environment |= {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=out) as folder:
        full = [str(part) for part in (*_perception(), *command, "--out", Path(folder) / "run")]
        process = subprocess.Popen(full, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(full)}: exit code {process.returncode}")
    return Used(used.ru_utime + used.ru_stime, used.ru_stime, used.ru_maxrss / 1024)


def _perception() -> list[str]:
    return [sys.executable, "-m", "deploy.cli"]
