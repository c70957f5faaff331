"""What a network with a memory gets with its state: the vehicle's motion and the time since then. numpy only.

Training, evaluation and the vehicle follow the same `StateFrame`; the state itself, a `next_state` of the network, is
kept by who runs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, Literal, NamedTuple

import numpy as np

from perception.frame import Frame
from perception.geometry import inverse, product

Reset = Literal["first frame", "another drive", "time does not go on", "gap", "impossible motion"]
RIGID = 1e-3  # largest entry of R^T R - 1 of a rotation, with room for poses in single precision


class Limits(NamedTuple):
    """Beyond these a state is not used: s since the frame before, and m/s since then, which only a wrong pose gives."""

    seconds: float
    speed: float

    @staticmethod
    def of(modules: Iterable[Any]) -> Limits | None:
        """The strictest limits of the memories among a network's modules (`Config.modules`); None without a memory."""
        found = [part for module in modules for part in module.memories]
        return Limits(min(m.seconds for m in found), min(m.speed for m in found)) if found else None


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


def state_inputs(previous: Moment | None, moment: Moment, limits: Limits) -> dict[str, np.ndarray]:
    """The inputs of one frame of a network with a memory besides `state`, which is of the `previous` one.

    current_from_previous (1, 4, 4) float32 maps points at rest from the reference frame of the frame before to that of
    this one; state_valid (1,) float32, 1 or 0; elapsed (1,) float32 s. If it is not valid: the identity, 0 and 0.
    """
    motion, elapsed = None, 0.0
    if previous is not None and reset_reason(previous, moment, limits) is None:
        motion, elapsed = relative_motion(previous, moment), (moment.timestamp - previous.timestamp) / 1e6
    matrix = np.eye(4) if motion is None else motion
    return {
        "current_from_previous": matrix[None].astype(np.float32),
        "state_valid": np.array([motion is not None], np.float32),
        "elapsed": np.array([elapsed], np.float32),
    }


class StateFrame:
    """The frame that a network's state is of, while it sees the frames of a drive in order of time.

    It is the frame before, unless that lacked a sensor which an earlier one had: as long as a state can be used, a
    frame with fewer sensors does not replace it. It holds what no frame since has seen, and moving it from frame to
    frame would blur it, by one interpolation for each. It cannot be used where the drive does not go on from the frame
    before either: a jump in the middle of an outage is one, though the vehicle could have come so far since the state.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._moment: Moment | None = None
        self._before: Moment | None = None  # of the frame before
        self._sensors: Set[str] = frozenset()

    def inputs(self, moment: Moment) -> dict[str, np.ndarray]:
        goes_on = reset_reason(self._before, moment, self._limits) is None
        return state_inputs(self._moment if goes_on else None, moment, self._limits)

    def advance(self, moment: Moment, inputs: Mapping[str, np.ndarray], sensors: Set[str]) -> bool:
        """Whether the next state of a frame, from its `inputs`, in which the network saw these sensors replaces the
        state."""
        replaces = not inputs["state_valid"].any() or sensors >= self._sensors
        if replaces:
            self._moment, self._sensors = moment, sensors
        self._before = moment
        return replaces

    def forget(self) -> None:
        self._moment = self._before = None
