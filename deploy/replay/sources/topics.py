"""The map from a recording's topics and frames to sensors, from a YAML file.

The defaults are the names that tools/make_log.py and foxglove/nuscenes2mcap write.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from perception.frame import CAMERAS
from perception.section import Section

Name = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=10)]


class LidarTopic(Section):
    topic: Name
    frame: Name | None = None  # of the sensor; if not set, or without a transform: that of the message header


class CameraTopics(Section):
    image: Name
    info: Name  # CameraInfo
    frame: Name | None = None  # of the sensor; None: that of the message header
    rectified: bool | None = None  # whether pictures are rectified; None: if the topic's name contains "rect"

    @property
    def unrectified(self) -> bool:
        """Whether pictures must be rectified; ROS's image_pipeline names its topics image_raw and image_rect."""
        return "rect" not in self.image if self.rectified is None else not self.rectified


def _camera_topics() -> dict[str, CameraTopics]:
    topics = {name: f"/{name.lower()}" for name in CAMERAS}
    return {
        name: CameraTopics(image=f"{topic}/image_rect_compressed", info=f"{topic}/camera_info")
        for name, topic in topics.items()
    }


class Topics(Section):
    global_frame: Name = "map"
    ego_frame: Name = "base_link"  # x ahead, y left, z up, on the ground below the rear axle
    transforms: Name = "/tf"
    static_transforms: Name = "/tf_static"
    odometry: Name | None = None  # the vehicle's poses, instead of those in `transforms`
    keyframes: Name | None = "/keyframe"  # by tools/make_log.py; optional in a recording
    position: Name | None = "/gps"  # the vehicle's, by satellite; optional in a recording
    lidar: LidarTopic | None = LidarTopic(topic="/lidar_top", frame="lidar_top")
    cameras: dict[str, CameraTopics] = Field(default_factory=_camera_topics)
    period: Seconds = 0.5  # between frames, if there are no keyframes
    tolerance: Seconds = 0.06  # largest difference between the stamps of a picture and of its frame
    wait: Seconds = 0.25  # recording time for which a frame waits for its messages

    @field_validator("cameras")
    @classmethod
    def _known(cls, cameras: dict[str, CameraTopics]) -> dict[str, CameraTopics]:
        for name in cameras:
            if name not in CAMERAS:
                raise ValueError(f"{name} is not a camera of the networks; they have {', '.join(CAMERAS)}")
        return cameras

    @model_validator(mode="after")
    def _distinct(self) -> Topics:
        if self.lidar is None and not self.cameras:
            raise ValueError("neither a LiDAR nor a camera; name at least one")
        names = self.names()
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{twice[0]} is named twice; a topic has one meaning")
        return self

    def names(self) -> list[str]:
        """All topics that are read."""
        single = [self.odometry, self.keyframes, self.position, None if self.lidar is None else self.lidar.topic]
        cameras = [topic for each in self.cameras.values() for topic in (each.image, each.info)]
        return [self.transforms, self.static_transforms, *(name for name in single if name is not None), *cameras]
