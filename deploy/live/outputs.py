"""What becomes of perceived frames and of the state: messages, files, metrics. None of them can stop the vehicle."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deploy.live.intake import Intake
from deploy.live.state import Reason, Status, Supervisor
from deploy.manifest import Manifest
from deploy.replay.writers import open_writers
from perception.frame import Frame, Prediction
from perception.io.files import atomic_file
from perception.scene.scene import SceneFrame

FRAMES = "frames.jsonl"  # what became of each frame


class Output:
    """Receives what was perceived, and frames as the network saw them; what an output does not override it ignores."""

    name = ""

    def publish(self, frame: Frame, prediction: Prediction) -> None:
        """Receive the network's prediction, before tracks are known."""

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """Receive the scene after a frame."""

    def report(self, status: Status) -> None:
        """Receive the state; called by the watchdog's thread."""

    def log(self, line: dict[str, Any]) -> None:
        """Receive what became of a frame."""


class Outputs:
    """All outputs. One that fails is used no more, and the state says so."""

    def __init__(self, outputs: Sequence[Output], supervisor: Supervisor) -> None:
        self._outputs, self._supervisor = list(outputs), supervisor

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
                "lidar": frame.points is not None,
                "masked": sorted(masked),
                "ms": round(1e3 * seconds, 3),
            }
        )

    def _log(self, line: dict[str, Any]) -> None:
        self._each(lambda output: output.log(line))

    def _each(self, call: Callable[[Output], None]) -> None:
        for output in tuple(self._outputs):
            try:
                call(output)
            except Exception as error:  # a full disk, a subscriber that is gone, ...
                self._outputs = [each for each in self._outputs if each is not output]  # two threads may fail at once
                why = " ".join(str(error).split())[:160] or type(error).__name__
                self._supervisor.set(Reason("DEGRADED", "output", output.name, f"is used no more ({why})"))


class Results(Output):
    """The files that `perception replay` writes for a drive, and `frames.jsonl`.

    Raises:
        InputError: the folder cannot be written.
    """

    name = "results"

    def __init__(self, files: ExitStack, folder: Path, manifest: Manifest) -> None:
        self._writers = open_writers(files, folder, manifest, ())
        self._frames = files.enter_context(atomic_file(folder / FRAMES, "the frames"))

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        self._writers.add(frame, seen)

    def log(self, line: dict[str, Any]) -> None:
        self._frames.write(json.dumps(line).encode() + b"\n")


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
