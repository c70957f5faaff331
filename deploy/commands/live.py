"""Commands for a vehicle that drives."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.commands.outputs import MetricsPort, Record, ViewPort, further_outputs
from deploy.commands.trust import AllowOlder, Keys, State, make_trust
from perception.commands.common import Json, app, console_for, from_store, report
from perception.errors import InputError

if TYPE_CHECKING:
    from deploy.live.intake import Intake
    from deploy.live.outputs import Output
    from deploy.live.source import Bus, Source

BUSES = ("zenoh", "dds")


@app.command(epilog="Example: perception drive runs/a/bundle --from drive.mcap --out runs/a/drive")
def drive(
    bundle: Annotated[Path, typer.Argument(callback=from_store, help="An exported bundle.")],
    source: Annotated[str, typer.Option("--from", help="zenoh, dds, or a recording that is played at its own pace.")],
    topics: Annotated[
        Path | None, typer.Option(help="YAML file that maps topics to sensors, as for `perception replay`.")
    ] = None,
    target: Annotated[str, typer.Option(help="Target whose engine runs; `perception build --list` shows all.")] = "cpu",
    policy: Annotated[
        Path | None, typer.Option(help="YAML file: what follows from the health of a sensor, and from lateness.")
    ] = None,
    budget: Annotated[
        str, typer.Option(help="From a complete frame to its output, as 100ms; default: the policy's 200ms.")
    ] = "",
    evidence: Annotated[
        Path | None, typer.Option(help="YAML file of the sources of evidence for the conditions.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files that `perception replay` writes, and frames.jsonl.")
    ] = None,
    publish: Annotated[str, typer.Option(help="zenoh or dds: publish detections, tracks, ... as ROS 2 messages.")] = "",
    metrics: MetricsPort = None,
    view: ViewPort = None,
    record: Record = None,
    rate: Annotated[float, typer.Option(help="Of a recording's clock; 2: twice as fast.", min=0.01)] = 1.0,
    key: Keys = None,
    state: State = None,
    allow_older: AllowOlder = False,
    as_json: Json = False,
) -> None:
    """Perceive what sensors send now: every frame ends in an output or in a stated reason.

    Prints a line when the state changes: OK, DEGRADED, UNTRUSTED or DOWN, with the reasons. SIGTERM ends it. A
    recording gives the results of `perception replay` if nothing is late; frames.jsonl says what became of each frame.
    """
    from deploy.live.messages.messages import Message, Messages
    from deploy.live.policy import load_policy
    from deploy.live.process import drive as run
    from deploy.live.publish import Published
    from deploy.live.record import Recorder
    from deploy.recordings.topics import load_topics
    from deploy.runtime import Runtime

    chosen, seconds = load_policy(policy), parse_budget(budget)
    console = console_for(as_json)
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)  # texts as they are, each on one line
    runtime = Runtime(bundle, target, make_trust(key, state, allow_older), evidence, checks=False)
    mapped = load_topics(topics, runtime.bundle.manifest.rig)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    buses: dict[str, Bus] = {}

    def outputs(stack: ExitStack, intake: Intake) -> Sequence[Output]:
        found = [*further(stack, intake)]
        if publish:
            recorders = [each for each in found if isinstance(each, Recorder)]

            def sent(message: Message) -> None:
                for each in recorders:
                    each.out(*message, opened.now())

            found.append(Published(_bus("--publish", publish, buses), Messages(runtime.bundle.manifest), sent))
        return found

    try:
        opened = _open_source(source, rate, buses)
        further = further_outputs(metrics, view, record, runtime.bundle.manifest, opened.info, say)
        driven = run(runtime, opened, mapped, chosen, outputs, seconds, out, say)
    finally:
        for bus in buses.values():
            bus.close()
    if not as_json:
        console.print(", ".join(f"{count} {what}" for what, count in driven.to_json()["frames"].items()))
    report(driven.to_json(), as_json)


def parse_budget(text: str) -> float | None:
    """Seconds of an option such as 100ms; "" for none. InputError if it is no positive time."""
    if not text:
        return None
    try:
        seconds = 1e-3 * float(text.removesuffix("ms"))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 10:
        raise InputError(f"--budget {text}: give milliseconds, such as 100ms")
    return seconds


def _open_source(name: str, rate: float, buses: dict[str, Bus]) -> Source:
    from deploy.live.source import Playback
    from deploy.recordings import is_recording

    if name in BUSES:
        return _bus("--from", name, buses)
    if not is_recording(Path(name)):
        raise InputError(f"--from {name}: neither {', '.join(BUSES)} nor a recording (.mcap, .db3, rosbag2)")
    return Playback(Path(name), rate)


def _bus(option: str, name: str, buses: dict[str, Bus]) -> Bus:
    """The middleware of a name, opened once."""
    if name not in BUSES:
        raise InputError(f"{option} {name}: is none of {', '.join(BUSES)}")
    if name not in buses:
        buses[name] = open_bus(name)
    return buses[name]


def open_bus(name: str) -> Bus:
    """One of BUSES. InputError if its package is not installed, or it cannot be used."""
    from deploy.live.dds import DdsBus
    from deploy.live.zenoh import ZenohBus

    return ZenohBus() if name == "zenoh" else DdsBus()
