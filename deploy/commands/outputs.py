"""The outputs of `perception drive`, by its options."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from perception.errors import InputError

if TYPE_CHECKING:
    from deploy.live.buses import Buses
    from deploy.live.intake import Intake
    from deploy.live.outputs import Output
    from deploy.manifest import Manifest
    from deploy.recordings.topics import Topics


class OutputOptions(NamedTuple):
    """What the options say; None or "": not wanted."""

    out: Path | None = None  # folder
    publish: str = ""  # name of a middleware
    metrics: int | None = None  # port
    view: int | None = None  # port
    record: Path | None = None  # file


def open_outputs(
    options: OutputOptions,
    stack: ExitStack,
    intake: Intake,
    manifest: Manifest,
    topics: Topics,
    buses: Buses,
    say: Callable[[str], None],
) -> list[Output]:
    """Open the outputs, which end with the stack.

    Raises:
        InputError: a folder or file cannot be written, a port is in use, or a package is not installed.
    """
    from deploy.live.messages.messages import Message, Messages
    from deploy.live.metrics import Metrics
    from deploy.live.outputs import FrameLog, Results
    from deploy.live.publish import Published
    from deploy.live.record import Recorder
    from deploy.live.view import View
    from deploy.replay.folder import final_files, remove

    found: list[Output] = []
    bus = buses.open(options.publish, "--publish") if options.publish else None
    sent: Callable[[Message], None] | None = None
    if options.metrics is not None:
        found.append(served := Metrics(options.metrics, intake))
        stack.callback(served.close)
    if options.view is not None:
        found.append(shown := View(options.view, manifest))
        stack.callback(shown.close)
    if options.out is not None:
        _take_folder(options.out, options.record, stack)
        found.append(Results(stack, options.out, manifest))
    if options.record is not None:  # last, so that a mistake in another option leaves no file that exists already
        found.append(recorder := Recorder(options.record, intake.source.info, say))
        stack.callback(recorder.close)
        intake.tap, now = recorder.tap, intake.source.now
        sent = lambda message: recorder.out(*message, now())  # noqa: E731
    if options.out is not None:  # behind all that a mistake may prevent, which leaves what an earlier drive wrote
        remove(options.out, final_files())
        found.append(frames := FrameLog(options.out))
        stack.callback(frames.close)
    if bus is not None:  # first, before pictures are drawn
        found.insert(0, Published(bus, Messages(manifest, topics.ego_frame, topics.global_frame), sent))
    return found


def _take_folder(out: Path, record: Path | None, stack: ExitStack) -> None:
    """Let no other process write to the folder; InputError if what it has is of neither a replay nor a drive."""
    from deploy.live.outputs import FRAMES
    from deploy.replay.folder import SCENES, final_files, occupy, require_own_files
    from deploy.replay.provenance import PROVENANCE
    from perception.io.files import make_folder

    stack.enter_context(occupy(make_folder(out)))
    require_own_files(out, (PROVENANCE, FRAMES), "drive")
    if (out / SCENES).exists():
        raise InputError(f"{out / SCENES}: is of an unfinished replay, which would go on there; choose another --out")
    if record is not None and record.resolve() in {(out / name).resolve() for name in final_files()}:
        raise InputError(f"--record {record}: the next drive into its folder would remove it; choose another name")
