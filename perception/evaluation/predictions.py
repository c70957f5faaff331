"""Predictions of keyframes: one by one, several at once, or by processes with a predictor and a core each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.views import leave_out_unseen, see_views
from perception.frame import Frame, Prediction, View
from perception.io.workers import Pool
from perception.sensors.inputs import InputSpec
from perception.tasks.task import Task, join_views

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


class ViewsPredictor:
    """A predictor that looks one way, on all views of each keyframe; its predictions are of the whole keyframe.

    The truth of its frames is that of `leave_out_unseen`.

    Args:
        spec: inputs of the predictor.
        tasks: of its network.
        views: one or more.

    Raises:
        InputError: while predicting, a task that cannot join views.
    """

    def __init__(
        self, predictor: Predictor, spec: InputSpec, tasks: Mapping[str, Task[Any]], views: Sequence[View]
    ) -> None:
        self._predictor, self._grid, self._tasks, self._views = predictor, spec.grid, tasks, tuple(views)

    def predictions(self, keyframes: Keyframes, reads: Reads, tokens: Sequence[str]) -> Predicted:
        """The predictions of keyframes."""
        source, seen = see_views(keyframes, tokens, self._views)
        found = predictions(self._predictor, source, reads, seen)
        for token in tokens:
            parts = {view: next(found) for view in self._views}
            turned, _ = parts[self._views[0]]
            frame = replace(turned.facing(self._views[0]), token=token)
            joined = join_views(self._tasks, {view: prediction for view, (_, prediction) in parts.items()})
            yield leave_out_unseen(frame, self._grid, self._views), joined


def look_to(views: Sequence[View], predictor: Predictor, spec: InputSpec, tasks: Mapping[str, Task[Any]]) -> Predictor:
    """The predictor on these views of each keyframe; without views itself. Arguments as of `ViewsPredictor`."""
    return ViewsPredictor(predictor, spec, tasks, views) if views else predictor


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
        """The predictions of keyframes, which the processes read; the frames are without their pictures.

        Raises:
            InputError: as the predictor or the drives do, or processes die of the same keyframe again and again.
        """
        return self._workers.in_order(partial(_predict, reads), tokens, "keyframe {}".format)


def _predict(reads: Reads, opened: Opened, token: str) -> tuple[Frame, Prediction]:
    predictor, _, keyframes = opened
    ((frame, prediction),) = predictions(predictor, keyframes, reads, [token])
    return replace(frame, cameras={}), prediction
