"""The recorded frames that an INT8 graph is calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.rig import Rig
from perception.sensors.inputs import InputSpec, prepare
from perception.sources import open_source

MOST = 32  # keyframes


@dataclass(frozen=True)
class Drives:
    """Up to `MOST` keyframes of recorded or simulated drives, evenly spread."""

    root: Path
    version: str | None = None  # of a dataroot's tables; None: its only version
    scenes: Sequence[str] = ()  # names, or keyframes such as scene-0103:0-4; empty: all
    rig: Rig | None = None  # of the vehicle; None: nuScenes' car

    @cached_property
    def source(self) -> Keyframes:
        """The opened drives."""
        return open_source(self.root, self.version, self.rig)

    def inputs(self, spec: InputSpec) -> dict[str, dict[str, np.ndarray]]:
        """The network's inputs for each keyframe by token; keyframes without one of its sensors are left out.

        Raises:
            InputError: there are no such drives, or no keyframe has all sensors.
        """
        tokens = self.source.samples(selectors=self.scenes)
        found = {}
        for i in np.unique(np.linspace(0, len(tokens) - 1, min(MOST, len(tokens))).astype(int)):
            frame = self.source.frame(tokens[i], spec.reads._replace(lidar=True, cameras=True))
            if (spec.lidar and frame.points is None) or (spec.camera and not frame.cameras):
                continue
            found[frame.token] = prepare(frame, spec)
        if not found:
            raise InputError(f"{self.root}: no keyframe of these scenes has all sensors; calibrate on others")
        return found
