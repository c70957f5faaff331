"""Driving: whether it gives a replay's bytes, how long a frame takes, and whether memory grows."""

from __future__ import annotations

import multiprocessing
import os
import socket
import struct
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.context import SpawnProcess
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import numpy as np
from benchmark import DEMO, QUIET, drives

from deploy.live import process
from deploy.live.intake import Intake
from deploy.live.outputs import Output, Results
from deploy.live.policy import Policy
from deploy.live.source import Damage, Playback, Receive
from deploy.live.zenoh import Zenoh, republish
from deploy.log import write_log
from deploy.recordings.messages import RawMessage
from deploy.recordings.topics import load_topics
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime

BUNDLE = DEMO / "bundle"
FILES = ("tracks.json", "results.json", "statistics.jsonl")
PAUSE = 500_000  # us between two rounds through the drive
PATIENT = 5.0  # s for which frames wait where bytes are compared
TRANSFORMS = "tf2_msgs/msg/TFMessage"


class Rounds(Playback):
    """A recording that is played again and again, with stamps that go on."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__(path)
        self._seconds = seconds

    def start(self, topics: Collection[str], receive: Receive, damage: Damage) -> None:
        self._messages = list(self._recording.read(topics, damage))
        self._length = self.info.duration + PAUSE
        super().start(topics, receive, damage)

    def _play(self, topics: Collection[str], receive: Receive, damage: Damage) -> None:
        self._first, self._begin, later = self._messages[0].time, time.monotonic(), 0
        try:
            while not self._stop.is_set() and time.monotonic() - self._begin < self._seconds:
                for raw in self._messages:
                    at = raw.time + later
                    if self._stop.wait(max(0.0, 1e-6 * (at - self.now()))):
                        return
                    receive(raw._replace(time=at, data=_shifted(raw, later)))
                later += self._length
        finally:
            self._end.set()


def _shifted(raw: RawMessage, later: int) -> bytes:
    """The bytes of a message with a header, or a transform, stamped so many us later."""
    offset = 8 if raw.type_name == TRANSFORMS else 4
    seconds, nanoseconds = struct.unpack_from("<iI", raw.data, offset)
    seconds, nanoseconds = divmod(seconds * 10**9 + nanoseconds + 1000 * later, 10**9)
    data = bytearray(raw.data)
    struct.pack_into("<iI", data, offset, seconds, nanoseconds)
    return bytes(data)


class Times(Output):
    """How long each frame took, in ms."""

    name = "times"

    def __init__(self) -> None:
        self.ms: list[float] = []

    def log(self, line: dict[str, Any]) -> None:
        if line["outcome"] == "perceived":
            self.ms.append(line["ms"])


def drive(quick: bool) -> dict[str, Any]:
    """The first simulated drive by the demo's bundle, live: once beside its replay, then in a loop for half an hour.

    `identical` says whether all results have the replay's bytes. `p50_ms`, `p95_ms` and `p99_ms` are from the message
    that completes a frame to its tracks, in the loop, with one thread of the network; another process sends the
    messages over zenoh. `memory_growth` is the resident memory in the last third of the loop divided by that in its
    second third.
    """
    tables = drives(quick)
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "drive.mcap"
        write_log(tables.dataroot, tables.scenes()[0], recording)
        identical, outcomes = _compare(recording, Path(folder))
        looped = _loop(recording, 10 if quick else 1800)
    return {
        "identical": identical,
        "frames_without_outcome": sum(_without_outcome(each) for each in (outcomes, looped["frames"])),
        **looped,
    }


def _without_outcome(frames: Mapping[str, int]) -> int:
    return 2 * frames["announced"] - sum(frames.values())


def _compare(recording: Path, folder: Path) -> tuple[bool, dict[str, int]]:
    """Whether the drive has the replay's bytes, and its frames by outcome."""
    runtime = Runtime(BUNDLE, checks=False, threads=1)
    topics = load_topics(None, runtime.bundle.manifest.rig).model_copy(update={"wait": PATIENT})
    policy, live = Policy(lateness=PATIENT), folder / "live"
    live.mkdir()
    with ExitStack() as stack:
        intake = Intake(Playback(recording), topics, policy, runtime)
        results = Results(stack, live, runtime.bundle.manifest)
        found = process.drive(runtime, intake, policy, [results], say=_mute)
    replay(Source(recording), BUNDLE, folder / "replay", Settings(), console=QUIET)
    same = all((live / name).read_bytes() == (folder / "replay" / name).read_bytes() for name in FILES)
    return same, found.to_json()["frames"]


def _mute(_: str) -> None:
    """Print nothing."""


class Sent(Zenoh):
    """What another process sends, until it ends."""

    def __init__(self, sender: SpawnProcess) -> None:
        super().__init__()
        self._sender = sender

    @property
    def ended(self) -> bool:  # type: ignore[override]
        return not self._sender.is_alive()


@contextmanager
def _sent(recording: Path, seconds: float) -> Iterator[Sent]:
    """The messages of a recording, sent again and again for so many seconds by another process."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        end = f'endpoints: ["tcp/127.0.0.1:{found.getsockname()[1]}"]'
    files = [recording.with_name(f"{name}.json5") for name in ("listen", "connect")]
    for file in files:
        file.write_text(f'{{mode: "peer", scouting: {{multicast: {{enabled: false}}}}, {file.stem}: {{{end}}}}}')
    os.environ["ZENOH_SESSION_CONFIG_URI"] = str(files[0])
    sender = multiprocessing.get_context("spawn").Process(target=_send, args=(recording, seconds, files[1]))
    source = Sent(sender)
    sender.start()
    try:
        yield source
    finally:
        sender.terminate()  # it has ended, unless the drive has failed
        sender.join()
    if sender.exitcode:
        raise RuntimeError("the process that sends has failed")


def _send(recording: Path, seconds: float, configuration: Path) -> None:
    os.environ["ZENOH_SESSION_CONFIG_URI"] = str(configuration)
    republish(Rounds(recording, seconds), Zenoh())


def _loop(recording: Path, seconds: float) -> dict[str, Any]:
    """Latencies (ms), resident memory (MB) and outcomes of so many seconds."""
    runtime, times, stop = Runtime(BUNDLE, checks=False, threads=1), Times(), Event()
    topics = load_topics(None, runtime.bundle.manifest.rig).model_copy(update={"keyframes": None})
    memory = list[float]()

    def look() -> None:
        while not stop.wait(min(5.0, seconds / 10)):
            memory.append(_resident())

    looking = Thread(target=look, daemon=True)
    looking.start()
    with _sent(recording, seconds) as source:
        intake = Intake(source, topics, Policy(), runtime)
        driven = process.drive(runtime, intake, Policy(), [times], say=_mute)
    stop.set()
    looking.join()
    third = max(1, len(memory) // 3)
    p50, p95, p99 = np.percentile(times.ms or [np.nan], (50, 95, 99)).tolist()
    return {
        "frames": driven.to_json()["frames"],
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "p99_over_p50": p99 / p50,
        "memory_growth": median(memory[-third:]) / median(memory[third : 2 * third]) if len(memory) > 2 else 1.0,
        "memory_mb": memory[-1] if memory else _resident(),
    }


def _resident() -> float:
    """MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
