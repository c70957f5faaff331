"""What is published over zenoh and DDS: it arrives, and nobody has to listen."""

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from exported import bundle
from live import Watch, driving, free_port, log, network, recorded
from perceived import boxes_of, frame_at, manifest_of
from recordings import nuscenes_topics
from ros_idl import read
from vocabulary import CONDITIONS, SENSORS

from deploy.commands.live import OutputOptions, open_outputs
from deploy.live.buses import BUSES, Buses
from deploy.live.messages.messages import Message, Messages
from deploy.live.publish import Published
from deploy.live.record import listen
from deploy.live.source import Bus, Playback, republish
from deploy.recordings import ros
from deploy.recordings.drives import open_recording
from deploy.recordings.messages import RawMessage, Recording, RecordingInfo
from deploy.recordings.ros_types import encode, make
from perception.errors import InputError
from perception.frame import Prediction
from perception.scene.scene import Scene


@pytest.fixture(params=BUSES)
def buses(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Bus, Bus]]:
    """One that publishes, and one that listens."""
    opened = []
    for variables in network(tmp_path, request.param):
        for name, value in variables.items():
            monkeypatch.setitem(os.environ, name, value)
        opened.append(BUSES[request.param]())
    yield tuple(opened)  # type: ignore[misc]
    for each in opened:
        each.close()


def test_a_subscriber_gets_all_until_it_goes_and_the_drive_goes_on(tmp_path: Path, buses: tuple[Bus, Bus]) -> None:
    bus, listener = buses
    manifest, sent, heard = bundle().manifest, defaultdict[str, list[bytes]](list), defaultdict[str, list[bytes]](list)

    def send(message: Message) -> None:
        sent[message.topic].append(message.data)

    def hear(raw: RawMessage) -> None:
        assert raw.decode is not None
        heard[raw.topic].append(raw.data)

    topics = {"/perception/objects/tracked": "autoware_perception_msgs/msg/TrackedObjects"}
    topics |= {"/perception/objects/vision": "vision_msgs/msg/Detection3DArray"}
    topics |= {"/diagnostics": "diagnostic_msgs/msg/DiagnosticArray"}
    for topic, kind in topics.items():
        bus.advertise(topic, kind)
    assert topics.items() <= listener.topics().items()
    listener.start(topics, hear, pytest.fail)
    bus.wait_for_subscribers()
    until = dict[str, int]()

    def go() -> None:
        if len(watch.lines) == 4:
            until.update({topic: len(sent[topic]) for topic in topics})
            listener.close()

    watch = Watch(go)
    drive = driving(log(4.0), tmp_path, watch=watch, more=lambda *_: [Published(bus, Messages(manifest), send)])
    drive.require_outcomes()
    for topic in topics:
        left = iter(sent[topic])
        assert all(any(data[: len(each)] == each for each in left) for data in heard[topic])  # in order; DDS pads
        # The last one may be on its way. Zenoh drops what a busy process does not send in time, as rmw_zenoh does.
        assert len(heard[topic]) >= (until[topic] - 1) / (2 if isinstance(bus, BUSES["zenoh"]) else 1)
    assert len(sent["/perception/objects/tracked"]) == drive.driven.outcomes["perceived"] > 4
    states = [ros.TYPES.deserialize_cdr(each, topics["/diagnostics"]).status[0] for each in heard["/diagnostics"]]
    assert {each.hardware_id for each in states} == {manifest.name}
    assert {each.level for each in states} <= {0, 1, 2}
    assert not any(each.code == "output" for _, status in watch.states for each in status.reasons)
    assert drive.frames[-1]["outcome"] == "perceived"


def test_what_is_listened_to_is_what_was_sent(tmp_path: Path, buses: tuple[Bus, Bus]) -> None:
    """`perception check zenoh` records it first."""
    publisher, listener = buses
    recording, heard, said = recorded(tmp_path, log(2.0)), tmp_path / "heard.mcap", list[str]()
    playing = Thread(target=republish, args=(Playback(recording, 4.0), publisher))
    playing.start()
    listen(listener, nuscenes_topics(), heard, 5.0, said.append)
    playing.join()
    topics = {*nuscenes_topics().names()}
    sent, found = (by_topic(open_recording(path), topics) for path in (recording, heard))
    assert sent.keys() == found.keys()
    for topic, messages in sent.items():
        assert [
            data[: len(wanted)] for data, wanted in zip(found[topic], messages, strict=True)
        ] == messages  # DDS pads
    assert not said


def by_topic(recording: Recording, topics: set[str]) -> dict[str, list[bytes]]:
    found = defaultdict[str, list[bytes]](list)
    for raw in recording.read(topics, pytest.fail):
        found[raw.topic].append(raw.data)
    return dict(found)


