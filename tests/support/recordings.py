"""Recordings to test on: scenes written by `perception log`, whole, spoiled, and with messages of positions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mcap.writer import Writer
from vocabulary import RIG, SENSORS

from deploy.log import TYPES, Message, header, make, messages
from deploy.recordings import ros
from deploy.recordings.assembler import Assembler, DriveInfo
from deploy.recordings.choice import FrameChoice
from deploy.recordings.counts import Counts
from deploy.recordings.drives import open_drives
from deploy.recordings.latest import Readings
from deploy.recordings.messages import CorruptMessage
from deploy.recordings.topics import Topics, default_topics
from perception.config import find_config, load_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Frame
from perception.grid import BevGrid, Reference
from perception.sensors.camera.config import CameraBranch
from perception.sensors.inputs import InputSpec
from perception.sensors.lidar.config import Lidar

__all__ = ["STORAGES", "TINY", "TYPES", "Message", "messages"]
SPEC = load_config(find_config("tiny")).spec
STORAGES = {"file": "drive.mcap", "sqlite3": "drive_sqlite3", "mcap": "drive_mcap"}
TINY = "scene-0001"


def nuscenes_topics(**changes: Any) -> Topics:
    """The default map of topics, with changes."""
    return Topics.model_validate(default_topics(SENSORS) | changes)


class Sent(NamedTuple):
    """A message on its way to the assembler."""

    topic: str
    type_name: str
    time: int  # us
    data: bytes


def messages_of(root: Path, version: str, scene: str, sweeps: int = 10) -> list[Sent]:
    """The messages of a scene."""
    log = messages(NuScenesTables(root, version), scene, sweeps)
    return [Sent(each.topic, each.type_name, each.stamp, each.data) for each in log]


def assemble(log: Iterable[Sent], *given: Any, **options: Any) -> tuple[list[Frame], Counts]:
    """The frames of messages, and what was counted; the options are those of `stream`."""
    counts = Counts(SENSORS)
    return list(stream(log, counts, *given, **options)), counts


def stream(
    log: Iterable[Sent],
    counts: Counts,
    topics: Topics | None = None,
    sweeps: int = 1,
    reference: Reference = "ego",
    keyframed: bool = True,
    camera: CameraBranch | None = None,
) -> Iterator[Frame]:
    topics = topics or nuscenes_topics()
    cameras = {} if camera is None else {"camera": camera}
    spec = InputSpec(BevGrid(reference=reference), {"lidar": Lidar(sweeps=sweeps), **cameras}, RIG)
    assembler = Assembler(topics, spec, counts, DriveInfo("log"), keyframed, FrameChoice(), Readings({}))
    for each in (each for each in log if each.topic in topics.names()):
        yield from (ready.assemble() for ready in assembler.advance(each.time))
        try:
            contents = ros.decode(each.type_name, each.data)
        except CorruptMessage as error:
            counts.add_corrupt(each.topic, str(error))
        else:
            assembler.add(each.topic, each.time, contents)
    yield from (ready.assemble() for ready in assembler.finish())


def write_raw_mcap(path: Path, log: Sequence[Sent], empty: Mapping[str, str] | None = None) -> Path:
    """An MCAP file of exactly these messages, in this order, in small chunks.

    Args:
        empty: topics without a message, and their types.
    """
    with path.open("wb") as file:
        writer = Writer(file, chunk_size=20_000)
        writer.start(profile="ros2")
        channels = {}
        for topic, type_name in ({**(empty or {})} | {each.topic: each.type_name for each in log}).items():
            schema = writer.register_schema(type_name, "ros2msg", TYPES.generate_msgdef(type_name)[0].encode())
            channels[topic] = writer.register_channel(topic, "cdr", schema)
        for each in log:
            writer.add_message(channels[each.topic], 1000 * each.time, each.data, 1000 * each.time)
        writer.finish()
    return path


def edit(message: Sent, **changes: Any) -> Sent:
    """The message with fields of its content replaced; `stamp` (us) is that of the header, `time` that of the log."""
    content = TYPES.deserialize_cdr(message.data, message.type_name)
    time = changes.pop("time", message.time)
    if "stamp" in changes:
        stamp = changes.pop("stamp")
        content.header.stamp.sec, content.header.stamp.nanosec = stamp // 1_000_000, stamp % 1_000_000 * 1000
    for name, value in changes.items():
        assert hasattr(content, name)
        object.__setattr__(content, name, value)
    return message._replace(time=time, data=bytes(TYPES.serialize_cdr(content, message.type_name)))


def assert_equal_frames(a: Frame, b: Frame) -> None:
    """Equal to the last bit, without the annotations."""
    for name in ("token", "timestamp", "reference", "conditions", "scene", "location", "position"):
        assert getattr(a, name) == getattr(b, name)
    np.testing.assert_array_equal(a.global_from_reference, b.global_from_reference)
    np.testing.assert_array_equal(a.global_from_ego, b.global_from_ego)
    np.testing.assert_array_equal(a.points, b.points, strict=True)
    assert a.cameras.keys() == b.cameras.keys()
    for camera, c in a.cameras.items():
        for name in ("image", "intrinsics", "ego_from_camera", "global_from_ego", "timestamp"):
            np.testing.assert_array_equal(getattr(c, name), getattr(b.cameras[camera], name))


def assert_equal_drives(frames: Sequence[Frame], expected: Sequence[Frame]) -> None:
    for a, b in zip(frames, expected, strict=True):
        assert_equal_frames(a, b)


def read(path: Path, topics: Path | None = None) -> tuple[list[Frame], dict[str, Any]]:
    """The frames of a recording, and what was counted."""
    [drive] = open_drives(path, None, (), SPEC, topics)
    frames = list(drive.frames())
    return frames, drive.counts.summary()


def message(topic: str, stamp: int, content: object) -> Sent:
    type_name = content.__msgtype__  # type: ignore[attr-defined]
    return Sent(topic, type_name, stamp, bytes(TYPES.serialize_cdr(content, type_name)))


def fix(stamp: int, latitude: float, longitude: float, status: int = 0) -> Sent:
    content = make(
        "sensor_msgs/msg/NavSatFix", header=header(stamp, "gps"), latitude=latitude, longitude=longitude, altitude=0.0,
        status=make("sensor_msgs/msg/NavSatStatus", status=status, service=1), position_covariance=np.zeros(9),
        position_covariance_type=0,
    )  # fmt: skip
    return message("/gps", stamp, content)
