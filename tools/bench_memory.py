"""What a memory gains on simulated drives of 10 Hz, by the product's commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from benchmark import QUIET, Commands

from perception.config import find_config
from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.evaluation.evaluate import evaluate
from perception.evaluation.predictions import BatchPredictor, Predicted
from perception.frame import Boxes, Frame
from perception.geometry import inverse, product
from perception.predict import TorchPredictor
from perception.rig import Lens, Rig, RigCamera, load_rig

VERSION, SPLIT, CONDITIONS = "v1.0-sim", "sim_val", "clear-day-boston"
KEYFRAMES, PERIOD = 10, 0.1  # of each drive; s between frames
WIDTH = 176  # pixels of the pictures, as of the network's: rendering is most of the simulation's time
SPACINGS = {"0.1 s": 1, "0.2 s": 2, "0.5 s": 5}  # frames
OUTAGES = {"0.5 s": 5, "1 s": 10}  # frames without LiDAR up to a scored keyframe, itself among them
SCORED_IN_OUTAGES = (3, 6, 9)  # keyframes of each drive
SCORE, NEAR, MOVING = 0.2, 2.0, 1.0  # of a car that counts as found, m from its place; m/s of one that moves
MEMORY = {"name": "memory", "kind": "memory"}
MEMORY_STEPS = 400  # on a frozen network
RAIN, TO_RAIN = "rain-day-boston", "clear-day-boston/rain-day-boston"
AFTER_SWITCH = 2  # keyframes of each drive that are scored after its route changes
Change = Callable[[Frame], Frame]
BRIDGE = ("--add", "memory:bridge", "--option", "outages=1.0", "--conditions", "no-lidar")
# Networks by sensors, and what is added to which.
NETWORKS = {
    "lidar": ("base", "memory", "joint", "bridge", "rain"),
    "both": ("base", "memory", "joint", "bridge"),
    "camera": ("base", "memory", "joint"),
}
ADDED = {
    "memory": ("base", "--memory"),
    "bridge": ("joint", *BRIDGE),
    "rain": ("joint", "--add", "low_rank:rain", "--slots", "lidar.*", "--conditions", "rain"),
}


def memory(
    out: Annotated[Path, typer.Option(help="Folder of the drives and runs.")] = Path("runs/memory"),
    sensors: Annotated[str, typer.Option(help="lidar (one sweep), camera or both.")] = "lidar",
    seeds: Annotated[int, typer.Option(help="Trainings of each network; the drives are the same.")] = 3,
    drives: Annotated[int, typer.Option(help="A quarter is held out.")] = 64,
    steps: Annotated[int, typer.Option(help="Of base and joint.")] = 2400,
    jobs: Annotated[int, typer.Option(help="Seeds at a time, each on one core.")] = 2,
    stride: Annotated[int, typer.Option(help="Side of a cell of the state, in cells of the fused map.")] = 1,
) -> dict[str, Any]:
    """NDS, mAP and velocity errors (m/s) of `configs/demo.yaml` without its map, without and with a memory.

    `base` has no memory; `memory` is the same network with one that was added; `joint` has one from the start, and
    trains for as many steps as the base; `bridge` is `joint` with a second memory, for frames without LiDAR. They
    are scored on held-out keyframes, 0.5 s apart. `spacings`: the network with the added memory sees frames at
    these spacings; scored are the keyframes 1 s apart. `outages`: the LiDAR is missing in the frames of this time
    up to a scored keyframe, frames are 0.1 s apart; `kept` is the share of the mAP lost by the base which a network
    with a memory keeps, `moved` what the base found in the last frame with LiDAR, moved with the vehicle. `cars`:
    those that move and those at rest, and the velocity errors of the cars that all networks find, because an error
    over found objects falls as well where fast ones are missed. `switch` (LiDAR alone): a module for rain before
    the memory is added to `joint`; scored are the first two keyframes of rain of drives where it begins to rain,
    with the state of the route before, which the vehicle carries on, and where that is forgotten. Figures are means
    over the seeds, of which `by_seed` has each. Parts that the folder has are not made again.
    """
    folder = out / sensors
    data = out / ("drives" if sensors == "lidar" else "drives_with_pictures")
    rig = data.with_suffix(".yaml")
    folder.mkdir(parents=True, exist_ok=True)
    rig.write_text(yaml.safe_dump(_rig(sensors).model_dump(mode="json")))
    (folder / "base.yaml").write_text(yaml.safe_dump(_config(sensors, rig)))
    remembering = {"modules": [MEMORY | {"stride": stride}]}
    (folder / "joint.yaml").write_text(yaml.safe_dump(_config(sensors, rig) | remembering))
    simulated = {data: CONDITIONS} | ({out / "rain": RAIN, out / "to_rain": TO_RAIN} if sensors == "lidar" else {})
    commands = Commands(out)
    for at, conditions in simulated.items():
        options = ("--samples", KEYFRAMES, "--rate", round(1 / PERIOD), "--conditions", conditions, "--rig", rig)
        commands.call(at.name, "simulate", at, "--scenes", drives, *options)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        by_seed = list(pool.map(partial(_train_and_measure, folder, data, steps, stride), range(seeds)))
    return {**_mean(by_seed), "seeds": seeds, "steps": steps, "stride": stride, "by_seed": by_seed}


def _train_and_measure(folder: Path, data: Path, steps: int, stride: int, seed: int) -> dict[str, Any]:
    """The figures of one seed."""
    torch.set_num_threads(1)
    commands, runs = Commands(folder), dict[str, Path]()
    for name in NETWORKS[folder.name]:
        runs[name] = folder / f"{name}-{seed}"
        target = ("--data", folder.parent / "rain" if name == "rain" else data, "--out", runs[name], "--steps")
        if name in ADDED:
            start, *options = ADDED[name]
            if stride > 1 and name != "rain":
                options += ["--option", f"stride={stride}"]
            commands.call(f"adapt_{name}-{seed}", "adapt", runs[start], *options, *target, MEMORY_STEPS)
        else:
            commands.call(f"train_{name}-{seed}", "train", folder / f"{name}.yaml", f"seed={seed}", *target, steps)
    rain = runs.pop("rain", None)
    found = _figures(commands, runs, data)
    if rain is not None:
        found["switch"] = _switch(rain, NuScenesTables(folder.parent / "to_rain", VERSION))
    return found


def _rig(sensors: str) -> Rig:
    """nuScenes' vehicle, without cameras or with those of small pictures."""
    rig = load_rig("nuscenes")
    cameras = () if sensors == "lidar" else tuple(_smaller(camera) for camera in rig.cameras)
    return rig.model_copy(update={"cameras": cameras})


