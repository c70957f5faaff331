"""A network that remembers: what it gains on simulated drives and without LiDAR, and what it costs."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bench_networks import random_run, runner
from bench_pandaset import HALVES, HELD_BACK, KITTI, TRAINED
from benchmark import KITTI_WEIGHTS, QUIET, Commands, folder, median_seconds

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import export
from perception.config import find_config
from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.sources import open_source
from perception.evaluation.evaluate import evaluate
from perception.evaluation.predictions import Predicted
from perception.predict import TorchPredictor
from perception.rig import Rig, load_rig

KEYFRAMES, SPLIT = 10, "sim_val"  # of each drive, 0.5 s apart; the frames between are 0.1 s apart
SPACINGS = (1, 2, 5)  # every which frame a network sees
OUTAGE, SCORED_IN_OUTAGES = 10, (3, 6, 9)  # frames without LiDAR up to a scored keyframe; keyframes of each drive
LOST = 5  # frames in turn without LiDAR, of PandaSet's drive
WIDTH = 176  # of pictures
MEMORY = {"name": "memory", "kind": "memory"}
BRIDGE = ("--add", "memory:bridge", "--option", "outages=1.0", "--conditions", "no-lidar")
# What is added to which network; the others are trained from the start.
ADDED = {"memory": ("base", "--memory"), "bridge": ("joint", *BRIDGE)}
NETWORKS = {"lidar": ("base", "joint", "memory", "bridge"), "camera": ("base", "joint")}

Scores = dict[str, Any]


def time(quick: bool) -> dict[str, Any]:
    """Networks of `configs/demo.yaml` for detection with one LiDAR sweep or cameras: without and with a memory.

    `base` has no memory; `memory` is the same network with one that was added; `joint` has one from the start, and
    trains for as many steps as the base; `bridge` is `joint` with a second memory, for frames without LiDAR. Scored are
    held-out keyframes of simulated drives at 10 Hz. `nds_gain_camera` and `velocity_error_ratio_camera` (of mAVE)
    compare joint training with the base, `post_hoc_share` is the share of its gain in NDS with LiDAR that a memory on
    the frozen base has, `kept_without_lidar_1s` the share of the mAP lost without LiDAR that the bridge keeps,
    `nds_spread_over_spacing` that of the seed with the largest one. `latency_ratio` is the time of `tiny` with a memory
    to that without, in ONNX Runtime. `pandaset_recall_kept` is the share of the recall of cars lost without LiDAR for 5
    frames that a memory on KITTI's network keeps. Means over the seeds; commands that ended are not repeated.
    """
    bench = _Memory(folder("memory", quick), *((4, 1, 1, 1) if quick else (64, 2400, 400, 160)))
    lidar, camera = ([bench.scores(name, seed) for seed in range(1 if quick else 3)] for name in NETWORKS)
    return {
        **gains(lidar, camera),
        "latency_ratio": _latency_ratio(1 if quick else 30),
        "pandaset_recall_kept": bench.recall_kept(),
        "by_seed": {"lidar": lidar, "camera": camera},
    }


def gains(lidar: Sequence[Scores], camera: Sequence[Scores]) -> dict[str, float]:
    """The figures that come from the scores of each seed."""

    def mean(seeds: Sequence[Scores], network: str, score: str) -> float:
        return float(np.mean([each[network][score] for each in seeds]))

    added, joint = (mean(lidar, name, "NDS") - mean(lidar, "base", "NDS") for name in ("memory", "joint"))
    return {
        "nds_gain_camera": mean(camera, "joint", "NDS") - mean(camera, "base", "NDS"),
        "velocity_error_ratio_camera": mean(camera, "joint", "mAVE") / mean(camera, "base", "mAVE"),
        "kept_without_lidar_1s": float(np.mean([each["kept"] for each in lidar])),
        "nds_spread_over_spacing": max(max(each["spacings"]) - min(each["spacings"]) for each in lidar),
        "post_hoc_share": _share(added, joint),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


class _Memory(Commands):
    """Drives, trainings and scores."""

    def __init__(self, out: Path, drives: int, steps: int, added_steps: int, pandaset_steps: int) -> None:
        super().__init__(out)
        self._steps, self._added_steps, self._pandaset_steps = steps, added_steps, pandaset_steps
        for sensors in NETWORKS:
            (out / sensors).mkdir(parents=True, exist_ok=True)
            rig = (out / f"{sensors}.yaml").resolve()
            rig.write_text(yaml.safe_dump(vehicle(sensors).model_dump(mode="json")))
            content = network(sensors) | {"rig": str(rig)}
            for name, modules in {"base": [], "joint": [MEMORY]}.items():
                (out / sensors / f"{name}.yaml").write_text(yaml.safe_dump(content | {"modules": modules}))
            how = ("--scenes", drives, "--samples", KEYFRAMES, "--rate", 10, "--conditions", "clear-day-boston")
            self.call(f"simulate_{sensors}", "simulate", out / f"drives_{sensors}", *how, "--rig", rig)

    def scores(self, sensors: str, seed: int) -> Scores:
        """Of one seed: of each network; with LiDAR also NDS of each spacing, and the share kept in an outage."""
        configs, data = self.out / sensors, self.out / f"drives_{sensors}"
        runs = {name: configs / f"{name}-{seed}" for name in NETWORKS[sensors]}
        for name, run in runs.items():
            if name in ADDED:
                start, *options = ADDED[name]
                words: tuple[object, ...] = ("adapt", runs[start], *options, "--steps", self._added_steps)
            else:
                words = ("train", configs / f"{name}.yaml", f"seed={seed}", "--steps", self._steps)
            self.call(f"{sensors}_{run.name}", *words, "--data", data, "--out", run)
        tables = NuScenesTables(data, "v1.0-sim")
        found: Scores = {name: _score(run, tables) for name, run in runs.items()}
        if sensors == "camera":
            return found
        seconds, scored = (
            [f"{scene}:{i}-{i + 1}" for scene in tables.scenes(SPLIT) for i in places]
            for places in (range(0, KEYFRAMES, 2), SCORED_IN_OUTAGES)
        )
        lost = set[str]()
        for token in tables.samples(SPLIT, scored):
            drive = [*tables.moments(token)]
            lost.update(drive[max(0, drive.index(token) + 1 - OUTAGE) : drive.index(token) + 1])
        whole, blind = (_score(runs["base"], tables, scored, lost=each)["mAP"] for each in ((), lost))
        bridged = _score(runs["bridge"], tables, scored, lost=lost)["mAP"]
        spacings = [_score(runs["memory"], tables, seconds, step)["NDS"] for step in SPACINGS]
        return {**found, "spacings": spacings, "kept": _share(bridged - blind, whole - blind)}

    def recall_kept(self) -> float:
        """A memory for frames without LiDAR on KITTI's network as imported, on the front half of held-back frames."""
        kitti, bridged = self.out / "kitti", self.out / "kitti_bridged"
        weights = KITTI_WEIGHTS / "pointpillars.safetensors"
        self.call("import", "import", KITTI / "pointpillars.yaml", weights, "--out", kitti)
        training = ("--steps", self._pandaset_steps, "--data", HALVES, "--scenes", TRAINED)
        self.call("kitti_bridged", "adapt", kitti, *BRIDGE, *training, "--out", bridged)
        predictor, ahead = TorchPredictor.load(kitti), HELD_BACK.split(",")[:1]
        drive = open_source(Path(HALVES), None, predictor.spec.rig, predictor.taxonomy)
        lost = {token for i, token in enumerate(drive.samples(selectors=ahead)) if i % (LOST + 1)}
        pairs = ((kitti, ()), (kitti, lost), (bridged, lost))
        seen, blind, kept = (_score(run, drive, ahead, lost=each)["recall"] for run, each in pairs)
        return _share(kept - blind, seen - blind)


