"""Commands for a vehicle that drives, and for the check before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from deploy.commands.options import AllowOlder, BundleArgument, Keys, State, Target, TopicsFile, make_trust
from deploy.networks import find_network
from perception.commands.common import Json, Scenes, Version, app, console_for, from_store, names, report, yaml_file
from perception.errors import InputError

if TYPE_CHECKING:
    from deploy.live.intake import Intake
    from deploy.live.outputs import Output
    from deploy.live.source import Source
    from deploy.live.zenoh import Zenoh
    from deploy.manifest import Manifest
    from deploy.recordings.topics import Topics

DEAD_ENGINE = 4  # exit code of a drive whose engine has failed for too long; 1 and 3 are verdicts, 2 is a mistake


@app.command(
    epilog="Example: perception drive runs/a/bundle --from drive.mcap --out runs/a/drive", rich_help_panel="Drive"
)
def drive(
    bundle: BundleArgument,
    source: Annotated[str, typer.Option("--from", help="zenoh, or a recording that is played at its own pace.")],
    topics: TopicsFile = None,
    target: Target = "cpu",
    policy: Annotated[
        Path | None,
        typer.Option(help="What follows from the health of a sensor, and from lateness.", **yaml_file("policy")),
    ] = None,
    budget: Annotated[
        str, typer.Option(help="From a frame's last message to its output, as 100ms; default: the policy's 200ms.")
    ] = "",
    evidence: Annotated[
        Path | None, typer.Option(help="Sources of evidence for the conditions.", **yaml_file("evidence"))
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the tasks' files of a replay, statistics.jsonl and frames.jsonl.")
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Publish detections, tracks, ... as ROS 2 messages over zenoh.")
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Serve metrics to Prometheus; HOST: this machine."),
    ] = None,
    view: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", help="Serve live pictures to Foxglove on this machine; 8765 is usual.", min=1, max=65535
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(metavar="OUT.mcap", help="Record what comes in and goes out, for `perception replay`."),
    ] = None,
    threads: Annotated[int, typer.Option(help="Of the network on a CPU; 0: one for each core.", min=0)] = 0,
    rate: Annotated[float, typer.Option(help="Of a recording's clock; 2: twice as fast.", min=0.01, max=1000)] = 1.0,
    key: Keys = None,
    state: State = None,
    allow_older: AllowOlder = False,
    as_json: Json = False,
) -> None:
    """Perceive what sensors send now: every frame ends in an output or in a stated reason.

    Prints a line when the state changes: OK, DEGRADED, UNTRUSTED or DOWN, with the reasons. SIGTERM ends it. A
    recording gives the results of `perception replay` if nothing is late; frames.jsonl says what became of each frame.
    Exit code 4: the engine has failed for too long (`failing` of the policy).
    """
    from deploy.live.intake import Intake
    from deploy.live.policy import load_policy
    from deploy.live.process import drive as run
    from deploy.live.zenoh import Zenoh
    from deploy.recordings.topics import load_topics
    from deploy.runtime import Runtime

    chosen, seconds, console = load_policy(policy), parse_budget(budget), console_for(as_json)
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)  # texts as they are, each on one line
    options = OutputOptions(out, metrics, view, record)
    trust = make_trust(key, state, allow_older)
    runtime = Runtime(bundle, target, trust, evidence, checks=False, threads=threads, adjust=chosen.adjust)
    chosen.require_known(runtime.bundle.manifest.rig.sensors.names)
    mapped = load_topics(topics, runtime.bundle.manifest.rig)
    with ExitStack() as stack:
        zenoh = stack.enter_context(closing(Zenoh(say))) if publish or source == "zenoh" else None
        intake = Intake(_open_source(source, rate, zenoh), mapped, chosen, runtime)
        outputs = open_outputs(options, stack, intake, runtime.manifest, mapped, zenoh if publish else None, say)
        driven = run(runtime, intake, chosen, outputs, seconds, say)
    if not as_json:
        console.print(", ".join(f"{count} {what}" for what, count in driven.to_json()["frames"].items()))
    report(driven.to_json(), as_json)
    if driven.dead:
        raise typer.Exit(DEAD_ENGINE)


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


def _open_source(name: str, rate: float, zenoh: Zenoh | None) -> Source:
    from deploy.live.source import Playback
    from deploy.recordings.drives import is_recording

    if zenoh is not None and name == "zenoh":
        if rate != 1.0:
            raise InputError("--rate: what comes over zenoh has its own pace; give it with a recording")
        return zenoh
    if not is_recording(Path(name)):
        raise InputError(f"--from {name}: neither zenoh nor a recording (.mcap, .db3, rosbag2)")
    return Playback(Path(name), rate)


class OutputOptions(NamedTuple):
    """Options of the outputs; None: no such output."""

    out: Path | None = None  # folder
    metrics: str | None = None  # [HOST:]PORT
    view: int | None = None  # port
    record: Path | None = None  # file


def open_outputs(
    options: OutputOptions,
    stack: ExitStack,
    intake: Intake,
    manifest: Manifest,
    topics: Topics,
    zenoh: Zenoh | None,
    say: Callable[[str], None],
) -> list[Output]:
    """Open the outputs, which end with the stack."""
    from deploy.live.messages.messages import Message, Messages
    from deploy.live.metrics import Metrics
    from deploy.live.outputs import FrameLog, Published, Results
    from deploy.live.record import Recorder
    from deploy.live.view import View
    from deploy.replay.folder import final_files, remove

    found: list[Output] = []
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
    if zenoh is not None:  # first, before pictures are drawn
        found.insert(0, Published(zenoh, Messages(manifest, topics.ego_frame, topics.global_frame), sent))
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


LISTENING = 10.0  # s for which zenoh is listened to


@app.command(
    epilog="Example: perception check drive.mcap --bundle runs/a/bundle --topics topics.yaml",
    rich_help_panel="Validate",
)
def check(
    drive: Annotated[
        Path,
        typer.Argument(
            callback=from_store,
            help="Drives as for --data of `evaluate`; .mcap file; rosbag2; zenoh: what sensors send.",
        ),
    ],
    bundle: Annotated[
        Path, typer.Option(callback=find_network, help="A bundle exported with --calibrate DRIVES, or demo.")
    ],
    version: Version = None,
    scenes: Scenes = "",
    topics: TopicsFile = None,
    as_json: Json = False,
) -> None:
    """Check before driving whether sensors deliver what the network was trained on: a line for each difference.

    What the sensors deliver is compared with what they delivered on the drives of the training. Exit code 0: no
    finding; 1: findings.
    """
    from deploy.bundle import Bundle
    from deploy.check import compare_drives, open_to_measure
    from deploy.live.record import listen
    from deploy.live.zenoh import Zenoh
    from deploy.recordings.topics import load_topics

    live = str(drive) == "zenoh"
    if live and (version or scenes):
        raise InputError(f"{drive}: what sensors send now is one drive; --version and --scenes choose in a dataroot")
    opened = Bundle.load(bundle)
    manifest, expected = opened.manifest, opened.statistics
    if expected is None:
        raise InputError(f"{bundle}: has no statistics of the training; export it with --calibrate DRIVES")
    with TemporaryDirectory() as folder:
        recording = Path(folder) / "live.mcap" if live else drive
        if live:
            mapped, say = load_topics(topics, manifest.rig), console_for(as_json).print
            listen(Zenoh(say), mapped, recording, LISTENING, say)
        drives = open_to_measure(recording, version, names(scenes), opened.spec, topics, manifest.taxonomy)
        found = compare_drives(drives, opened.spec, expected)
    lines = found["findings"]
    report(
        found, as_json, "\n".join([*lines, f"{drive}: findings in {found['frames']} frames: {len(lines) or 'none'}"])
    )
    if lines:
        raise typer.Exit(1)
