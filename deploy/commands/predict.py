"""The command that shows what a network perceives in files, recordings and data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.commands.options import TopicsFile
from perception.commands.common import (
    Json,
    Out,
    RigOption,
    Scenes,
    Version,
    app,
    console_for,
    from_store,
    names,
    report,
)


@app.command(epilog="Example: perception predict demo velodyne --out predicted")
def predict(
    network: Annotated[
        str, typer.Argument(help="A run, one of its checkpoints, an exported bundle, or one that comes along: demo.")
    ],
    what: Annotated[
        Path,
        typer.Argument(
            callback=from_store,
            help="A folder of .bin, .npy, .pcd or pictures, one such file, a recording, or drives as for --data.",
        ),
    ],
    out: Out,
    version: Version = None,
    scenes: Scenes = "",
    topics: TopicsFile = None,
    rig: RigOption = None,
    target: Annotated[str, typer.Option(help="Engine of a bundle; `perception build` compiles others.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Show what a network perceives: writes predictions.json, and report.html to step through the frames.

    Frames of a drive are perceived in order, and a network with a memory remembers; nothing is tracked or judged.
    """
    from deploy.network import load, open_drives
    from deploy.predict import predict as run

    opened = load(network, target, rig)
    console = console_for(as_json)
    drives = open_drives(what, opened, names(scenes), version, topics)
    summary = run(opened, drives, out, console)
    report(summary, as_json)
