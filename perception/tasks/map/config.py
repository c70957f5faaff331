"""Configuration of the map head."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from perception.tasks.task import TaskConfig
from perception.taxonomy import Taxonomy


class MapHead(TaskConfig):
    channels: Annotated[int, Field(gt=0)] = 64
    weight: Annotated[float, Field(ge=0)] = (
        4.0  # of the loss, a mean over cells that is small relative to the sums over objects
    )

    def require_taxonomy(self, taxonomy: Taxonomy) -> None:
        if not taxonomy.map_layers:
            raise ValueError(f"the taxonomy {taxonomy.name} has no map layers")