def vehicle(sensors: str) -> Rig:
    """nuScenes' vehicle, without cameras or with those of small pictures."""
    content = load_rig("nuscenes").model_dump(mode="json")
    content["cameras"] = content["cameras"] if sensors == "camera" else []
    for camera in content["cameras"]:
        shrink = WIDTH / camera["size"][0]
        camera["size"] = [round(shrink * each) for each in camera["size"]]
        camera["lens"] |= {name: [shrink * each for each in camera["lens"][name]] for name in ("focal", "center")}
    return Rig.model_validate(content)


def network(sensors: str) -> dict[str, Any]:
    """`configs/demo.yaml` for detection with these sensors, LiDAR of one sweep; nothing is pasted."""
    content: dict[str, Any] = yaml.safe_load(find_config("demo").read_text()) | {"name": f"memory_{sensors}"}
    content["data"] = {"augment": content["data"]["augment"]}
    content["tasks"] = {"detection": content["tasks"]["detection"]}
    model = content["model"]
    if sensors == "lidar":
        model |= {"lidar": model["lidar"] | {"sweeps": 0}, "camera": None}
    else:
        model |= {"lidar": None, "fused_stride": model["camera"]["stride"]}
        model["camera"]["depth"]["supervision"] = 3.0  # without LiDAR the lift learns little else in so few steps
    return content


