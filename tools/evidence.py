"""Does the modular idea pay? One base, other weathers, lights and cities, every way to adapt, measured.

    python tools/evidence.py --out runs/evidence --seeds 3

Simulates the drives, trains a base on the clear days of one city, adapts it to each target in every way, composes
the modules for combinations of conditions that no module saw, and writes evidence.json, evidence.md and evidence.png.
Each number is kept in OUT/rows as soon as it is there: a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from evidence_plan import (
    BASE_STEPS,
    BEHIND_BACKBONE,
    CLAIMED,
    COMBINATIONS,
    ROUTED,
    ROUTERS,
    SAMPLES,
    SCENES,
    SOURCE,
    STEPS,
    TARGETS,
    UNION,
    WAYS,
)
from evidence_report import write_report
from rich.console import Console

from perception.atomic import write_atomically
from perception.config import Config, find_config, load_config, parse_config
from perception.data.inputs import InputSpec, prepare
from perception.data.nuscenes import NuScenesTables
from perception.evaluation.evaluate import evaluate
from perception.frame import Conditions, Frame, Prediction
from perception.model import PerceptionModel
from perception.modules.aggregation.composition import fuses
from perception.modules.aggregation.merge import Method, merge_modules
from perception.modules.aggregation.notation import parse_block
from perception.modules.aggregation.representations import add_fusion
from perception.modules.routing.inspect import routing_table
from perception.predict import TorchPredictor
from perception.simulate.simulate import simulate
from perception.training import settings
from perception.training.adapt import with_module
from perception.training.checkpoint import load_model, newest
from perception.training.loop import fit
from perception.training.recalibrate import recalibrate


class Evidence:
    """The experiment in a folder."""

    def __init__(self, out: Path, seeds: int) -> None:
        self.out, self.seeds, self.console = out, seeds, Console()
        boston, singapore = [*TARGETS.values()][:3], TARGETS["singapore"]
        conditions = [SOURCE, *boston, SOURCE, singapore, *(c for c, _ in COMBINATIONS.values())]
        if not (out / "drives" / "v1.0-sim").exists():
            self.console.print("simulating the drives")
            simulate(out / "drives", SCENES, SAMPLES, 3, ["-".join(c) for c in conditions])
        self.tables = NuScenesTables(out / "drives", "v1.0-sim")

    def run(self) -> None:
        self.zero_shot()
        for seed in range(self.seeds):
            for target in TARGETS:
                for way in CLAIMED:
                    self.adapt(seed, target, way)
            for combination in COMBINATIONS:
                self.compose(seed, combination)
        for way in WAYS:
            for target in TARGETS:
                self.adapt(0, target, way)
        for router in ROUTERS:
            self.learn_to_route(0, router)
        for way in CLAIMED:
            for combination in COMBINATIONS:
                self.adapt(0, combination, way)
        write_report(self.out)

    # Each of these makes rows, unless they are there already.

    def zero_shot(self) -> None:
        for domain in ("source", *TARGETS, *COMBINATIONS):
            self.row(0, domain, "zero-shot", lambda domain=domain: {"target": self.scores(self.base(), domain)})
        self.adapt(0, "source", "full fine-tune")  # what more training alone gains

    def adapt(self, seed: int, target: str, name: str) -> None:
        """One way to adapt to one target, scored there and, where the base itself changed, on the source."""

        def measure() -> dict[str, Any]:
            model, way = self.adapted(seed, target, name), WAYS[name]
            trained = sum(p.numel() for _, p in settings.trainable(self.prepared(seed, target, name)))
            row: dict[str, Any] = {
                "parameters": trained,
                "share": trained / sum(p.numel() for p in self.base().parameters()),
                "target": self.scores(model, target),
            }
            if way.module:  # the base's bytes are as before, so that the source scores as before
                row["base_unchanged"] = model.bank.base_hash() == self.base().bank.base_hash()
            else:
                row["source"] = self.scores(model, "source")
            return row

        self.row(seed, target, name, measure)

    def compose(self, seed: int, combination: str) -> None:
        """Modules for single conditions, put together for a combination that none of them was trained on."""
        for name, make in self.compositions(seed, combination):
            self.row(seed, combination, name, lambda make=make: {"target": self.scores(make(), combination)})

    def learn_to_route(self, seed: int, name: str) -> None:
        """A router that sees no tags, scored everywhere; and how often it picks the module that the tags would."""
        self.row(seed, "routing", name, lambda: self.picks(self.router(seed, name)))
        for domain in ("source", *TARGETS, *COMBINATIONS):
            self.row(
                seed, domain, name, lambda d=domain: {"target": self.scores(self.router(seed, name), d, blind=True)}
            )

    def compositions(self, seed: int, combination: str) -> Iterator[tuple[str, Callable[[], PerceptionModel]]]:
        _, (a, b) = COMBINATIONS[combination]

        def activated(text: str) -> Callable[[], PerceptionModel]:
            def make() -> PerceptionModel:
                model = self.together(seed)
                model.bank.activate(parse_block(text))
                return model

            return make

        def merged(method: Method, calibrated: bool = False, **options: Any) -> Callable[[], PerceptionModel]:
            def make() -> PerceptionModel:
                model = self.together(seed)
                merge_modules(model.bank, "merged", [a, b], method, **options)
                model.bank.activate("merged")
                if calibrated:  # needs drives of the combination, but none of their annotations
                    recalibrate(model, self.inputs(self.tokens("sim_train", combination)), "merged")
                return model

            return make

        yield f"alone: {a}", activated(a)
        yield f"alone: {b}", activated(b)
        yield "composed: routed by tags", lambda: self.together(seed)
        yield "composed: average", activated(f"average({a}, {b})")
        yield "composed: 0.7 of each", activated(f"average(0.7*{a}, 0.7*{b})")
        yield f"composed: stack({a}, {b})", activated(f"stack({a}, {b})")
        yield "merged: average", merged("average")
        yield "merged: average, recalibrated", merged("average", calibrated=True)
        yield "merged: task arithmetic 0.7", merged("task_arithmetic", strength=0.7)
        yield "merged: TIES 0.5", merged("ties", keep=0.5)
        yield "merged: DARE 0.5", merged("dare", drop=0.5)
        if seed == 0:
            yield f"composed: fuse({a}, {b})", lambda: self.fused(seed, a, b)

    # What the rows are made of.

    def tokens(self, split: str, domain: str) -> list[str]:
        conditions = SOURCE if domain == "source" else TARGETS.get(domain) or COMBINATIONS[domain][0]
        return settings.under(self.tables, self.tables.samples(split), conditions)

    def config(self, seed: int, **training: Any) -> Config:
        config = load_config(find_config("tiny"))
        options = {"precision": "bf16", "checkpoint_every": 10_000, "steps": BASE_STEPS} | training
        train = config.train.model_copy(update=options)
        return config.model_copy(update={"modules": (), "seed": seed, "train": train})

    def base(self) -> PerceptionModel:
        run = self.out / "base"
        if newest(run) is None:
            torch.manual_seed(0)
            model = PerceptionModel(self.config(0))
            settings.joint(model)
            fit(model, self.tables, self.tokens("sim_train", "source"), run)
        return load_model(run)[0]

    def prepared(self, seed: int, target: str, name: str) -> PerceptionModel:
        """The base, set to train in this way."""
        model, way = self.base(), WAYS[name]
        config = self.config(seed, steps=STEPS, learning_rate=way.rate)
        if way.module:
            conditions = TARGETS.get(target) or COMBINATIONS[target][0]
            when = [c for c in conditions if c not in SOURCE]
            slots = {} if "parts" in way.module else {"slots": BEHIND_BACKBONE}
            module = {"name": target.replace("+", "_"), "when": when} | slots | way.module
            config = with_module(config, module)
            torch.manual_seed(seed)
            model.bank.add(config.modules[-1])
            settings.post_hoc(model, [config.modules[-1].name])
        else:
            settings.base(model, way.parts)
        model.config = config
        return model

    def adapted(self, seed: int, target: str, name: str) -> PerceptionModel:
        run = self.out / f"seed{seed}" / target / name.replace(" ", "-")
        if newest(run) is None:
            fit(self.prepared(seed, target, name), self.tables, self.tokens("sim_train", target), run)
        return load_model(run)[0]

    def together(self, seed: int, way: str = UNION) -> PerceptionModel:
        """The base with the modules of all single targets."""
        model = self.base()
        for target in TARGETS:
            trained = self.adapted(seed, target, way)
            model.bank.add(trained.bank.modules[target])
            model.load_state_dict(trained.state_dict(), strict=False)
        return model.eval()

    def router(self, seed: int, name: str) -> PerceptionModel:
        """All single modules and a router learned on the drives of all single conditions."""
        run = self.out / f"seed{seed}" / "routers" / "".join(c for c in name if c.isalpha())
        if newest(run) is None:
            together = self.together(seed, ROUTED)
            content = self.config(seed, steps=STEPS, learning_rate=5e-3).model_dump(mode="json")
            modules = [spec.model_dump(mode="json") for spec in together.bank.modules.values()]
            model = PerceptionModel(parse_config(content | {"modules": modules, "routing": ROUTERS[name]}, name))
            model.load_state_dict(together.state_dict(), strict=False)
            settings.routing(model)
            tokens = [token for domain in ("source", *TARGETS) for token in self.tokens("sim_train", domain)]
            fit(model, self.tables, tokens, run)
        return load_model(run)[0]

    @torch.inference_mode()
    def picks(self, model: PerceptionModel) -> dict[str, Any]:
        """Of the validation frames of each single domain, how many went to which option."""
        options = ("base", *TARGETS)
        picked = {domain: dict.fromkeys(options, 0) for domain in ("source", *TARGETS)}
        for domain, counts in picked.items():
            for inputs, _ in self.inputs(self.tokens("sim_val", domain)):
                model(inputs)
                rows = routing_table(model.routes[0], model.bank)
                weights = {row.module: row.weight for row in rows if row.slot == "trunk.stage0.0"}
                weights["base"] = 1 - sum(weights.values())
                counts[max(options, key=lambda o: weights.get(o, 0.0))] += 1
        frames = sum(sum(counts.values()) for counts in picked.values())
        right = sum(counts["base" if domain == "source" else domain] for domain, counts in picked.items())
        load = {o: sum(counts[o] for counts in picked.values()) / frames for o in options}
        return {"accuracy": right / frames, "load": load, "picked": picked}

    def fused(self, seed: int, a: str, b: str) -> PerceptionModel:
        """Two modules joined by attention, which was trained on drives of the one and of the other condition."""
        run, text = self.out / f"seed{seed}" / "fusions" / f"{a}-{b}", f"fuse({a}, {b})"
        if newest(run) is None:
            model, block = self.together(seed), parse_block(text)
            config = self.config(seed, steps=STEPS, learning_rate=2e-3)
            modules = tuple(model.bank.modules.values())
            model.config = config.model_copy(update={"modules": modules, "fusions": (text,)})
            add_fusion(model.bank, block)
            model.bank.activate(block)
            settings.post_hoc(model, [fuse.key for fuse in fuses(block)])
            fit(model, self.tables, self.tokens("sim_train", a) + self.tokens("sim_train", b), run)
        model = load_model(run)[0]
        model.bank.activate(parse_block(text))
        return model

    def inputs(self, tokens: list[str]) -> Iterator[tuple[dict[str, torch.Tensor], list[Conditions]]]:
        """What the network takes, frame by frame."""
        spec = InputSpec.of(self.config(0))
        for token in tokens:
            frame = self.tables.frame(token, spec.grid.reference, spec.sweeps, annotations=False)
            yield {k: torch.from_numpy(v) for k, v in prepare(frame, spec).items()}, [frame.conditions]

    def scores(self, model: PerceptionModel, domain: str, blind: bool = False) -> dict[str, Any]:
        """On the domain's validation drives; blind: without a word about their conditions."""
        see, folder = TorchPredictor(model), self.out / "evaluation"

        def predictor(frame: Frame) -> Prediction:
            return see(replace(frame, conditions=Conditions()) if blind else frame)

        selectors = self.selectors(self.tokens("sim_val", domain))
        quiet = Console(quiet=True)
        metrics = evaluate(predictor, self.tables, "sim_val", selectors, folder, see.spec, quiet)
        shutil.rmtree(folder)
        return {
            "mAP": metrics["mAP"],
            "NDS": metrics["NDS"],
            "mIoU": metrics["map"]["iou_max"]["mean"],
            "car_ap": metrics["mean_dist_aps"]["car"],
            "frames": metrics["samples"],
        }

    def selectors(self, tokens: list[str]) -> list[str]:
        return sorted({self.tables.frame(token, lidar=False, cameras=False).scene for token in tokens})

    def row(self, seed: int, domain: str, way: str, measure: Callable[[], dict[str, Any]]) -> None:
        path, base = self.place(seed, domain, way), self.base().bank.base_hash()
        if path.exists() and json.loads(path.read_text())["base"] == base:
            return
        content = {"seed": seed, "domain": domain, "way": way, "base": base} | measure()
        self.keep(content)
        self.console.print(content)

    def place(self, seed: int, domain: str, way: str) -> Path:
        words = re.findall(r"[\w.]+", way)
        return self.out / "rows" / f"{domain}-{'-'.join(words)}-{seed}.json"

    def keep(self, row: dict[str, Any]) -> None:
        path = self.place(row["seed"], row["domain"], row["way"])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(row, indent=1) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=Path, help="rows.json of an earlier run; those on the same base count")
    arguments = parser.parse_args()
    evidence = Evidence(arguments.out, arguments.seeds)
    for row in json.loads(arguments.rows.read_text()) if arguments.rows else ():
        evidence.keep(row)
    evidence.run()


if __name__ == "__main__":
    main()
