"""Commands for recorded data: annotate the occupancy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perception.commands.common import Json, RigOption, Scenes, Version, app, console_for, names, report, rig_of
from perception.errors import InputError


@app.command(epilog="Example: perception annotate-occupancy nuscenes --sweeps 9 --out nuscenes-occupancy")
def annotate_occupancy(
    data: Annotated[Path, typer.Argument(help="Dataroot of nuScenes, simulated or PandaSet, with boxes.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    version: Version = None,
    scenes: Scenes = "",
    sweeps: Annotated[int, typer.Option(help="LiDAR sweeps before each keyframe that are used, too.", min=0)] = 0,
    rig: RigOption = None,
    taxonomy: Annotated[
        str | None, typer.Option(help="Classes: nuscenes, pandaset, ... or a YAML file. Default: the data set's own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Annotate what each voxel around the vehicle holds, from LiDAR, classes of points, and boxes.

    Writes gts/SCENE/TOKEN/labels.npz as Occ3D does. OUT becomes a dataroot, with links to the files of DATA: train on
    it with --data OUT. It may be DATA itself.
    """
    from rich.progress import Progress

    from perception.datasets.nuscenes.dataset import NuScenesTables
    from perception.datasets.occupancy.writing import annotate_drives
    from perception.datasets.pandaset import PandaSet
    from perception.datasets.sources import open_source
    from perception.taxonomy import load_taxonomy

    source = open_source(data, version, rig_of(rig), None if taxonomy is None else load_taxonomy(taxonomy))
    if not isinstance(source, (NuScenesTables, PandaSet)):
        raise InputError(f"{data}: voxels lie beside the tables of one dataroot; give that")
    selectors = names(scenes)
    with Progress(console=console_for(as_json)) as progress:
        bar = progress.add_task("keyframes", total=2 * len(source.samples(selectors=selectors)))
        counts = annotate_drives(source, selectors, sweeps, out, lambda: progress.advance(bar))
    shown = f"{out}: {counts['keyframes']} keyframes annotated, {counts['without_lidar']} without LiDAR left out"
    report({"out": str(out), **counts}, as_json, shown)