def _smaller(camera: RigCamera) -> RigCamera:
    """The camera with pictures of WIDTH."""
    shrink, lens = WIDTH / camera.size[0], camera.lens
    assert lens is not None
    assert lens.center is not None
    (wide, high), (x, y) = lens.focal, lens.center
    lens = Lens(focal=(shrink * wide, shrink * high), center=(shrink * x, shrink * y))
    return camera.model_copy(update={"size": tuple(round(shrink * each) for each in camera.size), "lens": lens})


def _config(sensors: str, rig: Path) -> dict[str, Any]:
    """`configs/demo.yaml` for detection with these sensors, LiDAR of one sweep; nothing is pasted."""
    content: dict[str, Any] = yaml.safe_load(find_config("demo").read_text())
    content |= {"name": f"memory_{sensors}", "rig": str(rig.resolve())}
    content["data"] = {"augment": content["data"]["augment"]}
    content["tasks"] = {"detection": content["tasks"]["detection"]}
    model = content["model"]
    model["lidar"] = model["lidar"] | {"sweeps": 0} if sensors != "camera" else None
    model["camera"] = model["camera"] if sensors != "lidar" else None
    if sensors == "camera":
        model["fused_stride"] = model["camera"]["stride"]
        model["camera"]["depth"]["supervision"] = 3.0  # without LiDAR the lift learns little else in so few steps
    return content


