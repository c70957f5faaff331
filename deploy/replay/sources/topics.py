"""Which topics and frames of a recording are which sensor: a YAML file, or the names that tools/make_log.py writes.

The default names are those of foxglove/nuscenes2mcap as well.
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
    frame: Name | None = None  # of the sensor; where it is not given or has no transform: what the header says


class CameraTopics(Section):
    image: Name
    info: Name  # CameraInfo
    frame: Name | None = None  # of the sensor; None: what the header says
    rectified: bool | None = None  # whether the lens is gone from the pictures; None: if the topic says so by "rect"

    @property
    def as_taken(self) -> bool:
        """Whether pictures are still to be rectified; ROS's image_pipeline names topics image_raw and image_rect."""
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
    odometry: Name | None = None  # the vehicle's poses, in place of those in `transforms`
    keyframes: Name | None = "/keyframe"  # what tools/make_log.py says of each; a recording need not have it
    lidar: LidarTopic | None = LidarTopic(topic="/lidar_top", frame="lidar_top")
    cameras: dict[str, CameraTopics] = Field(default_factory=_camera_topics)
    period: Seconds = 0.5  # from frame to frame, where there are no keyframes
    tolerance: Seconds = 0.06  # between the stamps of a picture and of its frame, at most
    wait: Seconds = 0.25  # of recording time that a frame waits for what belongs to it

    @field_validator("cameras")
    @classmethod
    def _known(cls, cameras: dict[str, CameraTopics]) -> dict[str, CameraTopics]:
        for name in cameras:
            if name not in CAMERAS:
                raise ValueError(f"{name} is no camera that networks know; they are {', '.join(CAMERAS)}")
        return cameras

    @model_validator(mode="after")
    def _distinct(self) -> Topics:
        if self.lidar is None and not self.cameras:
            raise ValueError("neither a LiDAR nor a camera; name at least one")
        names = self.names()
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{twice[0]} is named twice; a topic is one thing")
        return self

    def names(self) -> list[str]:
        """Every topic that is read."""
        single = [self.odometry, self.keyframes, None if self.lidar is None else self.lidar.topic]
        cameras = [topic for each in self.cameras.values() for topic in (each.image, each.info)]
        return [self.transforms, self.static_transforms, *(name for name in single if name is not None), *cameras]
