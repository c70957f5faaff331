"""Vehicles that are cheap to simulate."""

from pathlib import Path
from typing import Any

from once import once
from vocabulary import RIG

from perception.rig import load_rig
from perception.simulate.simulate import simulate


def small_pictures() -> dict[str, Any]:
    """nuScenes' car with pictures of a fifth of the size, which render faster."""
    rig = RIG.model_dump(mode="json")
    for camera in rig["cameras"]:
        camera["size"] = [edge // 5 for edge in camera["size"]]
        camera["lens"] |= {name: [x / 5 for x in camera["lens"][name]] for name in ("focal", "center")}
    return rig


def shuttle_root() -> Path:
    """A drive of three keyframes, two LiDAR sweeps before each; all processes of the tests share it."""
    return once("shuttle", lambda root: simulate(root, 1, 3, 1, ["clear-day-boston"], 2, rig=load_rig("shuttle")))
