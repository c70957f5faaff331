"""Names and classes of the heatmaps of CenterPoint's head. numpy only."""

from __future__ import annotations

from typing import NamedTuple

from perception.tasks.detection.config import DetectionHead


class Heatmap(NamedTuple):
    """One dense output, (B, classes, rows * subcells, columns * subcells)."""

    name: str
    group: int  # index of the head's group
    subcells: int  # heatmap cells along each side of a cell of the trunk
    labels: tuple[int, ...]  # of its classes, in the taxonomy


def heatmaps_of(config: DetectionHead) -> list[Heatmap]:
    """The heatmaps of all groups, coarsest first in each; a group has one for each size of cells among its classes.

    Args:
        config: settled (`DetectionHead.settled`).
    """
    assert isinstance(config.subcells, dict)
    maps, first = [], 0
    for i, group in enumerate(config.groups):
        sizes = [config.subcells.get(name, 1) for name in group]
        for size in sorted(set(sizes)):
            name = map_name(config, "heatmap" if size == 1 else f"heatmap_{size}x", i)
            maps.append(Heatmap(name, i, size, tuple(first + k for k, own in enumerate(sizes) if own == size)))
        first += len(group)
    return maps


def map_name(config: DetectionHead, name: str, group: int) -> str:
    """Name of a group's branch and dense output; without the group's index if there is only one group."""
    return name if len(config.groups) == 1 else f"group{group}_{name}"
