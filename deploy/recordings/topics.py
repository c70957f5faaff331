"""The map from a recording's topics and frames to sensors, from a YAML file.

The defaults are the names that `perception log` and foxglove/nuscenes2mcap write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from perception.errors import InputError
from perception.io.section import Section, parse_section, read_yaml
from perception.rig import Rig, Sensors

Name = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=10)]
# s, from the stamp of a message to the time of its content: below 0 where it is stamped after the exposure.
Offset = Annotated[float, Field(ge=-2, le=2)]


class ScannerTopic(Section):
    topic: Name  # of its point clouds or scans
    frame: Name | None = None  # of the sensor; if not set, or without a transform: that of the message header
    offset: Offset = 0.0  # s, from the stamp of a message to the time of its content


class LidarTopic(ScannerTopic):
    time_field: Name | None = None  # of the points' times; None: as drivers call it (`point_times`)
    time_unit: Literal["s", "ms", "us", "ns"] | None = None  # None: as drivers count it
    compensated: bool = False  # whether the driver has carried all points to the stamp; then their times do not count


class CameraTopics(Section):
    image: Name  # topic of the images
    info: Name  # CameraInfo
    offset: Offset = 0.0  # s, from the stamp of a message to the time of its content
    frame: Name | None = None  # of the sensor; None: that of the message header
    rectified: bool | None = None  # whether pictures are rectified; None: if the topic's name contains "rect"

    @property
    def unrectified(self) -> bool:
        """Whether pictures must be rectified; ROS's image_pipeline names its topics image_raw and image_rect."""
        return "rect" not in self.image if self.rectified is None else not self.rectified


class Topics(Section):
    """Topics by sensor, in the order of the rig; `default_topics` has those of the sensors if a file names none."""

    global_frame: Name = "map"  # tf frame of the map
    ego_frame: Name = "base_link"  # x ahead, y left, z up, on the ground below the rear axle
    transforms: Name = "/tf"  # topic
    static_transforms: Name = "/tf_static"  # topic
    odometry: Name | None = None  # the vehicle's poses, instead of those in `transforms`
    keyframes: Name | None = "/keyframe"  # by `perception log`; optional in a recording
    # Autoware's ConcatenatedPointCloudInfo, by which `perception drive` says which LiDAR a joined cloud lacks.
    concatenation: Name | None = None
    position: Name | None = "/gps"  # the vehicle's, by satellite; optional in a recording
    lidars: dict[str, LidarTopic] = Field(default={})  # LiDAR of the rig -> its topic
    cameras: dict[str, CameraTopics] = Field(default={})  # camera of the rig -> its topics
    scanners: dict[str, ScannerTopic] = Field(default={})  # sensors of further kinds
    calibration: Literal["recorded", "rig"] = "recorded"  # rig: its mounts and lenses, not transforms and CameraInfo
    period: Seconds = 0.5  # between frames, if there are no keyframes
    tolerance: Seconds = 0.06  # largest difference between the stamps of a picture and of its frame
    wait: Seconds = 0.25  # recording time for which a frame waits for its messages

    @model_validator(mode="after")
    def _require_distinct(self) -> Topics:
        if not self.lidars and not self.cameras:
            raise ValueError("neither a LiDAR nor a camera; name at least one")
        names = self.names()
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{twice[0]} is named twice; a topic has one meaning")
        return self

    @property
    def poses(self) -> str:
        return self.odometry or self.transforms

    def of(self, sensors: Sensors | None = None) -> list[str]:
        """The topics of these sensors or, without any given, of all; LiDARs first, and no CameraInfo."""
        topics = {name: each.topic for name, each in self.lidars.items()}
        topics |= {name: each.image for name, each in self.cameras.items()}
        topics |= {name: each.topic for name, each in self.scanners.items()}
        return [topic for name, topic in topics.items() if sensors is None or name in sensors.names]

    def names(self) -> list[str]:
        """All topics that are read."""
        scanned = (*self.lidars.values(), *self.scanners.values())
        single = [self.odometry, self.keyframes, self.position, *(each.topic for each in scanned)]
        cameras = [topic for each in self.cameras.values() for topic in (each.image, each.info)]
        return [self.transforms, self.static_transforms, *(name for name in single if name is not None), *cameras]


def default_topics(sensors: Sensors) -> dict[str, Any]:
    """The topics of all sensors of a rig, named after them, as content of a file."""
    names = {name: name.lower() for name in sensors.names}
    return {
        "lidars": {name: {"topic": f"/{names[name]}", "frame": names[name]} for name in sensors.lidars},
        "cameras": {
            name: {"image": f"/{names[name]}/image_rect_compressed", "info": f"/{names[name]}/camera_info"}
            for name in sensors.cameras
        },
        "scanners": {name: {"topic": f"/{names[name]}", "frame": names[name]} for name in sensors.scanners},
    }


def load_topics(path: Path | None, rig: Rig) -> Topics:
    """The map of topics in a file, or the default one, for the sensors of a rig."""
    content = {} if path is None else read_yaml(path, "the map of topics")
    defaults = default_topics(rig.sensors)
    topics = parse_section(Topics, defaults | content if isinstance(content, dict) else content, str(path))
    ordered = {}
    for field in ("lidars", "cameras", "scanners"):
        known = tuple(getattr(rig.sensors, field))
        named = getattr(topics, field)
        for name in named:
            if name not in known:
                raise InputError(f"{path}: {field}: {name} is none of the rig {rig.name}; it has {', '.join(known)}")
        ordered[field] = {name: named[name] for name in known if name in named}
    if topics.calibration == "rig":
        rig.require_calibration()
    return topics.model_copy(update=ordered)
