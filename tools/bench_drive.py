"""Driving: whether it gives a replay's bytes, how long a frame takes, and whether memory grows."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import numpy as np
from benchmark import DEMO, Commands, drives

from deploy.live.source import Damage, Playback, Receive
from deploy.live.zenoh import Zenoh, republish
from deploy.recordings.messages import RawMessage

BUNDLE = DEMO / "bundle"
FILES = ("tracks.json", "results.json", "statistics.jsonl")
PAUSE = 500_000  # us between two rounds through the drive
TRANSFORMS = "tf2_msgs/msg/TFMessage"
# Frames wait where bytes are compared; in the loop sweeps set the pace.
SETTINGS = {"patient": "wait: 5.0", "policy": "lateness: 5.0", "loop": "keyframes: null"}


def drive(quick: bool) -> dict[str, Any]:
    """The first simulated drive by the demo's bundle, live: once beside its replay, then in a loop for half an hour.

    `identical` says whether all results have the replay's bytes. `p50_ms`, `p95_ms` and `p99_ms` are from the message
    that completes a frame to its tracks, in the loop, with one thread of the network; another process sends the
    messages over zenoh. `memory_growth` is the resident memory in the last third of the loop divided by that in its
    second third.
    """
    tables = drives(quick)
    with tempfile.TemporaryDirectory() as folder:
        commands, out = Commands(Path(folder)), Path(folder)
        files = {name: out / f"{name}.yaml" for name in SETTINGS}
        for name, file in files.items():
            file.write_text(SETTINGS[name])
        recording, how = out / "drive.mcap", ("--threads", 1, "--out")
        commands.call("log", "log", tables.dataroot, "--scene", tables.scenes()[0], "--out", recording)
        patient = ("--from", recording, "--topics", files["patient"], "--policy", files["policy"])
        live = commands.json("drive", "drive", BUNDLE, *patient, *how, out / "live")
        commands.call("replay", "replay", recording, "--bundle", BUNDLE, "--out", out / "replay")
        same = all((out / "live" / name).read_bytes() == (out / "replay" / name).read_bytes() for name in FILES)
        words = ("drive", BUNDLE, "--from", "zenoh", "--topics", files["loop"], "--json", *how, out / "loop")
        looped = _loop([sys.executable, "-m", "deploy.cli", *map(str, words)], recording, 10 if quick else 1800)
        lines = [json.loads(line) for line in (out / "loop" / "frames.jsonl").read_text().splitlines()]
    p50, p95, p99 = np.percentile([line["ms"] for line in lines if line["outcome"] == "perceived"], (50, 95, 99))
    counts = (live["frames"], looped["frames"])
    return {
        "identical": same,
        "frames_without_outcome": sum(2 * each["announced"] - sum(each.values()) for each in counts),
        **{"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99), "p99_over_p50": float(p99 / p50)},
        **looped,
    }


def _loop(command: list[str], recording: Path, seconds: float) -> dict[str, Any]:
    """Outcomes and resident memory (MB) of a process that drives for so long."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        end = f'endpoints: ["tcp/127.0.0.1:{found.getsockname()[1]}"]'
    sessions = {name: recording.with_name(f"{name}.json5") for name in ("listen", "connect")}
    for name, file in sessions.items():
        file.write_text(f'{{mode: "peer", scouting: {{multicast: {{enabled: false}}}}, {name}: {{{end}}}}}')
    os.environ["ZENOH_SESSION_CONFIG_URI"] = str(sessions["listen"])
    bus, memory, stop = Zenoh(), list[float](), Event()
    environment = os.environ | {"ZENOH_SESSION_CONFIG_URI": str(sessions["connect"])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:

        def look() -> None:
            while not stop.wait(min(5.0, seconds / 10)):
                pages = int(Path(f"/proc/{driver.pid}/statm").read_text().split()[1])
                memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)

        looking = Thread(target=look, daemon=True)
        looking.start()
        republish(Rounds(recording, seconds), bus)
        stop.set()
        looking.join()
        driver.terminate()
        assert driver.stdout is not None
        frames = json.loads(driver.stdout.read())["frames"]
    third = len(memory) // 3
    growth = median(memory[-third:]) / median(memory[third : 2 * third])
    return {"frames": frames, "memory_growth": growth, "memory_mb": memory[-1]}


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
