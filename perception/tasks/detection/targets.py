"""What CenterPoint's head learns (Yin et al., 2021): labels of annotated boxes, and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from perception.frame import Boxes
from perception.grid import BevGrid
from perception.loss import Loss
from perception.tasks.detection.config import DetectionHead, Heatmap, Weights, heatmaps_of, map_name

REGRESSION = {
    "offset": 2,  # of the centre from the cell's corner, in cells
    "height": 1,  # of the centre, m
    "size": 3,  # logarithm of width, length, height in m
    "heading": 2,  # sine and cosine of the yaw
    "velocity": 2,  # m/s
}  # regression output at an object's cell -> number of channels
# Headings of objects whose front and rear are hard to tell apart.
#
# A network that is unsure gives the mean of both headings, which is short and points anywhere. The axis, as sine and
# cosine of twice the yaw, is the same for both: it says how the box lies, and the heading only which end is in front.
AXIS = {"axis": 2}  # regression output: sine and cosine of twice the yaw
_BOX = (*REGRESSION, *AXIS)
_AT_OBJECTS = (*_BOX, "attribute")


def along_axis(heading: Tensor, axis: Tensor) -> Tensor:
    """(..., 2) the heading's projection onto the axis: sine and cosine of the yaw, times its length there.

    It is short where the heading does not tell the ends apart, so that rounding changes it little. The axis (..., 2) is
    sine and cosine of twice the yaw, times any positive factor.
    """
    sine, cosine = axis.unbind(dim=-1)
    length = (axis**2).sum(dim=-1).sqrt()
    # tan(yaw) = sin(2 yaw) / (1 + cos(2 yaw)) = (1 - cos(2 yaw)) / sin(2 yaw): the one that is far from 0 / 0.
    flat = torch.stack([sine, length + cosine], dim=-1)
    steep = torch.stack([length - cosine, sine], dim=-1)
    along = torch.where(cosine[..., None] >= 0, flat, steep)
    share = (along * heading).sum(dim=-1, keepdim=True) / (along**2).sum(dim=-1, keepdim=True).clamp(min=1e-12)
    return along * share


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

    The heatmaps by name, (classes, rows, columns) float32, a Gaussian with peak 1 at the cell of each object; for each
    object its cell row * columns + column of the trunk, group of classes, attribute (-1: none), `real`, True, and the
    regression targets (N, n) float32 by the names of `CenterHead.regressed`; NaN for unknown velocities.
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


def gaussian_focal(logits: Tensor, target: Tensor) -> Loss:
    """Penalty-reduced focal loss of heatmaps (B, ...) per object (CornerNet, Law and Deng, 2018, eq. 1).

    -(1 - p)^2 log p where the target is 1, which counts as an object, else -(1 - target)^4 p^2 log(1 - p).
    """
    positive = target == 1
    wrong = torch.where(positive, -logits, logits)  # logit of the wrong answer
    weight = torch.where(positive, 1.0, (1 - target) ** 2)
    values = (weight * wrong.sigmoid()) ** 2 * F.softplus(wrong)
    return Loss(values.flatten(1).sum(dim=1), positive.flatten(1).sum(dim=1))


def center_losses(dense: Mapping[str, Tensor], labels: Mapping[str, Tensor], config: DetectionHead) -> dict[str, Loss]:
    """Heatmap and regression terms of each group, and an attribute term if the head learns attributes.

    Each group is normalised by its own objects, so that rare classes count as much as frequent ones.
    """
    losses: dict[str, Loss] = {}
    for i in range(len(config.groups)):
        heat = [gaussian_focal(dense[each.name], labels[each.name]) for each in heatmaps_of(config) if each.group == i]
        sums, counts = (torch.stack(values).sum(dim=0) for values in zip(*heat, strict=True))
        own = {name: dense[full] for name in _AT_OBJECTS if (full := map_name(config, name, i)) in dense}
        terms = {"heatmap": Loss(sums, counts)} | _at_objects(own, labels, labels["groups"] == i, config.weights)
        losses |= {map_name(config, name, i): term for name, term in terms.items()}
    return losses


def _at_objects(
    dense: Mapping[str, Tensor], labels: Mapping[str, Tensor], own: Tensor, weights: Weights
) -> dict[str, Loss]:
    """The terms at the cells of one group's objects, own (B, N)."""
    real = labels["real"] & own
    values = {}  # B N n
    for name, found in dense.items():
        place = labels["cells"][..., None].expand(-1, -1, found.shape[1])
        values[name] = found.flatten(2).transpose(1, 2).gather(1, place)
    regression = values["offset"].new_zeros(len(real))
    for name in (name for name in _BOX if name in values):
        wanted = labels[name]
        known = real[..., None] & ~wanted.isnan()
        distance = torch.where(known, (values[name] - wanted.nan_to_num()).abs(), 0.0).flatten(1).sum(dim=1)
        regression = regression + distance * (weights.velocity if name == "velocity" else 1.0)
    losses = {"regression": Loss(weights.regression * regression, real.sum(dim=1))}
    if "attribute" in values:
        has = real & (labels["attributes"] >= 0)
        logits = values["attribute"].transpose(1, 2)
        entropy = F.cross_entropy(logits, labels["attributes"].clamp(min=0), reduction="none")  # B N
        losses["attribute"] = Loss(weights.attribute * torch.where(has, entropy, 0.0).sum(dim=1), has.sum(dim=1))
    return losses


