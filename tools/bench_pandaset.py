"""KITTI's network on PandaSet, by the commands of docs/own_data.md: as it is, adapted, fine-tuned, and on board."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from benchmark import SHARED

TRAINED, HELD_BACK = "002:0-16", "002:24-32"
KITTI = Path(__file__).parents[1] / "configs" / "kitti"
TARGET = "rtx-ampere"  # compiles without a GPU
SURE, NEAR = 0.4, 1.0  # score of a sure detection, and m within which two are of the same car
CAR = "car"


def pandaset(
    data: Path = SHARED / "pandaset",
    weights: Path = SHARED / "pointpillars_kitti" / "pointpillars.safetensors",
    out: Annotated[Path, typer.Option(help="Folder of the runs; commands that ended are not repeated.")] = Path(
        "runs/pandaset"
    ),
    steps: int = 160,
    stages: Annotated[str, typer.Option(help="Only these.")] = "zero_shot,adapted,head,full,further,vehicle",
) -> dict[str, Any]:
    """What `evaluate` gives for held-back frames in all views, and the share of the parameters that trained.

    Of each training the processor-seconds of its command for a step, and in `source` the AP of cars on simulated sweeps
    of KITTI's LiDAR, with the share of the first network's sure detections there that are `kept`. Parked cars are seen
    in both parts of the drive, 0.8 s apart.
    """
    bench, result = _Bench(data, out, steps), dict[str, Any]()
    bench.call("import", "import-pointpillars", KITTI / "pointpillars.yaml", weights, "--out", out / "kitti")
    drives = ("--scenes", 2, "--samples", 6, "--rig", "kitti", "--conditions", "clear-day-boston")
    bench.call("simulate", "simulate", out / "simulated", *drives)
    for stage in stages.split(","):
        result[stage] = getattr(bench, stage)()
    if {"zero_shot", "adapted", "full"} <= result.keys():
        zero, adapted, full = (result[way][CAR]["ap"] for way in ("zero_shot", "adapted", "full"))
        result["share_of_gain"] = (adapted - zero) / (full - zero)
    return result


class _Bench:
    def __init__(self, data: Path, out: Path, steps: int) -> None:
        self.data, self.out, self.steps = data, out, steps
        self.kitti = out / "kitti"

    def call(self, name: str, *words: object) -> dict[str, Any]:
        """Runs `perception` with these words, once: its `seconds` of processors, and what it `printed`."""
        record = self.out / "commands" / f"{name}.json"
        if not record.exists():
            record.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "deploy.cli", *map(str, words)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            printed = process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
            content = {"command": command[3:], "seconds": used.ru_utime + used.ru_stime, "printed": printed}
            record.write_text(json.dumps(content))
        found: dict[str, Any] = json.loads(record.read_text())
        return found

    def zero_shot(self) -> dict[str, Any]:
        return {**self._scores("zero_shot", self.kitti), **self._scores_by_view("zero_shot", self.kitti)}

    def adapted(self) -> dict[str, Any]:
        run, module = self.out / "adapted", KITTI / "pandaset_module.yaml"
        training = ("--steps", self.steps, "--learning-rate", 0.005, "--data", self.data, "--scenes", TRAINED)
        trained = self.call("adapted", "adapt", self.kitti, "--config", module, *training, "--out", run)
        before, after = (
            json.loads(self.call(f"modules_{each.name}", "modules", each, "--json")["printed"])
            for each in (self.kitti, run)
        )
        return {
            **self._scores("adapted", run),
            **self._scores_by_view("adapted", run),
            "trained_share": after["modules"][0]["share"],
            "processor_seconds_per_step": trained["seconds"] / self.steps,
            "base_unchanged": after["base"] == before["base"],
        }

    def head(self) -> dict[str, Any]:
        return self._fine_tuned("head", 'train.rates={"heads.*": 1.0, "*": 0.0}', "train.learning_rate=0.005")

    def full(self) -> dict[str, Any]:
        return self._fine_tuned("full", "train.norm_momentum=0.0", "train.learning_rate=0.0003")

    def _fine_tuned(self, name: str, *changes: str) -> dict[str, Any]:
        """Scores of weights of the network that were trained on."""
        start = (f"init_from.run={self.kitti}", f'data.scenes=["{TRAINED}"]', f"train.steps={self.steps}")
        words = (KITTI / "pointpillars.yaml", *start, *changes, "--data", self.data, "--out", self.out / name)
        seconds = self.call(name, "train", *words)["seconds"] / self.steps
        return {**self._scores(name, self.out / name), "processor_seconds_per_step": seconds}

    def further(self) -> dict[str, Any]:
        """The adapted network with further classes."""
        run, task = self.out / "further", ("--task", "detection", "--config", KITTI / "pandaset_further.yaml")
        training = ("--steps", self.steps, "--learning-rate", 0.02, "--data", self.data, "--scenes", TRAINED)
        self.call("further", "adapt", self.out / "adapted", *task, *training, "--out", run)
        return self._scores("further", run)

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
            result[precision] = self._car(f"vehicle_{precision}", bundle, "--data", self.data, "--scenes", HELD_BACK)
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

    def _scores(self, name: str, run: Path) -> dict[str, Any]:
        """Scores of all classes on the held-back frames; on the simulated sweeps those of cars."""
        metrics = self._evaluate(name, run, "--data", self.data, "--scenes", HELD_BACK)
        classes = {each: _of_class(metrics, each) for each, count in metrics["ground_truth"].items() if count}
        source = ("--data", self.out / "simulated", "--rig", "kitti", "--split", "all")
        return {**classes, "source": {**self._car(f"source_{name}", run, *source), **self._kept(name)}}

    def _scores_by_view(self, name: str, run: Path) -> dict[str, Any]:
        """Those of cars in each view alone."""
        held_back = ("--data", self.data, "--scenes", HELD_BACK)
        return {view: self._car(f"{name}_{view}", run, *held_back, "--views", view) for view in ("front", "rear")}

    def _car(self, name: str, run: Path, *words: object) -> dict[str, Any]:
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
