"""Commands on recorded drives without a network: log, and the loads of the health monitor."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from perception.commands.common import Json, RigOption, Root, Scenes, Version, app, console_for, names, report, rig_of


class Storage(str, Enum):
    file = "file"
    sqlite3 = "sqlite3"
    mcap = "mcap"


@app.command(epilog="Example: perception log drives --scene scene-0001 --out drive.mcap")
def log(
    data: Annotated[Path, typer.Argument(help="Dataroot of nuScenes, or simulated.")],
    scene: Annotated[str, typer.Option(help="Its name, or some of its keyframes: scene-0103:0-4.")],
    out: Annotated[Path, typer.Option("--out", help="File (drive.mcap) or folder to write.")],
    storage: Annotated[
        Storage, typer.Option(help="file: one MCAP file; sqlite3, mcap: the folder of a rosbag2.")
    ] = Storage.file,
    version: Version = None,
    sweeps: Annotated[int, typer.Option(help="LiDAR sweeps before each keyframe.", min=0)] = 10,
    rig: RigOption = None,
    as_json: Json = False,
) -> None:
    """Write a scene as a ROS 2 recording, such as a vehicle records; `perception replay` reads both."""
    from deploy.log import write_log

    count = write_log(data, scene, out, storage.value, version, sweeps, rig_of(rig))
    report({"out": str(out), "messages": count}, as_json, f"{out}: {count} messages")


@app.command(epilog="Example: perception health --data drives --faults")
def health(
    data: Root,
    version: Version = None,
    scenes: Scenes = "",
    rig: RigOption = None,
    faults: Annotated[bool, typer.Option("--faults", help="Also inject sensor faults into these drives.")] = False,
    as_json: Json = False,
) -> None:
    """Measure how close healthy drives come to the limits of the health monitor, and how far faults exceed them.

    A load is a sign of a fault divided by its limit: above 1 the monitor calls it a fault.
    """
    from deploy.health_loads import measure_loads, tables
    from perception.datasets.sources import open_source

    console = console_for(as_json)
    found = measure_loads(open_source(data, version, rig_of(rig)), names(scenes), faults, console)
    report(found, as_json)
    if not as_json:
        console.print(*tables(found), sep="\n")
