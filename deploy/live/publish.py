"""Publish detections and the state of the process as ROS 2 messages over zenoh."""

from __future__ import annotations

import time
from collections.abc import Callable

from deploy.live.messages.messages import Diagnostic, Message, Messages
from deploy.live.outputs import Output
from deploy.live.state import State, Status
from deploy.live.zenoh import Zenoh
from perception.frame import Frame, Prediction
from perception.scene.scene import SceneFrame

_LEVELS: dict[State, int] = {"OK": 0, "DEGRADED": 1, "UNTRUSTED": 2, "DOWN": 2}  # of diagnostic_msgs/DiagnosticStatus
_REPEATED = 1.0  # s, after which the same state is said again


class Published(Output):
    """Publishes detections before tracks are known, then the rest; and the state when it changes, and every second.

    Args:
        sent: is also given each message.
    """

    name = "publish"

    def __init__(self, zenoh: Zenoh, messages: Messages, sent: Callable[[Message], None] | None = None) -> None:
        self._zenoh, self._messages, self._sent = zenoh, messages, sent
        self._said, self._time = "", 0.0

    def publish(self, frame: Frame, prediction: Prediction) -> None:
        for message in self._messages.detections(frame, prediction):
            self._send(message)

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        for message in self._messages.scene(frame, seen):
            self._send(message)

    def report(self, status: Status) -> None:
        said, now = f"{status.state} {status.text}", time.monotonic()
        if said == self._said and now - self._time < _REPEATED:
            return
        self._said, self._time = said, now
        reasons = {f"{each.code} {each.subject}".rstrip(): each.text for each in status.reasons}
        state = Diagnostic("perception", _LEVELS[status.state], said.rstrip(), {"state": status.state, **reasons})
        self._send(self._messages.diagnostics(time.time_ns() // 1000, [state]))

    def _send(self, message: Message) -> None:
        self._zenoh.publish(*message)
        if self._sent is not None:
            self._sent(message)
