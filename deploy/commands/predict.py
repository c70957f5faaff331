"""Commands to try first: predict on files, recordings and data sets; and demo."""

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
    keep_memory,
    names,
    report,
)


@app.command(epilog="Example: perception predict demo velodyne --out predicted", rich_help_panel="Try")
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


@app.command(epilog="Example: perception demo --out runs/demo", rich_help_panel="Try")
def demo(
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write; runs/demo, or runs/quick with --quick.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Train nothing: a simulated drive through a network that comes along.")
    ] = False,
) -> None:
    """Simulate, train, evaluate, export, compile and replay, in minutes, ending in a report to open."""
    keep_memory()
    if quick:
        from deploy.commands.tour import tour

        tour(out or Path("runs", "quick"))
    else:
        from deploy.commands.demo import demo as run

        run(out or Path("runs", "demo"))
