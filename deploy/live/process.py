"""The process around the loop: its threads, signals, systemd, and its end."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from deploy.live.intake import Intake
from deploy.live.loop import Loop
from deploy.live.outputs import Console, Output, Outputs, Results
from deploy.live.policy import Policy
from deploy.live.source import Source
from deploy.live.state import Status, Supervisor
from deploy.recordings.drives import describe
from deploy.recordings.topics import Topics
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
    source: Source,
    topics: Topics,
    policy: Policy,
    outputs: Callable[[ExitStack, Intake], Sequence[Output]],
    budget: float | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> Driven:
    """Perceive what the source sends until it ends, or SIGTERM or SIGINT comes.

    Args:
        runtime: one that leaves the golden frames to the loop.
        topics: map the source's topics to sensors.
        outputs: opens further outputs, which end with the stack.
        budget: s from a complete frame to its output; the policy's if None.
        out: folder for the files of `perception replay`.
        say: prints a line.

    Raises:
        InputError: no sensor's topic sends, or a folder cannot be written.
    """
    manifest = runtime.bundle.manifest
    topics = topics.model_copy(update={"wait": min(topics.wait, policy.lateness)})
    description = describe(source.info, manifest.taxonomy)
    runtime.restart()
    with ExitStack() as stack:
        intake = Intake(source, topics, runtime.bundle.spec, runtime.sources.signals, description)
        supervisor = Supervisor(policy, intake, budget, topics.period)
        opened: list[Output] = [Console(say), Systemd(lambda: supervisor.hangs)]
        opened += outputs(stack, intake)
        if out is not None:
            opened.append(Results(stack, out, manifest))
        every = Outputs(opened, supervisor)
        stop = stack.enter_context(_stopped_by_signals())
        with freeze_objects(), _watchdog(supervisor, every, policy.delay.check):
            intake.start()
            try:
                Loop(runtime, intake, supervisor, every, policy).run(stop)
            finally:
                intake.close()
        status = supervisor.status()
    return Driven(intake.announced, dict(intake.outcomes), intake.counts.summary(), status)


@contextmanager
def _watchdog(supervisor: Supervisor, outputs: Outputs, seconds: float) -> Iterator[None]:
    """Report the state every so many seconds from a thread, even if the loop hangs."""
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

    Args:
        hangs: whether the loop does not live.
    """

    name = "systemd"

    def __init__(self, hangs: Callable[[], bool]) -> None:
        self._address, self._hangs = os.environ.get("NOTIFY_SOCKET", ""), hangs
        self._ready, self._told = False, 0.0

    def report(self, status: Status) -> None:
        if not self._address or time.monotonic() - self._told < 0.5:
            return
        self._told = time.monotonic()
        lines = [f"STATUS={status.state} {status.text}"[:400]]
        if not self._ready and status.state != "DOWN":
            self._ready = True
            lines.append("READY=1")
        if not self._hangs():
            lines.append("WATCHDOG=1")
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto("\n".join(lines).encode(), address)
