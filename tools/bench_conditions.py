"""What the task `conditions` recognises on held-out simulated drives and on real ones, and when it says unknown."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.pandaset import PandaSet
from perception.frame import Conditions, Frame
from perception.rig import load_rig
from perception.sensors.inputs import InputSpec, prepare, without_padding
from perception.simulate.simulate import simulate
from perception.tasks.task import part_of
from perception.training.adapt import add_task
from perception.training.checkpoint import load_model

VERSION = "v1.0-sim"
WAYS: dict[str, dict[str, Any]] = {"imagenet": {"features": "imagenet"}, "bev": {"features": "bev"}}
# Recorded by day in clear weather in San Francisco, which simulated drives do not know.
PANDASET = {"weather": "clear", "light": "day", "city": "san_francisco"}
BINS = 10


def add_options(command: argparse.ArgumentParser) -> None:
    shared = Path("../shared/data")
    command.add_argument("--checkpoint", type=Path, default=Path("runs/demo/run"), help="that the task is added to")
    command.add_argument("--nuscenes", type=Path, default=shared / "nuscenes", help="real keyframes, v1.0-mini")
    command.add_argument("--pandaset", type=Path, default=shared / "pandaset")
    command.add_argument("--out", type=Path, default=Path("runs/conditions"), help="drives and runs; kept if there")
    command.add_argument("--drives", type=int, nargs=2, default=(60, 24), help="to learn from, and to score on")
    command.add_argument("--steps", type=int, default=300, help="of the features that are trained by gradient")
    command.set_defaults(run=conditions)


def conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy with unknown as not right, coverage and calibration error; on real drives right, unknown and wrong."""
    learned, scored = (
        _drives(arguments.out / name, drives, seed)
        for name, drives, seed in (("learned", arguments.drives[0], 0), ("scored", arguments.drives[1], 1))
    )
    result: dict[str, Any] = {}
    for way, options in WAYS.items():
        run = arguments.out / way
        if not run.exists():
            content = {"tasks": {"conditions": options}}
            add_task(
                arguments.checkpoint, "conditions", content, learned, "all", (), run,
                steps=arguments.steps, learning_rate=0.01,
            )  # fmt: skip
        result[way] = {
            "simulated": simulated(run, scored),
            "nuscenes": real(run, NuScenesTables(arguments.nuscenes, "v1.0-mini")),
            "pandaset": real(run, PandaSet(arguments.pandaset, load_rig("pandaset")), PANDASET),
        }
    return result


def _drives(root: Path, drives: int, seed: int) -> NuScenesTables:
    """Simulated drives of three keyframes, in turn of every weather, light and city."""
    if not root.exists():
        simulate(root, drives, 3, seed=seed, condition_names=["all"])
    return NuScenesTables(root, VERSION)


class Recogniser:
    """What a run recognises, on drives of any rig."""

    def __init__(self, run: Path, tables: Keyframes) -> None:
        self.model, config = load_model(run, tables.rig)
        self.model.computed = ("conditions",)
        self.task, self.spec = self.model.tasks["conditions"], InputSpec.of(config)
        self.values = config.taxonomy.conditions

    @torch.no_grad()
    def __call__(self, frame: Frame) -> tuple[Mapping[str, Sequence[float]], dict[str, np.ndarray]]:
        """Probabilities by kind, the same for each value where unknown, and those that it had without a temperature."""
        arrays = without_padding(prepare(frame, self.spec))
        dense = part_of("conditions", self.model({k: torch.from_numpy(v) for k, v in arrays.items()}, [Conditions()]))
        head: Any = self.model.head("conditions")
        outputs = {name: value[0].numpy() for name, value in head.decode(dense).items()}
        plain = {
            kind: (dense[kind][0] * getattr(part, "temperature", 1)).softmax(dim=0).numpy()
            for kind, part in head.kinds.items()
        }
        return self.task.result(outputs), plain

    def frames(self, tables: Keyframes) -> Iterator[tuple[str, Frame]]:
        for token in tables.samples("all"):
            yield token, tables.frame(token, Reads(self.spec.grid.reference, self.spec.sweeps))


def simulated(run: Path, tables: NuScenesTables) -> dict[str, Any]:
    """By kind: `accuracy` with unknown as not right, `coverage`, share `wrong`, `ece` without and with temperature."""
    recogniser = Recogniser(run, tables)
    rows: dict[str, list[tuple[np.ndarray, np.ndarray, int]]] = {kind: [] for kind in recogniser.values}
    for token, frame in recogniser.frames(tables):
        found, plain = recogniser(frame)
        for kind, value in tables.conditions(token).items():
            rows[kind].append((np.array(found[kind]), plain[kind], recogniser.values[kind].index(value)))
    return {kind: _scores(*map(np.array, zip(*each, strict=True))) for kind, each in rows.items()}


def _scores(found: np.ndarray, plain: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Of probabilities (n, V), those without temperature (n, V), and values (n,)."""
    answered = (found == found.max(axis=1, keepdims=True)).sum(axis=1) == 1
    right = answered & (found.argmax(axis=1) == truth)
    return {
        "accuracy": float(right.mean()),
        "coverage": float(answered.mean()),
        "wrong": float((answered & ~right).mean()),
        "ece_before": calibration_error(plain[answered], truth[answered]),
        "ece": calibration_error(found[answered], truth[answered]),
    }


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error over bins of confidence (Guo et al., 2017, equation 3)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = (abs(right[bins == i].sum() - confidence[bins == i].sum()) for i in np.unique(bins))
    return float(sum(gaps) / max(1, len(truth)))


def real(run: Path, tables: Keyframes, truth: Mapping[str, str] | None = None) -> dict[str, Any]:
    """By kind, the numbers of keyframes that are right, unknown and wrong, and how many have pictures.

    Args:
        truth: of all keyframes; None: their tags.
    """
    recogniser = Recogniser(run, tables)
    counts = {kind: {"right": 0, "unknown": 0, "wrong": 0} for kind in recogniser.values}
    frames, seen = 0, 0
    for token, frame in recogniser.frames(tables):
        found, _ = recogniser(frame)
        frames, seen = frames + 1, seen + bool(frame.cameras)
        for kind, values in recogniser.values.items():
            tag = (truth or tables.conditions(token)).get(kind)
            each = list(found[kind])
            answered = each.count(max(each)) == 1
            right = answered and values[int(np.argmax(each))] == tag
            counts[kind]["right" if right else "wrong" if answered else "unknown"] += 1
    return {"keyframes": frames, "with_pictures": seen, **counts}
