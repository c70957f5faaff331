"""Measure whether modules pay: one base, other weather, light and cities, and every way to adapt.

    python tools/evidence.py --out runs/evidence --seeds 3

It simulates the drives, trains a base on the clear days of one city, adapts it to each target in every way, composes
the modules for combinations of conditions that no module saw, and writes evidence.json, evidence.md and evidence.png.
Each result is stored in OUT/rows immediately, so that a killed run resumes. It can be started once per core, all but
the first after the base is trained: each process measures rows that no other is measuring.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from evidence_models import Models
from evidence_plan import CLAIMED, COMBINATIONS, ROUTED_BY, ROUTERS, TARGETS, WAYS
from evidence_report import write_report
from evidence_rows import Rows
from rich.console import Console

from perception.datasets.keyframes import Reads
from perception.evaluation.evaluate import evaluate
from perception.frame import Conditions, Frame, Prediction
from perception.model import PerceptionModel
from perception.modules.aggregation.merge import Merging, Method, merge_modules
from perception.modules.aggregation.notation import parse_block
from perception.modules.routing.show_route import routing_table
from perception.predict import TorchPredictor
from perception.training import trainable
from perception.training.recalibrate import recalibrate


class Evidence:
    """The experiment in a folder."""

    def __init__(self, out: Path, seeds: int) -> None:
        self.out, self.seeds = out, seeds
        self.models = Models(out)
        self.rows = Rows(out / "rows", self.models.base().bank.base_hash())

    def run(self) -> None:
        self.zero_shot()
        for seed in range(self.seeds):
            for target in TARGETS:
                for way in CLAIMED:
                    self.adapt(seed, target, way)
        for seed in range(self.seeds):
            for combination in COMBINATIONS:
                self.compose(seed, combination)
        for router in ROUTERS:
            self.learn_to_route(router)
        for target in (*TARGETS, *COMBINATIONS):
            for way in WAYS if target in TARGETS else CLAIMED:
                self.adapt(0, target, way)
        write_report(self.out)

    # Each of these methods measures rows, unless they exist.

    def zero_shot(self) -> None:
        for domain in ("source", *TARGETS, *COMBINATIONS):
            self.rows.add(
                0, domain, "zero-shot", lambda domain=domain: {"target": self.scores(self.models.base(), domain)}
            )
        self.adapt(0, "source", "full fine-tune")  # the gain of more training alone

    def adapt(self, seed: int, target: str, name: str) -> None:
        """Adapt to one target in one way; scored there and, if the base changes, on the source."""

        def measure() -> dict[str, Any]:
            model, way = self.models.adapted(seed, target, name), WAYS[name]
            trained = sum(p.numel() for _, p in trainable.parameters(self.models.prepared(seed, target, name)))
            row: dict[str, Any] = {
                "parameters": trained,
                "share": trained / sum(p.numel() for p in self.models.base().parameters()),
                "target": self.scores(model, target),
            }
            if way.module:  # the base is unchanged, and so is the score on the source
                row["base_unchanged"] = model.bank.base_hash() == self.rows.base
            else:
                row["source"] = self.scores(model, "source")
            return row

        self.rows.add(seed, target, name, measure)

    def compose(self, seed: int, combination: str) -> None:
        """Combine modules for single conditions for a combination that none of them was trained on."""
        for name, make in self.compositions(seed, combination):
            self.rows.add(seed, combination, name, lambda make=make: {"target": self.scores(make(), combination)})

    def learn_to_route(self, name: str) -> None:
        """Train a router without tags: how often it picks the module that the tags would, and its scores everywhere."""

        def blind(domain: str) -> dict[str, Any]:
            return {"target": self.scores(self.models.router(0, name), domain, blind=True)}

        for seed in range(self.seeds if name == ROUTED_BY else 1):
            self.rows.add(seed, "routing", name, lambda seed=seed: self.picks(self.models.router(seed, name)))
        for domain in ("source", *TARGETS, *COMBINATIONS):
            self.rows.add(0, domain, name, lambda domain=domain: blind(domain))

    def compositions(self, seed: int, combination: str) -> Iterator[tuple[str, Callable[[], PerceptionModel]]]:
        _, (a, b) = COMBINATIONS[combination]

        def activated(text: str) -> Callable[[], PerceptionModel]:
            def make() -> PerceptionModel:
                model = self.models.together(seed)
                model.bank.activate(parse_block(text))
                return model

            return make

        def merged(method: Method, calibrated: bool = False, **options: Any) -> Callable[[], PerceptionModel]:
            def make() -> PerceptionModel:
                model = self.models.together(seed)
                merge_modules(model.bank, "merged", [a, b], Merging(method, **options))
                model.bank.activate("merged")
                if calibrated:  # needs drives of the combination, but not their annotations
                    recalibrate(model, self.models.tables, self.models.tokens("sim_train", combination), "merged")
                return model

            return make

        yield f"alone: {a}", activated(a)
        yield f"alone: {b}", activated(b)
        yield "composed: routed by tags", lambda: self.models.together(seed)
        yield "composed: average", activated(f"average({a}, {b})")
        yield "composed: 0.7 of each", activated(f"average(0.7*{a}, 0.7*{b})")
        yield f"composed: stack({a}, {b})", activated(f"stack({a}, {b})")
        yield "merged: average", merged("average")
        yield "merged: average, recalibrated", merged("average", calibrated=True)
        yield "merged: task arithmetic 0.7", merged("task_arithmetic", strength=0.7)
        yield "merged: TIES 0.5", merged("ties", keep=0.5)
        yield "merged: DARE 0.5", merged("dare", drop=0.5)
        if seed == 0:
            yield f"composed: fuse({a}, {b})", lambda: self.models.fused(seed, a, b)

    @torch.inference_mode()
    def picks(self, model: PerceptionModel) -> dict[str, Any]:
        """How many validation frames of each single domain were routed to which option."""
        options = ("base", *TARGETS)
        picked = {domain: dict.fromkeys(options, 0) for domain in ("source", *TARGETS)}
        for domain, counts in picked.items():
            for inputs, _ in self.models.inputs(self.models.tokens("sim_val", domain)):
                model(inputs)
                rows = routing_table(model.routes[0], model.bank)
                weights = {row.module: row.weight for row in rows if row.slot == "trunk.stage0.0"}
                weights["base"] = 1 - sum(weights.values())
                counts[max(options, key=lambda o: weights.get(o, 0.0))] += 1
        frames = sum(sum(counts.values()) for counts in picked.values())
        right = sum(counts["base" if domain == "source" else domain] for domain, counts in picked.items())
        load = {o: sum(counts[o] for counts in picked.values()) / frames for o in options}
        return {"accuracy": right / frames, "load": load, "picked": picked}

    def scores(self, model: PerceptionModel, domain: str, blind: bool = False) -> dict[str, Any]:
        """The scores on the domain's validation drives; blind: without their conditions."""
        see, folder = TorchPredictor(model), self.out / f"evaluation-{os.getpid()}"

        def predictor(frame: Frame) -> Prediction:
            return see(replace(frame, conditions=Conditions()) if blind else frame)

        selectors = self.selectors(self.models.tokens("sim_val", domain))
        quiet = Console(quiet=True)
        metrics = evaluate(predictor, self.models.tables, "sim_val", selectors, folder, see.spec, quiet)
        shutil.rmtree(folder)
        return {
            "mAP": metrics["mAP"],
            "NDS": metrics["NDS"],
            "mIoU": metrics["map"]["iou_max"]["mean"],
            "car_ap": metrics["mean_dist_aps"]["car"],
            "frames": metrics["samples"],
        }

    def selectors(self, tokens: list[str]) -> list[str]:
        return sorted({self.models.tables.frame(token, Reads(lidar=False, cameras=False)).scene for token in tokens})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=Path, help="rows.json of an earlier run; those on the same base are used")
    arguments = parser.parse_args()
    evidence = Evidence(arguments.out, arguments.seeds)
    for row in json.loads(arguments.rows.read_text()) if arguments.rows else ():
        evidence.rows.keep(row)
    evidence.run()


if __name__ == "__main__":
    main()
