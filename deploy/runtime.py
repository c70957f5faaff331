"""The vehicle's loop: a frame in, a prediction out. No torch here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.bundle import Bundle
from deploy.engines import open_engine
from deploy.golden import require_agreement
from deploy.route import steering
from perception.data.inputs import prepare
from perception.data.outputs import to_prediction
from perception.frame import Frame, Prediction


class Runtime:
    """A bundle running on an engine. Callable, so that it serves wherever a predictor does.

    Before its first frame it verifies every hash of the bundle and runs the golden frame.

    Args:
        key: the public key that must have signed the bundle (`deploy.signature`); None takes it unsigned.

    Raises:
        InputError: the bundle was changed or not signed by `key`, the engine is not there, or it computes something
            else.
    """

    def __init__(self, path: Path, target: str = "cpu", key: Path | None = None) -> None:
        self.bundle, self.target = Bundle.load(path, key), target
        self.engine = open_engine(self.bundle, target)
        inputs, outputs = self.bundle.golden()
        tolerance, outliers = self.bundle.manifest.tolerance, self.bundle.manifest.outliers
        require_agreement(outputs, self.engine.run(inputs), tolerance, f"{path} on {target}", outliers)
        self.seconds: dict[str, float] = {}  # of each stage of the latest step

    def step(self, frame: Frame) -> Prediction:
        """What is perceived in one frame, whichever of its sensors are missing."""
        with self._timed("preprocess"):
            inputs = prepare(frame, self.bundle.spec)
            inputs |= steering(frame.conditions, inputs, self.bundle.manifest.banked, self.bundle.manifest.conditional)
        with self._timed("engine"):
            outputs = self.engine.run(inputs)
        with self._timed("postprocess"):
            return to_prediction(outputs)

    __call__ = step

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start
