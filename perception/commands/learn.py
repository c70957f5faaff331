"""Commands for runs: simulate training data, train, import networks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from perception.commands.common import (
    Json,
    Out,
    RayAddress,
    RigOption,
    Root,
    Scenes,
    Version,
    app,
    console_for,
    explain_stop,
    keep_memory,
    names,
    print_trained,
    report,
    rig_of,
    to_store,
    training_split,
    yaml_file,
)
from perception.errors import InputError


@app.command(
    epilog="Example: perception simulate drives --scenes 8 --samples 20 --conditions all", rich_help_panel="Data"
)
def simulate(
    out: Annotated[Path, typer.Argument(callback=to_store, help="New dataroot to write.")],
    scenes: Annotated[int, typer.Option(help="Number of drives.", min=1)] = 8,
    samples: Annotated[int, typer.Option(help="Keyframes (at 2 Hz) in each drive.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    conditions: Annotated[
        str,
        typer.Option(
            help="all, or names of a value of each kind, such as clear-day-CITY,rain-night-CITY; a drive that changes "
            "on its way is clear-day-CITY/rain-day-CITY."
        ),
    ] = "all",
    sweeps: Annotated[int, typer.Option(help="LiDAR sweeps (at 20 Hz) before each frame.", min=0, max=10)] = 0,
    rate: Annotated[
        int,
        typer.Option(
            help="Frames per second: 2, the keyframes alone; 4, 10 or 20: all sensors record between them, too, "
            "without annotations."
        ),
    ] = 2,
    rig: RigOption = None,
    taxonomy: Annotated[
        Path,
        typer.Option(help="Conditions and layout: nuscenes, truckscenes, ... or a file.", **yaml_file("taxonomy")),
    ] = Path("nuscenes"),
    worlds: Annotated[
        Path | None, typer.Option(help="Folder with a YAML file for each own condition: munich.yaml, sleet.yaml.")
    ] = None,
    obstacles: Annotated[
        bool, typer.Option("--obstacles", help="Pallets, tyres, boxes, branches, bins and dogs lie on the road.")
    ] = False,
    occupancy: Annotated[
        bool,
        typer.Option("--occupancy", help="Annotate voxels too, as Occ3D-nuScenes does: gts/SCENE/SAMPLE/labels.npz."),
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(help="Processes that record a drive each. Default: one for each processor.", min=1)
    ] = None,
    ray: RayAddress = None,
) -> None:
    """Write simulated drives in the nuScenes schema, which the official devkit loads."""
    keep_memory()
    from rich.progress import Progress

    from perception.simulate.conditions import Extras, parse
    from perception.simulate.simulate import Run
    from perception.simulate.simulate import simulate as run
    from perception.simulate.worlds import Worlds
    from perception.taxonomy import load_taxonomy

    extras = Extras(obstacles, occupancy, rate)
    chosen, courses = rig_of(rig), parse(names(conditions), load_taxonomy(taxonomy), Worlds(worlds), extras)
    with Progress() as progress:
        bar = progress.add_task("keyframes", total=scenes * samples)
        how = Run(jobs, partial(progress.advance, bar), ray)
        run(out, scenes, samples, seed, courses, sweeps, chosen, how)


@app.command(
    epilog="Example: perception train tiny train.batch=4 --data drives --out runs/a",
    rich_help_panel="Train",
)
def train(
    config: Annotated[Path, typer.Argument(help="Such as tiny, nuscenes/fusion or my.yaml.", **yaml_file("train"))],
    data: Root,
    out: Out,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Other values for its keys: train.batch=8 data.augment=null."),
    ] = None,
    version: Version = None,
    split: Annotated[str | None, typer.Option(help="Default: the version's training split; all: every scene.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in --out.")] = False,
    steps: Annotated[int | None, typer.Option(help="Instead of the configuration's number of steps.", min=1)] = None,
) -> None:
    """Train a model; checkpoints, log.csv and TensorBoard logs go to --out. Ctrl-C saves; --resume continues.

    Several GPUs: accelerate launch -m deploy.cli train ...
    """
    keep_memory()
    from perception.config import load_config
    from perception.datasets.sources import open_source
    from perception.training.loop import train as run

    settings = load_config(config, changes or ())
    if steps is not None:
        settings = settings.model_copy(
            update={"train": settings.train.model_copy(update={"steps": steps, "epochs": None})}
        )
    tables = open_source(data, version, settings.rig, settings.taxonomy, settings.data.format)
    with explain_stop():
        last = run(settings, tables, split or training_split(tables.version), out, resume)
    print_trained(last)


@app.command(
    "import",
    epilog="Example: perception import centerpoint_pillar02.py centerpoint.pth --out runs/centerpoint",
    rich_help_panel="Train",
)
def import_network(
    config: Annotated[
        Path,
        typer.Argument(
            help="Flat configuration of mmdet3d (`Config.dump`; it is read, not run), or YAML of the network, such as "
            "kitti/pointpillars.",
            **yaml_file("train"),
        ),
    ],
    weights: Annotated[
        Path, typer.Argument(help="mmdet3d's .pth file, or a .safetensors file with folded normalisations.")
    ],
    out: Out,
    as_json: Json = False,
) -> None:
    """Import a trained network as a run.

    Of mmdet3d: CenterPoint, PointPillars and PillarNeSt, for nuScenes; mmdet3d need not be installed. By YAML:
    PointPillars of SECOND's family, such as one for KITTI.
    """
    from perception.io.stores import with_addresses
    from perception.mmdet3d.importing import import_checkpoint, import_pointpillars

    run = import_pointpillars if config.suffix in (".yaml", ".yml") else import_checkpoint
    imported, network = run(config, weights, out)
    parameters, folder = sum(parameter.numel() for parameter in network.parameters()), with_addresses(str(out))
    shown = f"{folder}: {imported.name}, {parameters:,} parameters"
    report({"run": folder, "name": imported.name, "parameters": parameters}, as_json, shown)


@app.command(
    epilog="Example: perception annotate-occupancy nuscenes --sweeps 9 --out nuscenes-occupancy", rich_help_panel="Data"
)
def annotate_occupancy(
    data: Annotated[Path, typer.Argument(help="Dataroot of nuScenes, simulated or PandaSet, with boxes.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    version: Version = None,
    scenes: Scenes = "",
    sweeps: Annotated[int, typer.Option(help="LiDAR sweeps before each keyframe that are used, too.", min=0)] = 0,
    rig: RigOption = None,
    taxonomy: Annotated[
        Path | None,
        typer.Option(help="Classes: nuscenes, pandaset, ... Default: the data set's own.", **yaml_file("taxonomy")),
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
