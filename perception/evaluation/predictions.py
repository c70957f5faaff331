"""Predictions of keyframes: one by one, or by a predictor that reads and computes several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from perception.datasets.keyframes import Keyframes, Reads
from perception.frame import Frame, Prediction

Predicted = Iterator[tuple[Frame, Prediction]]  # frames as the model sees them, in the order of their tokens


@runtime_checkable
class BatchPredictor(Protocol):
    """A predictor that reads its frames itself."""

    def predictions(self, keyframes: Keyframes, reads: Reads, tokens: Sequence[str]) -> Predicted:
        """The predictions of keyframes."""


Predictor = Callable[[Frame], Prediction] | BatchPredictor


def predictions(predictor: Predictor, keyframes: Keyframes, reads: Reads, tokens: Sequence[str]) -> Predicted:
    """The predictions of keyframes."""
    if isinstance(predictor, BatchPredictor):
        yield from predictor.predictions(keyframes, reads, tokens)
        return
    for token in tokens:
        frame = keyframes.frame(token, reads)
        yield frame, predictor(frame)
