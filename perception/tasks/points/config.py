"""Configuration of the head of points."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from perception.io.section import Positive
from perception.tasks.task import TaskConfig
from perception.taxonomy import PointClass, Taxonomy, load_taxonomy


class PointsHead(TaskConfig):
    names_points: ClassVar[bool] = True
    # Of a head that is added: instead of the point classes of the run's taxonomy; in YAML also the name of a taxonomy
    # that has them, or its file. Empty: the run's.
    classes: tuple[PointClass, ...] = Field(default=(), strict=False)
    max_points: Positive = 40_000  # of the keyframe, the first ones; a sweep of nuScenes' LiDAR has 34,700
    channels: Positive = 32
    weight: Annotated[float, Field(ge=0)] = 1.0  # of both losses
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
