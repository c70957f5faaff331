"""A network that was trained on KITTI, on a car and in a city that it never saw: as it is, adapted, and fine-tuned."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from benchmark import QUIET, SHARED
from pandaset_scores import Memory, Predict, score

from deploy.build import build
from deploy.bundle import EngineRecord
from deploy.export import export
from deploy.precision.calibrate import Drives
from deploy.replay.run import replay
from deploy.replay.settings import Source
from deploy.runtime import Runtime
from deploy.tolerances import Precision
from deploy.verify import verify
from perception.checkpoint import load_model, newest, read_config
from perception.config import extend_taxonomy
from perception.datasets.pandaset import PandaSet
from perception.datasets.views import Views
from perception.frame import VIEWS
from perception.mmdet3d.importing import import_pointpillars
from perception.model import PerceptionModel
from perception.modules.base import base_parameters
from perception.modules.spec import parse_module
from perception.predict import TorchPredictor
from perception.rig import load_rig
from perception.taxonomy import Taxonomy, load_taxonomy
from perception.training import optimize
from perception.training.adapt import add_task, read_task
from perception.training.loop import fit

TRAINED, HELD_BACK = "002:0-16", "002:24-32"
CONFIGS = Path(__file__).parents[1] / "configs" / "kitti"
RIG = load_rig("pandaset_64")
CLASSES = ["car", "pedestrian"]
TARGET = "rtx-ampere"  # compiles without a GPU
MODULE: dict[str, Any] = {
    "name": "pandaset",
    "kind": "union",
    "parts": [
        {"kind": "low_rank", "slots": ["trunk.stage*.?", "trunk.lift?", "heads.*"], "rank": 1},
        {"kind": "scale_shift", "slots": ["trunk.*.norm"]},
    ],
}


def _with_module(model: PerceptionModel) -> None:
    spec = parse_module(MODULE)
    model.bank.add(spec)
    model.reconfigure(model.config.model_copy(update={"modules": (spec,)}))
    optimize.post_hoc(model, [spec.name])


WAYS: dict[str, Callable[[PerceptionModel], object]] = {
    "zero_shot": lambda model: optimize.post_hoc(model, ()),
    "adapted": _with_module,
    "head": lambda model: optimize.base(model, ["heads.*"]),
    "full": lambda model: model.requires_grad_(True),
}


def pandaset(
    data: Path = SHARED / "pandaset",
    weights: Path = SHARED / "pointpillars_kitti" / "pointpillars.safetensors",
    out: Annotated[Path, typer.Option(help="Folder of the stages.")] = Path("runs/pandaset"),
    steps: int = 160,
    rate: Annotated[tuple[float, float, float], typer.Option(help="Of module or head, all, and classes.")] = (
        5e-3,
        3e-4,
        2e-2,
    ),
    stages: Annotated[str, typer.Option(help="Only these.")] = ",".join((*WAYS, "further", "vehicle")),
    held_back: Annotated[str, typer.Option(help="Frames to score.")] = HELD_BACK,
    trained: Annotated[str, typer.Option(help="Frames to train on.")] = TRAINED,
) -> dict[str, Any]:
    """Scores on held-back frames, seen to the front and to the rear (`pandaset_scores.score`), parameters that
    trained, and what is left on simulated sweeps of KITTI's LiDAR; of the adapted network with further classes, too,
    and of what is exported of it.

    Parked cars are seen in both parts of the drive, 0.8 s apart. Stages that the folder has are not repeated, and a
    training that was interrupted goes on.
    """
    bench, result = _Bench(data, out, weights, steps, rate, trained, held_back), dict[str, Any]()
    for stage in stages.split(","):
        file = out / f"{stage}.json"
        if not file.exists():
            file.write_text(json.dumps(bench.way(stage) if stage in WAYS else getattr(bench, stage)()))
        result[stage] = json.loads(file.read_text())
    if {"zero_shot", "adapted", "full"} <= result.keys():
        zero, adapted, full = (result[way]["car"]["ap"] for way in ("zero_shot", "adapted", "full"))
        result["share_of_gain"] = (adapted - zero) / (full - zero)
    return result


class _Bench:
    def __init__(
        self,
        data: Path,
        out: Path,
        weights: Path,
        steps: int,
        rate: tuple[float, float, float],
        trained: str,
        held_back: str,
    ) -> None:
        self.data, self.out, self.steps, self.rate = data, out, steps, rate
        self.trained, self.held_back = trained, held_back
        if not (out / "kitti").exists():
            import_pointpillars(CONFIGS / "pointpillars.yaml", weights, out / "kitti")
        base = TorchPredictor.load(out / "kitti")
        self.memory = Memory(base, out / "simulated", load_taxonomy("kitti").label("car"))
        self.everything = self._drives(load_taxonomy("pandaset"))

    def _drives(self, taxonomy: Taxonomy) -> PandaSet:
        return PandaSet(self.data, RIG, taxonomy)

    def way(self, way: str) -> dict[str, Any]:
        """Trains one way, and scores it."""
        model = _model(self.out / "kitti", self.steps, self.rate[way == "full"])
        drives, before = self._drives(model.config.taxonomy), model.bank.base_hash()
        WAYS[way](model)
        trained = sum(parameter.numel() for _, parameter in optimize.parameters(model))
        start, run = time.process_time(), self.out / way
        if trained:
            model.eval()  # the imported normalisations have no statistics of their own to renew
            tokens = drives.samples(selectors=[self.trained])
            fit(model, drives, tokens, run, resume=newest(run) is not None)
        seconds = (time.process_time() - start) / self.steps
        return {
            **self._scored(TorchPredictor(model), drives, CLASSES),
            "trained_share": trained / sum(parameter.numel() for parameter in base_parameters(model)),
            "processor_seconds_per_step": seconds,
            "base_unchanged": model.bank.base_hash() == before,
            "simulated": self.memory.of(TorchPredictor(model)),
        }

    def further(self) -> dict[str, Any]:
        """The adapted network with further classes; and with its module switched off what it still knows."""
        content, run = read_task(CONFIGS / "pandaset_further.yaml"), self.out / "further"
        options = content["tasks"]["detection"]
        taxonomy = extend_taxonomy(read_config(self.out / "adapted"), "detection", options, "further")
        drives, rate = self._drives(taxonomy), self.rate[2]
        training = {"steps": self.steps, "learning_rate": rate}
        add_task(self.out / "adapted", "detection", content, drives, "all", [self.trained], run, **training)
        model, config = load_model(run)
        own = [each.name for each in config.tasks["detection"].further.classes]  # type: ignore[attr-defined]
        added = sum(parameter.numel() for parameter in model.added.parameters())
        scores = self._scored(TorchPredictor(model), drives, [*CLASSES, *own])
        share = added / sum(parameter.numel() for parameter in base_parameters(model))
        known = self.memory.of(TorchPredictor(model))
        model.bank.delete(MODULE["name"])
        off = self.memory.of(TorchPredictor(model))
        return {**scores, "trained_share": share, "simulated": known, "simulated_without_module": off}

    def vehicle(self) -> dict[str, Any]:
        """The adapted network with further classes, exported and compiled; PandaSet is replayed in INT8."""
        run, folder = self.out / "further", self.out / "vehicle"
        config = read_config(run)
        drives, names = self._drives(config.taxonomy), config.taxonomy.class_names
        classes = [name for name in names if name in self.everything.taxonomy.class_names]
        precisions: tuple[Precision, ...] = ("fp32", "int8")
        result: dict[str, Any] = {}
        for precision in precisions:
            frames = Drives(self.data, scenes=[self.trained]) if precision == "int8" else None
            bundle = export(run, folder / precision, console=QUIET, precision=precision, calibration=frames)
            plan = build(bundle.path, TARGET, QUIET)
            assert isinstance(plan, EngineRecord), f"{TARGET} compiles here"
            verify(bundle.path)
            scores = self._scored(Runtime(bundle.path), drives, classes)
            result[precision] = {**scores, "plan_megabytes": plan.plan_bytes / 1e6}
        summary = replay(Source(self.data), folder / "int8", folder / "replay", console=QUIET)
        return {**result, "replayed_frames": summary["frames"]}

    def _scored(self, predict: Predict, drives: PandaSet, names: list[str]) -> dict[str, Any]:
        seen, everything = Views(drives, VIEWS), Views(self.everything, VIEWS)
        return score(predict, seen, everything, seen.samples(selectors=[self.held_back]), names)


def _model(run: Path, steps: int, rate: float) -> PerceptionModel:
    model, config = load_model(run)
    train = config.train.model_copy(update={"steps": steps, "learning_rate": rate, "checkpoint_every": 20})
    model.reconfigure(config.model_copy(update={"train": train}))
    return model
