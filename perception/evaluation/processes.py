"""Predictions by several processes, each with a predictor and a core of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from perception.datasets.keyframes import Keyframes
from perception.evaluation.predictions import Predicted, Predictor, Reader, predictions
from perception.frame import Frame, Prediction
from perception.sensors.inputs import InputSpec
from perception.workers import Pool

AHEAD = 4  # keyframes of each process that are predicted before they are needed
Opened = tuple[Predictor, InputSpec, Keyframes]


class Processes:
    """Predictions of keyframes by processes of one thread each, in the order of the keyframes.

    They do not depend on the number of processes. The keyframes of a process that died are predicted by another one.

    Args:
        workers: their states are the predictor, its inputs and the drives.
    """

    def __init__(self, workers: Pool[Opened]) -> None:
        self._workers = workers

    def predictions(self, read: Reader, tokens: Sequence[str]) -> Predicted:
        """The predictions of keyframes; the frames are without their pictures.

        Raises:
            InputError: as the predictor or the drives do, or processes die of the same keyframe again and again.
        """
        return self._workers.in_order(partial(_predict, read.change), tokens, "keyframe {}".format)


def _predict(change: Callable[[Frame], Frame] | None, opened: Opened, token: str) -> tuple[Frame, Prediction]:
    predictor, spec, tables = opened
    ((frame, prediction),) = predictions(predictor, Reader(tables, spec, change), [token])
    return replace(frame, cameras={}), prediction
