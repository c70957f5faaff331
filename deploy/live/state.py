"""What a driving process is worth at a moment: OK, DEGRADED, UNTRUSTED or DOWN, with the reasons as data."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

from deploy.live.intake import Intake
from deploy.live.policy import Policy
from perception.scene.health.monitor import SensorHealth
from perception.scene.scene import SceneFrame

State = Literal["OK", "DEGRADED", "UNTRUSTED", "DOWN"]
WORST_LAST: tuple[State, ...] = ("OK", "DEGRADED", "UNTRUSTED", "DOWN")
HELD = 1.0  # s that the reason of a single frame stays
PERIODS = 3  # between frames, after which the state is DOWN
GAP = 1.5  # periods between frames, after which one is missed
TOPIC_PROBLEMS = {  # of a topic
    "overrun": "were dropped, because too many or too large ones waited to be decoded",
    "stale": "were poses that a frame held for more than 20 ms, because none came after them",
    "contested": "came from a second publisher; stop it, or let it send to a topic of its own",
}


@dataclass(frozen=True)
class Reason:
    """Why the state is not OK."""

    state: State
    code: str  # such as late, hang, silent, sensor, golden
    subject: str  # a sensor, a topic, an output, or ""
    text: str


@dataclass(frozen=True)
class Status:
    """The state at one time, by its worst reason."""

    reasons: tuple[Reason, ...]

    @property
    def state(self) -> State:
        return max((reason.state for reason in self.reasons), key=WORST_LAST.index, default="OK")

    @property
    def text(self) -> str:
        return "; ".join(" ".join(filter(None, (each.subject, each.text))) for each in self.reasons)

    def to_json(self) -> dict[str, Any]:
        return {"state": self.state, "reasons": [vars(each) for each in self.reasons]}


class Supervisor:
    """Collects what the loop tells, and says at any time, also from another thread, what the state is.

    Outputs are late after `allowed` s from the message that completes their frame; by default the policy's.
    """

    def __init__(self, policy: Policy, intake: Intake, allowed: float | None) -> None:
        self._policy, self._intake, self._period = policy, intake, intake.period
        self._allowed = policy.delay.allowed if allowed is None else allowed
        self._silence = max(policy.delay.consecutive, PERIODS * intake.period)
        self._lock = Lock()
        self._started = self._output = time.monotonic()  # s; of the latest output
        self._perceived = 0  # frames
        self._busy: float | None = None  # s, since when the engine works
        self._late_since: float | None = None  # s
        self._held: dict[tuple[str, str], tuple[float, Reason]] = {}  # by code and subject, until a time (s)
        self._lasting: dict[tuple[str, str], Reason] = {}
        self.health: Mapping[str, SensorHealth] = {}
        self._lost = Counter[tuple[str, str]]()  # frames and messages, by code and subject
        self._timestamp: int | None = None  # us, of the latest frame

    @contextmanager
    def working(self) -> Iterator[None]:
        """The engine works within the block."""
        self._busy = time.monotonic()
        try:
            yield
        finally:
            self._busy = None

    def add(self, seen: SceneFrame, seconds: float) -> None:
        """Add a frame that was perceived, and published so many seconds after its last message came."""
        with self._lock:
            now = self._output = time.monotonic()
            self._perceived += 1
            self.health = seen.health
            gap = 0.0 if self._timestamp is None else 1e-6 * (seen.timestamp - self._timestamp)
            self._timestamp = seen.timestamp
            if gap > GAP * self._period:
                why = f"a frame came {gap:.2f} s after the one before, expected {self._period:.2f} s"
                self._hold(Reason("DEGRADED", "rate", "", why))
            if seconds <= self._allowed:
                self._late_since = None
            else:
                self._late_since = self._late_since or now
                self._hold(Reason("DEGRADED", "late", "", f"an output came {seconds:.2f} s after its frame"))
            if seen.prediction.not_finite:
                names = ", ".join(seen.prediction.not_finite)
                self._hold(Reason("UNTRUSTED", "not_finite", "", f"outputs are not finite: {names}"))

    def _hold(self, reason: Reason) -> None:
        self._held[reason.code, reason.subject] = time.monotonic() + max(HELD, self._silence), reason

    def set(self, reason: Reason) -> None:
        """Add a reason that lasts until `clear`."""
        with self._lock:
            self._lasting[reason.code, reason.subject] = reason

    def clear(self, code: str, subject: str = "") -> None:
        with self._lock:
            self._lasting.pop((code, subject), None)

    def status(self) -> Status:
        """The state now."""
        with self._lock:
            now = time.monotonic()
            self._count_lost()
            self._held = {key: each for key, each in self._held.items() if each[0] > now}
            found = [*self._lasting.values(), *(reason for _, reason in self._held.values())]
            found += self._of_time(now)
            found += self._of_sensors(now)
            return Status(tuple(sorted(found, key=lambda each: -WORST_LAST.index(each.state))))

    def _count_lost(self) -> None:
        """Hold a reason for the frames and messages that were lost since the last time."""
        counts, problems = self._intake.outcomes, self._intake.counts.problems
        skipped, lost = counts["superseded"], counts["unposed"]
        for number, reason in (
            (skipped, Reason("DEGRADED", "superseded", "", f"{skipped} frames so far were skipped for newer ones")),
            (lost, Reason("DEGRADED", "unposed", "", f"the vehicle's pose was not known for {lost} frames so far")),
            *(
                (count, Reason("DEGRADED", code, topic, f"{count} messages so far {why}"))
                for code, why in TOPIC_PROBLEMS.items()
                for topic, count in problems(code).items()
            ),
        ):
            if number > self._lost[reason.code, reason.subject]:
                self._lost[reason.code, reason.subject] = number
                self._hold(reason)

    def _of_time(self, now: float) -> Iterator[Reason]:
        busy, late = self._busy, self._late_since
        if busy is not None and now - busy > self._policy.hang:
            yield Reason("DOWN", "hang", "", f"the engine has worked on one frame for {now - busy:.1f} s")
        if late is not None and now - late > self._policy.delay.consecutive:
            yield Reason("DOWN", "late", "", f"outputs have been late for {now - late:.1f} s")
        silent = now - self._output
        if not self._perceived:
            yield Reason("DOWN", "starting", "", f"no frame yet, {now - self._started:.1f} s after the start")
        elif silent > self._silence:
            yield Reason("DOWN", "silent", "", f"no frame for {silent:.1f} s")

    def _of_sensors(self, now: float) -> Iterator[Reason]:
        if now - self._started > self._silence:
            for topic in self._intake.unheard:
                why = "has sent nothing since the start; start what sends it, or name another in --topics"
                yield Reason("DEGRADED", "unheard", topic, why)
        for topic, why in self._intake.lacking.items():
            yield Reason("DEGRADED", "joined", topic, f"is not in the joined cloud ({why})")
        for name, actions in self._policy.actions(self.health).items():
            for action, why in actions.items():
                if action != "ignore":
                    yield Reason("DOWN" if action == "stop" else "DEGRADED", "sensor", name, f"{why} ({action})")
