"""A long drive through a small network: conditions change, and sensors fail now and then."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from deploy.golden import synthetic_frame
from perception.frame import Camera, Conditions, Frame
from perception.rig import load_rig

DIFFERENT = 8  # frames that are repeated at new positions
SPEED = 10.0  # m/s


def long_drive(frames: int) -> Iterator[Frame]:
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
