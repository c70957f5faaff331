"""The states that a network carries from frame to frame: their names, when they can be used, and how far the vehicle
has moved since their frame. numpy only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

from perception.frame import Frame
from perception.geometry import inverse, product

Reset = Literal["first frame", "another drive", "time does not go on", "gap", "impossible motion"]
NEXT = "next_"  # before the name of a state: the output that is the state on the next frame
MOTION_INPUTS = ("current_from_previous", "state_valid", "elapsed")  # of a network with states, see `state_inputs`
RIGID = 1e-3  # largest entry of R^T R - 1 of a rotation, with room for poses in single precision


class Limits(NamedTuple):
    """Beyond these a state is not used: s since the frame before, and m/s since then, which only a wrong pose gives."""

    seconds: float
    speed: float


def states_of(outputs: Iterable[str]) -> dict[str, str]:
    """NAME -> next_NAME, for each state of a network with these outputs. Outputs of tasks are called TASK/NAME."""
    return {name.removeprefix(NEXT): name for name in outputs if name.startswith(NEXT) and "/" not in name}


class Moment(NamedTuple):
    """Where and when a frame was recorded."""

    scene: str  # name of the drive
    timestamp: int  # us
    global_from_reference: np.ndarray  # (4, 4); of an augmented frame a similarity

    @staticmethod
    def of(frame: Frame) -> Moment:
        return Moment(frame.scene, frame.timestamp, frame.global_from_reference)


def reset_reason(previous: Moment | None, moment: Moment, limits: Limits) -> Reset | None:
    """Why the state of the frame before is not to be used; None: it is."""
    if previous is None:
        return "first frame"
    if previous.scene != moment.scene:
        return "another drive"
    elapsed = (moment.timestamp - previous.timestamp) / 1e6
    if elapsed <= 0:
        return "time does not go on"
    if elapsed > limits.seconds:
        return "gap"
    motion = relative_motion(previous, moment)
    possible = motion is not None and np.linalg.norm(motion[:3, 3]) <= limits.speed * elapsed
    return None if possible else "impossible motion"


def relative_motion(previous: Moment, moment: Moment) -> np.ndarray | None:
    """(4, 4) current_from_previous, of points at rest; None if the poses give no rigid motion."""
    poses = previous.global_from_reference, moment.global_from_reference
    if not all(np.isfinite(pose).all() for pose in poses):
        return None
    try:
        motion = product(inverse(moment.global_from_reference), previous.global_from_reference)
    except ZeroDivisionError:
        return None
    rotation = motion[:3, :3]
    rigid = np.isfinite(motion).all() and np.abs(rotation.T @ rotation - np.eye(3)).max() <= RIGID
    return motion if rigid else None


def state_inputs(previous: Moment | None, moment: Moment | None, limits: Limits) -> dict[str, np.ndarray]:
    """The inputs of one frame of a network with a memory besides `state`, which is of the `previous` one.

    current_from_previous (1, 4, 4) float32 maps points at rest from the reference frame of the frame before to that of
    this one; state_valid (1,) float32, 1 or 0; elapsed (1,) float32 s. If it is not valid: the identity, 0 and 0.
    """
    motion, elapsed = None, 0.0
    if previous is not None and moment is not None and reset_reason(previous, moment, limits) is None:
        motion, elapsed = relative_motion(previous, moment), (moment.timestamp - previous.timestamp) / 1e6
    matrix = np.eye(4) if motion is None else motion
    return {
        "current_from_previous": matrix[None].astype(np.float32),
        "state_valid": np.array([motion is not None], np.float32),
        "elapsed": np.array([elapsed], np.float32),
    }
