"""The base of every part of the configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration; strict about types and names."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
