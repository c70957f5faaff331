"""What is published over zenoh: it arrives, and nobody has to listen."""

import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from exported import bundle
from live import Watch, driving, free_port, log, network, recorded
from perceived import boxes_of, frame_at, manifest_of, read
from recordings import nuscenes_topics
from vocabulary import CONDITIONS, SENSORS

from deploy.commands.live import OutputOptions, open_outputs
from deploy.live.messages.messages import Message, Messages
from deploy.live.outputs import Published
from deploy.live.record import listen
from deploy.live.source import Playback
from deploy.live.zenoh import Zenoh, republish
from deploy.recordings import ros
from deploy.recordings.drives import open_recording
from deploy.recordings.messages import MessageFile, RawMessage, RecordingInfo
from deploy.recordings.ros_types import encode, make
from perception.errors import InputError
from perception.frame import Prediction
from perception.scene.scene import Scene


@pytest.fixture
def sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Zenoh, Zenoh]]:
    """One that publishes, and one that listens."""
    opened = []
    for variables in network(tmp_path):
        for name, value in variables.items():
            monkeypatch.setitem(os.environ, name, value)
        opened.append(Zenoh())
    yield tuple(opened)  # type: ignore[misc]
    for session in opened:
        session.close()


def test_a_subscriber_gets_all_until_it_goes_and_the_drive_goes_on(
    tmp_path: Path, sessions: tuple[Zenoh, Zenoh]
) -> None:
    publisher, listener = sessions
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
        publisher.advertise(topic, kind)
    assert topics.items() <= listener.topics().items()
    listener.start(topics, hear, pytest.fail)
    publisher.wait_for_subscribers()
    until = dict[str, int]()

    def go() -> None:
        if len(watch.lines) == 4:
            until.update({topic: len(sent[topic]) for topic in topics})
            listener.close()

    watch = Watch(go)
    drive = driving(log(4.0), tmp_path, watch=watch, more=lambda *_: [Published(publisher, Messages(manifest), send)])
    drive.require_outcomes()
    for topic in topics:
        left = iter(sent[topic])
        assert all(data in left for data in heard[topic])  # in order
        # The last one may be on its way. Zenoh drops what a busy process does not send in time, as rmw_zenoh does.
        assert len(heard[topic]) >= (until[topic] - 1) / 2
    assert len(sent["/perception/objects/tracked"]) == drive.driven.outcomes["perceived"] > 4
    states = [ros.TYPES.deserialize_cdr(each, topics["/diagnostics"]).status[0] for each in heard["/diagnostics"]]
    assert {each.hardware_id for each in states} == {manifest.name}
    assert {each.level for each in states} <= {0, 1, 2}
    assert not any(each.code == "output" for _, status in watch.states for each in status.reasons)
    assert drive.frames[-1]["outcome"] == "perceived"


def test_what_is_listened_to_is_what_was_sent(tmp_path: Path, sessions: tuple[Zenoh, Zenoh]) -> None:
    """`perception check zenoh` records it first."""
    publisher, listener = sessions
    recording, heard, said = recorded(tmp_path, log(2.0)), tmp_path / "heard.mcap", list[str]()
    playing = Thread(target=republish, args=(Playback(recording, 4.0), publisher))
    playing.start()
    listen(listener, nuscenes_topics(), heard, 5.0, said.append)
    playing.join()
    topics = {*nuscenes_topics().names()}
    sent, found = (by_topic(open_recording(path), topics) for path in (recording, heard))
    assert sent == found
    assert not said


def by_topic(recording: MessageFile, topics: set[str]) -> dict[str, list[bytes]]:
    found = defaultdict[str, list[bytes]](list)
    for raw in recording.read(topics, pytest.fail):
        found[raw.topic].append(raw.data)
    return dict(found)


