"""The state of a network with a memory, from frame to frame. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from perception.frame import Arrays
from perception.modules.spec import NEXT_STATE, STATE_INPUTS
from perception.sensors.inputs import seen_sensors
from perception.sensors.state import Limits, Moment, StateFrame

STATE = STATE_INPUTS[0]
STEP = 4  # rows and columns from one compared cell of a state to the next; whole states would fill the golden frames


class EngineState(Protocol):
    """A state where its engine computes; each run that is given it replaces it by the network's next state."""

    def swap(self) -> None:
        """Go back to what it was before the latest run."""

    def clear(self) -> None:
        """Set it to zeros."""

    def read(self) -> np.ndarray:
        """The state (1, C, rows, columns) on the host."""


class Engine(Protocol):
    """A network ready to run."""

    def run(self, inputs: Arrays, state: EngineState | None = None) -> dict[str, np.ndarray]:
        """Outputs by name, for inputs by name with the shapes and types of the bundle's manifest.

        Args:
            state: instead of the input `state` and the output `next_state`.
        """

    def new_state(self) -> EngineState | None:
        """A state of zeros; None for a network without a memory."""


def run_with_state(engine: Engine, inputs: Arrays, state: EngineState | None) -> dict[str, np.ndarray]:
    """Run the next frame of a drive; a state that the frame does not use begins anew.

    It is set to zeros then, because the network multiplies it by zero: a state with an infinite number would stay.
    """
    if state is not None and not inputs["state_valid"].any():
        state.clear()
    return engine.run(inputs, state)


def in_sequence(engine: Engine) -> Callable[[Arrays], dict[str, np.ndarray]]:
    """Runs an engine on golden frames in their order; the outputs include `sampled` cells of the next state."""
    state = engine.new_state()
    if state is None:
        return engine.run

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        outputs = run_with_state(engine, inputs, state)
        return outputs | {NEXT_STATE: sampled(state.read())}

    return run


def sampled(state: np.ndarray) -> np.ndarray:
    """The cells of a state (1, C, rows, columns) by which engines are compared."""
    return state[..., ::STEP, ::STEP]


class Carried:
    """The state of a network from frame to frame of a drive, with the frame that it is of."""

    def __init__(self, state: EngineState, limits: Limits) -> None:
        self._state, self._frame = state, StateFrame(limits)

    def run(self, engine: Engine, inputs: Arrays, moment: Moment) -> dict[str, np.ndarray]:
        """Run the next frame, with the state as far as it can be used.

        What a frame with an output that is not finite leaves is not used either: it would never be finite again.
        """
        more = self._frame.inputs(moment)
        if not more["state_valid"].any():
            self.forget()  # the state is cleared now, also if the engine fails
        outputs = run_with_state(engine, {**inputs, **more}, self._state)
        if not self._frame.advance(moment, more, seen_sensors(inputs)):
            self._state.swap()
        if not all(np.isfinite(each).all() for each in outputs.values()):
            self.forget()
        return outputs

    def forget(self) -> None:
        """Begin anew with the next frame."""
        self._frame.forget()


class HostState:
    """A state in the memory of the host, and what it was before the latest run."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.values = self.before = np.zeros(shape, np.float32)

    def swap(self) -> None:
        self.values, self.before = self.before, self.values

    def clear(self) -> None:
        self.values = np.zeros_like(self.values)

    def read(self) -> np.ndarray:
        return self.values
