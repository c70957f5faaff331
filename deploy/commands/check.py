"""The command of the pre-flight check."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from perception.commands.common import Json, Scenes, Version, app, console_for, from_store, names, report
from perception.errors import InputError

LISTENING = 10.0  # s for which zenoh is listened to


@app.command(epilog="Example: perception check drive.mcap --bundle runs/a/bundle --topics topics.yaml")
def check(
    drive: Annotated[
        Path,
        typer.Argument(
            callback=from_store,
            help="Drives as for --data of `evaluate`; .mcap file; rosbag2; zenoh: what sensors send.",
        ),
    ],
    bundle: Annotated[
        Path, typer.Option(callback=from_store, help="A bundle that was exported with --calibrate DRIVES.")
    ],
    version: Version = None,
    scenes: Scenes = "",
    topics: Annotated[
        Path | None, typer.Option(help="YAML file that maps the topics of a recording to sensors.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check before driving whether the network understands these sensors: one line for each difference, and its cause.

    What the sensors deliver is compared with what they delivered on the drives of the training. Exit code 0: no
    finding; 1: findings.
    """
    from deploy.bundle import Bundle
    from deploy.check import compare_drives
    from deploy.live.record import listen
    from deploy.live.zenoh import Zenoh
    from deploy.recordings.topics import load_topics
    from deploy.statistics import open_to_measure

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
            listen(Zenoh(), mapped, recording, LISTENING, say)
        drives = open_to_measure(recording, version, names(scenes), opened.spec, topics, manifest.taxonomy)
        found = compare_drives(drives, opened.spec, expected)
    lines = found["findings"]
    report(
        found, as_json, "\n".join([*lines, f"{drive}: findings in {found['frames']} frames: {len(lines) or 'none'}"])
    )
    if lines:
        raise typer.Exit(1)
