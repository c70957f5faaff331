"""Which frames of a replay deserve a look first: those with the most mistakes, the slowest, those of ill sensors."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

KEPT = 4  # frames by each measure


class Worst:
    """The KEPT worst frames by each measure so far; of equally bad ones those that came first."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[tuple[float, int, str]]] = {}  # measure -> badness, -number, text

    def add(self, number: int, badness: Mapping[str, tuple[float, str]]) -> bool:
        """Whether a frame is among the worst by now.

        Args:
            badness: for each measure how bad the frame is, and that in words; 0 is not bad at all.
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