def test_a_network_on_which_no_sensor_sends(
    tmp_path: Path, buses: tuple[Bus, Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.live.source._DISCOVERY", 0.2)
    with pytest.raises(InputError, match="none of the sensors' topics /lidar_top, "):
        listen(buses[1], nuscenes_topics(), tmp_path / "heard.mcap", 1.0, print)
    assert not (tmp_path / "heard.mcap").exists()


def test_a_topic_that_is_published_later_is_heard(buses: tuple[Bus, Bus]) -> None:
    publisher, listener = buses
    kind, heard = "std_msgs/msg/String", list[RawMessage]()
    publisher.advertise("/first", kind)
    assert "/first" in listener.topics()
    assert "/first" not in publisher.topics()  # a process does not hear itself
    listener.start(["/first", "/later"], heard.append, pytest.fail)
    publisher.advertise("/later", kind)
    publisher.wait_for_subscribers()
    require_heard(publisher, "/later", heard)


def require_heard(publisher: Bus, topic: str, heard: list[RawMessage]) -> None:
    kind, end = "std_msgs/msg/String", time.monotonic() + 20
    while not heard and time.monotonic() < end:
        publisher.publish(topic, kind, encode(make(kind, data="here")))
        time.sleep(0.1)
    assert heard[0].parse(heard[0].data).data == "here"


def test_times_of_arrival_go_on_when_the_clock_of_the_host_is_set_back(
    buses: tuple[Bus, Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    (publisher, listener), wall, kind = buses, time.time_ns, "std_msgs/msg/String"
    begin, heard = wall() // 1000, list[RawMessage]()
    publisher.advertise("/first", kind)
    assert "/first" in listener.topics()
    listener.start(["/first"], heard.append, pytest.fail)
    require_heard(publisher, "/first", heard)
    monkeypatch.setattr(time, "time_ns", lambda: wall() - 3600 * 10**9)
    before, end = len(heard), time.monotonic() + 20
    while len(heard) == before and time.monotonic() < end:
        publisher.publish("/first", kind, encode(make(kind, data="here")))
        time.sleep(0.1)
    times = [each.time for each in heard]
    assert len(times) > before
    assert begin - 60_000_000 <= times[0]
    assert times == sorted(times)
    assert times[-1] <= listener.now()


@pytest.mark.parametrize("topic", ["/tf_static", "/robot/tf_static"])
def test_static_transforms_that_were_sent_before_are_heard(buses: tuple[Bus, Bus], topic: str) -> None:
    (publisher, listener), heard, kind = buses, list[RawMessage](), "tf2_msgs/msg/TFMessage"
    publisher.publish(topic, kind, encode(make(kind, transforms=[])))
    assert topic in listener.topics()
    listener.start([topic], heard.append, pytest.fail)
    end = time.monotonic() + 20
    while not heard and time.monotonic() < end:
        time.sleep(0.05)
    assert [each.topic for each in heard] == [topic]


@pytest.mark.parametrize("buses", ["dds"], indirect=True)
def test_a_topic_of_an_unknown_type_leaves_the_others_heard(buses: tuple[Any, Any]) -> None:
    """As a vehicle's own messages are, which may be named as one of its signals."""
    publisher, listener = buses
    heard, said = list[RawMessage](), list[str]()
    listener._types["/speed"], listener._reliable["/speed"] = "mine_msgs/msg/Speed", True  # as if it were published
    listener.start(["/speed", "/later"], heard.append, said.append)
    require_heard(publisher, "/later", heard)
    assert said == ["/speed: is not read, because mine_msgs/msg/Speed is none of ROS 2's own types"]


@pytest.mark.parametrize("buses", ["dds"], indirect=True)
def test_a_topic_that_cannot_be_subscribed_to_leaves_the_others_heard(buses: tuple[Any, Any]) -> None:
    """DDS refuses its name."""
    publisher, listener = buses
    heard, said = list[RawMessage](), list[str]()
    listener._types["/sp*ed"], listener._reliable["/sp*ed"] = "std_msgs/msg/String", True  # as if it were published
    listener.start(["/sp*ed", "/later"], heard.append, said.append)
    require_heard(publisher, "/later", heard)
    (damage,) = said
    assert damage.startswith("/sp*ed: is not read, because it cannot be subscribed to (")


def test_messages_are_in_the_frames_of_reference_of_the_map_of_topics() -> None:
    manifest, sent, intake = manifest_of("detection"), list[Message](), None
    buses: Any = SimpleNamespace(open=lambda *_: SimpleNamespace(publish=lambda *each: sent.append(Message(*each))))
    topics = nuscenes_topics(global_frame="odom", ego_frame="rear_axle")
    with ExitStack() as stack:
        options = OutputOptions(publish="zenoh")
        (published,) = open_outputs(options, stack, intake, manifest, topics, buses, print)  # type: ignore[arg-type]
    frame, scene = frame_at(np.eye(4), np.eye(4)), Scene(SENSORS, manifest.heads, CONDITIONS)
    prediction = Prediction({"detection": boxes_of()})
    scene.observe(frame)
    published.publish(frame, prediction)
    published.add(frame, scene.update(frame, prediction))
    frames = {each.topic: read(each).header.frame_id for each in sent if "objects" in each.topic}
    objects = "/perception/objects"
    vehicle = {f"{objects}/vision": "rear_axle", f"{objects}/detected": "rear_axle"}
    assert frames == {**vehicle, f"{objects}/tracked": "odom"}


def test_messages_leave_before_pictures_are_drawn_and_a_mistake_leaves_no_recording(tmp_path: Path) -> None:
    intake: Any = SimpleNamespace(source=SimpleNamespace(info=RecordingInfo({}, 0, "live"), now=int))
    options = OutputOptions(publish="zenho", view=free_port(), record=tmp_path / "a.mcap")
    with ExitStack() as stack, pytest.raises(InputError, match="--publish zenho: is none of zenoh, dds"):
        open_outputs(options, stack, intake, bundle().manifest, nuscenes_topics(), Buses(), print)
    assert not (tmp_path / "a.mcap").exists()
    buses: Any = SimpleNamespace(open=lambda *_: object())
    with ExitStack() as stack:
        opened = open_outputs(options, stack, intake, bundle().manifest, nuscenes_topics(), buses, print)
    assert [each.name for each in opened] == ["publish", "view", "record"]
