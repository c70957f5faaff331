"""The state of a drive: memories of the tasks, believed conditions, sensor health. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perception.frame import CONDITIONS, LIDAR, Conditions, Frame, Prediction
from perception.scene.belief import Belief, ConditionBelief, tagged
from perception.scene.health.monitor import HealthMonitor, SensorHealth
from perception.tasks.task import Evidence, Task
from perception.timing import timed

_KINDS = {value: kind for kind, values in CONDITIONS.items() for value in values}


@dataclass(frozen=True)
class Routed:
    """The weight of a module, and the reason."""

    weight: float
    why: str  # such as 'rain since 12.5 s: 3 of 4 frames'


@dataclass(frozen=True)
class SceneFrame:
    """The state of a drive after one frame."""

    token: str
    scene: str  # name of the drive
    timestamp: int  # us
    prediction: Prediction  # of this frame alone, in its reference
    states: Mapping[str, Any]  # task -> what its memory holds of the drive; only tasks that have one
    conditions: Conditions  # believed
    beliefs: Mapping[str, Belief]  # for each kind of condition, with the reasons
    route: Mapping[str, Routed]  # module -> in force or not
    health: Mapping[str, SensorHealth]  # sensor -> how it is doing
    seconds: Mapping[str, float] = field(compare=False)  # that each stage took; all else is the same in every replay


class Scene:
    """Keeps the state of a drive. Frames come in order of time; a frame of another drive begins anew.

    Before the engine runs, `observe` returns the conditions to route by; after it, `update` takes in the prediction.
    Memory does not grow with the length of the drive, and the same frames give the same bytes.

    Args:
        sensors: that the network takes: LIDAR_TOP and names of cameras.
        tasks: of the network.
        modules: those that a route switches, each with the facts that must hold for it (`perception.modules.spec`).
    """

    def __init__(
        self,
        sensors: Sequence[str],
        tasks: Mapping[str, Task[Any]],
        modules: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._sensors, self._tasks = tuple(sensors), tasks
        self._modules = {name: tuple(asks) for name, asks in (modules or {}).items()}
        self._drive: str | None = None
        self._observed: str | None = None  # token of the frame between `observe` and `update`
        self._evidence: Sequence[Evidence] = ()  # of the conditions, in the results of the latest frame
        self._seconds: dict[str, float] = {}

    def observe(self, frame: Frame) -> Conditions:
        """Return the conditions believed at a frame, before the network runs on it.

        For a kind of condition that the frame has a tag of, only the tag counts; for other kinds, the tasks' evidence
        from the frame before.
        """
        if frame.scene != self._drive:
            self._begin(frame.scene)
        self._seconds, self._observed = {}, frame.token
        with timed(self._seconds, "health"):
            self._health = self._monitor.update(frame)
        with timed(self._seconds, "belief"):
            tags = tagged(frame.conditions)
            others = [{kind: p for kind, p in each.items() if kind not in tags} for each in self._evidence]
            return self._belief.update(frame.timestamp, [tags, *others])

    def update(self, frame: Frame, prediction: Prediction, weights: Mapping[str, float] | None = None) -> SceneFrame:
        """Add one frame to the drive.

        Args:
            frame: the one that was observed last.
            prediction: what the network perceived in it.
            weights: with which the network ran the modules that the route switches.

        Raises:
            ValueError: the frame was not observed, or a weight is for a module that the scene does not know.
        """
        if frame.token != self._observed or frame.scene != self._drive:
            raise ValueError(f"frame {frame.token} was not observed: call observe(frame) before the engine runs")
        results = prediction.results
        seeing = self._tasks if self._sees(frame) else {}
        self._evidence = [task.evidence(results[name]) for name, task in seeing.items() if name in results]
        with timed(self._seconds, "memory"):
            states = {
                name: memory.update(frame, results[name]) for name, memory in self._memories.items() if name in results
            }
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
        )

    def restart(self) -> None:
        """Forget the drive: the next frame begins anew, also one of the same drive."""
        self._drive = None

    def _begin(self, drive: str) -> None:
        self._drive = drive
        self._monitor, self._belief = HealthMonitor(self._sensors), ConditionBelief()
        self._evidence = ()
        memories = {name: task.memory() for name, task in self._tasks.items()}
        self._memories = {name: memory for name, memory in memories.items() if memory is not None}

    def _sees(self, frame: Frame) -> bool:
        """Whether the frame has data of any of the sensors; without, the conditions task would recognise darkness."""
        points = LIDAR in self._sensors and frame.points is not None and len(frame.points) > 0
        return points or not frame.cameras.keys().isdisjoint(self._sensors)

    def _why(self, name: str, weight: float, frame: Frame, beliefs: Mapping[str, Belief]) -> str:
        """The reason for a module's weight: which of its required facts hold, or which do not."""
        if name not in self._modules:
            raise ValueError(
                f"a weight for {name}, which is none of the modules {', '.join(self._modules) or '(none)'}"
            )
        there = {"lidar": frame.points is not None and len(frame.points) > 0, "cameras": bool(frame.cameras)}
        reasons: dict[bool, list[str]] = {True: [], False: []}
        for fact in self._modules[name]:
            if fact in _KINDS:
                kind = _KINDS[fact]
                belief = beliefs[kind]
                reason = belief.why if belief.value else f"{kind} unknown: {belief.why}"
                reasons[belief.value == fact].append(reason)
            elif (sensor := fact.removeprefix("no-")) in there:
                holds = there[sensor] != fact.startswith("no-")
                reasons[holds].append(f"{sensor} {'there' if there[sensor] else 'missing'}")
        return "; ".join(reasons[weight > 0]) or "asks for nothing more"
