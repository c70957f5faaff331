"""What is published over zenoh and DDS: it arrives, and nobody has to listen."""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from exported import bundle
from live import driving, log, network

from deploy.live.dds import DdsBus
from deploy.live.messages.messages import Message, Messages
from deploy.live.publish import Published
from deploy.live.source import Bus
from deploy.live.zenoh import ZenohBus
from deploy.recordings import ros
from deploy.recordings.messages import RawMessage

BUSES = {"zenoh": ZenohBus, "dds": DdsBus}


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
    listener.start(topics, hear)
    bus.wait_for_subscribers()
    half = len(log()) // 2
    drive = driving(log()[:half], tmp_path / "heard", more=lambda _: [Published(bus, Messages(manifest), send)])
    drive.require_outcomes()
    until = {topic: len(sent[topic]) for topic in topics}
    listener.close()
    for topic in topics:
        found = [data[: len(wanted)] for data, wanted in zip(heard[topic], sent[topic], strict=False)]  # DDS pads
        assert found == sent[topic][: len(found)]
        assert len(found) >= until[topic] - 1  # the last one may be on its way
    assert until["/perception/objects/tracked"] == drive.driven.outcomes["taken"]
    states = [ros.TYPES.deserialize_cdr(each, topics["/diagnostics"]).status[0] for each in heard["/diagnostics"]]
    assert {each.hardware_id for each in states} == {manifest.name}
    assert {each.level for each in states} <= {0, 1, 2}
    # Nobody listens any more.
    again = driving(log(), tmp_path / "unheard", more=lambda _: [Published(bus, Messages(manifest), send)])
    again.require_outcomes()
    assert not any(each.code == "output" for _, status in again.watch.states for each in status.reasons)
    assert again.frames[-1]["outcome"] == "taken"
