"""A network on the frames of a drive, one after another, and the states that it carries between them. numpy only.

Prediction, training on clips, calibration, golden frames and the vehicle all order these steps here: when a state is
used, replaced, kept and forgotten. The C++ runtime has the same in `Carried`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, Protocol

import numpy as np

from perception.frame import Arrays
from perception.sensors.inputs import seen_sensors
from perception.state import Limits, Moment, reset_reason, state_inputs, states_of


class NetworkState(Protocol):
    """The states of a network where it computes; each run that gets them replaces them by the next ones.

    All are of the same frame, and used, kept and forgotten together: `Session` speaks of them as one.
    """

    def swap(self) -> None:
        """Go back to what they were before the latest run."""

    def clear(self) -> None:
        """Set them to zeros."""


class KeptState:
    """States by name as arrays or tensors, for networks that return the next ones among their outputs."""

    def __init__(self, zeros: dict[str, Any]) -> None:
        self._values = self._before = self._zeros = zeros

    def replace(self, outputs: dict[str, Any]) -> None:
        """Take the next states out of the outputs of a run."""
        following = {name: outputs.pop(output) for name, output in states_of(outputs).items()}
        self._values, self._before = following, self._values

    def swap(self) -> None:
        self._values, self._before = self._before, self._values

    def clear(self) -> None:
        self._values = self._zeros

    def read(self) -> dict[str, Any]:
        return self._values


# Outputs by name, of inputs by name and the states of a network that has some.
Run = Callable[[Arrays, Any], dict[str, np.ndarray]]


class Session:
    """Runs a network on the frames of drives in order of time.

    The state is of the frame before, unless that lacked a sensor which an earlier one had: as long as a state can be
    used, a frame with fewer sensors does not replace it. It holds what no frame since has seen, and moving it from
    frame to frame would blur it, by one interpolation for each. It cannot be used where the drive does not go on from
    the frame before either: a jump in the middle of an outage is one, though the vehicle could have come so far since
    the state.

    Args:
        limits: of the network's memory; None: it has none.
        state: of zeros; None: the network does not run here (`follow`), or has no memory.
    """

    def __init__(self, limits: Limits | None, state: NetworkState | None = None) -> None:
        self._limits, self._state = limits, state
        self._moment: Moment | None = None  # of the frame that the state is of
        self._before: Moment | None = None  # of the frame before
        self._sensors: Set[str] = frozenset()  # which the frame of the state had

    def step(self, run: Run, inputs: Arrays, moment: Moment | None) -> dict[str, np.ndarray]:
        """Run the next frame, with the state as far as it can be used.

        What a frame with an output that is not finite leaves is not used: it would never be finite again.

        Args:
            inputs: of the frame's sensors and of its route.
            moment: None: it is not known where the frame was recorded, so it has no state and leaves none.
        """
        if self._limits is None or self._state is None:
            return run(inputs, None)
        motion = self.motion(moment)
        if not motion["state_valid"].any():
            self.forget()  # the state is cleared now, also if the run fails
        outputs = run_with_state(run, {**inputs, **motion}, self._state)
        if not self.advance(moment, motion, seen_sensors(inputs)):
            self._state.swap()
        if moment is None or not all(np.isfinite(output).all() for output in outputs.values()):
            self.forget()
        return outputs

    def motion(self, moment: Moment | None) -> dict[str, np.ndarray]:
        """The inputs `state_inputs` of the next frame."""
        assert self._limits is not None
        goes_on = moment is not None and reset_reason(self._before, moment, self._limits) is None
        return state_inputs(self._moment if goes_on else None, moment, self._limits)

    def advance(self, moment: Moment | None, motion: Mapping[str, np.ndarray], sensors: Set[str]) -> bool:
        """Whether the next state of a frame replaces the state; the network saw these sensors in it."""
        replaces = not motion["state_valid"].any() or sensors >= self._sensors
        if replaces:
            self._moment, self._sensors = moment, sensors
        self._before = moment
        return replaces

    def forget(self) -> None:
        """Begin anew with the next frame."""
        self._moment = self._before = None


def run_with_state(run: Run, inputs: Arrays, state: NetworkState | None) -> dict[str, np.ndarray]:
    """Run a frame whose inputs have the vehicle's motion (`state_inputs`), and clear a state that they do not use.

    The network multiplies such a state by zero, which leaves an infinite number in it.
    """
    if state is not None and not inputs["state_valid"].any():
        state.clear()
    return run(inputs, state)


def follow(
    frames: Iterable[tuple[Moment | None, Arrays]], limits: Limits | None
) -> list[tuple[dict[str, np.ndarray], bool]]:
    """Return the inputs of each frame of a clip with its `state_inputs`, and whether its next state is kept.

    Args:
        frames: with the inputs of their sensors, the oldest first, which has no state.
    """
    session, followed = Session(limits), list[tuple[dict[str, np.ndarray], bool]]()
    for moment, inputs in frames:
        motion = {} if limits is None else session.motion(moment)
        replaces = limits is None or session.advance(moment, motion, seen_sensors(inputs))
        followed.append(({**inputs, **motion}, replaces))
    return followed
