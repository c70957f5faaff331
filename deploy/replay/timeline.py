"""What lasted in a replay, as spans of frames, and the frames to look at first."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

from perception.frame import Frame
from perception.scene.scene import SceneFrame


class Timeline:
    """Lanes of spans with a constant value, so that memory does not grow with each frame."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, str], list[dict[str, Any]]] = {}  # (kind, name) -> spans
        self._scene = ""

    def add(self, number: int, frame: Frame, seen: SceneFrame) -> None:
        """Add the next frame of the replay, as recorded and as perceived."""
        for kind in seen.beliefs:
            self._extend(("tags", kind), number, seen.scene, frame.conditions.get(kind, ""), "")
        for kind, belief in seen.beliefs.items():
            self._extend(("conditions", kind), number, seen.scene, belief.value or "", belief.why)
        for module, routed in seen.route.items():
            self._extend(("route", module), number, seen.scene, f"{routed.weight:g}", routed.why)
        for sensor, health in seen.health.items():
            self._extend(("health", sensor), number, seen.scene, health.words, health.reasons)
        self._scene = seen.scene

    def _extend(self, lane: tuple[str, str], number: int, scene: str, value: str, why: str) -> None:
        """Extend the last span or start a new one. A span ends with its drive and keeps its first reason."""
        spans = self._lanes.setdefault(lane, [])
        if spans and spans[-1]["value"] == value and spans[-1]["to"] == number - 1 and scene == self._scene:
            spans[-1]["to"] = number
        else:
            spans.append({"from": number, "to": number, "value": value, "why": why})

    def join(self, lanes: Sequence[Mapping[str, Any]], first: int) -> None:
        """Append the `lanes` of later drives, whose frames are counted from `first` on."""
        for lane in lanes:
            own = self._lanes.setdefault((lane["kind"], lane["name"]), [])
            own += [{**span, "from": first + span["from"], "to": first + span["to"]} for span in lane["spans"]]

    def lanes(self) -> list[dict[str, Any]]:
        return [{"kind": kind, "name": name, "spans": spans} for (kind, name), spans in self._lanes.items()]


WORST_KEPT = 4  # frames by each measure


class WorstFrames:
    """The WORST_KEPT worst frames so far by each measure; the earliest among equals."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[tuple[float, int, str]]] = {}  # measure -> value, -number, text

    def add(self, number: int, ratings: Mapping[str, Sequence[Any]]) -> bool:
        """Add a frame with the values and texts of its measures; returns whether it is among the worst so far.

        Higher is worse, and 0 is never among the worst.
        """
        among_worst = False
        for measure, (value, text) in ratings.items():
            heap = self._heaps.setdefault(measure, [])
            entry = (float(value), -number, text)  # numpy's numbers are no JSON
            if value > 0 and (len(heap) < WORST_KEPT or entry > heap[0]):
                (heapq.heappush if len(heap) < WORST_KEPT else heapq.heapreplace)(heap, entry)
                among_worst = True
        return among_worst

    def part(self) -> dict[str, list[tuple[int, float, str]]]:
        """Number, value and text of each measure's frames, for `join`."""
        return {name: [(-n, value, text) for value, n, text in heap] for name, heap in self._heaps.items()}

    def join(self, part: Mapping[str, Sequence[tuple[int, float, str]]], first: int) -> None:
        """Add the worst frames of later drives, whose frames are counted from `first` on."""
        for measure, entries in part.items():
            self._heaps.setdefault(measure, [])
            for number, value, text in sorted(entries):
                self.add(first + number, {measure: (value, text)})

    @property
    def numbers(self) -> set[int]:
        return {-entry[1] for heap in self._heaps.values() for entry in heap}

    def to_rows(self) -> list[dict[str, Any]]:
        """Each measure's frames, the worst first."""
        return [
            {"measure": measure, "number": -negative, "text": text}
            for measure, heap in self._heaps.items()
            for _, negative, text in sorted(heap, reverse=True)
        ]
