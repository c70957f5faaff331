"""Configuration of the detection head, with or without anchors, and the heatmaps that it gives CenterPoint's."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from perception.io.section import Positive, Section, Share, Weight
from perception.tasks.published import ScoreThresholds
from perception.tasks.task import TaskConfig
from perception.taxonomy import Taxonomy

Subcells = Literal[1, 2, 4]
_NARROW = 1.0  # m


class Suppression(Section):
    """Non-maximum suppression after the engine, see `non_maximum_suppression`."""

    threshold: Share  # boxes with lower or equal scores are removed
    low: tuple[float, float, float] | None = Field(default=None, strict=False)  # m, bounds of box centres
    high: tuple[float, float, float] | None = Field(default=None, strict=False)  # m
    kind: Literal["circle", "rotated"]  # NMS by distance of centres or by rotated IoU
    within: Literal["group", "class"] = "group"  # which boxes suppress each other
    # m, distance for each group or class, for circle; of classes by default half their shorter mean side.
    radii: tuple[float, ...] = Field(default=(), strict=False)
    overlap: Share = 0.2  # IoU threshold, for rotated
    most: Positive | None = 83  # maximum number of boxes of a group or class
    total: Positive | None = None  # maximum number of boxes of all


class Anchor(Section):
    """An anchor box, at the centre of each cell of the feature map."""

    size: tuple[float, float, float] = Field(strict=False)  # m: width, length, height
    bottom: float  # m, z of the bottom
    x: tuple[float, float] = Field(strict=False)  # m, range of the feature map
    y: tuple[float, float] = Field(strict=False)  # m, from the first to the last


class AnchorTraining(Section):
    """Which anchors learn an object, by their IoU on the ground, and the focal loss; see `anchor_head.py`."""

    positive: Share = 0.6  # IoU from which an anchor is positive
    negative: Share = 0.3  # IoU below which it is negative
    least: Share = 0.3  # IoU from which the best anchors of an object are positive
    alpha: Share = 0.25  # weight of what is an object in the focal loss; that of the rest is 1 - alpha


class AnchorHead(Section):
    anchors: tuple[Anchor, ...] = Field(strict=False, min_length=1)
    rotations: tuple[float, ...] = Field(default=(0.0, 1.57), strict=False)  # rad, of each anchor
    scales: tuple[Positive, ...] = Field(default=(1,), strict=False)  # of the anchors on each of the trunk's maps
    direction_offset: float = 0.0  # rad, start of the half circle of direction 0
    direction_limit_offset: float = 0.0  # in units of pi
    candidates: Positive = 1000  # boxes of each map before NMS
    velocity: bool = True  # whether the network predicts it
    suppression: Suppression = Suppression(threshold=0.05, kind="rotated", most=None, total=500)
    training: AnchorTraining = AnchorTraining()

    @property
    def code(self) -> int:
        """Number of values that encode a box, see `anchor_head.py`."""
        return 9 if self.velocity else 7

    @model_validator(mode="after")
    def _require_sortable(self) -> AnchorHead:
        if self.candidates * len(self.scales) >= 3840:
            raise ValueError("candidates of all maps together must be fewer than 3840, TensorRT's TopK limit")
        return self


class Weights(Section):
    """Weights of the loss terms relative to the heatmap's."""

    regression: Weight = 0.25  # as in CenterPoint
    velocity: Weight = 0.2  # within the regression
    attribute: Weight = 0.2  # of the attributes' cross-entropy
    iou: Weight = 1.0  # as in PillarNeSt


class IouScore(Section):
    """The IoU of each box with its object is predicted and enters its score, see `center_head.py`."""

    beta: Share = 0.5  # exponent of the IoU; that of the heatmap is 1 - beta
    threshold: Share = 0.1  # boxes whose heatmap is not above this have the score zero


