"""The PointPillars network for KITTI's three classes, small and plain, from its description and its weights.

The weights are those of Vitis AI's `VoxelNet_int` with batch normalisation folded in (README beside the file). Boxes
are SECOND's (Yan et al., 2018): at rotation 0 a box has its length along y and faces -y; rotations are clockwise.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from repository import ROOT
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

LOW, HIGH = np.array([0, -39.68, -3]), np.array([69.12, 39.68, 1])  # m, the LiDAR's frame
PILLAR, ROWS, COLUMNS, MOST = 0.16, 496, 432, 100
GROUND = -1.73  # m
SIZES = np.array([[1.6, 3.9, 1.56], [0.6, 1.76, 1.73], [0.6, 0.8, 1.73]])  # m, width, length, height
BOTTOMS = (-1.78, -1.465, -1.465)  # m
CAR = 0


class Dense(NamedTuple):
    """Outputs of the heads at 248 rows and 216 columns."""

    classes: Tensor  # (18, rows, columns) logits: 6 anchors times 3 classes
    boxes: Tensor  # (42, rows, columns)
    directions: Tensor  # (12, rows, columns) logits


class Found(NamedTuple):
    """Of one class, best first."""

    scores: np.ndarray  # (N,)
    boxes: np.ndarray  # (N, 7) x y z (m, centre), width, length, height (m), rotation (rad, SECOND's)


def weights_file() -> Path:
    """The trained weights; skips a test without them."""
    given = os.environ.get("PERCEPTION_KITTI")
    folder = Path(given) if given else ROOT.parent / "shared" / "data" / "pointpillars_kitti"
    if not (folder / "pointpillars.safetensors").exists():
        pytest.skip(f"weights of PointPillars for KITTI not found at {folder} (set PERCEPTION_KITTI)")
    return folder / "pointpillars.safetensors"


@torch.no_grad()
def run(weights: dict[str, Tensor], points: np.ndarray) -> Dense:
    """points (N, 4) float32 x y z (m, ground near -1.73), intensity (0-1)."""
    x, lifted = bird_eye_view(weights, points)[None], []
    for block, layers in enumerate((4, 6, 6)):
        for layer in range(layers):
            name = f"blocks.{block}.{layer}"
            stride = 1 if layer else 2
            x = F.relu(F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding=1))
        name, up = f"deblocks.{block}", 2**block
        lifted.append(F.relu(F.conv_transpose2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], up)))
    x = torch.cat(lifted, dim=1)
    heads = ("cls", "box", "dir_cls")
    return Dense(*(F.conv2d(x, weights[f"heads.{n}.weight"], weights[f"heads.{n}.bias"])[0] for n in heads))


def bird_eye_view(weights: dict[str, Tensor], points: np.ndarray) -> Tensor:
    """(64, rows, columns) features of the pillars, zero where there are no points."""
    points = points[((points[:, :3] >= LOW) & (points[:, :3] < HIGH)).all(axis=1)]
    column, row = np.floor((points[:, :2] - LOW[:2]) / PILLAR).astype(int).T
    _, cell_of_point, counts = np.unique(row * COLUMNS + column, return_inverse=True, return_counts=True)
    order = np.argsort(cell_of_point, kind="stable")
    position = np.empty(len(points), int)  # of a point in its pillar
    position[order] = np.arange(len(points)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = position < MOST
    scaled = np.concatenate([(points[:, :3] - LOW) / (HIGH - LOW), points[:, 3:4]], axis=1)[kept].astype(np.float32)
    features = F.relu(F.linear(torch.from_numpy(scaled), weights["pillar.weight"], weights["pillar.bias"]))
    index = torch.from_numpy(cell_of_point[kept])[:, None].expand_as(features)
    padding = F.relu(weights["pillar.bias"])
    pillars = torch.where(torch.from_numpy(counts < MOST)[:, None], padding, -torch.inf)
    pillars = pillars.scatter_reduce(0, index, features, "amax")
    view = torch.zeros(64, ROWS, COLUMNS)
    cells = np.unique(row * COLUMNS + column)
    view[:, cells // COLUMNS, cells % COLUMNS] = pillars.T
    return view


def decode(dense: Dense) -> tuple[Tensor, Tensor]:
    """(6 * rows * columns, 3) scores of the classes, and (6 * rows * columns, 7) boxes in double precision."""
    _, rows, columns = dense.classes.shape
    scores = dense.classes.double().sigmoid().reshape(6, 3, rows, columns)
    code = dense.boxes.double().reshape(6, 7, rows, columns)
    direction = dense.directions.reshape(6, 2, rows, columns).argmax(dim=1)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    boxes = []
    for anchor in range(6):
        width, length, height = SIZES[anchor // 2]
        x, y, z, w, h_l, h, turn = code[anchor]
        diagonal = float(np.hypot(width, length))
        rotation = turn + (anchor % 2) * np.pi / 2
        rotation = rotation + np.pi * ((rotation > 0) != (direction[anchor] == 1))
        places = [
            0.16 + 0.32 * column + x * diagonal,
            -39.52 + 0.32 * row + y * diagonal,
            BOTTOMS[anchor // 2] + height / 2 + z * height,
        ]
        boxes.append(torch.stack([*places, width * w.exp(), length * h_l.exp(), height * h.exp(), rotation]))
    return scores.permute(0, 2, 3, 1).reshape(-1, 3), torch.stack(boxes).permute(0, 2, 3, 1).reshape(-1, 7)


def detections(dense: Dense, label: int, threshold: float = 0.4, apart: float = 1.0) -> Found:
    """Boxes of a class above a score, without those that are nearer than `apart` (m) to a better one."""
    scores, boxes = (each.numpy() for each in decode(dense))
    chosen = np.flatnonzero(scores[:, label] >= threshold)
    chosen = chosen[np.argsort(-scores[chosen, label], kind="stable")]
    kept: list[int] = []
    for i in chosen:
        if all(np.hypot(*(boxes[i, :2] - boxes[k, :2])) >= apart for k in kept):
            kept.append(i)
    return Found(scores[kept, label], boxes[kept])


def headings(found: Found) -> np.ndarray:
    """(N,) rad: yaw counter-clockwise from x."""
    return -found.boxes[:, 6] - np.pi / 2


def load() -> dict[str, Tensor]:
    return load_file(weights_file())
