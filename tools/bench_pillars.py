"""Time to group the points of ten LiDAR sweeps into pillars, as for every frame on the vehicle."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np

from perception.config import find_config, load_config
from perception.sensors.inputs import InputSpec, no_sensors
from perception.sensors.lidar.pillars import group

SWEEPS, BEAMS, FIRINGS = 10, 32, 940  # 300,800 points


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", default="nuscenes/fusion")
    command.add_argument("--rounds", type=int, default=50)
    command.set_defaults(run=pillars)


def pillars(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds to group a cloud on the grid of a configuration: median of all rounds but the first two.

    It is the processor time of `group`, which runs in one thread, without reading the sweeps.
    """
    config = load_config(find_config(arguments.config))
    lidar, grid, points = config.model.lidar, config.grid.build(), street()
    if lidar is None:
        raise SystemExit(f"{arguments.config} has no LiDAR")
    inputs = no_sensors(InputSpec(grid, lidar, None, config.rig))
    buffers = [inputs[f"pillar_{name}"][0] for name in ("points", "counts", "cells")]
    seconds = []
    for _ in range(arguments.rounds + 2):
        start = time.thread_time()
        group(points, grid, *buffers)
        seconds.append(time.thread_time() - start)
    return {"points": len(points), "ms": 1000 * statistics.median(seconds[2:])}


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
