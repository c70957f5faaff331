"""What waits before the engine: how long, how much of it, and what becomes of it at the end."""

import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

import pytest
from exported import bundle
from live import PATIENT, Watch, driving, log, recorded
from recordings import nuscenes_topics

from deploy.live import intake as module
from deploy.live.intake import Intake
from deploy.live.policy import Policy
from deploy.live.source import Damage, Playback, Receive
from deploy.recordings.drives import open_recording
from deploy.runtime import Runtime


class Sent(Playback):
    """A recording all of whose messages were sent before."""

    def start(self, topics: Collection[str], receive: Receive, damage: Damage) -> None:
        self._end.set()


@pytest.mark.slow("may be the first to export")
def test_the_time_of_a_frame_is_that_of_its_last_message_however_long_it_waited(tmp_path: Path) -> None:
    """Else outputs of a process that cannot keep up would be in time, however old they are."""
    recording, policy = recorded(tmp_path, log(2.0)), Policy(lateness=PATIENT)
    topics = nuscenes_topics(keyframes=None, wait=PATIENT)
    waiting = Intake(Sent(recording), topics, policy, Runtime(bundle().path, checks=False))
    began = time.monotonic()
    for raw in open_recording(recording).read(topics.names(), lambda _: None):
        waiting.receive(raw)
    came = time.monotonic()
    waiting.start()
    arrived = waiting.take(60.0)
    waiting.close()
    assert arrived is not None
    assert began <= arrived.time <= came


def test_messages_that_are_dropped_make_the_state_degraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come a thousand times as fast as they were recorded."""
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    drive = driving(log(2.0), tmp_path, rate=1000.0)
    dropped = sum(drive.driven.counts["overrun"].values())
    assert dropped > 0
    says = f"{dropped} messages so far were dropped"
    assert drive.watch.first("DEGRADED", "overrun", says=says) < float("inf")


def test_frames_that_wait_at_the_end_of_a_recording_are_not_decoded_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All wait for a camera that sends nothing; the drive is stopped in the first one."""
    monkeypatch.setattr("deploy.recordings.stamps.SILENT", 10**9)  # us
    topics, policy = nuscenes_topics(keyframes=None, wait=PATIENT), Policy(lateness=PATIENT)
    watch = Watch(lambda: os.kill(os.getpid(), signal.SIGTERM) if len(watch.lines) == 1 else None)
    blind = [each for each in log(2.0) if not each.topic.startswith("/cam_back/")]
    drive = driving(blind, tmp_path, topics=topics, policy=policy, watch=watch)
    drive.require_outcomes()
    assert drive.driven.announced >= 3
    assert drive.driven.outcomes == {"perceived": 1, "stopped": drive.driven.announced - 1}
