"""The process around the loop: its threads, signals, systemd, and its end."""

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
from typing import Any

from deploy.live.intake import Intake
from deploy.live.loop import Loop
from deploy.live.outputs import Console, Output, Outputs
from deploy.live.policy import Policy
from deploy.live.state import Status, Supervisor
from deploy.replay.schedule import freeze_objects
from deploy.runtime import Runtime


@dataclass(frozen=True)
class Driven:
    """How a drive went."""

    announced: int
    outcomes: dict[str, int]
    counts: dict[str, Any]  # `Counts.summary`
    status: Status  # the last one

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

    Args:
        runtime: one that leaves the golden frames to the loop.
        budget: s from the message that completes a frame to its output; the policy's if None.
        say: prints a line.
    """
    runtime.restart()
    supervisor = Supervisor(policy, intake, budget)
    every = Outputs([Console(say), Systemd(), *outputs], supervisor)
    with _stopped_by_signals() as stop, freeze_objects():
        try:
            with _watchdog(supervisor, every, policy.delay.check):
                intake.start()
                Loop(runtime, intake, supervisor, every, policy).run(stop)
        finally:  # after the last report, which goes out over the source's middleware
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
    """An event that SIGTERM and SIGINT set, so that the process ends cleanly."""
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

    It raises nothing, since an output that fails is used no more, and systemd then kills a process that lives. What
    could not be sent is sent with the next report.
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
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto("\n".join(lines).encode(errors="replace"), address)  # a reason may name any file
            self._told, self._ready = time.monotonic(), self._ready or ready
