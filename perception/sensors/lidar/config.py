"""Configuration of the LiDAR branch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from perception.io.section import Positive, Section, Sizes


class Lidar(Section):
    max_pillars: Positive = 30000  # pillars of a frame that the network takes
    overflow: Literal["fullest", "first"] = "fullest"  # pillars to keep; first: as in mmdet3d's voxelisation
    points_per_pillar: Positive = 20  # points of a pillar that the network takes
    channels: Positive = 64  # of a pillar's features
    # Where the padding of pillars counts. real: nowhere; masked: in the statistics of the batch normalisation; padded:
    # in these and in the maximum over the points, as in mmdet3d (sensors/lidar/network.py).
    encoder: Literal["real", "masked", "padded"] = "real"
    hidden: Sizes = ()  # for padded: channels of the layers before the last
    pool: Literal["max", "max_mean"] = "max"  # over a pillar's points; max_mean, for padded: the mean of both
    sweeps: Annotated[int, Field(ge=0, le=10)] = 10  # earlier sweeps besides the keyframe

    @model_validator(mode="after")
    def _require_padded_encoder(self) -> Lidar:
        if (self.hidden or self.pool != "max") and self.encoder != "padded":
            raise ValueError("`hidden` layers and `pool: max_mean` are for the encoder `padded`")
        return self
