"""The class of each point of the LiDAR's keyframe: semantic segmentation (nuScenes-lidarseg, Fong et al., 2022)."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from perception.datasets.keyframes import AnnotatedPoints
from perception.frame import Arrays, Frame
from perception.grid import BevGrid
from perception.io.section import Positive, Weight
from perception.tasks.drawing import PointLayer
from perception.tasks.metric import (
    RING,
    Counts,
    GateMetric,
    Recorded,
    RingMetric,
    Score,
    Subject,
    Unmeasured,
    Weights,
    mean_known,
)
from perception.tasks.outputs import Output
from perception.tasks.published import Cloud
from perception.tasks.task import Task, TaskConfig
from perception.taxonomy import PointClass, Taxonomy, load_taxonomy

if TYPE_CHECKING:
    from rich.table import Table

    from perception.tasks.network import TaskNetwork


NONE = 255  # instead of a class: no point, or one that the network did not take
RINGS = 20  # of counts; the last has all points that are further away


def count_rings(predicted: np.ndarray, truth: np.ndarray, points: np.ndarray, classes: int) -> np.ndarray:
    """(3, classes, RINGS) points (M, >=2) of intersection, prediction and truth, in rings of RING around the vehicle.

    Points without an annotated class (-1) are left out, as class 0 in the devkit; NONE is predicted without a class.
    """
    distance = np.hypot(points[:, 0], points[:, 1])
    ring = np.minimum(distance // RING, RINGS - 1).astype(np.int64)
    known = truth >= 0

    def count(labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        index = labels[chosen].astype(np.int64) * RINGS + ring[chosen]
        return np.bincount(index, minlength=classes * RINGS).reshape(classes, RINGS)

    return np.stack(
        [count(truth, known & (predicted == truth)), count(predicted, known & (predicted != NONE)), count(truth, known)]
    )


def ious(counts: np.ndarray) -> np.ndarray:
    """(..., classes) IoU of counts (..., 3, classes) of intersection, prediction and truth.

    NaN for a class that is neither annotated nor predicted. The union is rounded to float32 as in the devkit's
    `ConfusionMatrix.get_per_class_iou`, to be equal to it for more than 2^24 points.
    """
    intersection, predicted, true = np.moveaxis(counts, -2, 0)
    union = (predicted + true - intersection).astype(np.float32).astype(np.float64)
    return np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def summary(counts: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Scores of counts (3, classes): `mean` over the classes with an IoU, `frequency_weighted`, and `classes`.

    Those of the devkit's `LidarSegEval`: `miou`, `freq_weighted_iou` and `iou_per_class`. None where undefined.
    """
    each, true = ious(counts), counts[2]
    return {
        "mean": Score(mean_known(each[None])).first(),
        "frequency_weighted": float(np.nansum(true * each) / true.sum()) if true.any() else None,
        "classes": Score(each[None], names).first(),
    }


def pack(classes: np.ndarray) -> str:
    """Classes (K,) uint8 for JSON."""
    return base64.b64encode(zlib.compress(classes.tobytes(), 9)).decode()


def unpack(packed: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)


class ClassifiedPoints(NamedTuple):
    """What the network says of the keyframe's first K points, in their order."""

    classes: np.ndarray  # (K,) uint8, point class by its index in the taxonomy; NONE for further places
    probabilities: np.ndarray  # (K,) float32, of these classes; 0 for further places


