"""The vehicle's loop: a frame in, a prediction out. No torch here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.bundle import Bundle
from deploy.engines import Engine, open_engine
from deploy.golden import require_agreement
from deploy.route import facts, steering
from perception.data.inputs import no_sensors, prepare
from perception.data.outputs import to_prediction
from perception.frame import Conditions, Frame, Prediction


@dataclass(frozen=True)
class _Network:
    """One of a bundle's networks, on an engine that computes the recorded outputs of its golden frame."""

    bundle: Bundle
    engine: Engine
    asks: frozenset[str]  # what must be known of a frame; of a network that serves all routes, nothing

    @staticmethod
    def open(bundle: Bundle, target: str, asks: frozenset[str]) -> _Network:
        manifest, engine = bundle.manifest, open_engine(bundle, target)
        inputs, outputs = bundle.golden()
        who = f"{bundle.path} on {target}"
        require_agreement(outputs, engine.run(inputs), manifest.tolerance, who, manifest.outliers)
        return _Network(bundle, engine, asks)


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
        first = self.bundle.manifest.routes[0] if self.bundle.routes else "base"
        parts = {first: self.bundle, **self.bundle.routes}
        # All are open at once: switching takes no longer than not switching.
        self._networks = [_Network.open(part, target, facts(route)) for route, part in parts.items()]
        self._inputs = no_sensors(self.bundle.spec)  # every frame's are written here
        self.seconds: dict[str, float] = {}  # of each stage of the latest step

    def step(self, frame: Frame) -> Prediction:
        """What is perceived in one frame, whichever of its sensors are missing."""
        network = self._network(frame.conditions)
        manifest = network.bundle.manifest
        with self._timed("preprocess"):
            inputs = prepare(frame, self.bundle.spec, into=self._inputs)
            inputs = inputs | steering(frame.conditions, inputs, manifest.banked, manifest.conditional)
        with self._timed("engine"):
            outputs = network.engine.run(inputs)
        with self._timed("postprocess"):
            return to_prediction(outputs)

    __call__ = step

    def _network(self, conditions: Conditions) -> _Network:
        """Of the networks that ask for nothing but what is known, the one that asks for most; else the first."""
        known = {*conditions.known()}
        fitting = [network for network in self._networks if network.asks <= known]
        return max(fitting, key=lambda network: len(network.asks), default=self._networks[0])

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start
