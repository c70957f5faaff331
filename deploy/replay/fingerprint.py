"""Whether a frame, or a drive, is the one that was seen before, without keeping it."""

from __future__ import annotations

import hashlib

import numpy as np

from perception.frame import Frame

_ROWS = 16  # of a picture one row in so many is hashed: other pictures differ in nearly all of them


class Fingerprint:
    """SHA-256 of the frames of a drive, one after the other."""

    def __init__(self) -> None:
        self._hash, self.frames = hashlib.sha256(), 0

    def add(self, frame: Frame) -> str:
        """Add a frame; returns the hash of this frame alone."""
        digest = _digest(frame)
        self._hash.update(digest)
        self.frames += 1
        return digest.hex()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _digest(frame: Frame) -> bytes:
    """SHA-256 of a frame as its sensors gave it: tags, poses, calibration, points, and of pictures every 16th row."""
    known = (frame.token, frame.scene, frame.timestamp, frame.reference, frame.location, frame.conditions)
    digest = hashlib.sha256(repr((known, [(name, c.timestamp) for name, c in frame.cameras.items()])).encode())
    arrays = [frame.global_from_reference, frame.global_from_ego]
    arrays += [] if frame.points is None else [frame.points]
    for camera in frame.cameras.values():
        arrays += [camera.intrinsics, camera.ego_from_camera, camera.global_from_ego, camera.image[::_ROWS]]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
