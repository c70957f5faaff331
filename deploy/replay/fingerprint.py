"""Hashes of frames, to recognise equal data without storing it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from perception.frame import Frame

_ROWS = 16  # every 16th row of a picture is hashed; different pictures differ in nearly all rows


class FrameHashes(NamedTuple):
    """SHA-256 of a frame in hexadecimal digits."""

    data: str  # all data for the network, and what `sensors_hash` covers
    rest: str  # `without_sensors`


def frame_hashes(frame: Frame) -> FrameHashes:
    """The hashes by which a replay that goes on recognises a frame."""
    points = [] if frame.points is None else [frame.points, frame.of_keyframe]
    data = _sha256(sensors_hash(frame) + frame.reference.encode(), [frame.global_from_reference, *points])
    return FrameHashes(data.hex(), without_sensors(frame))


def without_sensors(frame: Frame) -> str:
    """SHA-256 of tags, time, position, signals and poses, which are known without reading a sensor's data."""
    known = (frame.token, frame.scene, frame.timestamp, frame.location, frame.position, frame.conditions)
    text = repr((known, frame.reference, dict(frame.signals))).encode()
    return _sha256(text, [frame.global_from_ego, frame.global_from_reference]).hex()


def sensors_hash(frame: Frame) -> bytes:
    """SHA-256 of tags, times, positions, signals, poses, calibration, every 16th row of the pictures, and the
    keyframe's LiDAR intensities. It does not depend on the network.

    Coordinates of points and earlier sweeps are left out, because they depend on the network's inputs.
    """
    known = (frame.token, frame.scene, frame.timestamp, frame.location, frame.position, frame.conditions)
    arrays = [frame.global_from_ego]
    arrays += [] if frame.points is None else [frame.keyframe_points[:, 3]]
    for camera in frame.cameras.values():
        arrays += [camera.intrinsics, camera.ego_from_camera, camera.global_from_ego, camera.image[::_ROWS]]
    times = [(name, camera.timestamp) for name, camera in frame.cameras.items()]
    signals = (dict(frame.signals),) if frame.signals else ()
    return _sha256(repr((known, frame.points is None, times, *signals)).encode(), arrays)


def _sha256(text: bytes, arrays: Iterable[np.ndarray]) -> bytes:
    digest = hashlib.sha256(text)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
