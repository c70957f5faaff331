"""Live pictures for Foxglove: the topics of a replay's results.mcap, by Foxglove's WebSocket protocol."""

from __future__ import annotations

import queue
from contextlib import suppress
from threading import Thread
from typing import Any

from mcap_protobuf.schema import build_file_descriptor_set

from deploy.live.outputs import Output
from deploy.manifest import Manifest
from deploy.replay.foxglove_results import FoxgloveWriter
from perception.errors import InputError, install_hint
from perception.frame import Frame
from perception.scene.scene import SceneFrame


class View(Output):
    """Serves what was perceived to Foxglove at ws://localhost:PORT, to this machine alone; port 0: any that is free.

    A thread draws the newest frame while somebody has subscribed to a topic; frames that come meanwhile are left out,
    so that drawing lengthens no frame. Without a subscriber it draws a frame only if that has a sensor that no earlier
    frame had, so that the topics are known before somebody comes.
    """

    name = "view"

    def __init__(self, port: int, manifest: Manifest) -> None:
        try:
            import foxglove
        except ImportError:
            raise InputError(f"--view: foxglove-sdk is not installed; {install_hint('live')}") from None
        self._sdk, self._context = foxglove, foxglove.Context()
        self._channels: dict[str, Any] = {}  # by topic
        self._sensors = set[str]()  # of the frames that were drawn
        self._manifest = manifest
        self._writer = self._new_writer()
        try:
            self._server = foxglove.start_server(
                name="tessera",
                port=port,
                context=self._context,
                server_listener=self,  # type: ignore[arg-type]
            )
        except RuntimeError as error:
            why = str(error).removeprefix("FoxgloveError: ")
            raise InputError(f"--view {port}: cannot listen there ({why}); choose another port") from None
        self.port = self._server.port
        self._waiting: queue.Queue[tuple[Frame, SceneFrame] | None] = queue.Queue(1)  # None: nothing more is drawn
        self._failure: Exception | None = None  # of the latest drawing
        self._thread = Thread(target=self._draw, name="view", daemon=True)
        self._thread.start()

    def _new_writer(self) -> FoxgloveWriter:
        lidars = self._manifest.rig.sensors.lidars
        return FoxgloveWriter(self._write, self._manifest.heads, next(iter(lidars), ""))

    def on_subscribe(self, _client: object, _channel: object) -> None:
        """Say all of /log again to whom comes now; called by the server."""
        self._writer = self._new_writer()

    def on_unsubscribe(self, _client: object, _channel: object) -> None:
        """Called by the server."""

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        with suppress(queue.Empty):
            self._waiting.get_nowait()
        self._waiting.put((frame, seen))

    def _draw(self) -> None:
        while (newest := self._waiting.get()) is not None:
            try:
                self._draw_frame(*newest)
            except Exception as error:  # raised where the next frame is added
                self._failure = error

    def _draw_frame(self, frame: Frame, seen: SceneFrame) -> None:
        sensors = {*frame.cameras, *frame.scans, *(("lidar",) if frame.points is not None else ())}
        if not sensors <= self._sensors or any(channel.has_sinks() for channel in self._channels.values()):
            self._sensors |= sensors
            self._writer.add(frame, seen)

    def _write(self, topic: str, message: Any, time: int) -> None:
        channel = self._channels.get(topic)
        if channel is None:
            kind = type(message)
            data = build_file_descriptor_set(kind).SerializeToString()
            schema = self._sdk.Schema(name=kind.DESCRIPTOR.full_name, encoding="protobuf", data=data)
            channel = self._sdk.Channel(topic, schema=schema, message_encoding="protobuf", context=self._context)
            self._channels[topic] = channel
        if channel.has_sinks():
            channel.log(message.SerializeToString(), log_time=time)

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join()
        self._server.stop()
