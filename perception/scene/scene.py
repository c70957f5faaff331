"""The state of a drive: memories of the tasks, believed conditions, sensor health. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from perception.frame import Boxes, Conditions, Frame, Prediction
from perception.grid import Reference
from perception.rig import Sensors
from perception.scene.admission import POSES, Findings, admit
from perception.scene.belief import Belief, ConditionBelief, Vocabulary
from perception.scene.health.monitor import HealthMonitor, SensorHealth
from perception.scene.sources import Sources, load_sources
from perception.sensors import SENSORS
from perception.state import Limits, Moment, reset_reason
from perception.tasks.task import Evidence, Task


@contextmanager
def time_stage(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the duration of the block (s) to that of the stage in `seconds`."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Routed:
    weight: float
    why: str  # such as 'rain since 12.5 s by tags: 3 of 4 frames'


@dataclass(frozen=True)
class SceneFrame:
    """The state of a drive after one frame."""

    token: str
    scene: str  # name of the drive
    timestamp: int  # us
    prediction: Prediction  # of this frame, in its reference
    states: Mapping[str, Any]  # task -> state of its memory, for tasks with one
    conditions: Conditions  # believed
    beliefs: Mapping[str, Belief]  # kind of condition -> belief with the reason
    route: Mapping[str, Routed]  # module -> weight with the reason
    health: Mapping[str, SensorHealth]  # by sensor
    seconds: Mapping[str, float] = field(compare=False)  # duration of each stage; only these differ between replays
    doubts: Mapping[str, str] = field(default_factory=dict)  # class whose objects seem to be missed -> the reason


class Scene:
    """The state of a drive. Frames are added in order of time; a frame of another drive resets the state.

    `admit` takes from a frame what cannot be used. Before the engine runs, `observe` returns the conditions to route
    by; after it, `update` adds the prediction. Memory is bounded, and the same frames give bit-identical states.

    Args:
        modules: switched module -> facts that it requires (`perception.modules.spec`).
        sources: of evidence for the conditions; None: tags, then what the tasks recognise.
        limits: of the network's memory; None: it has none.
    """

    def __init__(
        self,
        sensors: Sensors,
        tasks: Mapping[str, Task[Any]],
        vocabulary: Vocabulary,
        modules: Mapping[str, Sequence[str]] | None = None,
        sources: Sources | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._sensors, self._tasks, self._vocabulary = sensors, tasks, vocabulary
        self._sources, self._limits = sources or load_sources(None, vocabulary), limits
        self._kinds = {value: kind for kind, values in vocabulary.items() for value in values}
        self._modules = {name: tuple(required) for name, required in (modules or {}).items()}
        self._drive: str | None = None
        self._observed: str | None = None  # token of the frame between `observe` and `update`
        self._before: Frame | None = None  # the latest frame of the drive, without data
        self._was_placed = True  # else it has the pose of an earlier one
        self._findings: Findings = {}  # of admission, of the latest frame
        self._evidence: Sequence[Evidence] = ()  # for the conditions, from the results of the latest frame
        self._seconds: dict[str, float] = {}
        self._health: Mapping[str, SensorHealth] = {}

    def admit(self, frame: Frame, reference: Reference) -> Frame:
        """The next frame as `observe` and `update` take it; `health` says what is lost."""
        admitted, self._findings = admit(frame, self._sensors, reference, self._before)
        before = None if self._before is None else Moment.of(self._before)
        if self._limits is not None and self._was_placed and self.is_placed:
            why = reset_reason(before, Moment.of(admitted), self._limits)
            if why == "impossible motion":
                self._findings[POSES[1]] = f"{why} since the frame before: the network's memory begins anew"
        return admitted

    @property
    def is_placed(self) -> bool:
        """Whether the frame that was admitted last has a pose of its own."""
        return POSES[0] not in self._findings

    def observe(self, frame: Frame) -> Conditions:
        """The conditions believed at a frame, before the network runs on it.

        The evidence is that of the sources; what the tasks recognise is of the previous frame.
        """
        if frame.scene != self._drive:
            self._begin(frame.scene)
        self._seconds, self._observed = {}, frame.token
        self._before, self._was_placed = replace(frame, points=None, cameras={}, scans={}), self.is_placed
        with time_stage(self._seconds, "health"):
            self._health = self._monitor.update(frame, self._findings)
        with time_stage(self._seconds, "belief"):
            observations, origins = self._sources.observe(frame, self._evidence)
            return self._belief.update(frame.timestamp, observations, origins)

    def update(self, frame: Frame, prediction: Prediction, weights: Mapping[str, float] | None = None) -> SceneFrame:
        """Add one frame to the drive.

        Args:
            weights: of the switched modules on this frame.
        """
        if frame.token != self._observed or frame.scene != self._drive:
            raise ValueError(f"frame {frame.token} was not observed: call observe(frame) before the engine runs")
        results = prediction.results
        tasks = self._tasks if self._has_data(frame) else {}  # without data, night would be recognised
        self._evidence = [task.evidence(results[name]) for name, task in tasks.items() if name in results]
        with time_stage(self._seconds, "memory"):
            states = self._remember(frame, results)
        beliefs = self._belief.beliefs
        return SceneFrame(
            token=frame.token,
            scene=frame.scene,
            timestamp=frame.timestamp,
            prediction=prediction,
            states=states,
            conditions=self._belief.conditions,
            beliefs=beliefs,
            route={
                name: Routed(weight, self._why(name, weight, frame, beliefs))
                for name, weight in (weights or {}).items()
            },
            health=self._health,
            seconds=self._seconds,
            doubts={
                class_: why for name, state in states.items() for class_, why in self._tasks[name].doubts(state).items()
            },
        )

    def _remember(self, frame: Frame, results: Mapping[str, Any]) -> dict[str, Any]:
        """The states of the tasks' memories after a frame, each knowing the objects that all of them follow."""
        memories = {name: memory for name, memory in self._memories.items() if name in results}
        seen = self._has_data(frame) and self.is_placed
        self._findings = {}
        states = {name: memory.update(frame, results[name] if seen else None) for name, memory in memories.items()}
        followed = [self._tasks[name].objects(state) for name, state in states.items()]
        objects = Boxes.joined(Boxes.none(), *followed)
        return {name: memory.explain(frame, states[name], objects) for name, memory in memories.items()}

    def restart(self) -> None:
        """Reset the state at the next frame, even if it is of the same drive."""
        self._drive = self._before = None

    def _begin(self, drive: str) -> None:
        self._drive = drive
        self._monitor, self._belief = HealthMonitor(self._sensors), ConditionBelief(self._vocabulary)
        self._sources.begin()
        self._evidence = ()
        memories = {name: task.memory() for name, task in self._tasks.items()}
        self._memories = {name: memory for name, memory in memories.items() if memory is not None}

    def _has_data(self, frame: Frame) -> bool:
        points = bool(self._sensors.lidars) and frame.points is not None and len(frame.points) > 0
        return points or not {*frame.cameras, *frame.scans}.isdisjoint(self._sensors.names)

    def _why(self, name: str, weight: float, frame: Frame, beliefs: Mapping[str, Belief]) -> str:
        """The reason for a module's weight: the required facts that hold, or those that do not."""
        if name not in self._modules:
            raise ValueError(
                f"a weight for {name}, which is none of the modules {', '.join(self._modules) or '(none)'}"
            )
        present = {kind.fact: kind.sees(frame) for kind in SENSORS.values()}
        reasons: dict[bool, list[str]] = {True: [], False: []}
        for fact in self._modules[name]:
            if fact in self._kinds:
                kind = self._kinds[fact]
                belief = beliefs[kind]
                reason = belief.why if belief.value else f"{kind} unknown: {belief.why}"
                reasons[belief.value == fact].append(reason)
            elif (sensor := fact.removeprefix("no-")) in present:
                holds = present[sensor] != fact.startswith("no-")
                reasons[holds].append(f"{sensor} {'there' if present[sensor] else 'missing'}")
        return "; ".join(reasons[weight > 0]) or "no requirements"
