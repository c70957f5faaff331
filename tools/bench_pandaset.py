"""A network that was trained on KITTI, on a car and in a city that it never saw: as it is, adapted, and fine-tuned."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pandaset_views import TwoViews

from perception.datasets.pandaset import PandaSet
from perception.frame import Boxes, Prediction
from perception.import_pointpillars import import_pointpillars
from perception.model import PerceptionModel
from perception.modules.base_weights import base_parameters
from perception.modules.module_record import SPECS
from perception.predict import TorchPredictor
from perception.rig import load_rig
from perception.tasks.detection.columns import BoxColumns
from perception.tasks.detection.matching import match
from perception.taxonomy import load_taxonomy
from perception.training import trainable
from perception.training.checkpoint import load_model
from perception.training.loop import fit

DRIVE, TRAINED, HELD_BACK = "002", range(16), range(24, 32)
AHEAD, ASIDE = (2.0, 60.0), 35.0  # m
POINTS, NEAR, OTHER = 5, 1.0, 2.0  # fewest points of a car; m to a match; m to something else, where nothing counts
SCORE = 0.4
CAR = 0
MODULE: dict[str, Any] = {
    "name": "pandaset",
    "kind": "union",
    "parts": [
        {"kind": "low_rank", "slots": ["trunk.stage*.?", "trunk.lift?", "heads.*"], "rank": 1},
        {"kind": "scale_shift", "slots": ["trunk.*.norm"]},
    ],
}


def add_options(command: argparse.ArgumentParser) -> None:
    shared = Path("../shared/data")
    command.add_argument("--data", type=Path, default=shared / "pandaset")
    command.add_argument("--weights", type=Path, default=shared / "pointpillars_kitti" / "pointpillars.safetensors")
    command.add_argument("--out", type=Path, default=Path("runs/pandaset"), help="folder to replace")
    command.add_argument("--steps", type=int, default=160)
    command.add_argument("--rate", type=float, nargs=2, default=(5e-3, 3e-4), help="of module or head, and of all")
    command.add_argument("--ways", default="", help="only these of zero_shot,head,adapted,full")
    command.set_defaults(run=pandaset)


def pandaset(arguments: argparse.Namespace) -> dict[str, Any]:
    """AP, recall and precision of cars on held-back frames, seen to the front and to the rear; parameters that trained.

    AP is the mean precision at 100 recalls, with matches at 1 m. Cars with at least 5 points count, 2 to 60 m ahead and
    within 35 m to the sides; detections within 2 m of anything else that is annotated are left out. Parked cars are
    seen in both parts of the drive, 0.8 s apart.
    """
    shutil.rmtree(arguments.out, ignore_errors=True)
    config = Path(__file__).parents[1] / "configs" / "kitti" / "pointpillars.yaml"
    import_pointpillars(config, arguments.weights, arguments.out / "kitti")
    rig, kitti = load_rig("pandaset_64"), load_taxonomy("kitti")
    drives = TwoViews(PandaSet(arguments.data, rig, kitti))
    everything = TwoViews(PandaSet(arguments.data, rig, load_taxonomy("pandaset")))
    ways: dict[str, Callable[[PerceptionModel], None]] = {
        "zero_shot": lambda model: trainable.post_hoc(model, ()),
        "head": lambda model: trainable.base(model, ["heads.*"]),
        "adapted": _with_module,
        "full": lambda model: model.requires_grad_(True) and None,
    }
    result: dict[str, Any] = {}
    for way in arguments.ways.split(",") if arguments.ways else ways:
        model = _model(arguments.out / "kitti", arguments.steps, arguments.rate[way == "full"])
        before = model.bank.base_hash()
        ways[way](model)
        trained = sum(parameter.numel() for _, parameter in trainable.parameters(model))
        share = trained / sum(parameter.numel() for parameter in base_parameters(model))
        start = time.perf_counter()
        if way != "zero_shot":
            model.eval()  # the imported normalisations have no statistics of their own to renew
            fit(model, drives, drives.tokens(DRIVE, TRAINED), arguments.out / way)
        seconds = (time.perf_counter() - start) / arguments.steps
        scores = scored(TorchPredictor(model), drives, everything)
        result[way] = {**scores, "trained_share": share, "seconds_per_step": seconds if way != "zero_shot" else 0.0}
        result[way]["base_unchanged"] = model.bank.base_hash() == before
    return result


def _model(run: Path, steps: int, rate: float) -> PerceptionModel:
    model, config = load_model(run)
    augment = None if config.data.augment is None else config.data.augment.model_copy(update={"flip": False})
    data = config.data.model_copy(update={"augment": augment, "class_balanced": False})
    train = config.train.model_copy(update={"steps": steps, "learning_rate": rate, "checkpoint_every": steps})
    model.config = config.model_copy(update={"data": data, "train": train})
    return model


def _with_module(model: PerceptionModel) -> None:
    spec = SPECS.validate_python(MODULE)
    model.bank.add(spec)
    model.config = model.config.model_copy(update={"modules": (spec,)})
    trainable.post_hoc(model, [spec.name])


def scored(predict: Callable[[Any], Prediction], drives: TwoViews, everything: TwoViews) -> dict[str, float]:
    """`ap`, `recall` and `precision` of cars over the held-back frames."""
    truths, found = [], []
    for i, token in enumerate(drives.tokens(DRIVE, HELD_BACK)):
        frame = drives.frame(token, "ego", cameras=False)
        assert frame.boxes is not None
        cars = frame.boxes.select(frame.boxes.labels == CAR)
        counted = _seen(cars) & (cars.num_points >= POINTS)
        others = everything.frame(token, "ego", lidar=False, cameras=False).boxes
        assert others is not None
        elsewhere = np.concatenate([others.centers[others.labels != CAR], cars.centers[~counted]])
        predicted: Boxes = predict(replace(frame, boxes=None)).results["detection"]
        predicted = predicted.select(_seen(predicted) & (predicted.labels == CAR))
        away = np.linalg.norm(predicted.centers[:, None, :2] - elsewhere[None, :, :2], axis=2).min(
            axis=1, initial=np.inf
        )
        truth, own = BoxColumns.of_frame(cars.select(counted), i), BoxColumns.of_frame(predicted, i)
        hit = match(truth, own, (NEAR,))[0] >= 0
        kept = hit | (away > OTHER)
        truths.append(truth)
        found.append(np.column_stack([own.scores, hit])[kept])
    return average_precision(np.concatenate(found), sum(map(len, truths)))


def _seen(boxes: Boxes) -> np.ndarray:
    ahead, aside = boxes.centers[:, 0], np.abs(boxes.centers[:, 1])
    return np.asarray((ahead >= AHEAD[0]) & (ahead <= AHEAD[1]) & (aside <= ASIDE))


def average_precision(found: np.ndarray, cars: int) -> dict[str, float]:
    """AP over 100 recalls, and recall and precision at `SCORE`; found (N, 2) scores, and whether they are right."""
    found = found[np.argsort(-found[:, 0], kind="stable")]
    right = np.cumsum(found[:, 1])
    precision, recall = right / np.arange(1, len(found) + 1), right / cars
    best = [precision[recall >= level].max(initial=0.0) for level in np.linspace(0.01, 1, 100)]
    sure = found[found[:, 0] >= SCORE]
    hits = float(sure[:, 1].sum())
    return {"ap": float(np.mean(best)), "recall": hits / cars, "precision": hits / max(1, len(sure)), "cars": cars}
