"""Configuration of the head of points."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from perception.io.section import Positive
from perception.tasks.task import TaskConfig
from perception.taxonomy import Taxonomy


class PointsHead(TaskConfig):
    max_points: Positive = 40_000  # of the keyframe, the first ones; a sweep of nuScenes' LiDAR has 34,700
    channels: Positive = 32
    weight: Annotated[float, Field(ge=0)] = 1.0  # of both losses
    class_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})  # in the cross-entropy; others: 1

    @property
    def point_places(self) -> int:
        return self.max_points

    def require_taxonomy(self, taxonomy: Taxonomy) -> None:
        if not taxonomy.point_classes:
            raise ValueError(f"the taxonomy {taxonomy.name} has no classes of points")
        for name in self.class_weights:
            if name not in taxonomy.point_names:
                known = ", ".join(taxonomy.point_names)
                raise ValueError(f"class_weights: {name} is no point class of the taxonomy; known are {known}")