def _figures(commands: Commands, runs: Mapping[str, Path], data: Path) -> dict[str, Any]:
    """Scores of the networks of one seed."""
    found: dict[str, Any] = {}
    for name, run in runs.items():
        commands.call(f"evaluate_{run.name}", "evaluate", run, "--data", data, "--out", run / "scores")
        found[name] = _chosen(json.loads((run / "scores" / "metrics.json").read_text()))
    tables = NuScenesTables(data, VERSION)
    scenes = tables.scenes(SPLIT)
    found["cars"] = _cars(runs, tables)
    seconds = [f"{s}:{i}-{i + 1}" for s in scenes for i in range(0, KEYFRAMES, 2)]
    for name, step in SPACINGS.items():
        found.setdefault("spacings", {})[name] = _score(runs["memory"], tables, seconds, partial(EachFrame, step=step))
    if "bridge" in runs:
        selectors = [f"{s}:{i}-{i + 1}" for s in scenes for i in SCORED_IN_OUTAGES]
        found["outages"] = _outages(runs, tables, selectors)
    return found


def _cars(runs: Mapping[str, Path], tables: NuScenesTables) -> dict[str, Any]:
    """Of annotated cars with points on held-out keyframes: the share found, and velocity errors of those all find."""
    every: dict[str, np.ndarray] = {}
    for name, run in runs.items():
        predictor = TorchPredictor.load(run)
        reads, rows = predictor.spec.reads._replace(annotations=True), list[tuple[float, float]]()
        car = tables.taxonomy.label("car")
        for frame, prediction in predictor.predictions(tables, reads, tables.samples(SPLIT)):
            found: Boxes = prediction.results["detection"]
            found, truth = found.select((found.labels == car) & (found.scores > SCORE)), frame.boxes
            assert truth is not None
            for i in np.flatnonzero((truth.labels == car) & (truth.num_points > 0)):
                off = np.linalg.norm(found.centers[:, :2] - truth.centers[i, :2], axis=1)
                wrong = np.linalg.norm((found.velocities - truth.velocities[i])[:, :2], axis=1)
                near = off.size and off.min() < NEAR
                rows.append((float(np.linalg.norm(truth.velocities[i, :2])), wrong[off.argmin()] if near else np.nan))
        every[name] = np.array(rows)
    speed, by_all = every["base"][:, 0], np.isfinite(sum(each[:, 1] for each in every.values()))
    kinds = {"moving": speed > MOVING, "at_rest": speed <= MOVING}  # no car whose speed is unknown
    return {
        kind: {"number": int(of_kind.sum())}
        | {f"found_{name}": float(np.isfinite(each[of_kind, 1]).mean()) for name, each in every.items()}
        | {f"AVE_{name}": float(each[of_kind & by_all, 1].mean()) for name, each in every.items()}
        for kind, of_kind in kinds.items()
    }


def _outages(runs: Mapping[str, Path], tables: NuScenesTables, selectors: Sequence[str]) -> dict[str, Any]:
    """mAP on these keyframes of the base, and of all networks where the LiDAR is missing."""
    whole = _score(runs["base"], tables, selectors)["mAP"]
    found: dict[str, Any] = {"seen_base": whole}
    for name, frames in OUTAGES.items():
        lost = set[str]()
        for token in tables.samples(SPLIT, selectors):
            drive = [*tables.moments(token)]
            last = drive.index(token) + 1
            lost.update(drive[last - frames : last])
        see = partial(EachFrame, change=without_lidar(lost))
        left = {run: _score(path, tables, selectors, see)["mAP"] for run, path in runs.items()}
        base = left.pop("base")
        left["moved"] = _score(runs["base"], tables, selectors, partial(Moved, frames=frames))["mAP"]
        kept = {run: (each - base) / (whole - base) for run, each in left.items()}
        found[name] = {"base": base, **left, "kept": kept}
    return found


