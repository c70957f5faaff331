"""The interface of engines, and how golden frames run on them. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from perception.frame import Arrays
from perception.session import NetworkState, run_with_state
from perception.state import NEXT

STEP = 4  # rows and columns from one compared cell of a state to the next; whole states would fill the golden frames


class EngineState(NetworkState, Protocol):
    """The states of a network where its engine computes."""

    def read(self) -> Mapping[str, np.ndarray]:
        """The states (1, ...) on the host, by name."""


class Engine(Protocol):
    """A network ready to run."""

    def run(self, inputs: Arrays, state: EngineState | None = None) -> dict[str, np.ndarray]:
        """Outputs by name, for inputs by name with the shapes and types of the bundle's manifest.

        Args:
            state: instead of the inputs and outputs of states (`perception.modules.spec.states_of`).
        """

    def new_state(self) -> EngineState | None:
        """States of zeros; None for a network without."""


def in_sequence(engine: Engine) -> Callable[[Arrays], dict[str, np.ndarray]]:
    """Runs an engine on golden frames in their order; the outputs include the next states, `sampled`."""
    state = engine.new_state()
    if state is None:
        return engine.run

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        outputs = run_with_state(engine.run, inputs, state)
        return outputs | {NEXT + name: sampled(each) for name, each in state.read().items()}

    return run


def sampled(state: np.ndarray) -> np.ndarray:
    """The numbers of a state by which engines are compared: of (1, C, rows, columns) some cells, of others all."""
    return state[..., ::STEP, ::STEP] if state.ndim == 4 else state
