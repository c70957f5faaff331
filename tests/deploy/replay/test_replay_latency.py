"""Latencies as a vehicle would see them: at the drive's pace, with nothing beside, and never of two runs."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from judged import gates
from replays import frames, replayed, small
from tiny import write_tiny
from vocabulary import SENSORS

from deploy.replay.journal import JOURNAL
from deploy.replay.latency import STAGES, Latency
from deploy.replay.player import Player
from deploy.replay.results import Finished
from deploy.replay.selection import Selection
from deploy.replay.settings import Settings, Source
from deploy.replay.sources.counts import Counts
from deploy.replay.undecoded import Known
from deploy.runtime import Runtime
from perception.errors import InputError
from perception.frame import Frame

THREE = Selection(end=1.5)  # frames
LIMIT = gates({"metric": "latency", "at_most": 1e6})


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("latency") / "tiny"
    write_tiny(root, 4)
    return root


def test_the_same_results_at_the_drives_pace(drive: Path, tmp_path: Path) -> None:
    replayed(drive, tmp_path / "fast", selection=THREE)
    start = time.monotonic()
    summary = replayed(drive, tmp_path / "paced", selection=THREE, latency=True, gates=LIMIT)
    assert time.monotonic() - start >= 1.0  # three frames
    assert summary["verdict"]["passed"]
    for name in ("results.json", "tracks.json", "statistics.jsonl", "sources.json"):
        assert (tmp_path / "paced" / name).read_bytes() == (tmp_path / "fast" / name).read_bytes()
    fast, paced = (json.loads((tmp_path / side / "latency.json").read_text()) for side in ("fast", "paced"))
    assert (fast["mode"], paced["mode"]) == ("throughput", "vehicle")
    assert (paced["frames"], paced["period"]) == (3, 500.0)
    assert paced["deadline_misses"] == sum(sum(m) > 500 for m in milliseconds(tmp_path / "paced"))
    assert paced["behind"] >= 0


def milliseconds(out: Path) -> list[list[float]]:
    from pages import page_data

    return list(page_data(out / "report.html")["milliseconds"])


class WatchedDrive:
    """A drive that sees on which thread and cores it is read, and what is in the folder meanwhile."""

    tables, seconds = None, 0.2

    def __init__(self, given: list[Frame], out: Path) -> None:
        self.given, self.out, self.counts = given, out, Counts(SENSORS)
        self.seen: list[tuple[str, int, int, set[str]]] = []

    def __len__(self) -> int:
        return len(self.given)

    def frames(self, known: Known) -> Iterator[Frame]:
        for frame in self.given:
            cores = len(os.sched_getaffinity(0))
            files = {file.name for file in self.out.iterdir()}
            self.seen.append((threading.current_thread().name, threading.active_count(), cores, files))
            yield frame


def test_nothing_goes_on_beside_a_frame(drive: Path, tmp_path: Path) -> None:
    """First all frames come on the main thread, which is bound to a core and has no other beside it but the test's."""
    cores, beside = os.sched_getaffinity(0), threading.active_count()
    watched = WatchedDrive(frames(drive)[:2], tmp_path)
    Player(Runtime(small()), Source(drive), [watched], tmp_path, Settings(latency=True)).run()
    main = threading.current_thread().name
    assert watched.seen[:2] == [(main, beside, 1, {JOURNAL, f"{JOURNAL}-wal"})] * 2
    assert {thread for thread, *_ in watched.seen[2:]} == {"reader_0"}
    assert os.sched_getaffinity(0) == cores


def test_what_an_interrupted_run_measured_is_not_used(drive: Path, tmp_path: Path) -> None:
    last = sorted((drive / "samples" / "LIDAR_TOP").iterdir())[2]
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    with pytest.raises(InputError, match=last.name):
        replayed(drive, tmp_path, selection=THREE, latency=True)
    last.write_bytes(content)
    assert (tmp_path / JOURNAL).stat().st_size > 10_000  # two frames are in it
    start = time.monotonic()
    assert replayed(drive, tmp_path, selection=THREE, latency=True)["resumed_at_frame"] == 0
    assert time.monotonic() - start >= 1.0
    assert json.loads((tmp_path / "latency.json").read_text())["frames"] == 3


def test_a_latency_gate_takes_the_latencies_of_a_vehicle(drive: Path, tmp_path: Path) -> None:
    verdict = replayed(drive, tmp_path, selection=THREE, gates=LIMIT)["verdict"]
    (case,) = verdict["cases"]
    assert not verdict["passed"]
    assert case["value"] is None
    assert "--latency" in case["reason"]
    assert not Finished.load(tmp_path).latency_as_on_vehicle


def test_deadlines_are_the_frames_period() -> None:
    """Of two drives at 10 Hz; the pause between them is no period."""
    latency, missed = Latency(), 0
    for i, total in enumerate([0.05, 0.101, 0.0999, 0.3, 0.1001, 0.02]):
        scene = "a" if i < 3 else "b"
        at = 100_000 * i + (0 if scene == "a" else 60_000_000)
        frame = Frame(str(i), at, "ego", np.eye(4), np.eye(4), None, {}, scene=scene)
        latency.add(frame, dict.fromkeys(STAGES, 0.0) | {"engine": total})
        missed += total > 0.1
    summary = latency.summary()
    assert (summary["frames"], summary["period"], summary["deadline_misses"]) == (6, 100.0, missed)
