"""KITTI's network on PandaSet, by the commands of docs/own_data.md: as it is, adapted, fine-tuned, and on board."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from bench_memory import BRIDGE, EachFrame, without_lidar
from benchmark import QUIET, SHARED, Commands

from perception.datasets.pandaset import PandaSet
from perception.evaluation.evaluate import evaluate
from perception.evaluation.predictions import look_to
from perception.predict import TorchPredictor

TRAINED, HELD_BACK = "002:0-16", "002:24-32"
KITTI = Path(__file__).parents[1] / "configs" / "kitti"
TARGET = "rtx-ampere"  # compiles without a GPU
OUTAGES = (3, 5)  # frames of 0.1 s without LiDAR, at a time
STRIDES = (1, 4)  # sides of a cell of the memory's state, in cells of the fused map of 0.16 m
SURE, NEAR = 0.4, 1.0  # score of a sure detection, and m within which two are of the same car
CAR = "car"
# What of the network trains, and how, beside the module.
FINE_TUNES = {
    "head": ('train.rates={"heads.*": 1.0, "*": 0.0}', "train.learning_rate=0.005"),
    "full": ("train.norm_momentum=0.0", "train.learning_rate=0.0003"),
}


def pandaset(
    data: Path = SHARED / "pandaset",
    weights: Path = SHARED / "pointpillars_kitti" / "pointpillars.safetensors",
    out: Annotated[Path, typer.Option(help="Folder of the runs; commands that ended are not repeated.")] = Path(
        "runs/pandaset"
    ),
    steps: int = 160,
    stages: Annotated[str, typer.Option(help="Only these.")] = "zero_shot,adapted,head,full,vehicle,outages",
) -> dict[str, Any]:
    """What `evaluate` gives for held-back frames in all views, and the share of the parameters that trained.

    Of each training the processor-seconds of its command for a step, and in `source` the AP of cars on simulated sweeps
    of KITTI's LiDAR, with the share of the first network's sure detections there that are `kept`. Parked cars are seen
    in both parts of the drive, 0.8 s apart. `outages`: the recall of cars to the front on the held-back frames, most of
    which lack their LiDAR, without and with a memory that was added, by the frames that lack it at a time; `kept` is
    the share of what is lost without it.
    """
    bench, result = _Stages(data, weights, out, steps), dict[str, Any]()
    for stage in stages.split(","):
        result[stage] = getattr(bench, stage)()
    if {"zero_shot", "adapted", "full"} <= result.keys():
        zero, adapted, full = (result[way][CAR]["ap"] for way in ("zero_shot", "adapted", "full"))
        result["share_of_gain"] = (adapted - zero) / (full - zero)
    return result


class Bench(Commands):
    """KITTI's network, its trainings on PandaSet and their scores, by commands whose records are in OUT/commands."""

    def __init__(self, data: Path, weights: Path, out: Path, steps: int) -> None:
        super().__init__(out)
        self.data, self.weights, self.steps = data, weights, steps
        drives = ("--scenes", 2, "--samples", 6, "--rig", "kitti", "--conditions", "clear-day-boston")
        self.call("simulate", "simulate", out / "simulated", *drives)
        self.kitti = self._imported(0)[1]

    def train(self, way: str, name: str, scenes: str = TRAINED, seed: int = 0) -> float:
        """Trains the module or weights of the network itself, to OUT/NAME: processor-seconds of a step."""
        config, start = self._imported(seed)
        words: tuple[object, ...]
        if way == "module":
            training = ("--steps", self.steps, "--learning-rate", 0.005, "--data", self.data, "--scenes", scenes)
            words = ("adapt", start, "--config", KITTI / "pandaset_module.yaml", *training)
        else:
            frames = f"data.scenes={json.dumps(scenes.split(','))}"
            changes = (f"init_from.run={start}", frames, f"train.steps={self.steps}", *FINE_TUNES[way])
            words = ("train", config, *changes, "--data", self.data)
        return float(self.call(name, *words, "--out", self.out / name)["seconds"]) / self.steps

    def _imported(self, seed: int) -> tuple[Path, Path]:
        """The configuration with a seed, which `adapt` takes from the run and `train` from the file, and the run."""
        config, name = KITTI / "pointpillars.yaml", f"_{seed}" if seed else ""
        run = self.out / f"kitti{name}"
        if seed:
            text, config = config.read_text(), run.with_suffix(".yaml")
            config.write_text(f"{text}seed: {seed}\n")
        self.call(f"import{name}", "import-pointpillars", config, self.weights, "--out", run)
        return config, run

    def module(self, run: Path) -> dict[str, Any]:
        """Of an adapted run: the module's parameters relative to the base, and whether the base kept every bit."""
        before, after = (
            json.loads(self.call(f"modules_{each.name}", "modules", each, "--json")["printed"])
            for each in (self.kitti, run)
        )
        return {"trained_share": after["modules"][0]["share"], "base_unchanged": after["base"] == before["base"]}

    def scores(self, name: str, run: Path) -> dict[str, Any]:
        """Scores of all classes on the held-back frames; on the simulated sweeps those of cars."""
        metrics = self._evaluate(name, run, "--data", self.data, "--scenes", HELD_BACK)
        classes = {each: _of_class(metrics, each) for each, count in metrics["ground_truth"].items() if count}
        source = ("--data", self.out / "simulated", "--rig", "kitti", "--split", "all")
        return {**classes, "source": {**self.car(f"source_{name}", run, *source), **self._kept(name)}}

    def car(self, name: str, run: Path, *words: object) -> dict[str, Any]:
        return _of_class(self._evaluate(name, run, *words), CAR)

    def _evaluate(self, name: str, run: Path, *words: object) -> dict[str, Any]:
        out = self.out / "evaluations" / name
        metrics: dict[str, Any] = json.loads(
            self.call(f"evaluate_{name}", "evaluate", run, *words, "--out", out, "--json")["printed"]
        )
        return metrics

    def _kept(self, name: str) -> dict[str, float]:
        """The share of the first network's sure cars in the simulated sweeps that this one finds, and of its own the
        share that is `new`."""
        first, own = (_sure_cars(self.out / "evaluations" / f"source_{each}") for each in ("zero_shot", name))
        away = [np.linalg.norm(first[token][:, None] - own[token], axis=2) for token in first]
        found = np.concatenate([each.min(axis=1, initial=np.inf) for each in away])
        new = np.concatenate([each.min(axis=0, initial=np.inf) for each in away])
        return {"kept": float((found <= NEAR).mean()), "new": float((new > NEAR).mean())}


