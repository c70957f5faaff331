"""Preprocessing of a frame into the input arrays of the network and its exported engine. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from perception.datasets.keyframes import Reads
from perception.frame import Frame
from perception.grid import BevGrid
from perception.io.section import Section
from perception.rig import Rig, Sensors
from perception.sensors import SENSORS
from perception.sensors.camera.config import CameraBranch, Image
from perception.sensors.lidar.config import Lidar
from perception.sensors.sensor import Sensor
from perception.state import Limits

PILLARS = ("pillar_points", "pillar_counts", "pillar_cells")  # inputs with an axis of pillars, the second


@dataclass(frozen=True)
class InputSpec:
    """What the inputs of a network are made of.

    Attributes:
        configs: kind of sensor -> configuration of its branch, in the order of `SENSORS`.
        points: places for single points of the keyframe; 0: no task reads them.
        truth: kinds of `Frame.truth` that the tasks are scored by.
        memory: of the state of a network with a memory; None: it has none.
    """

    grid: BevGrid
    configs: Mapping[str, Section]
    rig: Rig
    points: int = 0
    truth: tuple[str, ...] = ()
    memory: Limits | None = None

    @cached_property
    def sensors(self) -> dict[str, Sensor]:
        """The sensors of the network by kind."""
        return {kind: SENSORS[kind](config, self.grid, self.rig, self.points) for kind, config in self.configs.items()}

    @property
    def named_sensors(self) -> Sensors:
        return self.rig.sensors.of(self.configs)

    @property
    def shown_sensors(self) -> Sensors:
        """Those of the network, and the LiDARs and cameras that reports show beside them."""
        return self.rig.sensors.of({"lidar", "camera", *self.configs})

    def sees(self, frame: Frame) -> bool:
        """Whether the frame has data of the network's sensors."""
        return any(sensor.sees(frame) for sensor in self.sensors.values())

    @property
    def lidar(self) -> Lidar | None:
        """Configuration of the LiDAR branch, which says how many sweeps are read; None: the network has none."""
        found = self.configs.get("lidar")
        return found if isinstance(found, Lidar) else None

    @property
    def sweeps(self) -> int:
        return 0 if self.lidar is None else self.lidar.sweeps

    @property
    def picture(self) -> Image | None:
        """Size of the network's pictures; None: it has none."""
        found = self.configs.get("camera")
        return found.image if isinstance(found, CameraBranch) else None

    @property
    def reads(self) -> Reads:
        """What the inputs are made of, without annotations."""
        lidar, cameras = "lidar" in self.configs, "camera" in self.configs
        scans = len(self.configs) > lidar + cameras
        return Reads(self.grid.reference, self.sweeps, annotations=False, lidar=lidar, cameras=cameras, scans=scans)


def no_sensors(spec: InputSpec) -> dict[str, np.ndarray]:
    """Inputs of a frame without sensor data, as in `prepare`."""
    inputs = _buffers(spec)
    for sensor in spec.sensors.values():
        for name, array in sensor.inputs.items():
            inputs[name].fill(array.absent)
    return inputs


def _buffers(spec: InputSpec) -> dict[str, np.ndarray]:
    """Inputs of any content; unlike np.zeros, np.empty allocates huge pages."""
    arrays = {name: array for sensor in spec.sensors.values() for name, array in sensor.inputs.items()}
    return {name: np.empty(array.shape, array.dtype) for name, array in arrays.items()}


def prepare(
    frame: Frame,
    spec: InputSpec,
    image_affines: Mapping[str, np.ndarray] | None = None,
    into: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Inputs of one frame, with a batch dimension of 1; a missing sensor has padding and zeros.

    Args:
        frame: in the reference frame of the grid.
        image_affines: camera -> (3, 3) network pixels from recorded pixels; `fit_width` for other cameras.
        into: inputs of an earlier frame to overwrite; None allocates new ones.

    Returns:
        With LiDAR: pillar_points (1, P, M, 5) float32, pillar_counts (1, P) int32, pillar_cells (1, P) int32.
        If a task reads points: points (1, K, 5) float32, the keyframe's first K in their order, and point_cells (1, K)
        int32, their cells on the pillar grid; its number of cells for points outside of it.
        With C cameras: images (1, C, H, W, 3) uint8 RGB, image_from_reference (1, C, 3, 4) float32, which projects
        reference points to network pixels.
    """
    if frame.reference != spec.grid.reference:
        raise ValueError(f"the frame is in {frame.reference!r}, the model's grid in {spec.grid.reference!r}")
    inputs = _buffers(spec) if into is None else into
    for sensor in spec.sensors.values():
        sensor.fill(frame, inputs, image_affines or {})
    return inputs


def presence_inputs() -> dict[str, str]:
    """Fact about a sensor -> the input whose numbers are all zero where the network sees nothing of it."""
    return {kind.fact: kind.presence for kind in SENSORS.values()}


def seen_sensors(inputs: Mapping[str, np.ndarray]) -> frozenset[str]:
    """The facts about sensors that hold for a frame, by its inputs from `prepare`."""
    return frozenset(fact for fact, name in presence_inputs().items() if name in inputs and inputs[name].any())


def without_padding(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Views of the inputs (B, ...) without pillars that are padding in all frames; at least one pillar remains."""
    if "pillar_counts" not in inputs:
        return dict(inputs)
    pillars = max(1, int((inputs["pillar_counts"] > 0).sum(axis=1).max(initial=0)))
    return {name: array[:, :pillars] if name in PILLARS else array for name, array in inputs.items()}
