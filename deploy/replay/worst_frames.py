"""The frames of a replay to look at first: most mistakes, slowest, most sensors with a fault."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

WORST_KEPT = 4  # frames by each measure


class WorstFrames:
    """The WORST_KEPT worst frames so far by each measure; the earliest among equals."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[tuple[float, int, str]]] = {}  # measure -> value, -number, text

    def add(self, number: int, ratings: Mapping[str, Sequence[Any]]) -> bool:
        """Add a frame; returns whether it is among the worst so far.

        Args:
            ratings: measure -> value and its text; higher is worse, and 0 is never among the worst.
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

    def listed(self) -> list[dict[str, Any]]:
        """Each measure's frames, the worst first."""
        return [
            {"measure": measure, "number": -negative, "text": text}
            for measure, heap in self._heaps.items()
            for _, negative, text in sorted(heap, reverse=True)
        ]
