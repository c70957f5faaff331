"""Labels of the detection heads, and the heatmaps of CenterPoint's head that they are for. numpy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perception.frame import Boxes
from perception.grid import BevGrid
from perception.tasks.detection.config import DetectionHead

# Names and classes of the heatmaps of CenterPoint's head. numpy only.


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


# Labels of the detection heads, from annotated boxes (CenterPoint, Yin et al., 2021). numpy only.


def gaussian_radius(length: np.ndarray, width: np.ndarray, overlap: float = 0.1) -> np.ndarray:
    """Radius (cells) by which the corners of a box (length x width cells) may move with an IoU above `overlap`.

    The smallest of the three cases of CornerNet (Law and Deng, 2018, section 3.2): the box is shifted, shrunk or grown
    by the radius along both axes. Each is the root of a quadratic equation.
    """
    total, area = length + width, length * width
    shifted = (total - np.sqrt(total**2 - 4 * area * (1 - overlap) / (1 + overlap))) / 2
    shrunk = (total - np.sqrt(total**2 - 4 * area * (1 - overlap))) / 4
    grown = (-total + np.sqrt(total**2 + 4 * area * (1 - overlap) / overlap)) / 4
    return np.minimum(np.minimum(shifted, shrunk), grown)


def _draw(heatmap: np.ndarray, row: int, column: int, radius: int) -> None:
    """Raise the heatmap (rows, columns) to a Gaussian with a peak of 1 at the cell."""
    rows, columns = heatmap.shape
    sigma = (2 * radius + 1) / 6
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    bell = np.exp(-(x * x + y * y) / (2 * sigma * sigma)).astype(np.float32)
    top, bottom = max(row - radius, 0), min(row + radius + 1, rows)
    left, right = max(column - radius, 0), min(column + radius + 1, columns)
    part = heatmap[top:bottom, left:right]
    bell = bell[top - row + radius : bottom - row + radius, left - column + radius : right - column + radius]
    np.maximum(part, bell, out=part)


def center_labels(boxes: Boxes, grid: BevGrid, head: DetectionHead) -> dict[str, np.ndarray]:
    """Labels of the N objects of one frame on the grid, in the reference frame of the boxes.

    Returns:
        the heatmaps of the head by name, (classes, rows, columns) float32, a Gaussian with peak 1 at the cell of each
        object; for each object its cell row * columns + column of the trunk, its head's group of classes, its attribute
        (-1: none), `real`, True, and its regression targets, (N, n) float32 by the names of `CenterHead.regressed`; NaN
        for unknown velocities.
    """
    rows, columns = grid.shape
    group_of_class = np.repeat(np.arange(len(head.groups)), [len(group) for group in head.groups])
    place = grid.continuous(boxes.centers)
    inside = ((place >= 0) & (place < (columns, rows))).all(axis=1)
    boxes, place = boxes.select(inside), place[inside]
    cells = place.astype(np.int64)
    regression = {
        "offset": place - np.floor(place),
        "height": boxes.centers[:, 2:3],
        "size": np.log(boxes.sizes),
        "heading": np.stack([np.sin(boxes.yaws), np.cos(boxes.yaws)], axis=-1),
        "velocity": boxes.velocities[:, :2],
    }
    if head.axis:
        regression["axis"] = np.stack([np.sin(2 * boxes.yaws), np.cos(2 * boxes.yaws)], axis=-1)
    return {
        **{each.name: _heatmap(boxes, grid, each, head.min_radius) for each in heatmaps_of(head)},
        "cells": cells @ np.array([1, columns]),
        "groups": group_of_class[boxes.labels],
        "attributes": boxes.attributes,
        "real": np.ones(len(boxes), bool),
        **{name: values.astype(np.float32) for name, values in regression.items()},
    }


def _heatmap(boxes: Boxes, grid: BevGrid, layer: Heatmap, min_radius: int) -> np.ndarray:
    """(classes, rows, columns) of the boxes inside the grid, on the cells of this heatmap."""
    cell, (rows, columns) = grid.cell / layer.subcells, grid.shape
    heatmap = np.zeros((len(layer.labels), rows * layer.subcells, columns * layer.subcells), np.float32)
    own = boxes.select(np.isin(boxes.labels, layer.labels))
    radii = gaussian_radius(own.sizes[:, 1] / cell, own.sizes[:, 0] / cell)
    radii = np.maximum(radii.astype(np.int64), min_radius)
    place = (grid.continuous(own.centers) * layer.subcells).astype(np.int64)
    for (column, row), radius, label in zip(place, radii, own.labels, strict=True):
        _draw(heatmap[layer.labels.index(label)], row, column, radius)
    return heatmap


def anchor_labels(boxes: Boxes, grid: BevGrid) -> dict[str, np.ndarray]:
    """Labels of one frame's N objects on the grid: boxes (N, 9) x y z w l h yaw vx vy, classes (N,), `real`, True."""
    x, y = boxes.centers[:, 0], boxes.centers[:, 1]
    boxes = boxes.select((x > grid.x[0]) & (x < grid.x[1]) & (y > grid.y[0]) & (y < grid.y[1]))
    numbers = [boxes.centers, boxes.sizes, boxes.yaws[:, None], boxes.velocities[:, :2]]
    return {
        "boxes": np.concatenate(numbers, axis=1).astype(np.float32),
        "classes": boxes.labels,
        "real": np.ones(len(boxes), bool),
    }
