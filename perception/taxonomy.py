"""The vocabulary of a data set: classes of objects and points, attributes, map layers, conditions. numpy only.

A taxonomy is a YAML file, such as configs/taxonomies/nuscenes.yaml. The order of every list is part of it: outputs of
a network refer to classes, attributes, map layers and conditions by their index.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from perception.errors import InputError, suggestion
from perception.io.section import Section, load_section
from perception.io.shipped import named_file

Name = Annotated[str, Field(pattern=r"^\w[\w. &()/-]*$")]
Word = Annotated[str, Field(pattern=r"^[a-z]\w*$")]  # a condition; + , - / join several
Colour = Annotated[str, Field(pattern="^#[0-9a-f]{6}$")]
Metres = Annotated[float, Field(gt=0)]
Devkit = Literal["nuscenes", "truckscenes"]
# Labels of autoware_perception_msgs/ObjectClassification, in the order of their numbers from 0 on.
RosClass = Literal[
    "unknown", "car", "truck", "bus", "trailer", "motorcycle", "bicycle", "pedestrian", "animal", "hazard",
    "over_drivable", "under_drivable",
]  # fmt: skip
RESERVED = ("all", "base", "none")  # words that stand for something else than a condition
_PALETTE = (
    "#4cc9f0", "#f79d5c", "#7b86ff", "#80ed99", "#ff70a6", "#ffb627", "#9d8cff", "#b5e48c", "#4895ef", "#d0b48a"
)  # fmt: skip
_UNNAMED = "#ff00ff"  # of what is of no class


def rgb(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


class ClassMotion(Section):
    """How the objects of a class move and are measured, for the tracker."""

    gate: Metres = 5.0  # m from its expected place; a detection further away is another object
    acceleration: Metres = 0.6  # m/s within 1 s
    position: Metres = 0.3  # m, error of a detection
    velocity: Metres = 2.0  # m/s, error of a detection
    speed: Metres = 5.0  # m/s, expected before anything is measured


class ObjectClass(Section):
    """A class of detected objects."""

    name: Name  # of the class
    categories: tuple[str, ...] = Field(default=(), strict=False)  # of the data set; empty: the one of this name
    size: tuple[Metres, Metres, Metres] = Field(default=(1.0, 1.0, 1.0), strict=False)  # m, mean width, length, height
    range: Metres = 50.0  # m from the vehicle, within which it is scored
    attributes: tuple[str, ...] = Field(default=(), strict=False, max_length=2)  # by default at rest, and in motion
    heading: Literal["full", "half", "none"] = "full"  # half: front and rear look alike; none: it has none
    static: bool = False  # its velocity is not scored
    racked: bool = False  # not scored inside an annotated bicycle rack
    tracked: bool = True  # scored by the tracking benchmark
    motion: ClassMotion = ClassMotion()  # how its objects move, for the tracker
    colour: Colour | None = None  # in reports and viewers
    ros_class: RosClass | None = None  # in the messages of a vehicle; None: unknown

    @model_validator(mode="after")
    def _require_attributes(self) -> ObjectClass:
        if len(self.attributes) == 1:
            raise ValueError("`attributes` are two: at rest and in motion")
        return self


class PointClass(Section):
    name: Name  # of the class
    categories: tuple[str, ...] = Field(default=(), strict=False)  # of the data set; empty: the one of this name
    solid: bool = True  # not what falls or floats in the air, which no voxel is full of
    colour: Colour | None = None  # in reports and viewers


class MapLayer(Section):
    """A layer of the HD map."""

    name: Name  # of the layer
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of the ground near the vehicle that it covers
    line: bool = False  # drawn as lines, not as areas
    records: tuple[str, ...] = Field(default=(), strict=False)  # layers of the map's file; empty: that of this name
    colour: Colour | None = None  # in reports and viewers


class Taxonomy(Section):
    """All names that a network's inputs and outputs refer to."""

    name: str  # of the taxonomy, such as nuscenes
    classes: tuple[ObjectClass, ...] = Field(strict=False, min_length=1)  # of objects that are detected
    attributes: tuple[Name, ...] = Field(default=(), strict=False)  # of objects, such as vehicle.parked
    map_layers: tuple[MapLayer, ...] = Field(default=(), strict=False)  # of the HD map
    point_classes: tuple[PointClass, ...] = Field(default=(), strict=False)  # of single LiDAR points
    conditions: dict[Word, Annotated[tuple[Word, ...], Field(strict=False, min_length=1)]] = Field(
        default={}
    )  # kind -> values
    descriptions: Literal["words", "tags"] = (
        "words"  # how a scene's description encodes its conditions; tags are such as weather.rain
    )
    simulated: dict[Word, Annotated[tuple[Word, ...], Field(strict=False)]] = Field(
        default={}
    )  # condition of the simulator, or `always` -> conditions in the tags of simulated scenes
    devkit: Devkit | None = None  # that reads drives with these names and scores detections

    @model_validator(mode="after")
    def _require_names(self) -> Taxonomy:
        for what, names in (
            ("classes", self.class_names),
            ("attributes", self.attributes),
            ("map_layers", self.map_names),
            ("point_classes", self.point_names),
            ("conditions", (*RESERVED, *self.condition_values)),
        ):
            if double := [name for i, name in enumerate(names) if name in names[:i]]:
                taken = "stands for something else" if double[0] in RESERVED else "is there twice"
                raise ValueError(f"{what}: {double[0]!r} {taken}")
        for what, classes in (("classes", self.classes), ("point_classes", self.point_classes)):
            categories = [category for each in classes for category in each.categories or (each.name,)]
            if double := [name for i, name in enumerate(categories) if name in categories[:i]]:
                raise ValueError(f"{what}: category {double[0]!r} is of two classes")
        if (solid := [each.solid for each in self.point_classes]) != sorted(solid, reverse=True):
            raise ValueError("point_classes: those that are not `solid` stand last, since voxels have the others alone")
        for each in self.classes:
            if unknown := [name for name in each.attributes if name not in self.attributes]:
                raise ValueError(f"classes: attribute {unknown[0]!r} of {each.name} is not among the attributes")
        told = [value for values in self.simulated.values() for value in values]
        if unknown := [value for value in told if value not in self.condition_values]:
            raise ValueError(f"simulated: {unknown[0]!r} is not among the conditions")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.classes)

    def without_ros_classes(self) -> Taxonomy:
        """The taxonomy that training, scores and comparisons depend on: not on what other programs call its classes."""
        classes = tuple(each.model_copy(update={"ros_class": None}) for each in self.classes)
        return self.model_copy(update={"classes": classes})

    @property
    def map_names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.map_layers)

    @property
    def point_names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.point_classes)

    @property
    def voxel_names(self) -> tuple[str, ...]:
        """Classes of occupied voxels: what is of none of the point classes, then the solid ones of these."""
        return "others", *(each.name for each in self.point_classes if each.solid)

    @property
    def condition_values(self) -> tuple[str, ...]:
        return tuple(value for values in self.conditions.values() for value in values)

    def label(self, name: str) -> int:
        return self.class_names.index(name)

    def labels_of_categories(self) -> dict[str, int]:
        return _by_category(self.classes)

    def point_labels_of_categories(self) -> dict[str, int]:
        """Category of a point in the data set -> index of its point class."""
        return _by_category(self.point_classes)

    def kind_of(self, value: str) -> str:
        for kind, values in self.conditions.items():
            if value in values:
                return kind
        known = ", ".join(self.condition_values) or "the taxonomy has none"
        raise InputError(f"{value}: unknown condition; choose from {known}{suggestion(value, self.condition_values)}")

    def possible_attributes(self, label: int) -> list[bool]:
        """For each attribute whether objects of this class can have it: those of the family of its default ones.

        A family is what stands before the first dot, as in vehicle.parked.
        """
        own = self.classes[label].attributes
        family = own[0].partition(".")[0] if own else None
        return [name.partition(".")[0] == family for name in self.attributes]

    def default_attributes(self) -> Sequence[tuple[int, int]]:
        """For each class the index of its attribute at rest and in motion; -1 -1 if it has none."""
        return [
            (self.attributes.index(each.attributes[0]), self.attributes.index(each.attributes[1]))
            if each.attributes
            else (-1, -1)
            for each in self.classes
        ]

    def class_colours(self) -> dict[str, str]:
        return _colours(self.classes)

    def map_colours(self) -> dict[str, str]:
        return _colours(self.map_layers)

    def point_colours(self) -> dict[str, str]:
        return _colours(self.point_classes)

    def voxel_colours(self) -> dict[str, str]:
        colours = {"others": _UNNAMED, **self.point_colours()}
        return {name: colours[name] for name in self.voxel_names}


def _by_category(classes: Sequence[ObjectClass | PointClass]) -> dict[str, int]:
    return {c: i for i, each in enumerate(classes) for c in each.categories or (each.name,)}


def _colours(named: Sequence[ObjectClass | MapLayer | PointClass]) -> dict[str, str]:
    return {each.name: each.colour or _PALETTE[i % len(_PALETTE)] for i, each in enumerate(named)}


def load_taxonomy(name: str | Path) -> Taxonomy:
    """The taxonomy in a YAML file, or one that comes with the package, such as nuscenes."""
    return _load(named_file("taxonomy", name))


@cache
def _load(path: Path) -> Taxonomy:
    return load_section(Taxonomy, path, "the taxonomy")


def read_named_taxonomy(content: Any) -> Any:
    """The content of a taxonomy where a configuration names one, for a pydantic validator."""
    return load_taxonomy(content) if isinstance(content, str) else content
