"""Pages of predicted frames: from above and in the cameras, with boxes, maps and points."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from deploy.network import Network, Result
from deploy.replay.frames import PageFrames, page_of
from deploy.replay.report import DriveRange
from perception.frame import Conditions, Frame
from perception.io.files import write_atomically
from perception.page import single_file
from perception.scene.belief import Belief
from perception.scene.scene import SceneFrame


class Page:
    """An HTML page as a single file, which a notebook shows as it is."""

    def __init__(self, html: str) -> None:
        self.html = html

    def save(self, path: str | Path) -> None:
        write_atomically(Path(path), self.html.encode())

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self.html)}" style="width: 100%; height: 900px; border: 0"></iframe>'


class PredictedFrames:
    """Collects predicted frames for one page; of many, 28 at even distances get pictures.

    Args:
        count: expected number of frames.
    """

    def __init__(self, network: Network, count: int) -> None:
        self._network, self._pictured = network, DriveRange(0, count, count).evenly
        self._frames = PageFrames(network.tasks, network.spec.grid, network.spec.shown_sensors)
        self._scenes: list[tuple[int, str]] = []
        self._start, self._number = 0, 0

    def add(self, frame: Frame, result: Result) -> None:
        """Add the next frame, with its result by this network."""
        if not self._scenes or self._scenes[-1][1] != frame.scene:
            self._scenes.append((self._number, frame.scene))
            self._start = frame.timestamp
        seen = _alone(frame, result)
        layers = self._frames.layers_of(frame, seen)
        if self._number in self._pictured:
            self._frames.add(page_of(self._number, frame, seen, self._start), frame, layers, True)
        self._number += 1

    def page(self, note: str) -> Page:
        """The page of the frames so far; at least one must have been added.

        Args:
            note: what is to be known of them, in a sentence.
        """
        data: dict[str, Any] = {
            "verdict": None,
            "unjudged": ["Predictions", note],
            "bundle": self._network.facts,
            **self._frames.data(),
            "latency": None,
            "stages": [],
            "milliseconds": [[]] * self._number,
            "scenes": self._scenes,
            "lanes": [],
            "faults": [],
            "worst": [],
        }
        return Page(single_file("deploy.replay", "Predictions", data))


def plot(frame: Frame, result: Result) -> Page:
    """The page of a frame with the result that a network gave for it."""
    frames = PredictedFrames(result.network, 1)
    frames.add(frame, result)
    return frames.page(frame.token)


def _alone(frame: Frame, result: Result) -> SceneFrame:
    """The frame as if it were all of its drive; nothing is remembered, believed or watched over time."""
    beliefs = {}
    for kind, probabilities in result.recognised.items():
        value = max(probabilities, key=lambda each: probabilities[each])
        why = f"{value}, recognised with {probabilities[value]:.0%}"
        beliefs[kind] = Belief(value, tuple(probabilities.values()), why)
    return SceneFrame(
        token=frame.token,
        scene=frame.scene,
        timestamp=frame.timestamp,
        prediction=result.prediction,
        states={},
        conditions=Conditions(),
        beliefs=beliefs,
        route={},
        health={},
        seconds={},
    )
