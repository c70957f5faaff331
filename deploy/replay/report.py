"""The report of a replay: a single HTML file to step through the frames.

Its data is JSON in a script element, in which the verdict can be replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deploy.manifest import Manifest
from deploy.replay.frames import PageFrames, page_of
from deploy.replay.latency import STAGES
from deploy.replay.timeline import Timeline, WorstFrames
from perception.frame import Frame
from perception.page import as_script, single_file
from perception.scene.scene import SceneFrame

EVENLY = 28  # frames with pictures, evenly spread over the replay; with the worst frames they make up the file's size


class DriveRange(NamedTuple):
    """The place of a drive in a replay, in expected numbers of frames."""

    first: int  # before it
    frames: int
    total: int  # of the replay

    @property
    def evenly(self) -> set[int]:
        """The frames of the drive, counted from 0, that are among EVENLY of the replay's at even distances."""
        numbers = np.linspace(0, self.total - 1, min(self.total, EVENLY)).round().astype(int) - self.first
        return set(numbers[(numbers >= 0) & (numbers < self.frames)].tolist())


NO_DRIVE = DriveRange(0, 0, 0)


class Report:
    """Collects replayed frames; without a place in the replay it is for `join`."""

    def __init__(self, manifest: Manifest, target: str, place: DriveRange = NO_DRIVE) -> None:
        self.manifest, self.target = manifest, target
        self._spread = place.evenly
        self._milliseconds: list[list[float]] = []  # of every frame, as STAGES
        self._scenes: list[tuple[int, str]] = []  # number of each scene's first frame
        self._start = 0  # us, of the scene
        self._timeline, self._worst = Timeline(), WorstFrames()
        self._tasks = manifest.heads
        self._frames = PageFrames(manifest.heads, manifest.grid.build(), manifest.rig.sensors)

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """Add the next frame and what was perceived in it; `seen.seconds` must have all STAGES."""
        number = len(self._milliseconds)
        if not self._scenes or self._scenes[-1][1] != frame.scene:
            self._scenes.append((number, frame.scene))
            self._start = frame.timestamp
        self._milliseconds.append([round(seen.seconds[stage] * 1e3, 2) for stage in STAGES])
        self._timeline.add(number, frame, seen)
        layers = self._frames.layers_of(frame, seen)
        if self._worst.add(number, self._ratings(frame, seen)) | (number in self._spread):
            page = page_of(number, frame, seen, self._start)
            self._frames.add(page, frame, layers, number in self._spread)
            self._keep_only_shown()

    def _keep_only_shown(self) -> None:
        self._frames.keep(self._spread | self._worst.numbers)

    def part(self) -> dict[str, Any]:
        """What was collected, as JSON, for `join`."""
        return {
            "spread": sorted(self._spread),
            **self._frames.part(),
            "milliseconds": self._milliseconds,
            "scenes": self._scenes,
            "lanes": self._timeline.lanes(),
            "worst": self._worst.part(),
        }

    def join(self, part: Mapping[str, Any]) -> None:
        """Append the frames of later drives."""
        first = len(self._milliseconds)
        self._spread |= {first + number for number in part["spread"]}
        self._frames.join(part, first)
        self._milliseconds += part["milliseconds"]
        self._scenes += [(first + number, name) for number, name in part["scenes"]]
        self._timeline.join(part["lanes"], first)
        self._worst.join(part["worst"], first)
        self._keep_only_shown()

    def html(
        self,
        latency: Mapping[str, Any],
        provenance: Mapping[str, str] | None = None,
        faults: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The page without a verdict, which `with_verdict` adds.

        Of Latency.summary(), ReplayProvenance.brief() and FaultDetections.to_rows().
        """
        data = {
            "verdict": None,
            "unjudged": ["Replay", "not judged: neither gates nor a baseline were given"],
            "bundle": self.manifest.facts(self.target) | dict(provenance or {}),
            **self._frames.data(),
            "latency": latency,
            "stages": list(STAGES),
            "milliseconds": self._milliseconds,
            "scenes": self._scenes,
            "lanes": self._timeline.lanes(),
            "faults": faults,
            "worst": self._worst.to_rows(),
        }
        return single_file("deploy.replay", "Replay", data)

    def _ratings(self, frame: Frame, seen: SceneFrame) -> dict[str, tuple[float, str]]:
        total = sum(self._milliseconds[-1])
        faulty: dict[str, list[str]] = {}  # sensors by status
        for name, health in seen.health.items():
            if health.status != "ok":
                faulty.setdefault(health.words, []).append(name)
        ratings: dict[str, tuple[float, str]] = {
            "slowest": (total, f"{total:.0f} ms"),
            "sensors": (
                sum(map(len, faulty.values())),
                "; ".join(
                    f"{', '.join(names) if len(names) < 3 else f'{len(names)} sensors'} {status}"
                    for status, names in faulty.items()
                ),
            ),
        }
        results = seen.prediction.results
        found = [task.mistakes(frame, results[name]) for name, task in self._tasks.items() if name in results]
        mistakes = [each for each in found if each is not None]
        if mistakes:
            ratings["mistakes"] = sum(number for number, _ in mistakes), "; ".join(text for _, text in mistakes)
        return ratings


_START, _END = '<script id="data" type="application/json">', "</script>"


def with_verdict(page: str, verdict: Mapping[str, Any]) -> str:
    """The page with this verdict (Verdict.as_dict()); unchanged if it has no data element."""
    before, start, rest = page.partition(_START)
    data, end, after = rest.partition(_END)
    if not end:
        return page
    return before + start + as_script(json.loads(data) | {"verdict": verdict}) + end + after
