"""Positions of anchors.

A box is encoded relative to its anchor: x and y in diagonals of the anchor, z in its heights, logarithms of the ratios
of width, length and height, rotation in rad; and, if the network predicts it, the velocity in m/s.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from perception.tasks.detection.config import AnchorHead


def all_anchors(config: AnchorHead, shapes: Sequence[tuple[int, ...]]) -> Tensor:
    """(N, 7) x y z (m, centre), width, length, height (m), yaw (rad) of all anchors on feature maps of these shapes.

    Ordered by map, then by anchor of a cell, then row by row.
    """
    maps = []
    for level, (rows, columns) in enumerate(shapes):
        cell = of_a_cell(config, level, rows, columns)[:, None, None]  # A 1 1 9
        row, column = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        place = cell[..., :2] + torch.stack([column, row], dim=-1) * cell[..., 2:4]
        rest = torch.cat([cell[..., 4:5] + cell[..., 7:8] / 2, cell[..., 5:9]], dim=-1)
        maps.append(torch.cat([place, rest.expand(-1, rows, columns, -1)], dim=-1).flatten(0, 2))
    return torch.cat(maps)


def of_a_cell(config: AnchorHead, level: int, rows: int, columns: int) -> Tensor:
    """(A, 9): corner x and y of the map, cell sizes along x and y (m), z of the bottom (m), width, length, height (m),
    yaw (rad).
    """
    scale = config.scales[level]
    anchors = [
        [
            *(anchor.x[0], anchor.y[0]),
            *((anchor.x[1] - anchor.x[0]) / columns, (anchor.y[1] - anchor.y[0]) / rows),
            *(anchor.bottom, *(scale * side for side in anchor.size), rotation),
        ]
        for anchor in config.anchors
        for rotation in config.rotations
    ]
    return torch.tensor(anchors)
