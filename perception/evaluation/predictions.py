"""Predictions of keyframes: one by one, or by a predictor that reads and computes several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from perception.datasets.keyframes import Keyframes
from perception.frame import Frame, Prediction
from perception.sensors.inputs import InputSpec

Predicted = Iterator[tuple[Frame, Prediction]]  # frames as the model sees them, in the order of their tokens


@dataclass(frozen=True)
class Reader:
    """Reads keyframes with the inputs of a model, without annotations.

    Attributes:
        change: made to each frame, such as a corruption; None: none.
    """

    tables: Keyframes
    spec: InputSpec
    change: Callable[[Frame], Frame] | None = None

    def __call__(self, token: str) -> Frame:
        """A frame as the model sees it."""
        frame = self.tables.frame(
            token,
            self.spec.grid.reference,
            self.spec.sweeps,
            annotations=False,
            lidar=self.spec.lidar is not None,
            cameras=self.spec.camera is not None,
        )
        return frame if self.change is None else self.change(frame)


@runtime_checkable
class BatchPredictor(Protocol):
    """A predictor that reads its frames itself."""

    def predictions(self, read: Reader, tokens: Sequence[str]) -> Predicted:
        """The predictions of keyframes."""


Predictor = Callable[[Frame], Prediction] | BatchPredictor


def predictions(predictor: Predictor, read: Reader, tokens: Sequence[str]) -> Predicted:
    """The predictions of keyframes."""
    if isinstance(predictor, BatchPredictor):
        yield from predictor.predictions(read, tokens)
        return
    for token in tokens:
        frame = read(token)
        yield frame, predictor(frame)
