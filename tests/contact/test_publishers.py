"""Two publishers on one topic: in sessions of zenoh, and in a recording that the library `rosbags` writes."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from exported import bundle
from live import driving, log, network
from recordings import nuscenes_topics
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from vocabulary import SENSORS

from deploy.live.zenoh import Zenoh
from deploy.recordings.counts import Counts, Publishers
from deploy.recordings.drives import RecordedDrive
from deploy.recordings.messages import RawMessage
from deploy.recordings.ros_types import encode, make

KIND = "std_msgs/msg/String"


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Zenoh]]:
    """Opens sessions; the first one listens."""
    variables = iter(network(tmp_path))
    with ExitStack() as stack:

        def opened() -> Zenoh:
            for name, value in next(variables, {}).items():
                monkeypatch.setenv(name, value)
            return stack.enter_context(closing(Zenoh()))

        yield opened


def test_two_sessions_that_publish_a_topic_are_told_apart(session: Callable[[], Zenoh]) -> None:
    listener, first, second = session(), session(), session()
    heard, counts = list[RawMessage](), Counts(SENSORS)
    listener.start(["/points", "/tf"], heard.append, pytest.fail)
    publishers = Publishers(counts, shared=["/tf"])

    def send(publisher: Zenoh, topic: str) -> None:
        publisher.advertise(topic, KIND)
        publisher.wait_for_subscribers()
        end, before = time.monotonic() + 20, len(heard)
        publisher.publish(topic, KIND, encode(make(KIND, data="here")))
        while len(heard) == before and time.monotonic() < end:
            time.sleep(0.01)
        publishers.add(heard[-1])

    for topic in ("/points", "/tf"):
        for publisher in (first, first, second, second):  # as if one were started anew
            send(publisher, topic)
    assert counts.problems("contested") == {}
    for topic in ("/points", "/tf"):
        for publisher in (first, second, second, first):
            send(publisher, topic)
    assert counts.problems("contested") == {"/points": 3}


@pytest.mark.slow("may be the first to export")
@pytest.mark.parametrize("storage", StoragePlugin)
def test_two_connections_of_a_topic_in_a_recording(storage: StoragePlugin, tmp_path: Path) -> None:
    """Every second sweep is of another connection, which differs in its quality of service."""
    path, topic, never = tmp_path / "drive", "/lidar_top", QosTime(0, 0)
    store, connections, sweeps = get_typestore(Stores.ROS2_HUMBLE), {}, 0
    with Writer(path, version=9, storage_plugin=storage) as writer:
        for each in log(2.0):
            depth = 1 + sweeps % 2 if each.topic == topic else 1
            sweeps += each.topic == topic
            if (each.topic, depth) not in connections:
                service = Qos(
                    QosHistory.KEEP_LAST,
                    depth,
                    QosReliability.RELIABLE,
                    QosDurability.VOLATILE,
                    never,
                    never,
                    QosLiveliness.AUTOMATIC,
                    never,
                    False,
                )
                connections[each.topic, depth] = writer.add_connection(
                    each.topic, each.type_name, typestore=store, offered_qos_profiles=[service]
                )
            writer.write(connections[each.topic, depth], 1000 * each.time, each.data)
    topics = nuscenes_topics(keyframes=None)
    recording = RecordedDrive(path, topics, bundle().spec)
    assert sum(1 for _ in recording.frames()) > 2
    assert recording.counts.summary()["contested"] == {topic: sweeps - 2}
    drive = driving(path, tmp_path / "live", topics=topics)
    assert drive.driven.counts["contested"] == {topic: sweeps - 2}
    assert drive.watch.first("DEGRADED", "contested", topic) < float("inf")
