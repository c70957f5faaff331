"""Replay a recorded drive through an exported bundle, to see what the vehicle would have perceived."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deploy.recordings.choice import FrameChoice
from deploy.recordings.drives import Drive
from deploy.replay.faults import hide, inject, parse_faults
from deploy.replay.report import DriveRange
from deploy.replay.schedule import BackgroundWriter, RealTime, freeze_objects, prefetch
from deploy.replay.settings import Settings
from deploy.replay.totals import ReplayTotals
from deploy.replay.writers import Writers, open_writers
from deploy.runtime import Runtime
from perception.frame import Frame
from perception.scene.health.monitor import SensorHealth
from perception.scene.scene import SceneFrame

if TYPE_CHECKING:
    from deploy.replay.foxglove_results import FoxgloveWriter


class Watcher:
    """Receives the progress of a replay; this one ignores it."""

    def message(self, text: str) -> None:
        """Receive a line of text."""

    def advance(self, frames: int = 1) -> None:
        """Receive the number of further frames that were replayed."""


class _Taken(NamedTuple):
    frame: Frame
    seconds: float  # since the start of its drive
    reading: float  # s that reading it took
    written: bool  # and not only perceived for the sake of later frames


class Player:
    """Runs drives through a runtime, one after the other; the viewer gets the frames of all.

    Two threads read the next frames and write the last ones while the network runs (`deploy.replay.schedule`).
    """

    def __init__(
        self,
        runtime: Runtime,
        settings: Settings | None = None,
        watcher: Watcher | None = None,
        viewer: FoxgloveWriter | None = None,
    ) -> None:
        self.runtime, self.settings, self.viewer = runtime, settings or Settings(), viewer
        self.watcher = watcher or Watcher()
        manifest = runtime.bundle.manifest
        self._faults, self._hidden = parse_faults(self.settings.faults, manifest.rig.sensors, manifest.taxonomy)

    def play(self, drive: Drive, folder: Path, place: DriveRange) -> ReplayTotals:
        """Replay a drive, which may have no frame, from its start, and write its files to a folder that exists."""
        totals = ReplayTotals(self.runtime, self.settings, place)
        clock = RealTime() if self.settings.real_time else None
        self.runtime.restart()
        unwritten = _Unwritten()
        with freeze_objects(), ExitStack() as files:
            writers = open_writers(files, folder, self.runtime.bundle.manifest, self.viewer)
            background = files.enter_context(BackgroundWriter())
            for taken in files.enter_context(closing(prefetch(self._frames(drive)))):
                admitted, seen = self._step(taken, clock)
                if taken.written:
                    background.call(_write, writers, totals, admitted, unwritten.join(seen))
                    self.watcher.advance()
                else:
                    unwritten.add(seen)
                    background.call(totals.pass_by, admitted.frame, admitted.seconds, seen)
        totals.counts.append(drive.counts.summary())
        if clock is not None:
            totals.behind = clock.behind
        return totals

    def _frames(self, drive: Drive) -> Iterator[_Taken]:
        earlier = any(fault.kind.shows_earlier for fault in self._faults)
        choice = FrameChoice(self.settings.selection, self.runtime.spacing is not None, earlier)
        start = time.perf_counter()
        for frame in inject(drive.frames(choice), self._faults, choice.time):
            if not choice.perceived:
                continue
            seconds = choice.time(frame.scene, frame.timestamp)
            yield _Taken(frame, seconds, time.perf_counter() - start, choice.written)
            start = time.perf_counter()

    def _step(self, taken: _Taken, clock: RealTime | None) -> tuple[_Taken, SceneFrame]:
        """Perceive a frame, when it is its time by a clock; returns it as it was admitted, and the scene."""
        admitted, given = self.runtime.admit(taken.frame), self.settings.conditions
        if clock is not None:
            clock.wait_for(admitted)
        frame = admitted if given is None else replace(admitted, conditions=given)
        prediction, weights = self.runtime.perceive(frame)
        seen = self.runtime.remember(frame, hide(prediction, self._hidden, taken.seconds), weights)
        return taken._replace(frame=admitted), replace(seen, seconds={"read": taken.reading, **seen.seconds})


class _Unwritten:
    """What frames that are not written showed that the next written one has to say."""

    def __init__(self) -> None:
        self._scene, self._health, self._not_finite = "", dict[str, SensorHealth](), dict[str, int]()

    def add(self, seen: SceneFrame) -> None:
        if seen.scene != self._scene:
            self._scene, self._health, self._not_finite = seen.scene, {}, {}
        self._health |= {name: each for name, each in seen.health.items() if each.findings}
        self._not_finite |= seen.prediction.not_finite

    def join(self, seen: SceneFrame) -> SceneFrame:
        """The scene with the faults since the latest written frame that it has not, and all outputs not finite."""
        self.add(replace(seen, health={}))
        health = {name: each if each.findings else self._health.get(name, each) for name, each in seen.health.items()}
        prediction = replace(seen.prediction, not_finite=self._not_finite)
        self._health, self._not_finite = {}, {}
        return replace(seen, health=health, prediction=prediction)


def _write(writers: Writers, totals: ReplayTotals, taken: _Taken, seen: SceneFrame) -> None:
    writers.add(taken.frame, seen)
    totals.add(taken.frame, taken.seconds, seen)
