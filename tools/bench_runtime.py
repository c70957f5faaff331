"""Memory of the runtime during a long drive, and the duration of its stages."""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from torch import nn

from deploy.export import export
from deploy.golden import synthetic_frame
from deploy.replay.latency import STAGES as REPLAYED
from deploy.runtime import Runtime
from perception.config import Config, find_config, load_config, parse_config
from perception.frame import Camera, Conditions, Frame
from perception.model import PerceptionModel
from perception.rig import load_rig
from perception.sensors.inputs import InputSpec, prepare
from perception.training.checkpoint import save_model

DIFFERENT = 8  # frames that are repeated at new positions
SPEED = 10.0  # m/s
STAGES = [stage for stage in REPLAYED if stage != "read"]
WARM = 0.1  # share of the frames after which one-time allocations are done


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--frames", type=int, default=10_000)
    command.set_defaults(run=runtime)


def runtime(arguments: argparse.Namespace) -> dict[str, Any]:
    """Memory of the process during a drive at 2 Hz with changing conditions and failing sensors, and times of a step.

    The network is `tiny` on a coarse grid with few channels and two modules: what the runtime keeps does not depend on
    the size of the network.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = small()
        save_model(Path(folder) / "run", config, _model(config))
        routes: list[list[str]] = [[], ["rain"], ["night"]]
        bundle = export(Path(folder) / "run", Path(folder) / "bundle", routes, console=Console(quiet=True))
        vehicle, held = Runtime(bundle.path), np.zeros(arguments.frames)
        seconds = np.zeros((arguments.frames, len(STAGES)))
        for i, frame in enumerate(drive(arguments.frames)):
            took = vehicle.step(frame).seconds
            seconds[i], held[i] = [took[stage] for stage in STAGES], resident()
    begin, end = np.array_split(held[int(WARM * arguments.frames) :], 4)[::3]
    return {
        "frames": arguments.frames,
        "megabytes": float(np.median(end)),
        "growth_megabytes": float(np.median(end) - np.median(begin)),
        "stage_ms_p50_p99": {
            stage: [1e3 * float(np.percentile(times, p)) for p in (50, 99)]
            for stage, times in zip(STAGES, seconds.T, strict=True)
        },
    }


def _model(config: Config) -> PerceptionModel:
    """A model with random weights and statistics of real activations, without which all scores would tie."""
    model = PerceptionModel(config)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # take over the statistics of the next batch
    inputs = prepare(synthetic_frame("ego", config.rig, seed=7), InputSpec.of(config))
    with torch.no_grad():
        model.train().forward({name: torch.from_numpy(array) for name, array in inputs.items()})
    return model.eval()


def small() -> Config:
    content = load_config(find_config("tiny")).model_dump(mode="json")
    content["grid"]["cell"] = 1.6
    content["model"]["lidar"] |= {"max_pillars": 3000, "points_per_pillar": 4, "channels": 8}
    content["model"]["camera"] |= {"channels": 8, "image": {"height": 32, "width": 96}}
    content["model"] |= {"fused_channels": 8}
    content["model"]["trunk"] |= {"channels": [8, 8, 8], "up_channels": 8}
    content["modules"] = [
        {"name": name, "kind": "low_rank", "slots": ["trunk.*"], "rank": 2, "when": [name]}
        for name in ("rain", "night")
    ]
    return parse_config(content, "small")


def drive(frames: int) -> Iterator[Frame]:
    """A straight drive; weather and light change, and sensors fail now and then."""
    pool = [synthetic_frame("ego", load_rig("nuscenes"), seed) for seed in range(DIFFERENT)]
    for frame in pool:  # small pictures, because resizing large ones would take most of the time
        for name, camera in frame.cameras.items():
            cast(dict[str, Camera], frame.cameras)[name] = replace(camera, image=camera.image[::8, ::8].copy())
    for i in range(frames):
        frame, pose = pool[i % DIFFERENT], np.eye(4)
        pose[0, 3] = 0.5 * SPEED * i
        yield replace(
            frame,
            token=f"frame-{i}",
            timestamp=500_000 * i,
            global_from_reference=pose,
            global_from_ego=pose,
            points=None if i % 13 == 0 else frame.points,
            cameras={} if i % 17 == 0 else frame.cameras,
            conditions=Conditions(weather=("clear", "rain")[i // 50 % 2], light=("day", "night")[i // 70 % 2]),
        )


def resident() -> float:
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
