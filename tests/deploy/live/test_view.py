"""What Foxglove shows while driving is what a replay writes for it."""

import asyncio
import struct
import threading
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from exported import bundle
from mcap.reader import make_reader

from deploy.live.view import View
from deploy.replay.foxglove_results import FoxgloveWriter
from deploy.replay.writers import open_viewers
from deploy.runtime import Runtime
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables

Messages = dict[str, list[tuple[int, bytes]]]  # topic -> time (ns), bytes
SECONDS = 60  # after which a client that waits has failed


class Client:
    """Subscribes to every topic, as Foxglove does by its protocol, until `count` messages came."""

    def __init__(self, port: int, count: int) -> None:
        self.messages: Messages = defaultdict(list)
        self.schemas: dict[str, str] = {}
        self.subscribed = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen(port, count)))
        self._thread.start()

    async def _listen(self, port: int, count: int) -> None:
        url, topics = f"ws://127.0.0.1:{port}", dict[int, str]()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, protocols=("foxglove.sdk.v1",), max_msg_size=0) as socket,
        ):
            while sum(map(len, self.messages.values())) < count:
                message = await socket.receive(SECONDS)
                if message.type == aiohttp.WSMsgType.BINARY:
                    kind, channel, time = struct.unpack_from("<BIQ", message.data)
                    assert kind == 1  # a message's data
                    self.messages[topics[channel]].append((time, message.data[13:]))
                    continue
                said = message.json()
                if said["op"] == "advertise":
                    topics |= {each["id"]: each["topic"] for each in said["channels"]}
                    self.schemas |= {each["topic"]: each["schemaName"] for each in said["channels"]}
                    wanted = [{"id": each["id"], "channelId": each["id"]} for each in said["channels"]]
                    await socket.send_json({"op": "subscribe", "subscriptions": wanted})
                    self.subscribed.set()

    def end(self) -> None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def steps(recorded_root: Path) -> list[Any]:
    tables = NuScenesTables(recorded_root, "v1.0-tiny")
    runtime = Runtime(bundle().path)
    frames = [tables.frame(sample, Reads(sweeps=runtime.bundle.spec.sweeps)) for sample in tables.samples()[:2]]
    return [(frame, runtime.step(frame)) for frame in frames]


def test_a_client_gets_the_messages_that_a_replay_writes(steps: list[Any], tmp_path: Path) -> None:
    manifest = bundle().manifest
    with FoxgloveWriter.open(tmp_path / "a.mcap", manifest.heads, manifest.rig.sensors.lidars[0]) as writer:
        for frame, seen in steps:
            writer.add(frame, seen)
    expected, schemas = defaultdict(list), {}
    with (tmp_path / "a.mcap").open("rb") as file:
        for schema, channel, message in make_reader(file).iter_messages(log_time_order=False):
            expected[channel.topic].append((message.log_time, message.data))
            schemas[channel.topic] = schema.name if schema else ""
    view = View(0, manifest)
    view.add(*steps[0])  # so that the topics are known
    client = Client(view.port, sum(map(len, expected.values())))
    assert client.subscribed.wait(SECONDS)
    while not all(channel.has_sinks() for channel in view._channels.values()):
        client._thread.join(0.01)
        assert client._thread.is_alive()
    for frame, seen in steps:
        view.add(frame, seen)
    client.end()
    view.close()
    assert client.schemas == schemas
    assert client.messages == expected  # /log too, which says all again to a new client


def test_nothing_is_drawn_for_nobody(steps: list[Any]) -> None:
    (frame, seen), unseen = steps[0], None
    view = View(0, bundle().manifest)
    with pytest.raises(AttributeError):  # the first frame makes the topics known
        view.add(frame, unseen)  # type: ignore[arg-type]
    view.add(frame, unseen)  # type: ignore[arg-type]
    view.close()
    view = View(0, bundle().manifest)
    view.add(frame.without({"CAM_FRONT"}, bundle().manifest.rig.sensors.lidars), seen)
    topics = {*view._channels}
    view.add(frame, seen)
    view.close()
    assert {*view._channels} - topics == {f"/cam_front/{name}" for name in ("image", "camera_info", "annotations")}


def test_a_vehicle_without_lidar_is_shown(steps: list[Any], tmp_path: Path) -> None:
    manifest = bundle().manifest
    cameras = manifest.model_copy(update={"rig": manifest.rig.model_copy(update={"lidars": ()})})
    frame, seen = steps[0]
    view = View(0, cameras)
    view.add(frame.without_points(), seen)
    view.close()
    with ExitStack() as files:
        (writer,) = open_viewers(files, tmp_path, cameras, ["foxglove"])
        writer.add(frame.without_points(), seen)
    with (tmp_path / "results.mcap").open("rb") as file:
        topics = {channel.topic for _, channel, _ in make_reader(file).iter_messages()}
    assert "/cam_front/image" in topics
    assert "/lidar_top" not in topics