class EachFrame:
    """A predictor that sees also frames between the keyframes which it is asked for, if it has a memory.

    Args:
        step: it sees each so many frames of a drive.
        lost: tokens of frames that have no LiDAR.
    """

    def __init__(self, predictor: TorchPredictor, step: int = 1, lost: Collection[str] = ()) -> None:
        self._predictor, self._step, self._lost = predictor, step, lost

    def predictions(self, keyframes: Keyframes, reads: Reads, tokens: Sequence[str]) -> Predicted:
        """The predictions of keyframes; with steps of several frames they must be among those that it sees."""
        reads = reads._replace(change=lambda frame: frame.without_points() if frame.token in self._lost else frame)
        for _, group in groupby(tokens, keyframes.scene):
            asked = [*group]
            drive = [*keyframes.moments(asked[0])]
            seen = drive[: drive.index(asked[-1]) + 1 : self._step] if self._predictor.remembers else asked
            for frame, found in self._predictor.predictions(keyframes, reads, seen):
                if frame.token in asked:
                    yield frame, found


def _score(
    run: Path, keyframes: Keyframes, selectors: Sequence[str] = (), step: int = 1, lost: Collection[str] = ()
) -> dict[str, float]:
    """NDS, mAP, mAVE and the recall of cars at 1 m of a network on these keyframes."""
    predictor, split = TorchPredictor.load(run), SPLIT if isinstance(keyframes, NuScenesTables) else None
    with tempfile.TemporaryDirectory() as out:
        seen = EachFrame(predictor, step, lost)
        scores = evaluate(seen, keyframes, split, selectors, Path(out), predictor.spec, QUIET)
    recall = scores["label_recalls"]["car"]["1.0"]
    return {"NDS": scores["NDS"], "mAP": scores["mAP"], "mAVE": scores["tp_errors"]["vel_err"], "recall": recall}


def _latency_ratio(rounds: int) -> float:
    """The state stays in the engine."""
    engines = {}
    for name, modules in {"base": [], "memory": [MEMORY]}.items():
        with tempfile.TemporaryDirectory() as out:
            bundle = export(random_run("tiny", modules, Path(out) / "run"), Path(out) / "bundle", console=QUIET)
            engines[name] = runner(OnnxRuntimeEngine(bundle.onnx), dict(bundle.golden()[0]))
    seconds = median_seconds(engines, rounds)
    return seconds["memory"] / seconds["base"]