def test_a_network_on_which_no_sensor_sends(
    tmp_path: Path, sessions: tuple[Zenoh, Zenoh], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.live.zenoh._DISCOVERY", 0.2)
    with pytest.raises(InputError, match="none of the sensors' topics /lidar_top, "):
        listen(sessions[1], nuscenes_topics(), tmp_path / "heard.mcap", 1.0, print)
    assert not (tmp_path / "heard.mcap").exists()


def test_a_router_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where the session goes on without it, and as the mistake where no topic is found."""
    address, said = f"tcp/localhost:{free_port()}", list[str]()
    monkeypatch.setattr("deploy.live.zenoh._DISCOVERY", 0.2)
    monkeypatch.setenv("ZENOH_CONFIG_OVERRIDE", f'connect/endpoints=["{address}"]')
    with closing(Zenoh(said.append)) as session:
        assert [address in line for line in said] == [True]
        with pytest.raises(InputError, match=address):
            session.topics()
    monkeypatch.setenv("ZENOH_CONFIG_OVERRIDE", f'connect/endpoints=["{address}"];mode="client"')
    with pytest.raises(InputError, match=address):
        Zenoh(said.append)
    assert len(said) == 1


def test_a_topic_that_is_published_later_is_heard(sessions: tuple[Zenoh, Zenoh]) -> None:
    publisher, listener = sessions
    kind, heard = "std_msgs/msg/String", list[RawMessage]()
    publisher.advertise("/first", kind)
    assert "/first" in listener.topics()
    assert "/first" not in publisher.topics()  # a process does not hear itself
    listener.start(["/first", "/later"], heard.append, pytest.fail)
    publisher.advertise("/later", kind)
    publisher.wait_for_subscribers()
    require_heard(publisher, "/later", heard)


def require_heard(publisher: Zenoh, topic: str, heard: list[RawMessage]) -> None:
    kind, end = "std_msgs/msg/String", time.monotonic() + 20
    while not heard and time.monotonic() < end:
        publisher.publish(topic, kind, encode(make(kind, data="here")))
        time.sleep(0.1)
    assert heard[0].parse(heard[0].data).data == "here"


def test_times_of_arrival_go_on_when_the_clock_of_the_host_is_set_back(
    sessions: tuple[Zenoh, Zenoh], monkeypatch: pytest.MonkeyPatch
) -> None:
    (publisher, listener), wall, kind = sessions, time.time_ns, "std_msgs/msg/String"
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
def test_static_transforms_that_were_sent_before_are_heard(sessions: tuple[Zenoh, Zenoh], topic: str) -> None:
    (publisher, listener), heard, kind = sessions, list[RawMessage](), "tf2_msgs/msg/TFMessage"
    publisher.publish(topic, kind, encode(make(kind, transforms=[])))
    assert topic in listener.topics()
    listener.start([topic], heard.append, pytest.fail)
    end = time.monotonic() + 20
    while not heard and time.monotonic() < end:
        time.sleep(0.05)
    assert [each.topic for each in heard] == [topic]


def test_messages_are_in_the_frames_of_reference_of_the_map_of_topics() -> None:
    manifest, sent, intake = manifest_of("detection"), list[Message](), None
    zenoh: Any = SimpleNamespace(publish=lambda *each: sent.append(Message(*each)))
    topics = nuscenes_topics(global_frame="odom", ego_frame="rear_axle")
    with ExitStack() as stack:
        (published,) = open_outputs(OutputOptions(), stack, intake, manifest, topics, zenoh, print)  # type: ignore[arg-type]
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
    zenoh: Any = object()
    options = OutputOptions(view=free_port(), record=tmp_path / "a.mcap")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = options._replace(view=taken.getsockname()[1])
        with ExitStack() as stack, pytest.raises(InputError, match="--view"):
            open_outputs(used, stack, intake, bundle().manifest, nuscenes_topics(), zenoh, print)
    assert not (tmp_path / "a.mcap").exists()
    with ExitStack() as stack:
        opened = open_outputs(options, stack, intake, bundle().manifest, nuscenes_topics(), zenoh, print)
    assert [each.name for each in opened] == ["publish", "view", "record"]
