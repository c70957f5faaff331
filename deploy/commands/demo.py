"""The whole product on simulated drives: a base, modules for fog and another city, routes, a drive that changes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from deploy.build import build
from deploy.commands.tour import (
    BASE,
    CHANGING,
    DOMAINS,
    KEYFRAMES,
    MARK,
    MODULES,
    SUMMARY,
    VERSION,
    clear,
    simulate_shown,
)
from deploy.export import export
from deploy.precision.calibrate import Drives
from deploy.replay.run import replay
from deploy.replay.settings import Source
from perception.checkpoint import load_model
from perception.config import Config, find_config, load_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.evaluation.evaluate import evaluate
from perception.io.files import write_atomically
from perception.predict import TorchPredictor
from perception.sensors.camera.pretrained import load_packaged
from perception.training.adapt import adapt, add_task
from perception.training.loop import train


class Size(NamedTuple):
    """How much a demo simulates and trains."""

    drives: int  # of each domain, with 2 keyframes each
    further: int  # clear drives beyond these
    steps: int | None  # of the base; None: as many as configs/demo.yaml says
    module_steps: int
    keyframes: int  # of the drive that changes


FULL = Size(drives=30, further=60, steps=None, module_steps=500, keyframes=KEYFRAMES)


class Demo:
    """Writes to the folder `out`; each step uses what the ones before it wrote.

    drives/           drives of each of `DOMAINS`
    changing/         one drive from clear weather into fog and out of it
    run/              the base, trained on the drives of `BASE`
    singapore/, fog/  the base with a module for the other city, and then for fog
    conditions/       with the task that recognises the weather
    before/, after/   scores of the base and of the base with modules, on held-out drives of each domain
    bundle/           all of it as one graph with a route for each module, and what the sensors of drives/ deliver
    replay/           the changing drive through the bundle, with report.html
    summary.json
    """

    def __init__(self, out: Path, size: Size, console: Console) -> None:
        self.out, self.size, self.console = out, size, console

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
            MARK: "full",
            **_summary(before, after),
            "base_unchanged": _base_hash(base) == _base_hash(recognising),
            "seconds": round(time.perf_counter() - start, 1),
            "report": str(report),
            "checkpoint": str(base),
            "bundle": str(bundle),
        }
        write_atomically(self.out / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        return summary

    def simulate(self) -> None:
        self.console.rule("1  simulate drives in clear weather, in another city and in fog, and one that changes")
        drives = [*DOMAINS.values()] * self.size.drives + [DOMAINS[BASE]] * self.size.further
        simulate_shown(self.out / "drives", len(drives), 2, 0, drives, self.console)
        simulate_shown(self.out / "changing", 1, self.size.keyframes, 1, [CHANGING], self.console)

    @cached_property
    def tables(self) -> NuScenesTables:
        return NuScenesTables(self.out / "drives", VERSION)

    def train(self) -> Path:
        self.console.rule("2  train the base on clear drives")
        config = _config(self._scenes("sim_train", BASE), self.size.steps)
        return train(config, self.tables, "sim_train", self.out / "run")

    def adapt(self, checkpoint: Path) -> Path:
        for name in MODULES:
            self.console.rule(f"3  train a module for {name} on the frozen base")
            checkpoint = adapt(
                checkpoint, _module(name), self.tables, "sim_train", (), self.out / name,
                steps=self.size.module_steps, learning_rate=0.01,
            )  # fmt: skip
        return checkpoint

    def add_conditions(self, checkpoint: Path) -> Path:
        self.console.rule("4  add the task that recognises the weather")
        return add_task(checkpoint, "conditions", {}, self.tables, "sim_train", (), self.out / "conditions")

    def evaluate(self, checkpoint: Path, folder: str) -> dict[str, Any]:
        """Scores on the held-out drives of each domain; the drives' tags choose the modules."""
        self.console.rule(f"5  evaluate on held-out drives: {folder}")
        predictor, scores = TorchPredictor.load(checkpoint), {}
        for name in DOMAINS:
            scenes, out = self._scenes("sim_val", name), self.out / folder / name
            scores[name] = evaluate(predictor, self.tables, "sim_val", scenes, out, predictor.spec, self.console)
        return scores

    def export(self, checkpoint: Path) -> Path:
        self.console.rule("6  export with a route for each module, and compile")
        routes, drives = [(), *((name,) for name in MODULES)], Drives(self.out / "drives", VERSION)
        bundle = export(checkpoint, self.out / "bundle", routes, calibration=drives).path
        build(bundle, "cpu")
        if find_spec("tensorrt_rtx"):
            build(bundle, "rtx-ampere")
        return bundle

    def replay(self, bundle: Path) -> Path:
        self.console.rule("7  replay a drive from clear weather into fog and out of it")
        return Path(replay(Source(self.out / "changing", VERSION), bundle, self.out / "replay")["report"])

    def _scenes(self, split: str, domain: str) -> list[str]:
        tables = self.tables
        first = {name: tables.conditions(tables.samples(split, (name,))[0]) for name in tables.scenes(split)}
        return [name for name, conditions in first.items() if "-".join(conditions.known()) == DOMAINS[domain]]


def demo(out: Path, size: Size = FULL) -> dict[str, Any]:
    """Run the demo in the folder `out`, which may hold an earlier demo; see `Demo`."""
    console = Console()
    load_packaged("perception demo")
    clear(out, "full")
    summary = Demo(out, size, console).run()
    console.print(_table(summary["modules"]))
    console.print_json(data=summary)
    console.print(f"Open {Path(summary['report']).resolve()}")
    return summary


def _config(scenes: Sequence[str], steps: int | None) -> Config:
    overrides = [] if steps is None else [f"train.steps={steps}"]
    config = load_config(find_config("demo"), overrides)
    return config.model_copy(update={"data": config.data.model_copy(update={"scenes": tuple(scenes)})})


def _module(name: str) -> dict[str, Any]:
    """Own statistics and low-rank deltas in all but the image backbone."""
    slots = ["lidar.*", "camera.lateral*", "camera.neck*", "fuse*", "trunk.*", "heads.*"]
    return {
        "name": name,
        "kind": "union",
        "when": [name],
        "parts": [{"kind": "batch_norm", "slots": slots}, {"kind": "low_rank", "slots": slots, "rank": 8}],
    }


def _summary(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The base's scores in its own domain, what each module gains in its own, and how often weather is recognised."""
    base = before[BASE]
    return {
        "car_ap": base["mean_dist_aps"]["car"],
        "mAP": base["mAP"],
        "NDS": base["NDS"],
        "iou_drivable_area": base["map"]["iou_0.5"]["drivable_area"],
        "modules": {name: _compare_scores(before[name], after[name]) for name in MODULES},
        "clear_unchanged": all(base[score] == after[BASE][score] for score in ("mean_dist_aps", "map", "mAP", "NDS")),
        "weather_recognised": {name: scores["conditions"]["weather"] for name, scores in after.items()},
    }


def _compare_scores(base: Mapping[str, Any], with_module: Mapping[str, Any]) -> dict[str, Any]:
    def both(score: str) -> dict[str, float]:
        return {"base": base[score], "with_module": with_module[score]}

    iou = {name: scores["map"]["iou_0.5"]["mean"] for name, scores in (("base", base), ("with_module", with_module))}
    return {**both("NDS"), "samples": base["samples"], "mAP": both("mAP"), "mIoU": iou}


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
