"""Writes a nuScenes scene, recorded or simulated, as a ROS 2 recording by a vehicle.

The recording has keyframes, the LiDAR's sweeps and the cameras' pictures before them (JPEG files byte for byte),
CameraInfo, /tf_static with the calibration, and /tf and /odometry with the vehicle's pose at the stamp of every
sensor file, even a missing one. Tokens, name, location and conditions of the scene, for which ROS has no message, are
in /keyframe as JSON in std_msgs/String.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mcap.writer import Writer as McapWriter
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as RosbagWriter

from deploy.recordings.ros_types import TYPES, encode, header, make, point_cloud, quaternion, vector
from perception.datasets.files import read_pcd
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.recordings import SampleData
from perception.datasets.nuscenes.tables import only_version
from perception.errors import InputError
from perception.io.files import atomic_file
from perception.rig import Rig, load_rig

SWEEPS = 10  # of a LiDAR before each keyframe, and pictures of a camera; networks use up to this many
CHUNK = 4 << 20  # bytes
MAP, EGO = "map", "base_link"
_POINT = np.dtype([(name, "<f4") for name in ("x", "y", "z", "intensity", "ring")])
FOREVER = QosTime(2147483647, 4294967295)
# A latched topic: late subscribers get the last message.
LATCHED = Qos(
    QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, FOREVER, FOREVER,
    QosLiveliness.AUTOMATIC, FOREVER, False,
)  # fmt: skip


class Message(NamedTuple):
    topic: str
    type_name: str
    stamp: int  # us
    content: Any

    @property
    def data(self) -> bytes:
        return encode(self.content)


TRANSFORMS, CLOUD, PICTURE = "tf2_msgs/msg/TFMessage", "sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/CompressedImage"
ODOMETRY, KEYFRAME, INFO = "nav_msgs/msg/Odometry", "std_msgs/msg/String", "sensor_msgs/msg/CameraInfo"


def topics_of(rig: Rig) -> dict[str, str]:
    """The topics of a recording, with the types of their messages."""
    lidars, cameras = ([name.lower() for name in names] for names in (rig.sensors.lidars, rig.sensors.cameras))
    return {
        "/tf_static": TRANSFORMS,
        "/tf": TRANSFORMS,
        "/odometry": ODOMETRY,
        "/keyframe": KEYFRAME,
        **{f"/{name}": CLOUD for name in lidars},
        **{f"/{name}/image_rect_compressed": PICTURE for name in cameras},
        **{f"/{name}/camera_info": INFO for name in cameras},
    }


def transform(stamp: int, parent: str, child: str, pose: np.ndarray) -> Any:
    """pose (7,): translation, quaternion w x y z."""
    value = make("geometry_msgs/msg/Transform", translation=vector(pose[:3]), rotation=quaternion(*pose[3:]))
    return make(
        "geometry_msgs/msg/TransformStamped", header=header(stamp, parent), child_frame_id=child, transform=value
    )


def odometry(stamp: int, pose: np.ndarray) -> Any:
    unknown = np.zeros(36)
    place = make("geometry_msgs/msg/Pose", position=vector(pose[:3], "Point"), orientation=quaternion(*pose[3:]))
    still = make("geometry_msgs/msg/Twist", linear=vector((0, 0, 0)), angular=vector((0, 0, 0)))
    return make(
        "nav_msgs/msg/Odometry",
        header=header(stamp, MAP),
        child_frame_id=EGO,
        pose=make("geometry_msgs/msg/PoseWithCovariance", pose=place, covariance=unknown),
        twist=make("geometry_msgs/msg/TwistWithCovariance", twist=still, covariance=unknown),
    )


def camera_info(stamp: int, frame: str, size: tuple[int, int], intrinsics: np.ndarray) -> Any:
    region = make("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    projection = np.concatenate([intrinsics, np.zeros((3, 1))], axis=1)
    return make(
        "sensor_msgs/msg/CameraInfo", header=header(stamp, frame), height=size[1], width=size[0],
        distortion_model="plumb_bob", d=np.zeros(5), k=intrinsics.ravel(), r=np.eye(3).ravel(), p=projection.ravel(),
        binning_x=0, binning_y=0, roi=region,
    )  # fmt: skip


def messages(tables: NuScenesTables, scene: str, sweeps: int) -> Iterator[Message]:
    """Yield all messages in order of time. `scene` may be a range of keyframes, such as scene-0103:0-4."""
    samples, lidars = tables.samples(selectors=[scene]), tables.rig.sensors.lidars
    recordings = tables.between.recordings
    chains: dict[str, list[SampleData]] = {}
    found: dict[str, SampleData] = {}  # by file, since a sweep may be before several keyframes
    for sample in samples:
        keyframe = recordings.get(sample, {})
        if lidars[0] not in keyframe:
            raise InputError(f"{tables.dataroot}: no {lidars[0]} keyframe of sample {sample}; copy the tables again")
        chains[sample], *others = (
            list(recordings.chain(keyframe[each], sweeps)) for each in tables.rig.sensors.names if each in keyframe
        )
        found |= {each.file: each for each in chain(chains[sample], *others)}
    ordered = sorted(found.values(), key=lambda each: (each.timestamp, each.channel))
    samples_at = {recordings[sample][lidars[0]].file: sample for sample in samples}
    mountings = {each.channel: recordings.mountings[each.calibration] for each in ordered}
    start = ordered[0].timestamp
    still = [transform(start, EGO, channel.lower(), pose) for channel, pose in sorted(mountings.items())]
    yield Message("/tf_static", TRANSFORMS, start, make("tf2_msgs/msg/TFMessage", transforms=still))
    posed = -1
    for each in ordered:
        if each.timestamp != posed:  # two sensors at the same microsecond have the same pose
            posed, pose = each.timestamp, recordings.pose(each)
            moved = make("tf2_msgs/msg/TFMessage", transforms=[transform(posed, MAP, EGO, pose)])
            yield Message("/tf", TRANSFORMS, posed, moved)
            yield Message("/odometry", ODOMETRY, posed, odometry(posed, pose))
        if each.file in samples_at:
            yield keyframe_message(tables, samples_at[each.file], chains[samples_at[each.file]])
        yield from sensor_messages(tables, each)


def keyframe_message(tables: NuScenesTables, sample: str, chain: list[SampleData]) -> Message:
    frame = tables.frame(sample, Reads(annotations=False, lidar=False, cameras=False))
    known = {
        "stamp": frame.timestamp,
        "token": frame.token,
        "scene": frame.scene,
        "location": frame.location,
        "conditions": dict(frame.conditions),
        "sweeps": [each.timestamp for each in chain[1:]],
    }
    return Message("/keyframe", KEYFRAME, frame.timestamp, make("std_msgs/msg/String", data=json.dumps(known)))


def sensor_messages(tables: NuScenesTables, recording: SampleData) -> Iterator[Message]:
    """Yield the messages of one sensor file; nothing if it does not exist."""
    path, stamp, frame = tables.dataroot / recording.file, recording.timestamp, recording.channel.lower()
    if not path.exists():
        return
    content = path.read_bytes()
    if recording.channel in tables.rig.sensors.lidars:
        points = read_pcd(path)[0].tobytes() if path.suffix == ".pcd" else content
        yield Message(f"/{frame}", CLOUD, stamp, point_cloud(header(stamp, frame), np.frombuffer(points, _POINT)))
        return
    size, intrinsics = (recording.width, recording.height), tables.recordings.intrinsics[recording.calibration]
    yield Message(f"/{frame}/camera_info", INFO, stamp, camera_info(stamp, frame, size, intrinsics))
    data = np.frombuffer(content, np.uint8)
    picture = make("sensor_msgs/msg/CompressedImage", header=header(stamp, frame), format="jpeg", data=data)
    yield Message(f"/{frame}/image_rect_compressed", PICTURE, stamp, picture)


def write_mcap(path: Path, log: Iterator[Message], topics: dict[str, str]) -> int:
    """Write a chunked MCAP file, complete or not at all; returns the number of messages."""
    count = 0
    with atomic_file(path, "the recording") as file:
        writer = McapWriter(file, chunk_size=CHUNK)
        writer.start(profile="ros2")
        schemas: dict[str, int] = {}
        channels: dict[str, int] = {}
        for topic, type_name in topics.items():
            if type_name not in schemas:
                definition, _ = TYPES.generate_msgdef(type_name, ros_version=2)
                schemas[type_name] = writer.register_schema(type_name, "ros2msg", definition.encode())
            channels[topic] = writer.register_channel(topic, "cdr", schemas[type_name])
        for each in log:
            count += 1
            time = 1000 * each.stamp
            writer.add_message(channels[each.topic], time, each.data, time, count)
        writer.finish()
    return count


def write_rosbag(path: Path, log: Iterator[Message], topics: dict[str, str], storage: StoragePlugin) -> int:
    """Write a rosbag2's folder, complete or not at all; returns the number of messages."""
    partial = path.with_name(f".{path.name}.partial") / path.name  # the files in it are named after the folder
    shutil.rmtree(partial.parent, ignore_errors=True)
    count = 0
    try:
        with RosbagWriter(partial, version=9, storage_plugin=storage) as writer:
            connections = {
                topic: writer.add_connection(
                    topic, type_name, typestore=TYPES, offered_qos_profiles=[LATCHED] if topic == "/tf_static" else []
                )
                for topic, type_name in topics.items()
            }
            for each in log:
                count += 1
                writer.write(connections[each.topic], 1000 * each.stamp, each.data)
        partial.replace(path)
    finally:
        shutil.rmtree(partial.parent, ignore_errors=True)
    return count


STORAGES: dict[str, Callable[[Path, Iterator[Message], dict[str, str]], int]] = {
    "file": write_mcap,
    "sqlite3": lambda path, log, topics: write_rosbag(path, log, topics, StoragePlugin.SQLITE3),
    "mcap": lambda path, log, topics: write_rosbag(path, log, topics, StoragePlugin.MCAP),
}


def write_log(
    dataroot: Path,
    scene: str,
    out: Path,
    storage: str = "file",
    version: str | None = None,
    sweeps: int = SWEEPS,
    rig: Rig | None = None,
) -> int:
    """Write one scene, or some of its keyframes; returns the number of messages.

    Args:
        storage: `file` for one MCAP file; `sqlite3` or `mcap` for a rosbag2 with that storage.
        sweeps: number of sweeps of each LiDAR, and of pictures of each camera, before a keyframe.
    """
    tables = NuScenesTables(dataroot, version or only_version(dataroot), rig or load_rig("nuscenes"))
    if out.exists():
        raise InputError(f"{out}: exists; choose another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return STORAGES[storage](out, messages(tables, scene, sweeps), topics_of(tables.rig))
    except OSError as error:
        raise InputError(f"{out}: cannot write ({error.strerror}); choose another --out") from None
