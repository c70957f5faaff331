"""Falling snow in a LiDAR's points: what is simulated, and what a head of points calls it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from perception.checkpoint import newest
from perception.config import Config, find_config, load_config, parse_config
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.predict import TorchPredictor
from perception.rig import Beams, load_rig
from perception.simulate import lidar
from perception.simulate.conditions import parse
from perception.simulate.drive import KEYFRAME_PERIOD
from perception.simulate.scenario import build_world
from perception.simulate.simulate import simulate
from perception.simulate.snapshot import NOISE
from perception.simulate.worlds import Worlds
from perception.tasks.points.task import count_rings, ious
from perception.taxonomy import PointClass, Taxonomy, load_taxonomy
from perception.training.loop import train

VERSION, SEED = "v1.0-sim", 11
RINGS_64 = Beams(elevation=(-24.9, 2.0), rings=64, columns=2083)  # as an HDL-64E


def snow(
    rate: Annotated[float, typer.Option(help="mm/h of melted water.")] = 4.0,
    sweeps: Annotated[int, typer.Option(help="Of one drive, 0.5 s apart.")] = 8,
) -> dict[str, Any]:
    """The points of falling snow in simulated sweeps of nuScenes' LiDAR and of one with 64 rings at its place.

    `snow` is the share of all points; the other shares are of the points of snow.
    """
    (course,) = parse(["snow-day-boston"], _winter(), Worlds())
    weather = replace(course.phases[0].surroundings.draw(np.random.default_rng(SEED)), snow=rate)
    world = build_world(course.place, weather, sweeps * KEYFRAME_PERIOD, np.random.default_rng(SEED))
    rig = load_rig("nuscenes")
    found = {}
    for name, beams in {"32 rings": rig.lidars[0].beams, "64 rings": RINGS_64}.items():
        sensor = rig.lidars[0].model_copy(update={"beams": beams})
        ranges, intensities, count = [], [], 0
        for k in range(sweeps):
            rng, time = np.random.default_rng([SEED, k]), k * KEYFRAME_PERIOD
            swept = lidar.sweep(world.snapshot_at, world.global_from_ego_at, time, sensor, rig.body, rng)
            flakes = swept.points[swept.categories == NOISE]
            ranges.append(np.linalg.norm(flakes[:, :3], axis=1))
            intensities.append(flakes[:, 3])
            count += len(swept.points)
        of_snow = np.concatenate(ranges)
        shares = {"within 2.5 m": of_snow < 2.5, "within 5 m": of_snow < 5, "beyond 20 m": of_snow > 20}
        shares["intensity 0"] = np.concatenate(intensities) == 0
        found[name] = {
            "snow": round(len(of_snow) / count, 3),
            "median range (m)": round(float(np.median(of_snow)), 1),
            **{share: round(float(each.mean()), 3) for share, each in shares.items()},
        }
    return found


def flakes(
    out: Annotated[Path, typer.Option(help="Folder of the drives and runs.")] = Path("runs/flakes"),
    drives: Annotated[int, typer.Option(help="In snow, a quarter is held out.")] = 16,
    steps: Annotated[int, typer.Option(help="Of each training.")] = 200,
) -> dict[str, Any]:
    """What LiDAR networks with the task `points` alone call falling snow, without and with the class `noise`.

    `called` are the shares of the points of snow on held-out drives, `mIoU` is that of nuScenes' 16 classes, without
    these points, as in its devkit. Parts that the folder has are not made again.
    """
    official, winter = _winter(), _winter(noise=True)
    if not (out / "drives").exists():
        names = ("snow-day-boston", "snow-day-singapore")
        rig = load_rig("nuscenes").model_copy(update={"cameras": ()})
        simulate(out / "drives", drives, 2, SEED, parse(names, winter, Worlds()), rig=rig)
    found: dict[str, Any] = {}
    for name, taxonomy in {"without noise": official, "with noise": winter}.items():
        run = out / name.replace(" ", "_")
        if newest(run) is None:
            tables = NuScenesTables(out / "drives", VERSION, taxonomy=taxonomy)
            train(_points_alone(taxonomy, steps), tables, "sim_train", run)
        found[name] = _flakes_called(TorchPredictor.load(run), NuScenesTables(out / "drives", VERSION, taxonomy=winter))
    return found


def _winter(noise: bool = False) -> Taxonomy:
    """nuScenes' taxonomy with snow, and with a class for the points of what falls."""
    taxonomy = load_taxonomy("nuscenes")
    conditions = {**taxonomy.conditions, "weather": (*taxonomy.conditions["weather"], "snow")}
    falling = (PointClass(name="noise", solid=False),) if noise else ()
    return taxonomy.model_copy(update={"conditions": conditions, "point_classes": (*taxonomy.point_classes, *falling)})


def _points_alone(taxonomy: Taxonomy, steps: int) -> Config:
    """`tiny` without cameras and with the task `points` alone."""
    content = load_config(find_config("tiny")).model_dump(mode="json")
    content |= {"taxonomy": taxonomy.model_dump(mode="json"), "modules": [], "tasks": {"points": {}}}
    content["model"]["camera"] = None
    content["train"] |= {"steps": steps, "drop_lidar": 0.0, "drop_cameras": 0.0}
    return parse_config(content, "flakes")


def _flakes_called(predictor: TorchPredictor, tables: NuScenesTables) -> dict[str, Any]:
    """Of the held-out drives, whose taxonomy ends with `noise`."""
    names = tables.taxonomy.point_names
    noise, called = len(names) - 1, np.zeros(len(names))
    counts, official = np.zeros((3, len(names))), np.zeros((3, len(names)))
    for token in tables.samples("sim_val"):
        frame = tables.frame(token, Reads(cameras=False, sweeps=predictor.spec.sweeps))
        points, truth, result = frame.keyframe_points, frame.keyframe_classes, predictor(frame).results["points"]
        assert truth is not None
        called += np.bincount(result[: len(points)][truth == noise], minlength=len(names))
        counts += count_rings(result[: len(points)], truth, points, len(names)).sum(axis=2)
        solid = np.where(truth == noise, -1, truth)
        official += count_rings(result[: len(points)], solid, points, len(names)).sum(axis=2)
    shares = {name: round(float(called[i] / called.sum()), 3) for i, name in enumerate(names) if called[i]}
    return {
        "called": dict(sorted(shares.items(), key=lambda pair: -pair[1])),
        "noise IoU": round(float(ious(counts)[noise]), 3),
        "mIoU": round(float(np.nanmean(ious(official)[:noise])), 3),
    }
