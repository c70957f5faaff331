"""What becomes of perceived frames and of the state: messages, files, metrics. None of them can stop the vehicle."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from deploy.live.intake import Intake
from deploy.live.messages.messages import Diagnostic, Message, Messages
from deploy.live.state import Reason, State, Status, Supervisor
from deploy.live.zenoh import Zenoh
from deploy.manifest import Manifest
from deploy.replay.writers import open_writers
from perception.errors import InputError
from perception.frame import Frame, Prediction
from perception.scene.scene import SceneFrame

PAUSE = 1.0  # s, after which an output that failed is tried again
FRAMES, FRAMES_BEFORE = "frames.jsonl", "frames.before.jsonl"  # what became of each frame, and in the drive before


class Output:
    """Receives what was perceived, and frames as the network saw them; what an output does not override it ignores."""

    name = ""
    whole = False  # whether it needs every frame: then it is used no more after a failure

    def publish(self, frame: Frame, prediction: Prediction) -> None:
        """Receive the network's prediction, before tracks are known."""

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """Receive the scene after a frame."""

    def report(self, status: Status) -> None:
        """Receive the state; called by the watchdog's thread."""

    def log(self, line: dict[str, Any]) -> None:
        """Receive what became of a frame."""


class Outputs:
    """All outputs. One that fails is used again after a pause, unless it must be `whole`; the state says so."""

    def __init__(self, outputs: Sequence[Output], supervisor: Supervisor) -> None:
        self._outputs, self._supervisor = list(outputs), supervisor
        self._paused: dict[Output, float] = {}  # until when (s, time.monotonic)

    def publish(self, frame: Frame, prediction: Prediction) -> None:
        self._each(lambda output: output.publish(frame, prediction))

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        self._each(lambda output: output.add(frame, seen))

    def report(self, status: Status) -> None:
        self._each(lambda output: output.report(status))

    def lose(self, intake: Intake) -> None:
        """Log the frames that were not perceived."""
        while intake.lost:
            token, outcome = intake.lost.popleft()
            self._log({"token": token, "outcome": outcome})

    def log(self, frame: Frame, masked: Collection[str], seconds: float) -> None:
        """Log a frame that was perceived."""
        self._log(
            {
                "token": frame.token,
                "outcome": "perceived",
                "cameras": sorted(frame.cameras),
                **({"scanners": sorted(frame.scans)} if frame.scans else {}),
                "lidar": frame.points is not None,
                "masked": sorted(masked),
                "ms": round(1e3 * seconds, 3),
            }
        )

    def _log(self, line: dict[str, Any]) -> None:
        line["time"] = round(time.time(), 3)
        self._each(lambda output: output.log(line))

    def _each(self, call: Callable[[Output], None]) -> None:
        now = time.monotonic()
        for output in tuple(self._outputs):
            if self._paused.get(output, 0.0) > now:
                continue
            try:
                call(output)
            except Exception as error:  # a full disk, a subscriber that is gone, ...
                then = f"is tried again after {PAUSE:.0f} s"
                if output.whole:
                    self._outputs = [each for each in self._outputs if each is not output]  # two threads may fail
                    then = "is used no more"
                self._paused[output] = now + PAUSE
                why = " ".join(str(error).split())[:160] or type(error).__name__
                self._supervisor.set(Reason("DEGRADED", "output", output.name, f"{then} ({why})"))
            else:
                if self._paused.pop(output, None) is not None:
                    self._supervisor.clear("output", output.name)


class Results(Output):
    """The tasks' files and statistics.jsonl, as `perception replay` writes them; they appear when `files` is closed.

    If a frame cannot be written, none of them does, since files without it would seem to be whole.
    """

    name, whole = "results", True

    def __init__(self, files: ExitStack, folder: Path, manifest: Manifest) -> None:
        self._files = files.enter_context(ExitStack())
        self._writers = open_writers(self._files, folder, manifest)

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        try:
            self._writers.add(frame, seen)
        except BaseException as error:
            self._files.__exit__(type(error), error, error.__traceback__)
            raise


class FrameLog(Output):
    """frames.jsonl, each line of which is there at once: also of a process that is killed, or whose disk gets full.

    The file of an earlier drive gets another name, since a service that was killed is started anew.
    """

    name, whole = "frames", True

    def __init__(self, folder: Path) -> None:
        path = folder / FRAMES
        try:
            if path.exists() and path.stat().st_size:
                path.replace(folder / FRAMES_BEFORE)
            self._file = path.open("wb")
        except OSError as error:
            raise InputError(f"{path}: cannot write the frames ({error.strerror}); choose another folder") from None

    def log(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        with suppress(OSError):  # of a line that could not be written, as the state has said
            self._file.close()


class Console(Output):
    """Lines of text when the state changes."""

    name = "console"

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._said, self._start = write, "", time.monotonic()

    def report(self, status: Status) -> None:
        said = f"{status.state} {sorted({(each.code, each.subject) for each in status.reasons})}"
        if said != self._said:
            self._said = said
            self._write(f"{time.monotonic() - self._start:8.1f} s  {status.state}  {status.text}".rstrip())


_LEVELS: dict[State, int] = {"OK": 0, "DEGRADED": 1, "UNTRUSTED": 2, "DOWN": 2}  # of diagnostic_msgs/DiagnosticStatus
_REPEATED = 1.0  # s, after which the same state is said again


class Published(Output):
    """Publishes detections before tracks are known, then the rest; and the state when it changes, and every second.

    `sent` is also given each message.
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