class PointsMetric(RingMetric[ClassifiedPoints]):
    """IoU by class over the annotated points of all frames, as the devkit's `LidarSegEval` (`summary`).

    points_mIoU   mean over the classes that are annotated or predicted
    points_IoU    by class
    """

    truth = ("points",)
    main = "points_mIoU"
    shown = ("points_mIoU", "points_IoU")
    gates: ClassVar[Mapping[str, GateMetric]] = {
        "points": GateMetric(
            "point_names",
            step=RING,
            overall="points_mIoU",
            by_class="points_IoU",
            missing="the drive has no annotated points",
            item="annotated point",
        )
    }
    agreements: ClassVar[Mapping[str, GateMetric]] = {"point_classes": GateMetric("point_names", ranged=False)}

    def counts(self, frame: Frame, result: ClassifiedPoints) -> dict[str, Any]:
        """`counts` (3, classes, RINGS), see `count_rings`; None without annotated points.

        Annotated points that the network did not see, because a corruption or fault took them away, are missed.
        """
        annotated: AnnotatedPoints | None = frame.truth.get("points")
        if annotated is None:
            return {"counts": None}
        points, truth = annotated
        seen = points[:0] if frame.points is None else frame.keyframe_points
        predicted = classes_at(points, seen, result.classes)
        return {"counts": count_rings(predicted, truth, points, len(self.taxonomy.point_names))}

    def outputs(self, result: ClassifiedPoints) -> dict[str, Any]:
        return {"classes": pack(result.classes)}

    def ious(self, counts: np.ndarray) -> np.ndarray:
        return ious(counts)

    def names(self) -> Sequence[str]:
        return self.taxonomy.point_names

    def report(self, counts: Sequence[Counts]) -> dict[str, Any]:
        """`points`: the result of `summary`; None if no frame has annotated points."""
        known = [each["counts"].sum(axis=2) for each in counts if each["counts"] is not None]
        total = np.sum(known, axis=0) if known else np.zeros(1)
        return {"points": summary(total, self.taxonomy.point_names) if total.any() else None}

    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        found = scores["points"]
        if found is None:
            return []
        columns = {"IoU": {**found["classes"], "mean": found["mean"]}}
        return [self.class_table("points", self.taxonomy.point_names, columns)]

    def agreement(self, here: Recorded, there: Recorded, weights: Weights, subject: Subject) -> tuple[float, str]:
        """Share of the points with equal classes; of a class: among those to which either replay gives it."""
        same = either = 0
        wanted = range(NONE) if subject.class_ is None else [self.taxonomy.point_names.index(subject.class_)]
        for i in np.flatnonzero(weights.frames):
            own, other = here.frames[i], there.frames[i]
            if own is None or other is None:
                continue
            classes, theirs = unpack(own["classes"]), unpack(other["classes"])
            if len(classes) != len(theirs):
                raise Unmeasured("the networks take different numbers of points")
            chosen = np.isin(classes, wanted) | np.isin(theirs, wanted)
            same += np.count_nonzero(chosen & (classes == theirs))
            either += np.count_nonzero(chosen)
        if not either:
            raise Unmeasured(f"neither replay has a point{f' of {subject.class_}' if subject.class_ else ''}")
        return same / either, ""


