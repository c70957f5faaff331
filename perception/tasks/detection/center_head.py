"""CenterPoint's head (Yin et al., 2021): network, losses, decoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.grid import BevGrid
from perception.modules.layers import ConvBlock
from perception.modules.slot import Slot
from perception.tasks.detection.config import DetectionHead, IouScore, Weights
from perception.tasks.detection.submission import MOVING_SPEED
from perception.tasks.detection.targets import Heatmap, heatmaps_of, map_name
from perception.tasks.network import Axis, Loss, TaskNetwork
from perception.taxonomy import Taxonomy

# Headings of objects whose front and rear are hard to tell apart.
#
# A network that is unsure gives the mean of both headings, which is short and points anywhere. The axis, as sine and
# cosine of twice the yaw, is the same for both: it says how the box lies, and the heading only which end is in front.

AXIS = {"axis": 2}  # regression output: sine and cosine of twice the yaw


def along_axis(heading: Tensor, axis: Tensor) -> Tensor:
    """(..., 2) the heading's projection onto the axis: sine and cosine of the yaw, times its length there.

    It is short where the heading does not tell the ends apart, so that rounding changes it little.

    Args:
        heading: (..., 2) sine and cosine of the yaw, times any factor.
        axis: (..., 2) sine and cosine of twice the yaw, times any positive factor.
    """
    sine, cosine = axis.unbind(dim=-1)
    length = (axis**2).sum(dim=-1).sqrt()
    # tan(yaw) = sin(2 yaw) / (1 + cos(2 yaw)) = (1 - cos(2 yaw)) / sin(2 yaw): the one that is far from 0 / 0.
    flat = torch.stack([sine, length + cosine], dim=-1)
    steep = torch.stack([length - cosine, sine], dim=-1)
    along = torch.where(cosine[..., None] >= 0, flat, steep)
    share = (along * heading).sum(dim=-1, keepdim=True) / (along**2).sum(dim=-1, keepdim=True).clamp(min=1e-12)
    return along * share


# Losses of CenterPoint's head (Yin et al., 2021).

REGRESSION = {
    "offset": 2,  # of the centre from the cell's corner, in cells
    "height": 1,  # of the centre, m
    "size": 3,  # logarithm of width, length, height in m
    "heading": 2,  # sine and cosine of the yaw
    "velocity": 2,  # m/s
}  # regression output at an object's cell -> number of channels
_BOX = (*REGRESSION, *AXIS)
_AT_OBJECTS = (*_BOX, "attribute")


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

    Args:
        dense: outputs of `CenterHead.forward`.
        labels: a batch of `targets.center_labels`.
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


# Scores that also say how well a box fits: the head predicts the IoU of each box with its object.
#
# CIA-SSD (Zheng et al., 2021) and PillarNeSt (Mao et al., 2024).


def rectified(found: Mapping[str, Tensor], logits: Tensor, config: IouScore) -> dict[str, Tensor]:
    """Detections with the score heatmap^(1 - beta) * IoU^beta, best first; part of the graph.

    Args:
        found: boxes (B, K, n), scores, the values of the heatmap, labels and attributes (B, K).
        logits: (B, K, 1) of the IoU.
    """
    heat = found["scores"]
    scores = heat ** (1 - config.beta) * logits[..., 0].sigmoid() ** config.beta
    scores = torch.where(heat > config.threshold, scores, torch.zeros_like(scores))
    scores, order = scores.topk(scores.shape[-1])
    others = {name: found[name].gather(1, order) for name in ("labels", "attributes")}
    boxes = found["boxes"].gather(1, order[..., None].expand(-1, -1, found["boxes"].shape[-1]))
    return {"boxes": boxes, "scores": scores, **others}


def iou_loss(groups: Sequence[Mapping[str, Tensor]], labels: Mapping[str, Tensor], weight: float, cell: float) -> Loss:
    """Absolute difference of the predicted IoU from that of the predicted box with its object.

    The gradient changes the prediction of the IoU only, not the box.

    Args:
        groups: regression outputs of each group, (B, n, rows, columns).
        labels: a batch of `targets.center_labels`.
        cell: side of the maps' cells in metres.
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
    """(...) IoU of upright boxes, pair by pair.

    The footprint of the other box is clipped to the first one as in `nms.py`: by clamping its outline in the
    first box's frame, where what lies outside ends on the border and has no area.

    Args:
        one, other: (..., 8) x y z, width length height, sine and cosine of the yaw.
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


# Default attributes in a network that predicts none.


def by_speed(labels: Tensor, velocities: Tensor, taxonomy: Taxonomy) -> Tensor:
    """(...) indices of the default attributes, -1 where the class has none.

    Args:
        labels: (...) index of the class.
        velocities: (..., 2) m/s.
    """
    at_rest, in_motion = labels.new_tensor(taxonomy.default_attributes()).T[:, labels]
    return in_motion.where(velocities.square().sum(dim=-1) > MOVING_SPEED**2, at_rest)


# CenterPoint's detection head (Yin et al., 2021): objects as peaks of BEV heatmaps.

_SLACK = 1.0  # subcells beyond its own that the centre of a peak's object may be


class CenterHead(TaskNetwork):
    """(B, C, rows, columns) -> heatmap of each class, and at every cell the box of an object centred there.

    Each group of classes has its own branches and outputs. The heatmaps of classes with subcells have several values
    for each cell (sub-pixel convolution, Shi et al., 2016), so that neighbours in a crowd have peaks of their own; the
    regression is that of the whole cell.
    """

    possible: Tensor

    def __init__(self, config: DetectionHead, inputs: int, grid: BevGrid, taxonomy: Taxonomy) -> None:
        super().__init__()
        self.grid, self.config, self.taxonomy = grid, config, taxonomy
        self.shared = ConvBlock("heads.detection", inputs, config.channels)
        self.branches = nn.ModuleDict()
        self.heatmaps = heatmaps_of(config)
        for i in range(len(config.groups)):
            values = sum(len(each.labels) * each.subcells**2 for each in self.heatmaps if each.group == i)
            for name, n in {"heatmap": values, **self.regressed}.items():
                own = map_name(config, name, i)
                hidden = ConvBlock(f"heads.detection.{own}", config.channels, config.channels)
                last = nn.Conv2d(config.channels, n, config.output_kernel, padding=config.output_kernel // 2)
                self.branches[own] = nn.Sequential(hidden, Slot(f"heads.detection.{own}.output", last))
                if name == "heatmap":  # start at p = 0.01 (RetinaNet, Lin et al. 2017)
                    nn.init.constant_(last.bias, -math.log((1 - 0.01) / 0.01))  # type: ignore[arg-type]
        possible = [taxonomy.possible_attributes(label) for label in range(len(taxonomy.classes))]
        self.register_buffer("possible", torch.tensor(possible), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.shared(x)
        regressed = {name: branch(x) for name, branch in self.branches.items() if not name.endswith("heatmap")}
        return self.heat(x) | regressed

    def heat(self, x: Tensor) -> dict[str, Tensor]:
        """The heatmaps of all groups, from the shared features."""
        dense = {}
        for i in range(len(self.config.groups)):
            own = [each for each in self.heatmaps if each.group == i]
            values = self.branches[map_name(self.config, "heatmap", i)](x)
            parts = values.split([len(each.labels) * each.subcells**2 for each in own], dim=1)
            for each, part in zip(own, parts, strict=True):
                dense[each.name] = part if each.subcells == 1 else F.pixel_shuffle(part, each.subcells)
        return dense

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        losses = center_losses(dense, labels, self.config)
        if self.config.iou:
            groups = [
                {name: dense[map_name(self.config, name, i)] for name in self.regressed}
                for i in range(len(self.config.groups))
            ]
            losses["iou"] = iou_loss(groups, labels, self.config.weights.iou, self.grid.cell)
        return losses

    def unflipped(self, dense: Mapping[str, Tensor], axis: Axis) -> dict[str, Tensor]:
        """As in TaskNetwork; offsets count from a cell's other side, headings and velocities change their signs."""
        maps, own = super().unflipped(dense, axis), 0 if axis == "x" else 1
        for name, value in maps.items():
            quantity = name.rpartition("_")[2]
            # The mirror image in x has the heading (sin, -cos), that in y (-sin, cos), and both the axis (-sin, cos).
            channel = {"heading": 1 - own, "axis": 0}.get(quantity, own)
            if quantity in ("offset", "heading", "axis", "velocity"):
                changed = value.clone()
                changed[:, channel] = 1 - value[:, channel] if quantity == "offset" else -value[:, channel]
                maps[name] = changed
        return maps

    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The K best peaks of the heatmaps: boxes (B, K, 10), scores, labels and attributes (B, K); part of the graph.

        A box is x, y, z (m), width, length, height (m), sine and cosine of the yaw, and the velocity (m/s), in the
        grid's reference frame. Sine and cosine are not normalised, which would amplify the rounding errors of short
        ones.

        With several groups each gives its K best: (B, groups, K, 10) and (B, groups, K). Without `peaks` all cells
        are candidates, for NMS after the engine.
        """

        def gathered(group: int, cell: Tensor) -> dict[str, Tensor]:
            maps = {
                name: dense[map_name(self.config, name, group)].flatten(2).transpose(1, 2) for name in self.regressed
            }
            return {n: m.gather(1, cell[..., None].expand(-1, -1, m.shape[-1])) for n, m in maps.items()}

        return self.boxes(dense, gathered)

    def boxes(
        self, dense: Mapping[str, Tensor], regress: Callable[[int, Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The result of `decode` from the heatmaps among the dense outputs.

        Args:
            regress: returns the regression outputs, each of `regressed` (B, K, n), for the index of a group and its
                cells (B, K), row * columns + column.
        """
        groups = [self._best(i, dense, partial(regress, i)) for i in range(len(self.config.groups))]
        if len(groups) == 1:
            return groups[0]
        return {name: torch.stack([group[name] for group in groups], dim=1) for name in groups[0]}

    @property
    def regressed(self) -> dict[str, int]:
        """Regression outputs at a cell, with their numbers of channels."""
        iou = {"iou": 1} if self.config.iou else {}
        return (
            REGRESSION
            | (AXIS if self.config.axis else {})
            | iou
            | ({"attribute": len(self.taxonomy.attributes)} if self.learns_attributes else {})
        )

    @property
    def learns_attributes(self) -> bool:
        return self.config.attributes == "learned" and bool(self.taxonomy.attributes)

    def _best(
        self, group: int, dense: Mapping[str, Tensor], regress: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The best peaks of one group."""
        own = [each for each in self.heatmaps if each.group == group]
        scores = torch.cat([self._scores(dense[each.name]) for each in own], dim=1)
        best, index = scores.topk(min(self.config.top_k, scores.shape[1]))  # B K
        label, subcells, within = self._classes(own, index)

        columns = self.grid.shape[1]
        row = torch.div(within, subcells * columns, rounding_mode="floor")
        column = within - row * (subcells * columns)
        cell_row = torch.div(row, subcells, rounding_mode="floor")
        cell_column = torch.div(column, subcells, rounding_mode="floor")
        at = regress(cell_row * columns + cell_column)

        place = torch.stack([cell_column, cell_row], dim=-1).to(scores.dtype) + at["offset"]
        if any(each.subcells > 1 for each in own):
            # Two objects in one cell share its regression: each stays near its own subcell.
            corner, size = torch.stack([column, row], dim=-1).to(scores.dtype), subcells[..., None].to(scores.dtype)
            near = (place * size - corner).clamp(-_SLACK, 1 + _SLACK)
            place = torch.where(size > 1, (corner + near) / size, place)
        center = place * self.grid.cell + place.new_tensor([self.grid.x[0], self.grid.y[0]])
        size = at["size"].clamp(-5, 5).exp()
        velocity = at["velocity"]
        heading = along_axis(at["heading"], at["axis"]) if self.config.axis else at["heading"]
        boxes = torch.cat([center, at["height"], size, heading, velocity], dim=-1)
        if self.learns_attributes:
            possible = self.possible[label]  # B K attributes
            attribute = torch.where(possible, at["attribute"], -1e4).argmax(dim=-1)
            attribute = torch.where(possible.any(dim=-1), attribute, -1)
        else:
            attribute = by_speed(label, velocity, self.taxonomy)
        found = {"boxes": boxes, "scores": best, "labels": label, "attributes": attribute}
        return rectified(found, at["iou"], self.config.iou) if self.config.iou else found

    def _scores(self, heatmap: Tensor) -> Tensor:
        """(B, classes * rows * columns) of a heatmap; zero where no box may be."""
        scores = heatmap.sigmoid()
        if self.config.only_peaks:
            scores = scores * (scores == F.max_pool2d(scores, 3, stride=1, padding=1)).to(scores.dtype)
        return scores.flatten(1)

    def _classes(self, maps: Sequence[Heatmap], index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Label, subcells and cell in the heatmap of its class (B, K), for positions in `maps` one after the other."""
        classes = [(label, each.subcells) for each in maps for label in each.labels]
        cells = [size * size * self.grid.cells for _, size in classes]
        starts = index.new_tensor([sum(cells[:i]) for i in range(len(cells))])
        position = (index[..., None] >= starts[1:]).sum(dim=-1)  # of the class in `classes`
        label, subcells = (index.new_tensor(column)[position] for column in zip(*classes, strict=True))
        return label, subcells, index - starts[position]
