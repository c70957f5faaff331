"""The frames of a replay to look at first: most mistakes, slowest, most sensors with a fault."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

KEPT = 4  # frames by each measure


class Worst:
    """The KEPT worst frames by each measure so far; of equal ones the earliest."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[tuple[float, int, str]]] = {}  # measure -> badness, -number, text

    def add(self, number: int, badness: Mapping[str, tuple[float, str]]) -> bool:
        """Add a frame; returns whether it is among the worst so far.

        Args:
            badness: of each measure the number, higher is worse and 0 never counts, and the number in words.
        """
        among = False
        for measure, (value, text) in badness.items():
            heap = self._heaps.setdefault(measure, [])
            entry = (value, -number, text)
            if value > 0 and (len(heap) < KEPT or entry > heap[0]):
                (heapq.heappush if len(heap) < KEPT else heapq.heapreplace)(heap, entry)
                among = True
        return among

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
