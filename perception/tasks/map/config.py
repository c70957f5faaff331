"""Configuration of the map head."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from perception.tasks.task import TaskConfig


class MapHead(TaskConfig):
    channels: Annotated[int, Field(gt=0)] = 64
    weight: Annotated[float, Field(ge=0)] = (
        4.0  # of the loss, a mean over cells that is small relative to the sums over objects
    )
