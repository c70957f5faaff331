"""KITTI's network on PandaSet by the commands of docs/own_data.md: adapted, fine-tuned, and with few labels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmark import CONFIGS, KITTI_WEIGHTS, PANDASET, Commands, folder

from perception.checkpoint import load_model
from perception.training import optimize

DRIVE, LABELLED = "002", 16  # frames from the first one on
KITTI = CONFIGS / "kitti"
FORMAT = "perception.datasets.halves:Halves"
HALVES = f"{FORMAT}={PANDASET}"
SURE, NEAR = 0.4, 1.0  # score of a sure detection, and m within which two are of the same car
# What of the network trains, and how, beside the module.
FINE_TUNES = {
    "head": ('train.rates={"heads.*": 1.0, "*": 0.0}', "train.learning_rate=0.005"),
    "full": ("train.norm_momentum=0.0", "train.learning_rate=0.0003"),
}
WAYS, COUNTS, SEEDS = ("head", "module", "full"), (1, 2, 4, 8, LABELLED), 3

Row = dict[str, Any]


def in_halves(first: int, end: int) -> str:
    """The scenes of some frames of the drive, in both halves."""
    return ",".join(f"{DRIVE}-{half}:{first}-{end}" for half in ("front", "rear"))


TRAINED, HELD_BACK = in_halves(0, LABELLED), in_halves(24, 32)


def pandaset(quick: bool) -> dict[str, Any]:
    """AP and recall of cars on held-back frames as imported, with a module, and after a training of all weights.

    Parked cars are seen in both parts of the drive, 0.8 s apart. `kept`: on simulated sweeps of KITTI's LiDAR, the
    share of the imported network's sure detections that are left.
    """
    bench = Bench(folder("pandaset", quick), 1 if quick else 160)
    result = {"zero_shot": bench.scores("zero_shot", bench.kitti)}
    for stage, way in {"adapted": "module", "full": "full"}.items():
        result[stage] = bench.measure(way, stage, TRAINED)
    return {**result, "trained_share": result["adapted"]["trained_share"]}


def labels(quick: bool) -> dict[str, Any]:
    """What each way gains with so many labelled frames of 16, what it costs, and what is left of the source.

    `closed` is the share of the gap: AP of cars on held-back frames above that of the network as imported, relative to
    the full fine-tune's with 16 frames (its median). `share` are parameters that train, relative to the network's;
    `cpu_seconds_per_step` processor-seconds of the command; `source_kept`: `kept` of `pandaset`. Medians of the seeds;
    `range` has the lowest and the highest.
    """
    counts, seeds = ((LABELLED,), 1) if quick else (COUNTS, SEEDS)
    bench, pairs = Bench(folder("labels", quick), 1 if quick else 80), [*itertools.product(counts, WAYS)]
    zero = bench.scores("zero_shot", bench.kitti)["car"]["ap"]
    rows = {pair: [bench.labelled(*pair, seed) for seed in range(seeds)] for pair in pairs}
    full = float(np.median([row["car"]["ap"] for row in rows[LABELLED, "full"]]))
    found = {str(count): {way: summary(rows[count, way], zero, full) for way in WAYS} for count in counts}
    return {"frames": found, "seeds": seeds, "steps": bench.steps, "imported": {"ap": zero}}


def choose(count: int, seed: int) -> list[int]:
    """The numbers of the labelled frames, spread over the first 16 of the drive; a seed moves them."""
    spacing = LABELLED // count
    first = spacing // 2 + seed * max(spacing // 3, 1)
    return sorted((first + i * LABELLED // count) % LABELLED for i in range(count))


def summary(rows: Sequence[Row], zero: float, full: float) -> Row:
    """Medians of the seeds, and the range of what differs."""
    table = {
        "closed": [(row["car"]["ap"] - zero) / (full - zero) if full != zero else 0.0 for row in rows],
        "share": [row["trained_share"] for row in rows],
        "cpu_seconds_per_step": [row["cpu_seconds_per_step"] for row in rows],
        "source_kept": [row["kept"] for row in rows],
    }
    return {name: float(np.median(values)) for name, values in table.items()} | {
        "range": {name: [min(table[name]), max(table[name])] for name in ("closed", "source_kept")}
    }


class Bench(Commands):
    """KITTI's network, its trainings on PandaSet and their scores, by commands."""

    def __init__(self, out: Path, steps: int) -> None:
        super().__init__(out)
        self.steps = steps
        self.kitti = self._imported(0)[1]
        drives = ("--scenes", 2, "--samples", 6, "--rig", "kitti", "--conditions", "clear-day-boston")
        self.call("simulate", "simulate", out / "simulated", *drives)

    def measure(self, way: str, name: str, scenes: str, seed: int = 0) -> Row:
        """Trains the module or weights of the network itself, to OUT/NAME: scores and costs."""
        config, start = self._imported(seed)
        words: tuple[object, ...]
        if way == "module":
            training = (
                "--steps",
                self.steps,
                "--learning-rate",
                0.005,
                "--data",
                HALVES,
                "--scenes",
                scenes,
            )
            words = ("adapt", start, "--config", KITTI / "pandaset_module.yaml", *training)
        else:
            frames = f"data.scenes={json.dumps(scenes.split(','))}"
            changes = (f"init_from.run={start}", frames, f"train.steps={self.steps}", *FINE_TUNES[way])
            words = ("train", config, *changes, "--data", HALVES)
        run = self.out / name
        seconds = self.call(name, *words, "--out", run)["seconds"]
        if way == "module":
            share = self.json(f"modules_{name}", "modules", run)["modules"][0]["share"]
        else:
            share = _trained_share(run)
        return {**self.scores(name, run), "trained_share": share, "cpu_seconds_per_step": seconds / self.steps}

    def labelled(self, count: int, way: str, seed: int) -> Row:
        """The same with so many labelled frames."""
        scenes = ",".join(in_halves(frame, frame + 1) for frame in choose(count, seed))
        return self.measure(way, f"{way}_{count}_{seed}", scenes, seed)

    def scores(self, name: str, run: Path) -> Row:
        """Of cars on the held-back frames, and what is `kept` on the simulated sweeps."""
        held_back = ("--data", HALVES, "--scenes", HELD_BACK, "--out", self.out / "evaluations" / name)
        metrics = self.json(f"evaluate_{name}", "evaluate", run, *held_back)
        source = self.out / "evaluations" / f"source_{name}"
        sweeps = ("--data", f"{FORMAT}={self.out / 'simulated'}", "--rig", "kitti", "--out", source)
        self.call(f"evaluate_source_{name}", "evaluate", run, *sweeps)
        first, own = _sure_cars(source.with_name("source_zero_shot")), _sure_cars(source)
        away = [np.linalg.norm(cars[:, None] - own[token], axis=2) for token, cars in first.items()]
        nearest = np.concatenate([each.min(axis=1, initial=np.inf) for each in away])
        car = {"ap": metrics["mean_dist_aps"]["car"], "recall": metrics["label_recalls"]["car"]["1.0"]}
        return {"car": car, "kept": float((nearest <= NEAR).mean())}

    def _imported(self, seed: int) -> tuple[Path, Path]:
        """The configuration with a seed, which `adapt` takes from the run and `train` from the file, and the run."""
        run, config = self.out / f"kitti_{seed}", self.out / f"kitti_{seed}.yaml"
        self.out.mkdir(parents=True, exist_ok=True)
        config.write_text(f"{(KITTI / 'pointpillars.yaml').read_text()}seed: {seed}\n")
        weights = KITTI_WEIGHTS / "pointpillars.safetensors"
        self.call(f"import_{seed}", "import", config, weights, "--out", run)
        return config, run


def _trained_share(run: Path) -> float:
    """The share of a network's parameters whose rate was not 0."""
    model, config = load_model(run)
    optimize.joint(model)
    optimize.freeze(model, config.train.rates)
    trained = sum(parameter.numel() for _, parameter in optimize.parameters(model))
    return trained / sum(parameter.numel() for parameter in model.parameters())


def _sure_cars(evaluation: Path) -> dict[str, np.ndarray]:
    """By keyframe (N, 2), m, the places of the sure cars in the global frame."""
    results = json.loads((evaluation / "results_nusc.json").read_text())["results"]
    cars = {token: [box for box in boxes if box["detection_name"] == "car"] for token, boxes in results.items()}
    return {
        token: np.array([box["translation"][:2] for box in boxes if box["detection_score"] >= SURE]).reshape(-1, 2)
        for token, boxes in cars.items()
    }