class DetectionHead(TaskConfig):
    """The head of CenterPoint or, with `anchors`, that of SECOND."""

    channels: Positive = 64  # of the head's hidden layer
    # Classes that share regression branches and top_k, in the order of the taxonomy; empty: one group of all.
    groups: tuple[Annotated[tuple[str, ...], Field(strict=False, min_length=1)], ...] = Field(default=(), strict=False)
    # Heatmap cells along each side of a cell of the trunk, for small objects in crowds: of these classes, or of all
    # that are narrower than 1 m.
    subcells: Subcells | dict[str, Subcells] = 1
    top_k: Annotated[int, Field(gt=0, lt=3840)] = 300  # boxes of each group; TensorRT's TopK limit
    output_kernel: Literal[1, 3] = 1  # of the last convolutions
    attributes: Literal["learned", "speed"] = "learned"  # learned by the head, or told by the speed
    peaks: bool | None = None  # whether only maxima of 3 x 3 heatmap cells are boxes; None: without NMS
    suppression: Suppression | None = None
    axis: bool = False  # the axis of a box is regressed besides its heading, see `center_head.py`
    iou: IouScore | None = None  # None: the score is the heatmap
    min_radius: Annotated[int, Field(ge=0)] = 2  # heatmap cells, of its Gaussians
    weights: Weights = Weights()
    anchors: AnchorHead | None = None  # instead of all of the above
    score_thresholds: ScoreThresholds = ScoreThresholds()  # of what is driven with

    @property
    def only_peaks(self) -> bool:
        return self.suppression is None if self.peaks is None else self.peaks

    def require_taxonomy(self, taxonomy: Taxonomy) -> None:
        self.score_thresholds.require_classes(taxonomy)
        if self.groups and tuple(name for group in self.groups for name in group) != taxonomy.class_names:
            raise ValueError(f"the groups, one after the other, must be {', '.join(taxonomy.class_names)}")
        unknown = sorted(self.subcells.keys() - set(taxonomy.class_names)) if isinstance(self.subcells, dict) else []
        if unknown:
            raise ValueError(f"subcells: {unknown[0]!r} is not among the classes")
        nms = self.suppression
        if nms and nms.kind == "circle" and (nms.radii or nms.within == "group"):
            wanted = len(taxonomy.classes) if nms.within == "class" else len(self.groups) or 1
            if len(nms.radii) != wanted:
                raise ValueError(f"suppression.radii must have a radius for each {nms.within}, {wanted}")

    def settled(self, taxonomy: Taxonomy) -> DetectionHead:
        """The configuration with the groups, subcells and radii that the taxonomy's classes give it."""
        changes: dict[str, Any] = {} if self.groups else {"groups": (taxonomy.class_names,)}
        if not isinstance(self.subcells, dict):
            changes["subcells"] = {each.name: self.subcells for each in taxonomy.classes if each.size[0] < _NARROW}
        if self.suppression and self.suppression.within == "class" and not self.suppression.radii:
            radii = tuple(min(each.size[:2]) / 2 for each in taxonomy.classes)
            changes["suppression"] = self.suppression.model_copy(update={"radii": radii})
        return self.model_copy(update=changes)

    @property
    def nms(self) -> Suppression | None:
        """NMS of the network's boxes."""
        return self.anchors.suppression if self.anchors else self.suppression

    def require_levels(self, levels: int) -> None:
        if self.anchors is None:
            super().require_levels(levels)
        elif len(self.anchors.scales) != levels:
            raise ValueError(f"anchors.scales must have one for each of the trunk's feature maps, {levels}")


class Heatmap(NamedTuple):
    """One dense output, (B, classes, rows * subcells, columns * subcells)."""

    name: str
    group: int  # index of the head's group
    subcells: int  # heatmap cells along each side of a cell of the trunk
    labels: tuple[int, ...]  # of its classes, in the taxonomy


def heatmaps_of(config: DetectionHead) -> list[Heatmap]:
    """The heatmaps of a settled head, one for each group and size of cells among its classes, coarsest first."""
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
