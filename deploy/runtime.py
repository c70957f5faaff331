"""The runtime of a vehicle: takes frame after frame, and returns the perceived scene. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path

from deploy.bundle import ONNX, Bundle
from deploy.engine import Engine, in_sequence
from deploy.engines import open_engine
from deploy.golden import GoldenFrame, require_golden
from deploy.manifest import Manifest
from deploy.route import route_conditions, steering_inputs
from deploy.trust import Trust
from perception.datasets.keyframes import Keyframes, Reads
from perception.evaluation.predictions import Predicted
from perception.frame import Arrays, Conditions, Frame, Prediction
from perception.scene.scene import Scene, SceneFrame, time_stage
from perception.scene.sources import load_sources
from perception.sensors.inputs import no_sensors, prepare
from perception.session import Session
from perception.state import Moment
from perception.tasks.task import to_prediction

CHECK_EVERY = 200  # frames; a golden frame takes at most as long as two frames, so the checks cost 1 % of the time


@dataclass(frozen=True)
class _Network:
    bundle: Bundle
    engine: Engine
    conditions: frozenset[str]  # that must be known for the network to be used; empty for the default network
    golden: tuple[GoldenFrame, ...]
    name: str  # for messages

    @staticmethod
    def open(bundle: Bundle, target: str, conditions: frozenset[str], threads: int) -> _Network:
        engine, name = open_engine(bundle, target, threads), f"{bundle.path} on {target}"
        golden = bundle.require_golden(engine, name, bundle.cpu_onnx.name if target == "cpu" else ONNX)
        return _Network(bundle, engine, conditions, golden, name)

    @cached_property
    def run_golden(self) -> Callable[[Arrays], Arrays]:
        """Runs golden frames in their order, with a state of their own."""
        return in_sequence(self.engine)


class Runtime:
    """A bundle running on an engine.

    Opening it verifies every hash of the bundle and runs the golden frames. While driving, one golden frame is repeated
    every `CHECK_EVERY` frames, since a GPU may overheat or a bit in memory may flip. Memory for frames is allocated
    before the first one, except for what the engine and OpenCV allocate and free themselves.

    Args:
        trust: who must have signed the bundle, and how old it may be; None accepts it unsigned and of any age.
        evidence: YAML file of the sources of evidence for the conditions (`perception.scene.sources`).
        checks: whether `perceive` repeats golden frames; else the caller does, with `check`.
        threads: of ONNX Runtime; 0: one for each core.
        adjust: returns the manifest whose tasks remember and publish, given the bundle's, such as `Policy.adjust`.
    """

    def __init__(
        self,
        path: Path,
        target: str = "cpu",
        trust: Trust | None = None,
        evidence: Path | None = None,
        checks: bool = True,
        threads: int = 0,
        adjust: Callable[[Manifest], Manifest] | None = None,
    ) -> None:
        self.bundle, self.target, self._checks_itself = Bundle.load(path, trust), target, checks
        self.sources = load_sources(evidence, self.bundle.manifest.taxonomy.conditions)
        first = self.bundle.manifest.routes[0] if self.bundle.routes else "base"
        parts = {first: self.bundle, **self.bundle.routes}
        # All networks stay open, so that switching takes no time.
        self._networks = [
            _Network.open(part, target, route_conditions(route), threads) for route, part in parts.items()
        ]
        if trust is not None:
            trust.accept(self.bundle.manifest.release)  # after its networks have passed the golden frames
        self._switched = _list_switched(self._networks)
        manifest, spec = self.bundle.manifest, self.bundle.spec
        conditions = manifest.taxonomy.conditions
        # Networks for other routes may have no memory; those that have one have the same.
        self._remembering = next((each for each in self._networks if each.bundle.manifest.state is not None), None)
        limits = None if self._remembering is None else self._remembering.bundle.spec.memory
        statistics, sensors = self.bundle.statistics, spec.named_sensors
        sensors = sensors if statistics is None else statistics.with_limits(sensors)
        self.manifest = manifest if adjust is None else adjust(manifest)
        self.scene = Scene(sensors, self.manifest.heads, conditions, self._switched, self.sources, limits)
        self._inputs = no_sensors(spec)  # reused for every frame
        self._session = self._new_session()
        self._seconds: dict[str, float] = {}  # of each stage of the latest frame
        self._steps = 0
        self._checks = cycle([(network, frame) for network in self._networks for frame in network.golden])

    @property
    def spacing(self) -> float | None:
        """The least time (s) between frames for which its memory was trained; None: it has none."""
        state = None if self._remembering is None else self._remembering.bundle.manifest.state
        return None if state is None else state.spacing[0]

    def step(self, frame: Frame) -> SceneFrame:
        """Perceive the next frame in order of time, and return the scene so far; any sensor may be missing or damaged.

        The modules are selected by the scene's believed conditions, not by the tags of this frame alone.

        Raises:
            WrongEngine: a golden frame was due and the engine failed it; do not trust the frames since the last one.
        """
        frame = self.admit(frame)
        return self.remember(frame, *self.perceive(frame))

    def admit(self, frame: Frame) -> Frame:
        """The next frame for `perceive` and `remember`: what cannot be used is missing, and a finding of health."""
        self._seconds.clear()
        with time_stage(self._seconds, "admit"):
            return self.scene.admit(frame, self.bundle.spec.grid.reference)

    def perceive(self, frame: Frame, masked: Collection[str] = ()) -> tuple[Prediction, dict[str, float]]:
        """The first half of `step`: the network's prediction, and the weights of the switched modules.

        Args:
            masked: sensors that the network shall not see; their health is watched all the same.
        """
        self._steps += 1
        with time_stage(self._seconds, "check"):
            if self._checks_itself and self._steps % CHECK_EVERY == 0:
                self.check()
        believed = self.scene.observe(frame)
        if masked:
            frame = frame.without(masked, self.bundle.manifest.rig.sensors.lidars)
        # Without a pose the state cannot be moved to this frame, nor from it to the next one.
        moment = Moment.of(frame) if self.scene.is_placed else None
        return self._predict(frame, believed, self._session, moment)

    def remember(self, frame: Frame, prediction: Prediction, weights: Mapping[str, float]) -> SceneFrame:
        """The second half of `step`: the scene with what was perceived."""
        scene = self.scene.update(frame, prediction, weights)
        return replace(scene, seconds={**self._seconds, **scene.seconds})

    def check(self) -> None:
        """Run the next golden frame of the next network; the state of the scene does not change.

        Raises:
            WrongEngine: the engine no longer gives the expected outputs.
        """
        network, frame = next(self._checks)
        require_golden([frame], network.run_golden, network.name, network.bundle.manifest.tolerances)

    def restart(self) -> None:
        """Reset scene and memory at the next frame, even if it is of the same drive."""
        self.scene.restart()
        self._session.forget()

    def __call__(self, frame: Frame) -> Prediction:
        """Perceive a single frame, with the conditions of its tags and without memory."""
        prediction, _ = self._predict(frame, frame.conditions, self._new_session(), Moment.of(frame))
        return prediction.require_finite(frame.token)

    def predictions(self, keyframes: Keyframes, reads: Reads, tokens: Sequence[str]) -> Predicted:
        """The predictions of keyframes in order, with the conditions of their tags and with the memory."""
        return self.follow(keyframes.frame(token, reads) for token in tokens)

    def follow(self, frames: Iterable[Frame]) -> Predicted:
        """Yield each frame of a drive with its prediction, in order of time, by its tags and with memory."""
        session = self._new_session()
        for frame in frames:
            prediction, _ = self._predict(frame, frame.conditions, session, Moment.of(frame))
            yield frame, prediction.require_finite(frame.token)

    def _new_session(self) -> Session:
        """A session with a state that the networks of all routes share."""
        if self._remembering is None:
            return Session(None)
        return Session(self._remembering.bundle.spec.memory, self._remembering.engine.new_state())

    def _predict(
        self, frame: Frame, conditions: Conditions, session: Session, moment: Moment | None
    ) -> tuple[Prediction, dict[str, float]]:
        network = self._network(conditions)
        manifest = network.bundle.manifest
        with time_stage(self._seconds, "preprocess"):
            inputs = prepare(frame, self.bundle.spec, into=self._inputs)
            steer = steering_inputs(conditions, inputs, manifest.banked, manifest.condition_values)
        with time_stage(self._seconds, "engine"):
            if manifest.state is None:
                session.forget()
                outputs = network.engine.run(inputs | steer)
            else:
                outputs = session.step(network.engine.run, inputs | steer, moment)
        with time_stage(self._seconds, "postprocess"):
            prediction = to_prediction(manifest.heads, outputs)
        weights = {name: float(name in manifest.folded) for name in self._switched}
        for i, module in enumerate(manifest.banked):
            weights[module.name] = float(steer["route"][0, i])
        return prediction, weights

    def _network(self, conditions: Conditions) -> _Network:
        """The network whose conditions are all known and are the most; the first network if there is none."""
        known = {*conditions.known()}
        fitting = [network for network in self._networks if network.conditions <= known]
        return max(fitting, key=lambda network: len(network.conditions), default=self._networks[0])


def _list_switched(networks: list[_Network]) -> Mapping[str, tuple[str, ...]]:
    """The modules that do not run in every frame, each with the facts that it requires."""
    required: dict[str, tuple[str, ...]] = {}
    for network in networks:
        manifest = network.bundle.manifest
        required |= {module.name: module.asks for module in manifest.banked}
        for name in manifest.folded:
            if any(name not in other.bundle.manifest.folded for other in networks):
                required.setdefault(name, tuple(sorted(network.conditions)))
    return required