class _Stages(Bench):
    """What `pandaset` measures."""

    def zero_shot(self) -> dict[str, Any]:
        return {**self.scores("zero_shot", self.kitti), **self._scores_by_view("zero_shot", self.kitti)}

    def adapted(self) -> dict[str, Any]:
        run = self.out / "adapted"
        seconds = self.train("module", "adapted")
        return {
            **self.scores("adapted", run),
            **self._scores_by_view("adapted", run),
            **self.module(run),
            "processor_seconds_per_step": seconds,
        }

    def head(self) -> dict[str, Any]:
        return self._fine_tuned("head")

    def full(self) -> dict[str, Any]:
        return self._fine_tuned("full")

    def _fine_tuned(self, way: str) -> dict[str, Any]:
        seconds = self.train(way, way)
        return {**self.scores(way, self.out / way), "processor_seconds_per_step": seconds}

    def vehicle(self) -> dict[str, Any]:
        """The adapted network on board, in FP32 and INT8; the drive is replayed in INT8."""
        result: dict[str, Any] = {}
        for precision, more in (("fp32", ()), ("int8", ("--calibrate", self.data, "--scenes", TRAINED))):
            bundle = self.out / "vehicle" / precision
            self.call(
                f"export_{precision}", "export", self.out / "adapted", "--out", bundle, "--precision", precision, *more
            )
            self.call(f"build_{precision}", "build", bundle, "--target", TARGET)
            self.call(f"verify_{precision}", "verify", bundle)
            result[precision] = self.car(f"vehicle_{precision}", bundle, "--data", self.data, "--scenes", HELD_BACK)
        replayed = (
            "replay",
            self.data,
            "--bundle",
            self.out / "vehicle" / "int8",
            "--out",
            self.out / "replay",
            "--json",
        )
        return {**result, "replayed_frames": json.loads(self.call("replay", *replayed)["printed"])["frames"]}

    def outages(self) -> dict[str, Any]:
        """A memory for frames without LiDAR on the network as imported, with cells of the map and with larger ones."""
        seen, without = self._recall(self.kitti, 0), self._recalls(self.kitti)
        result: dict[str, Any] = {"seen": seen, "without": without}
        for stride in STRIDES:
            run = self.out / f"outages_stride_{stride}"
            training = ("--steps", self.steps, "--data", self.data, "--scenes", TRAINED, "--out", run)
            self.call(run.name, "adapt", self.kitti, *BRIDGE, "--option", f"stride={stride}", *training)
            left = self._recalls(run)
            kept = {frames: (left[frames] - lost) / (seen - lost) for frames, lost in without.items()}
            result[f"stride_{stride}"] = {"memory": left, "kept": kept}
        return result

    def _recalls(self, run: Path) -> dict[str, float]:
        return {f"{frames}_frames": self._recall(run, frames) for frames in OUTAGES}

    def _recall(self, run: Path, frames: int) -> float:
        """Of cars to the front on the held-back frames, of which one has its LiDAR and so many next ones do not."""
        predictor = TorchPredictor.load(run)
        drive = PandaSet(self.data, predictor.spec.rig, predictor.taxonomy)
        held_back = drive.samples(selectors=[HELD_BACK])
        lost = {token for i, token in enumerate(held_back) if i % (frames + 1)}
        ahead = look_to(
            ["front"], EachFrame(predictor, change=without_lidar(lost)), predictor.spec, predictor.model.tasks
        )
        with TemporaryDirectory() as folder:
            metrics = evaluate(ahead, drive, None, [HELD_BACK], Path(folder), predictor.spec, QUIET)
        return float(_of_class(metrics, CAR)["recall"])

    def _scores_by_view(self, name: str, run: Path) -> dict[str, Any]:
        """Those of cars in each view alone."""
        held_back = ("--data", self.data, "--scenes", HELD_BACK)
        return {view: self.car(f"{name}_{view}", run, *held_back, "--views", view) for view in ("front", "rear")}


def _of_class(metrics: dict[str, Any], name: str) -> dict[str, Any]:
    """Mean AP and AP at 1 m, recall at 1 m of all detections, and the number of objects."""
    return {
        "ap": metrics["mean_dist_aps"][name],
        "ap_1m": metrics["label_aps"][name]["1.0"],
        "recall": metrics["label_recalls"][name]["1.0"],
        "objects": metrics["ground_truth"][name],
    }


def _sure_cars(evaluation: Path) -> dict[str, np.ndarray]:
    """By keyframe (N, 2), m, the places of the sure cars in the global frame."""
    results = json.loads((evaluation / "results_nusc.json").read_text())["results"]
    return {
        token: np.array(
            [
                each["translation"][:2]
                for each in boxes
                if each["detection_name"] == CAR and each["detection_score"] >= SURE
            ]
        ).reshape(-1, 2)
        for token, boxes in results.items()
    }
