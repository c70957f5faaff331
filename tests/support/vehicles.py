"""Vehicles that are cheap to simulate."""

from pathlib import Path

from once import once

from perception.rig import load_rig
from perception.simulate.simulate import simulate


def shuttle_root() -> Path:
    """A drive of three keyframes, two LiDAR sweeps before each; all processes of the tests share it."""
    return once("shuttle", lambda root: simulate(root, 1, 3, 1, ["clear-day-boston"], 2, rig=load_rig("shuttle")))