def iou_loss(groups: Sequence[Mapping[str, Tensor]], labels: Mapping[str, Tensor], weight: float, cell: float) -> Loss:
    """Absolute difference of the predicted IoU from that of the predicted box with its object, on cells of `cell` m.

    The gradient changes the prediction of the IoU only, not the box.
    """
    place, wanted = labels["cells"][:, None], _boxes(labels, cell)
    sums = wanted.new_zeros(len(wanted))
    for i, maps in enumerate(groups):
        at = {n: m.flatten(2).gather(2, place.expand(-1, m.shape[1], -1)).transpose(1, 2) for n, m in maps.items()}
        with torch.no_grad():
            target = iou_3d(_boxes(at, cell), wanted)
        off = (at["iou"][..., 0].sigmoid() - target).abs()
        sums = sums + torch.where(labels["real"] & (labels["groups"] == i), off, 0.0).sum(dim=1)
    return Loss(weight * sums, labels["real"].sum(dim=1))


def _boxes(values: Mapping[str, Tensor], cell: float) -> Tensor:
    """(..., 8) float32 x y z (m, x and y from the cell's corner), width length height, sine and cosine of the yaw."""
    heading = along_axis(values["heading"], values["axis"]) if "axis" in values else values["heading"]
    parts = (
        values["offset"] * cell,
        values["height"],
        values["size"].clamp(-5, 5).exp(),
        F.normalize(heading.float(), dim=-1),
    )
    return torch.cat([part.float() for part in parts], dim=-1)


def iou_3d(one: Tensor, other: Tensor) -> Tensor:
    """(...) IoU of upright boxes (..., 8) x y z, width length height, sine and cosine of the yaw, pair by pair.

    The footprint of the other box is clipped to the first one as in `nms.rotated_iou`.
    """
    turn = torch.stack([one[..., [7, 6]], torch.stack([-one[..., 6], one[..., 7]], dim=-1)], dim=-2)  # ahead, left
    middle = (turn @ (other - one)[..., :2, None])[..., 0]
    ahead = (turn @ other[..., [7, 6], None])[..., 0]
    left = torch.stack([-ahead[..., 1], ahead[..., 0]], dim=-1)
    ahead, left = ahead * other[..., 4:5] / 2, left * other[..., 3:4] / 2
    corners = torch.stack([ahead - left, ahead + left, left - ahead, -ahead - left], dim=-2) + middle[..., None, :]
    half = one[..., [4, 3]][..., None, :] / 2
    sides = corners.roll(-1, dims=-2) - corners  # ... 4 2
    to_lines = torch.cat([-half - corners, half - corners], dim=-1)
    steps = torch.cat([sides, sides], dim=-1)
    crossed = torch.where(steps != 0, to_lines / steps, 0.0).clamp(0, 1).sort(dim=-1).values
    crossed = torch.cat([torch.zeros_like(crossed[..., :1]), crossed], dim=-1)  # ... 4 5
    outline = (corners[..., None, :] + crossed[..., None] * sides[..., None, :]).flatten(-3, -2)
    x, y = torch.maximum(torch.minimum(outline, half), -half).unbind(dim=-1)
    shared = (x * y.roll(-1, dims=-1) - x.roll(-1, dims=-1) * y).sum(dim=-1) / 2

    top = torch.minimum(one[..., 2] + one[..., 5] / 2, other[..., 2] + other[..., 5] / 2)
    bottom = torch.maximum(one[..., 2] - one[..., 5] / 2, other[..., 2] - other[..., 5] / 2)
    shared = shared * (top - bottom).clamp(min=0)
    volumes = one[..., 3:6].prod(dim=-1) + other[..., 3:6].prod(dim=-1)
    return shared / (volumes - shared).clamp(min=1e-9)
