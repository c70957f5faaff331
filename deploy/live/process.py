"""The driving process: its loop (newest -> admit -> perceive -> publish -> remember), threads, signals, systemd."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any, Literal

from deploy.golden import WrongEngine
from deploy.live.intake import Arrived, Intake
from deploy.live.outputs import Console, Output, Outputs
from deploy.live.policy import Policy
from deploy.live.state import Reason, Status, Supervisor
from deploy.replay.schedule import freeze_objects
from deploy.runtime import Runtime


@dataclass(frozen=True)
class Driven:
    """How a drive went."""

    announced: int
    outcomes: dict[str, int]
    counts: dict[str, Any]  # `Counts.summary`
    status: Status  # the last one

    @property
    def dead(self) -> bool:
        """Whether the drive ended because its engine failed for too long."""
        return any(reason.code == "dead" for reason in self.status.reasons)

    def to_json(self) -> dict[str, Any]:
        return {
            "frames": {"announced": self.announced, **self.outcomes},
            "sources": self.counts,
            "last": self.status.to_json(),
        }


def drive(
    runtime: Runtime,
    intake: Intake,
    policy: Policy,
    outputs: Sequence[Output],
    budget: float | None = None,
    say: Callable[[str], None] = print,
) -> Driven:
    """Perceive what the intake's source sends until it ends, or SIGTERM or SIGINT comes; then the source is closed.

    The runtime leaves the golden frames to the loop. `budget` is in s from the message that completes a frame to its
    output; by default the policy's.
    """
    runtime.restart()
    supervisor = Supervisor(policy, intake, budget)
    every = Outputs([Console(say), systemd := Systemd(), *outputs], supervisor)
    with _stopped_by_signals() as stop, freeze_objects():
        try:
            with _watchdog(supervisor, every, policy.delay.check):
                intake.start()
                Loop(runtime, intake, supervisor, every, policy).run(stop)
        finally:  # after the last report, which goes out over the source's middleware
            systemd.send("STOPPING=1")
            intake.close()
            every.lose(intake)
    return Driven(intake.announced, dict(intake.outcomes), intake.counts.summary(), supervisor.status())


@contextmanager
def _watchdog(supervisor: Supervisor, outputs: Outputs, seconds: float) -> Iterator[None]:
    """Report the state every so many seconds from a thread, even if the loop hangs; and once more at the end."""
    stop = Event()

    def watch() -> None:
        while not stop.wait(seconds):
            outputs.report(supervisor.status())

    thread = Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        outputs.report(supervisor.status())


@contextmanager
def _stopped_by_signals() -> Iterator[Event]:
    stop = Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {each: signal.signal(each, lambda *_: stop.set()) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class Systemd(Output):
    """Tells systemd about readiness and life, as sd_notify(3) does; without systemd it does nothing.

    It raises nothing: what could not be sent is sent with the next report, not after an output's pause.
    """

    name = "systemd"

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._ready, self._told = False, 0.0

    def report(self, status: Status) -> None:
        if not self._address or time.monotonic() - self._told < 0.5:
            return
        lines, ready = [f"STATUS={status.state} {status.text}"[:400].rstrip()], status.state != "DOWN"
        if ready and not self._ready:
            lines.append("READY=1")
        if all(each.code != "hang" for each in status.reasons):
            lines.append("WATCHDOG=1")
        if self.send(*lines):
            self._told, self._ready = time.monotonic(), self._ready or ready

    def send(self, *lines: str) -> bool:
        """Send lines of sd_notify(3); whether systemd has taken them."""
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto("\n".join(lines).encode(errors="replace"), address)  # a reason may name any file
            return True
        return False


IDLE = 0.02  # s without a frame, after which a golden frame may run


class Loop:
    """Perceives the newest frame again and again, by a runtime that leaves the golden frames to it."""

    def __init__(
        self, runtime: Runtime, intake: Intake, supervisor: Supervisor, outputs: Outputs, policy: Policy
    ) -> None:
        self._runtime, self._intake, self._supervisor = runtime, intake, supervisor
        self._outputs, self._policy = outputs, policy
        self._checked = time.monotonic()
        self._trusted, self._dead = True, False
        self._failing: float | None = None  # s, when the engine failed first since it perceived a frame

    def run(self, stop: Event) -> None:
        """Perceive until no frame will come any more, `stop` is set, or the engine has failed for too long."""
        while not (stop.is_set() or self._dead or self._intake.ended):
            arrived = self._intake.take(IDLE)
            self._outputs.lose(self._intake)
            if arrived is not None:
                self._perceive(arrived)
            since = time.monotonic() - self._checked
            if since > self._policy.golden and (arrived is None or since > 2 * self._policy.golden):
                self._check()
        self._outputs.lose(self._intake)

    def _perceive(self, arrived: Arrived) -> None:
        if not (self._trusted or self._policy.publish_untrusted):
            self._fail(arrived, "untrusted")
            return
        runtime, outputs, masked = self._runtime, self._outputs, self._policy.masked(self._supervisor.health)
        try:
            with self._supervisor.working():
                frame = runtime.admit(arrived.frame)
                visible = frame.without(masked, runtime.bundle.manifest.rig.sensors.lidars)
                if not runtime.bundle.spec.sees(visible):
                    why = "no sensor that the network uses has sent what it can use"
                    self._supervisor.set(Reason("DOWN", "blind", "", why))
                    self._intake.end(arrived, "blind")
                    return
                prediction, weights = runtime.perceive(frame, masked)
                outputs.publish(visible, prediction)
                seen = runtime.remember(frame, prediction, weights)
                seconds = time.monotonic() - arrived.time
                outputs.add(visible, seen)
        except Exception as error:  # of the engine; the next frame may do better
            self._supervisor.set(Reason("DOWN", "failed", "", f"a frame could not be perceived ({_why(error)})"))
            self._fail(arrived, "failed")
        else:
            self._failing = None
            self._intake.end(arrived, "perceived")
            self._supervisor.clear("failed")
            self._supervisor.clear("blind")
            self._supervisor.add(seen, seconds)
            outputs.log(frame, masked, seconds)

    def _fail(self, arrived: Arrived, outcome: Literal["failed", "untrusted"]) -> None:
        """End a frame that the engine could not perceive, and the drive if none could be for too long."""
        now, most = time.monotonic(), self._policy.failing
        self._failing = now if self._failing is None else self._failing
        self._intake.end(arrived, outcome)
        if now - self._failing > most:
            self._dead = True
            self._supervisor.set(Reason("DOWN", "dead", "", f"the engine has failed for {most:g} s; the process ends"))

    def _check(self) -> None:
        """Run a golden frame; an engine that fails it is not trusted from then on."""
        self._checked = time.monotonic()
        try:
            with self._supervisor.working():
                self._runtime.check()
        except Exception as error:
            self._trusted = False
            why = str(error) if isinstance(error, WrongEngine) else f"a golden frame could not run ({_why(error)})"
            self._supervisor.set(Reason("UNTRUSTED", "golden", "", why))


def _why(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
