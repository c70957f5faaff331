"""Drives with what the options of `perception drive` add to it, and with outputs of tests."""

import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from recordings import nuscenes_topics

from deploy.commands.outputs import further_outputs
from deploy.live.intake import Intake
from deploy.live.outputs import Output
from deploy.live.policy import Policy
from deploy.live.process import Driven, drive
from deploy.live.source import Playback
from deploy.live.state import Status
from deploy.runtime import Runtime

PATIENT = 5.0  # s that a frame waits, so that nothing is late on a loaded machine


class Heard(Output):
    """Remembers what outputs are told, and calls a function after each frame."""

    name = "heard"

    def __init__(self, after_frame: Callable[[], object] = lambda: None) -> None:
        self.lines, self.seen, self.statuses = list[dict[str, Any]](), list[Any](), list[Status]()
        self._after_frame = after_frame

    def add(self, frame: Any, seen: Any) -> None:
        self.seen.append(seen)

    def report(self, status: Status) -> None:
        self.statuses.append(status)

    def log(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self._after_frame()


def drive_with(
    bundle: Path,
    recording: Path,
    out: Path,
    heard: Heard,
    metrics: int | None = None,
    record: Path | None = None,
    at_the_end: Callable[[], object] = lambda: None,
) -> tuple[Driven, list[str]]:
    """Drive with a recording at its pace, and the lines that were printed.

    Args:
        at_the_end: called once no message comes any more, before the outputs end.
    """
    out.mkdir()
    said = list[str]()
    source = Playback(recording)
    runtime = Runtime(bundle, checks=False)
    further = further_outputs(metrics, None, record, runtime.bundle.manifest, source.info, said.append)

    def outputs(stack: ExitStack, intake: Intake) -> Sequence[Output]:
        opened = [*further(stack, intake), heard]
        stack.callback(at_the_end)
        return opened

    topics, policy = nuscenes_topics(wait=PATIENT), Policy(lateness=PATIENT, sensors={"CAM_BACK": {"missing": "mask"}})
    return drive(runtime, source, topics, policy, outputs, out=out, say=said.append), said


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