def classes_at(points: np.ndarray, seen: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(N,) uint8 class that the network gave to each recorded point (N, >=3); NONE for those that it did not see.

    Points at the same place, bit for bit, are the same as those `seen` (M, >=3), of which the first have classes. The
    others were moved, in their order, if as many are left of the recorded ones as of the seen ones.
    """
    given = np.full(len(seen), NONE, np.uint8)
    given[: len(classes)] = classes[: len(seen)]
    ours, theirs = _places(points), _places(seen)
    if np.array_equal(ours, theirs):
        return given
    class_at = dict(zip(theirs.tolist(), given.tolist(), strict=True))
    found = np.array([class_at.get(place, NONE) for place in ours.tolist()], np.uint8)
    gone, moved = ~np.isin(ours, theirs), ~np.isin(theirs, ours)
    if np.count_nonzero(gone) == np.count_nonzero(moved):
        found[gone] = given[moved]
    return found


def _places(points: np.ndarray) -> np.ndarray:
    """(N,) x y z as bytes."""
    return np.ascontiguousarray(points[:, :3], np.float32).view("S12")[:, 0]


class PointsHead(TaskConfig):
    names_points: ClassVar[bool] = True
    # Of a head that is added: instead of the point classes of the run's taxonomy; in YAML also the name of a taxonomy
    # that has them, or its file. Empty: the run's.
    classes: tuple[PointClass, ...] = Field(default=(), strict=False)
    max_points: Positive = 40_000  # of the keyframe, the first ones; a sweep of nuScenes' LiDAR has 34,700
    channels: Positive = 32  # of the head's hidden layer
    weight: Weight = 1.0  # of both losses
    class_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})  # in the cross-entropy; others: 1

    @field_validator("classes", mode="before")
    @classmethod
    def _load_classes(cls, content: Any) -> Any:
        return load_taxonomy(content).point_classes if isinstance(content, str) else content

    @model_serializer(mode="wrap")
    def _without_classes(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Heads with the run's classes keep the manifest that they had before there were others."""
        return {name: content for name, content in serialize(self).items() if name != "classes" or content}

    @property
    def point_places(self) -> int:
        return self.max_points

    def extended(self, taxonomy: Taxonomy) -> Taxonomy:
        return taxonomy.model_copy(update={"point_classes": self.classes}) if self.classes else taxonomy

    def require_taxonomy(self, taxonomy: Taxonomy) -> None:
        if self.classes and self.classes != taxonomy.point_classes:
            raise ValueError("`classes` are for a head that `perception adapt` adds; here the taxonomy has them")
        if not taxonomy.point_classes:
            raise ValueError(f"the taxonomy {taxonomy.name} has no classes of points")
        for name in self.class_weights:
            if name not in taxonomy.point_names:
                known = ", ".join(taxonomy.point_names)
                raise ValueError(f"class_weights: {name} is no point class of the taxonomy; known are {known}")


class PointsTask(Task[ClassifiedPoints]):
    """The class of each of the keyframe's points, and its probability."""

    name = "points"
    reads = "points"
    truth = ("points",)
    metric = PointsMetric
    Config = PointsHead

    def __init__(self, config: PointsHead, grid: BevGrid, taxonomy: Taxonomy) -> None:
        super().__init__(config, grid, taxonomy)
        self.outputs = (
            Output(
                name="classes",
                kind="labels",
                unit="point class of each of `points` by its index in the taxonomy",
                names=taxonomy.point_names,
                nowhere=("confidence", NONE),
            ),
            Output(
                name="confidence",
                kind="raster",
                unit="probability of this class; 0: padding",
                names=("confidence",),
                result="probabilities",
                squeeze=True,
            ),
        )

    def network(self, channels: int) -> TaskNetwork:
        from perception.tasks.points.network import PointSegmentationHead

        weights = [self.config.class_weights.get(name, 1.0) for name in self.taxonomy.point_names]
        return PointSegmentationHead(channels, self.config.channels, self.grid, weights, self.config.weight)

    def labels(self, frame: Frame) -> dict[str, np.ndarray]:
        """`classes` (K,) int16 of the points that the network gets; -1 for those without a class, and for padding."""
        classes, known = np.full(self.config.max_points, -1, np.int16), frame.keyframe_classes
        if known is not None:
            classes[: len(known)] = known[: len(classes)]
        return {"classes": classes}

    def from_arrays(self, arrays: Arrays) -> ClassifiedPoints:
        return ClassifiedPoints(**arrays)

    def cloud(self, frame: Frame, result: ClassifiedPoints | None, state: Any) -> Cloud | None:
        """The keyframe's points; NONE and 0 for points that the network did not take."""
        if result is None:
            return None
        points = np.zeros((0, 5), np.float32) if frame.points is None else frame.keyframe_points
        classes, probabilities = np.full(len(points), NONE, np.uint8), np.zeros(len(points), np.float32)
        taken = min(len(points), len(result.classes))
        classes[:taken], probabilities[:taken] = result.classes[:taken], result.probabilities[:taken]
        return Cloud(points, classes, probabilities)

    def draw(self, frame: Frame, result: ClassifiedPoints, state: Any) -> list[PointLayer]:
        """The points that have a class."""
        points = np.zeros((0, 5), np.float32) if frame.points is None else frame.keyframe_points
        labels = result.classes[: len(points)]
        chosen = np.flatnonzero(labels != NONE)
        colours = self.taxonomy.point_colours()
        return [PointLayer("points", points[chosen, :3], labels[chosen].astype(np.int64), colours)]

    @staticmethod
    def arrays(result: ClassifiedPoints) -> dict[str, np.ndarray]:
        return result._asdict()
