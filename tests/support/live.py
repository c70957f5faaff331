"""Drives in real time: recordings with messages that are late, missing or damaged, and what is reported of them."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from exported import QUIET, bundle
from once import once
from recordings import Sent, messages_of, nuscenes_topics, write_raw_mcap
from tiny import write_tiny

from deploy.live.intake import Intake
from deploy.live.outputs import FrameLog, Output, Results
from deploy.live.policy import Policy
from deploy.live.process import Driven, drive
from deploy.live.source import Playback
from deploy.live.state import Status
from deploy.recordings.topics import Topics
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime

KEYFRAMES = 10  # 0.5 s apart
RATE = 2.0  # of the clock
PATIENT = 5.0  # s that a frame waits, so that a loaded machine is not late
RESULTS = ("tracks.json", "results.json", "statistics.jsonl")


@cache
def log(seconds: float = 0.5 * KEYFRAMES) -> list[Sent]:
    """The messages of a drive from its start on, without its first sweep: each sweep then has pictures beside it."""
    root = once("live-drive", lambda out: write_tiny(out, KEYFRAMES))
    found = messages_of(root, "v1.0-tiny", "scene-0001", 1)
    start, end = found[0].time, found[0].time + 1e6 * seconds
    return [each for each in found if each.time < end and (each.topic != "/lidar_top" or each.time > start)]


def start() -> int:
    """us, of the first message."""
    return log()[0].time


def after(seconds: float) -> int:
    return start() + round(1e6 * seconds)


def recorded(folder: Path, messages: Iterable[Sent]) -> Path:
    """A recording of messages, in the order of the times at which they arrive."""
    return write_raw_mcap(folder / "drive.mcap", sorted(messages, key=lambda each: each.time))


class Watch(Output):
    """Remembers what outputs are told, each state with the time (s) since the start.

    Args:
        after_frame: is called after each frame.
    """

    name = "watch"

    def __init__(self, after_frame: Callable[[], object] = lambda: None) -> None:
        self.start, self.states = time.monotonic(), list[tuple[float, Status]]()
        self.lines, self.seen, self.times = list[dict[str, Any]](), list[Any](), list[float]()  # s, of `seen`
        self._after_frame = after_frame

    def add(self, frame: Any, seen: Any) -> None:
        self.seen.append(seen)
        self.times.append(time.monotonic() - self.start)

    def report(self, status: Status) -> None:
        self.states.append((time.monotonic() - self.start, status))

    def log(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self._after_frame()

    def first(self, state: str, code: str, subject: str = "", says: str = "") -> float:
        """When a reason that says something was first reported; infinite if never."""
        found = (
            seconds
            for seconds, status in self.states
            if any(
                (each.state, each.code, each.subject) == (state, code, subject) and says in each.text
                for each in status.reasons
            )
        )
        return next(found, float("inf"))


@dataclass
class Drive:
    """What came of one."""

    driven: Driven
    watch: Watch
    began: float  # s since 1970
    frames: list[dict[str, Any]] = field(default_factory=list)  # of frames.jsonl

    def require_outcomes(self) -> None:
        """Every frame that was announced has one, and one line in the file with the time at which it was written."""
        times = [line["time"] for line in self.frames]
        assert times == sorted(times)
        assert all(self.began - 0.001 <= each <= time.time() + 0.001 for each in times)  # rounded
        assert sum(self.driven.outcomes.values()) == self.driven.announced == len(self.frames)
        for outcome, count in self.driven.outcomes.items():
            assert sum(line["outcome"] == outcome for line in self.frames) == count

    @property
    def tokens(self) -> list[str]:
        return [line["token"] for line in self.frames if line["outcome"] == "perceived"]


def driving(
    messages: Sequence[Sent] | Path,
    out: Path,
    runtime: Runtime | None = None,
    topics: Topics | None = None,
    policy: Policy | None = None,
    rate: float = RATE,
    watch: Watch | None = None,
    more: Callable[[ExitStack, Intake], Sequence[Output]] = lambda *_: (),
) -> Drive:
    """Drive with messages that arrive at their times, or with a recording of them."""
    out.mkdir(parents=True, exist_ok=True)
    watch, policy, runtime = watch or Watch(), policy or Policy(), runtime or Runtime(bundle().path, checks=False)
    recording = messages if isinstance(messages, Path) else recorded(out, messages)
    began = time.time()
    with ExitStack() as stack:
        intake = Intake(Playback(recording, rate), topics or nuscenes_topics(keyframes=None), policy, runtime)
        outputs = [watch, *more(stack, intake), Results(stack, out, runtime.bundle.manifest), frames := FrameLog(out)]
        stack.callback(frames.close)
        driven = drive(runtime, intake, policy, outputs, say=lambda _: None)
    return Drive(driven, watch, began, [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()])


def replayed(recording: Path, out: Path, topics: Path | None = None, network: Path | None = None) -> Path:
    """A folder with the replay of a recording."""
    replay(Source(recording, topics=topics), network or bundle().path, out, Settings(), console=QUIET)
    return out


def driving_process(
    out: Path, variables: dict[str, str], *options: str, network: Path | None = None
) -> "subprocess.Popen[str]":
    arguments = [
        "-m",
        "deploy.cli",
        "drive",
        str(network or bundle().path),
        "--from",
        "zenoh",
        "--out",
        str(out),
        *options,
    ]
    environment, pipe = os.environ | variables, subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], env=environment, stdout=pipe, stderr=pipe, text=True)


def network(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Variables for two processes that find each other by zenoh on this machine alone."""
    port, common = free_port(), 'mode: "peer", scouting: {multicast: {enabled: false}}'
    (folder / "here.json5").write_text(f'{{{common}, listen: {{endpoints: ["tcp/127.0.0.1:{port}"]}}}}')
    (folder / "there.json5").write_text(f'{{{common}, connect: {{endpoints: ["tcp/127.0.0.1:{port}"]}}}}')
    return tuple({"ZENOH_SESSION_CONFIG_URI": str(folder / f"{name}.json5")} for name in ("here", "there"))  # type: ignore[return-value]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
