"""Predictions of keyframes: one by one, several at once, or by processes with a predictor and a core each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol, runtime_checkable

from perception.datasets.keyframes import Keyframes, Reads
from perception.frame import Frame, Prediction
from perception.io.workers import Pool
from perception.sensors.inputs import InputSpec

Predicted = Iterator[tuple[Frame, Prediction]]  # frames as the model sees them, in the order of their tokens


@runtime_checkable
class BatchPredictor(Protocol):
    """A predictor that reads its frames itself."""

    def predictions(self, keyframes: Keyframes, reads: Reads, tokens: Sequence[str]) -> Predicted:
        """The predictions of keyframes."""


Predictor = Callable[[Frame], Prediction] | BatchPredictor


def predictions(predictor: Predictor, keyframes: Keyframes, reads: Reads, tokens: Sequence[str]) -> Predicted:
    if isinstance(predictor, BatchPredictor):
        yield from predictor.predictions(keyframes, reads, tokens)
        return
    for token in tokens:
        frame = keyframes.frame(token, reads)
        yield frame, predictor(frame)


Opened = tuple[Predictor, InputSpec, Keyframes]


class Processes:
    """Predictions of keyframes by processes of one thread each, in the order of the keyframes.

    They do not depend on the number of processes. The keyframes of a process that died are predicted by another one.

    Args:
        workers: their states are the predictor, its inputs and the drives.
    """

    def __init__(self, workers: Pool[Opened]) -> None:
        self._workers = workers

    def predictions(self, keyframes: Keyframes, reads: Reads, tokens: Sequence[str]) -> Predicted:
        return self._workers.in_order(partial(_predict, reads), tokens, "keyframe {}".format)


def _predict(reads: Reads, opened: Opened, token: str) -> tuple[Frame, Prediction]:
    predictor, _, keyframes = opened
    ((frame, prediction),) = predictions(predictor, keyframes, reads, [token])
    return replace(frame, cameras={}), prediction
