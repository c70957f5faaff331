"""Occupancy from the trunk's features: network and losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.grid import OTHERS, BevGrid
from perception.loss import Loss, lovasz_softmax
from perception.modules.slot import ConvBlock, Slot
from perception.tasks.network import TaskNetwork
from perception.tasks.occupancy.config import OccupancyHead, Placement, Sampling
from perception.tasks.occupancy.labels import UNKNOWN
from perception.tasks.occupancy.rays import OCCUPIED, body_levels, make_free_rays


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """() mean over voxels (N, C), N > 0, weighted by their classes (C,)."""
    each = F.cross_entropy(logits, labels, reduction="none")
    own = weights.to(logits)[labels]
    return (own * each).sum() / own.sum().clamp(min=torch.finfo(own.dtype).tiny)


def lovasz(probabilities: Tensor, labels: Tensor, free: int) -> Tensor:
    """() Lovasz-softmax of the occupied voxels and of as many free ones: those that are least likely to be free.

    Sorting all voxels, most of which are free, would take most of the time of a training step. Of the elements in
    descending order of their errors, the first ones have the same weights whatever follows.
    """
    occupied = torch.nonzero(labels != free)[:, 0]
    empty = torch.nonzero(labels == free)[:, 0]
    if len(empty) > max(len(occupied), 1):
        hardest = probabilities[empty, free].detach().topk(max(len(occupied), 1), largest=False, sorted=False)
        empty = empty[hardest.indices]
    chosen = torch.cat([occupied, empty])
    return lovasz_softmax(probabilities[chosen], labels[chosen])


def scale_loss(probabilities: Tensor, truth: Tensor) -> Tensor:
    """() scene-class affinity loss: mean over the classes that occur of -log of precision, recall and specificity.

    Cao and de Charette, "MonoScene: Monocular 3D Semantic Scene Completion", CVPR 2022, equations 2 to 5: with the
    classes' probabilities it is the semantic term, with a single class for what is occupied the geometric one.
    """
    there = truth.any(dim=0)
    p, t = probabilities[:, there], truth[:, there].to(probabilities)
    hits, found, true, false = (p * t).sum(dim=0), p.sum(dim=0), t.sum(dim=0), (1 - t).sum(dim=0)
    terms = _log(hits, found) + _log(hits, true)
    terms = terms + _log(((1 - p) * (1 - t)).sum(dim=0), false).where(false > 0, 0.0)
    return -terms.sum() / there.sum().clamp(min=1)


def _log(part: Tensor, whole: Tensor) -> Tensor:
    """Logarithm of a share, which rounding may put above 1; the least positive number instead of 0."""
    tiny = torch.finfo(part.dtype).tiny
    return (part / whole.clamp(min=tiny)).clamp(tiny, 1).log()


# Occupancy head: channels of a BEV feature map become heights.
#
# As FlashOcc (Yu et al., "FlashOcc: Fast and Memory-Efficient Occupancy Prediction via Channel-to-Height Plugin",
# 2023, arXiv:2311.12058). Finer voxels than the map's cells are channels of the cell as well (sub-pixel convolution,
# Shi et al., CVPR 2016), so that all convolutions run on the map's cells.

FREE = 0.9  # of the voxels, at first


class ChannelToHeightHead(TaskNetwork):
    """(B, C, rows, columns) of the trunk -> logits (B, levels x classes, rows, columns) of the voxels.

    As FlashOcc (Yu et al., 2023, arXiv:2311.12058) channels of the map become heights. Finer voxels than its cells are
    channels as well (sub-pixel convolution, Shi et al., CVPR 2016), so that all convolutions run on the map's cells.
    """

    columns: Tensor
    distances: Tensor
    ends: Tensor
    solid: Tensor
    places: Tensor
    class_weights: Tensor

    def __init__(self, config: OccupancyHead, inputs: int, grid: BevGrid, classes: Sequence[str]) -> None:
        super().__init__()
        voxels = config.voxels(grid.reference)
        self.levels, self.classes = voxels.shape[0], len(classes)
        self.placement = Placement.of(voxels, grid)
        if self.placement is None:
            sampling = Sampling.of(voxels, grid)
            self._constant("places", torch.from_numpy(sampling.places)[None])
        self.finer = sampling.finer if self.placement is None else self.placement.finer
        self.weights, self.body = config.losses, body_levels(voxels, config.body)
        self.margin = math.log(config.odds)
        outputs = self.levels * self.classes * self.finer**2
        stride = 1 if self.placement is None else self.placement.coarser
        self.shared = ConvBlock("heads.occupancy", inputs, config.channels, stride=stride)
        last = nn.Conv2d(config.channels, outputs, 1)
        with torch.no_grad():  # a prior for what is rare, as RetinaNet begins (Lin et al., ICCV 2017, section 4.1)
            by_class = last.bias.view(self.levels, self.classes, -1)  # type: ignore[union-attr]
            by_class[:, -1] += math.log(FREE * (self.classes - 1) / (1 - FREE))
        self.logits = Slot("heads.occupancy.output", last)
        rays = make_free_rays(voxels)
        solid = [name not in (*config.flat, classes[-1]) for name in classes]
        self._constant("columns", torch.from_numpy(rays.columns))
        self._constant("distances", torch.from_numpy(rays.distances))
        self._constant("ends", torch.from_numpy(rays.ends)[:, None])
        self._constant("solid", torch.tensor(solid, dtype=torch.float32))
        self._constant("class_weights", torch.tensor([config.losses.classes.get(name, 1.0) for name in classes]))

    def _constant(self, name: str, values: Tensor) -> None:
        """A tensor that follows the head to its device, and is no part of a checkpoint."""
        self.register_buffer(name, values, persistent=False)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        logits = self.logits(self.shared(self._place_features(features)))
        return {"logits": F.pixel_shuffle(logits, self.finer) if self.finer > 1 else logits}

    def _place_features(self, features: Tensor) -> Tensor:
        """A feature map where the voxels are, cut out or else interpolated, with zeros outside the map."""
        place, (rows, columns) = self.placement, features.shape[-2:]
        if place is None:
            places = self.places.expand(len(features), *self.places.shape[1:])
            return F.grid_sample(features, places.to(features), align_corners=False)
        top, left = max(-place.row, 0), max(-place.column, 0)
        bottom = max(place.row + place.rows - rows, 0)
        right = max(place.column + place.columns - columns, 0)
        inside = features[
            :,
            :,
            place.row + top : place.row + place.rows - bottom,
            place.column + left : place.column + place.columns - right,
        ]
        return F.pad(inside, (left, right, top, bottom)) if top + left + bottom + right else inside

    def decode(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`classes` uint8, probabilities `occupied` and `others` (B, levels, rows, columns); `free` (B, 360) m.

        A voxel has its likeliest class but free space, if that is `odds` times as likely as free space. What stops the
        vehicle is a voxel at the height of its body, more likely occupied than not, whose likeliest class is not flat.
        """
        logits = dense["logits"]
        batch, _, rows, columns = logits.shape
        logits = logits.reshape(batch * self.levels, self.classes, rows, columns)
        things, free = logits[:, :-1], logits[:, -1:]
        likeliest, best = things.amax(dim=1, keepdim=True), things.argmax(dim=1)
        # ONNX Runtime is slow at a softmax along an inner dimension.
        shares = (logits - torch.maximum(likeliest, free)).exp()
        whole = shares.sum(dim=1)
        occupied, others = 1 - shares[:, -1] / whole, shares[:, OTHERS] / whole
        there = (likeliest > free + self.margin)[:, 0]
        classes = torch.where(there, best.float(), float(self.classes - 1))
        shape = (batch, self.levels, rows, columns)
        occupied = occupied.reshape(shape)
        body = best.reshape(shape)[:, self.body]
        solid = self.solid.index_select(0, body.flatten()).reshape(body.shape)
        stops = (occupied[:, self.body] * solid).amax(dim=1).flatten(1)
        met = stops.index_select(1, self.columns.flatten()).reshape(batch, *self.columns.shape) > OCCUPIED
        distances = torch.where(met, self.distances, self.ends).amin(dim=2)
        # TensorRT has uint8 for outputs alone, and casts only floating-point numbers to it.
        names = classes.reshape(shape).to(torch.uint8)
        outputs = {"classes": names, "occupied": occupied, "others": others.reshape(shape)}
        return {**outputs, "free": distances}

    def losses(self, dense: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Loss]:
        """Weighted cross-entropy, Lovasz-softmax and scale losses over the observed voxels of each frame."""
        logits, truth = dense["logits"], labels["classes"]
        batch, _, rows, columns = logits.shape
        by_voxel = logits.reshape(batch, self.levels, self.classes, rows, columns).movedim(2, -1)
        frames = [self._terms(each, own) for each, own in zip(by_voxel, truth, strict=True)]
        counts = torch.stack([(own != UNKNOWN).any() for own in truth])
        return {name: Loss(torch.stack([each[name] for each in frames]), counts) for name in frames[0]}

    def _terms(self, logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """() loss terms of one frame: logits (levels, rows, columns, classes), truth (levels, rows, columns)."""
        observed = truth != UNKNOWN
        own, labels, free = logits[observed], truth[observed].long(), self.classes - 1
        if not len(labels):
            return {name: logits.sum() * 0 for name, weight in self._weights_by_term() if weight}
        p, occupied = own.softmax(dim=1), (labels != free)[:, None]
        one_hot = F.one_hot(labels, self.classes).bool()
        terms = {
            "cross_entropy": lambda: cross_entropy(own, labels, self.class_weights),
            "lovasz": lambda: lovasz(p, labels, free),
            "geometric": lambda: scale_loss(1 - p[:, -1:], occupied),
            "semantic": lambda: scale_loss(p, one_hot),
        }
        return {name: weight * terms[name]() for name, weight in self._weights_by_term() if weight}

    def _weights_by_term(self) -> list[tuple[str, float]]:
        return [(name, getattr(self.weights, name)) for name in ("cross_entropy", "lovasz", "geometric", "semantic")]