def _switch(run: Path, tables: NuScenesTables) -> dict[str, Any]:
    """Scores just after the route changes, with the state from before and without."""

    def in_rain(frame: Frame) -> bool:
        return frame.conditions.get("weather") == "rain"

    def forget(frame: Frame) -> Frame:
        return replace(frame, scene=f"{frame.scene}, rain") if in_rain(frame) else frame

    selectors = []
    for scene in tables.scenes(SPLIT):
        wet = [
            in_rain(tables.frame(token, Reads(lidar=False, cameras=False))) for token in tables.samples(None, [scene])
        ]
        selectors.append(f"{scene}:{wet.index(True)}-{wet.index(True) + AFTER_SWITCH}")
    return {
        "carried": _score(run, tables, selectors),
        "forgotten": _score(run, tables, selectors, partial(EachFrame, change=forget)),
    }


def _score(
    run: Path,
    tables: NuScenesTables,
    selectors: Sequence[str],
    see: Callable[[TorchPredictor], BatchPredictor] | None = None,
) -> dict[str, float]:
    """Of a network on these keyframes, with what it sees of the drives: None for every frame."""
    predictor = TorchPredictor.load(run)
    drive = (see or EachFrame)(predictor)
    with TemporaryDirectory() as folder:
        return _chosen(evaluate(drive, tables, SPLIT, selectors, Path(folder), predictor.spec, QUIET))


def without_lidar(lost: Collection[str]) -> Change:
    """Frames with these tokens have no LiDAR."""
    return lambda frame: frame.without_points() if frame.token in lost else frame


class EachFrame:
    """A predictor that sees also frames between the keyframes which it is asked for, if it has a memory.

    Args:
        step: it sees each so many frames of a drive.
        change: of the frames that it sees.
    """

    def __init__(self, predictor: TorchPredictor, step: int = 1, change: Change | None = None) -> None:
        self._predictor, self._step, self._change = predictor, step, change

    def predictions(self, keyframes: Keyframes, reads: Reads, tokens: Sequence[str]) -> Predicted:
        """The predictions of keyframes; with steps of several frames they must be among those that it sees."""
        reads = reads._replace(change=self._change)
        for _, group in groupby(tokens, keyframes.scene):
            asked = [*group]
            drive = [*keyframes.moments(asked[0])]
            seen = drive[: drive.index(asked[-1]) + 1 : self._step] if self._predictor.remembers else asked
            for frame, found in self._predictor.predictions(keyframes, reads, seen):
                if frame.token in asked:
                    yield frame, found


class Moved:
    """What a predictor without a memory found so many frames before a keyframe, moved with the vehicle.

    What is left of it where the world is at rest.
    """

    def __init__(self, predictor: TorchPredictor, frames: int) -> None:
        self._predictor, self._frames = predictor, frames

    def predictions(self, keyframes: Keyframes, reads: Reads, tokens: Sequence[str]) -> Predicted:
        for token in tokens:
            drive = [*keyframes.moments(token)]
            pair = [drive[drive.index(token) - self._frames], token]
            (before, found), (frame, prediction) = self._predictor.predictions(keyframes, reads, pair)
            motion = product(inverse(frame.global_from_reference), before.global_from_reference)
            boxes = found.results["detection"].transformed(motion)
            yield frame, replace(prediction, results={**prediction.results, "detection": boxes})


def _chosen(scores: Mapping[str, Any]) -> dict[str, float]:
    """What is quoted of the scores.

    `car_NDS` and `car_AVE` are of cars alone, the only class of many moving objects: the errors of a class of which a
    network finds one object or none count as much in NDS and mAVE.
    """
    of_cars, ap = scores["label_tp_errors"]["car"], scores["mean_dist_aps"]["car"]
    return {
        "NDS": scores["NDS"],
        "car_NDS": (5 * ap + sum(1 - min(1, error) for error in of_cars.values())) / 10,
        "mAP": scores["mAP"],
        "mAVE": scores["tp_errors"]["vel_err"],
        "car_AVE": of_cars["vel_err"],
    }


def _mean(each: Sequence[Any]) -> Any:
    """The mean of numbers in dictionaries with the same keys."""
    if isinstance(each[0], Mapping):
        return {name: _mean([one[name] for one in each]) for name in each[0]}
    return round(float(np.mean(each)), 3)
