"""Recordings of drives: complete at a clean end, readable after a kill, and no danger to the drive on a full disk."""

import pickle
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import PATIENT, RESULTS, driving, replayed
from recordings import Sent, nuscenes_topics, write_raw_mcap

from deploy.live import record
from deploy.live.intake import Intake
from deploy.live.outputs import Output
from deploy.live.policy import Policy
from deploy.live.process import Driven
from deploy.live.record import Recorder
from deploy.recordings import ros
from deploy.recordings.mcap import McapRecording
from deploy.recordings.messages import RawMessage, RecordingInfo

MEGABYTE = 1 << 20
INFO = RecordingInfo({}, 0, "monday", "boston-seaport", "Rain")


def raw(message: Sent) -> RawMessage:
    decode: Any = partial(ros.decode, message.type_name)
    return RawMessage(message.topic, message.time, message.data, decode, decode, message.type_name)


def recorded(path: Path) -> list[Sent]:
    recording, damage = McapRecording(path), list[str]()
    found = recording.read(recording.info.counts, damage.append)
    return [Sent(each.topic, each.type_name, each.time, each.data) for each in found]


def drive_recorded(log: list[Sent] | Path, out: Path, path: Path) -> Driven:
    """Drive at the recorded pace, and record it."""

    def record_it(stack: ExitStack, intake: Intake) -> list[Output]:
        recorder = Recorder(path, intake.source.info, print)
        stack.callback(recorder.close)
        intake.tap = recorder.tap
        return [recorder]

    return driving(log, out, None, nuscenes_topics(wait=PATIENT), Policy(lateness=PATIENT), 1.0, more=record_it).driven


def test_the_replay_of_a_recording_gives_the_bytes_of_the_drive(log: list[Sent], tmp_path: Path) -> None:
    path = tmp_path / "monday.mcap"
    driven = drive_recorded(log, tmp_path / "live", path)
    assert driven.outcomes == {"perceived": driven.announced}  # else it was not fast enough here
    replay = replayed(path, tmp_path / "replay")
    for name in RESULTS:
        assert (tmp_path / "live" / name).read_bytes() == (replay / name).read_bytes()
    assert recorded(path) == [each for each in log if each.topic in driven.counts["messages"]]
    assert McapRecording(path).info.scene == "drive"  # the name of the drive, not of the file


def test_what_goes_out_is_recorded_and_what_cannot_be_is_named(log: list[Sent], tmp_path: Path) -> None:
    said = list[str]()
    recorder = Recorder(tmp_path / "a.mcap", INFO, said.append)
    for each in log:
        recorder.tap(raw(each))
        recorder.tap(raw(each)._replace(topic="/json", type_name=""))
        recorder.out("/tessera" + each.topic, each.type_name, each.data, each.time)
    recorder.close()
    assert recorded(tmp_path / "a.mcap") == [
        same for each in log for same in (each, each._replace(topic="/tessera" + each.topic))
    ]
    assert said == ["--record: /json is not recorded, because it has no messages of ROS 2's own types in CDR"]
    info = McapRecording(tmp_path / "a.mcap").info
    assert (info.scene, info.location, info.description) == ("monday", "boston-seaport", "Rain")


KILLED = """
import os, pickle, sys, time
from deploy.live.record import Recorder
from deploy.recordings.mcap import McapRecording
path, info, log = pickle.load(sys.stdin.buffer)
recorder = Recorder(path, info, print)
for each in log[:-1]:
    recorder.out(*each)
while not path.stat().st_size or sum(McapRecording(path).info.counts.values()) < len(log) - 1:
    time.sleep(0.1)
recorder.out(*log[-1])
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_what_came_before(log: list[Sent], tmp_path: Path) -> None:
    path, few = tmp_path / "a.mcap", log[:40]
    given = pickle.dumps((path, INFO, [(each.topic, each.type_name, each.data, each.time) for each in few]))
    done = subprocess.run([sys.executable, "-c", KILLED], input=given, check=False, timeout=100)
    assert done.returncode == -9
    assert recorded(path) in (few[:-1], few)
    assert McapRecording(path).info.scene == "monday"


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes; writing more fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_recording_and_not_the_drive(log: list[Sent], tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    front = next(each for each in log if each.topic == "/cam_front/image_rect_compressed")
    damaged = front._replace(data=np.random.default_rng(0).bytes(MEGABYTE))  # nothing compresses it
    drive = write_raw_mcap(tmp_path / "drive.mcap", [*log[:20], damaged, damaged, damaged, *log[20:]])
    with disk_of(5 * MEGABYTE // 2):
        driven = drive_recorded(drive, tmp_path / "live", path)
    assert driven.counts["corrupt"][front.topic] == 3
    assert sum(driven.outcomes.values()) == driven.announced > 0
    assert (tmp_path / "live" / "tracks.json").exists()
    (reason,) = (each for each in driven.status.reasons if each.code == "output")
    assert (reason.state, reason.subject) == ("DEGRADED", "record")
    assert reason.text == "is used no more ([Errno 27] File too large)"
    read = recorded(path)
    assert read == [*(each for each in log[:20] if each.topic != "/odometry"), damaged, damaged][: len(read)]
    assert damaged in read


def test_a_disk_that_is_too_slow_ends_the_recording_with_what_was_in_time(
    log: list[Sent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    recorder = Recorder(tmp_path / "a.mcap", INFO, said.append)
    recorder.tap(raw(log[0]))
    monkeypatch.setattr(record, "MOST_WAITING", 0)
    recorder.tap(raw(log[1]))
    monkeypatch.undo()
    recorder.tap(raw(log[2]))
    recorder.close()
    assert recorded(tmp_path / "a.mcap") == log[:1]
    assert said == [f"--record {tmp_path}/a.mcap: is not complete (the disk is too slow: 0 MiB waited to be written)"]
