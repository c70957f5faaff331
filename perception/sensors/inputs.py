"""Preprocessing of a frame into the input arrays of the network and its exported engine. numpy only."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perception.datasets.keyframes import Reads
from perception.frame import Frame
from perception.geometry import product
from perception.grid import BevGrid
from perception.parts import CameraBranch, Image, Lidar
from perception.rig import Rig, Sensors, require_cameras
from perception.sensors.camera.picture import STEPS, fit_width, warp
from perception.sensors.lidar.pillars import group
from perception.sensors.state import Limits


def _native() -> Any:
    """The C++ runtime's pillars and pictures, equal in every bit, where its package can be used (docs/native.md)."""
    if importlib.util.find_spec("tessera_runtime") is None:
        return None
    native = importlib.import_module("tessera_runtime")
    try:
        native.load()
    except OSError as error:
        warnings.warn(
            f"tessera_runtime: cannot be used ({error}); pillars and pictures are made by Python", stacklevel=2
        )
        return None
    return native


NATIVE = _native()
PILLARS = ("pillar_points", "pillar_counts", "pillar_cells")  # inputs with an axis of pillars, the second
# Sensor -> the input whose numbers are all zero where the network sees nothing of it.
PRESENCE = {"lidar": "pillar_counts", "cameras": "image_from_reference"}


@dataclass(frozen=True)
class InputSpec:
    """The grid of a model, the configuration of each kind of sensor, and the vehicle's sensors by name."""

    grid: BevGrid
    lidar: Lidar | None
    camera: CameraBranch | None
    rig: Rig
    points: int = 0  # places for single points of the keyframe; 0: no task reads them
    truth: tuple[str, ...] = ()  # kinds of `Frame.truth` that the tasks are scored by
    memory: Limits | None = None  # of the state of a network with a memory; None: it has none

    @property
    def sensors(self) -> tuple[str, ...]:
        return tuple(name for name in ("lidar", "camera") if getattr(self, name) is not None)

    @property
    def named_sensors(self) -> Sensors:
        every = self.rig.sensors
        return replace(every, lidars=every.lidars if self.lidar else (), cameras=every.cameras if self.camera else ())

    def sees(self, frame: Frame) -> bool:
        """Whether the frame has points or pictures of the network's sensors."""
        lidar = self.lidar is not None and frame.points is not None and len(frame.points) > 0
        return lidar or (self.camera is not None and len(frame.cameras) > 0)

    @property
    def sweeps(self) -> int:
        return 0 if self.lidar is None else self.lidar.sweeps

    @property
    def reads(self) -> Reads:
        """What the inputs are made of, without annotations."""
        lidar, cameras = self.lidar is not None, self.camera is not None
        return Reads(self.grid.reference, self.sweeps, annotations=False, lidar=lidar, cameras=cameras)


def no_sensors(spec: InputSpec) -> dict[str, np.ndarray]:
    """Inputs of a frame without sensor data, as in `prepare`: padding and zeros."""
    inputs = _buffers(spec)
    for name, array in inputs.items():
        array.fill(spec.grid.cells if name in ("pillar_cells", "point_cells") else 0)
    return inputs


def _buffers(spec: InputSpec) -> dict[str, np.ndarray]:
    """Inputs of any content; unlike np.zeros, np.empty allocates huge pages."""
    inputs: dict[str, np.ndarray] = {}
    if spec.lidar is not None:
        pillars = (1, spec.lidar.max_pillars)
        inputs["pillar_points"] = np.empty((*pillars, spec.lidar.points_per_pillar, 5), np.float32)
        inputs["pillar_counts"] = np.empty(pillars, np.int32)
        inputs["pillar_cells"] = np.empty(pillars, np.int32)
    if spec.points:
        inputs["points"] = np.empty((1, spec.points, 5), np.float32)
        inputs["point_cells"] = np.empty((1, spec.points), np.int32)
    if spec.camera is not None:
        size, cameras = spec.camera.image, len(spec.rig.cameras)
        inputs["images"] = np.empty((1, cameras, size.height, size.width, 3), np.uint8)
        inputs["image_from_reference"] = np.empty((1, cameras, 3, 4), np.float32)
    return inputs


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
    if spec.lidar is not None:
        points = np.zeros((0, 5), np.float32) if frame.points is None else frame.points
        pillars, counts, cells = (inputs[f"pillar_{name}"][0] for name in ("points", "counts", "cells"))
        of_points = np.empty(len(points), np.int32) if spec.points else None
        grouped = NATIVE.group if NATIVE else group
        grouped(points, spec.grid, pillars, counts, cells, spec.lidar.overflow, of_points)
        if of_points is not None:
            _fill_points(inputs, frame, of_points, spec.grid.cells)
    if spec.camera is not None:
        require_cameras(list(frame.cameras), spec.rig, f"frame {frame.token}")
        _fill_cameras(inputs, frame, spec, image_affines or {})
    return inputs


def fit_picture(recorded: np.ndarray, size: Image, into: np.ndarray | None = None) -> np.ndarray:
    """(height, width, 3) uint8: the network's picture of a recorded one (H, W, 3) uint8, by `fit_width`; `into` is
    filled."""
    picture = np.empty((size.height, size.width, 3), np.uint8) if into is None else into
    if NATIVE:
        NATIVE.fill_picture(recorded, picture, STEPS)
    else:
        warp(recorded, fit_width(recorded.shape, size), size, into=picture)
    return picture


def seen_sensors(inputs: Mapping[str, np.ndarray]) -> frozenset[str]:
    """Those of `PRESENCE` that a frame has, by its inputs from `prepare`."""
    return frozenset(sensor for sensor, name in PRESENCE.items() if name in inputs and inputs[name].any())


def without_padding(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Views of the inputs (B, ...) without pillars that are padding in all frames; at least one pillar remains."""
    if "pillar_counts" not in inputs:
        return dict(inputs)
    pillars = max(1, int((inputs["pillar_counts"] > 0).sum(axis=1).max(initial=0)))
    return {name: array[:, :pillars] if name in PILLARS else array for name, array in inputs.items()}


def _fill_points(inputs: Mapping[str, np.ndarray], frame: Frame, cells: np.ndarray, outside: int) -> None:
    places, of_places, count = inputs["points"][0], inputs["point_cells"][0], 0
    if frame.points is not None:
        chosen = np.flatnonzero(frame.of_keyframe)[: len(places)]
        count = len(chosen)
        places[:count], of_places[:count] = np.take(frame.points, chosen, axis=0), cells[chosen]
    places[count:], of_places[count:] = 0, outside


def _fill_cameras(
    inputs: Mapping[str, np.ndarray], frame: Frame, spec: InputSpec, affines: Mapping[str, np.ndarray]
) -> None:
    assert spec.camera is not None
    size = spec.camera.image
    images, projections = inputs["images"][0], inputs["image_from_reference"][0]
    for i, name in enumerate(spec.rig.sensors.cameras):
        if name not in frame.cameras:
            images[i].fill(0)
            projections[i].fill(0)
            continue
        camera = frame.cameras[name]
        affine = affines[name] if name in affines else fit_width(camera.image.shape, size)
        projections[i] = product(affine, frame.image_from_reference(name))
        if name in affines:
            warp(camera.image, affine, size, into=images[i])
        elif camera.warped is not None and camera.warped.shape == images[i].shape:
            images[i] = camera.warped
        else:
            fit_picture(camera.image, size, into=images[i])
