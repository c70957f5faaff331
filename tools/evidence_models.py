"""The models of the evidence: base, adapted models, combined modules and routers.

Each is trained when it is first needed, and later read from its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from evidence_plan import (
    BASE_STEPS,
    BEHIND_BACKBONE,
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
from evidence_rows import locked

from perception.config import Config, find_config, load_config, parse_config
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.modules.aggregation.composition import fuses
from perception.modules.aggregation.notation import parse_block
from perception.modules.aggregation.representations import add_fusion
from perception.sensors.inputs import InputSpec, prepare
from perception.simulate.simulate import simulate
from perception.training import trainable
from perception.training.adapt import with_module
from perception.training.checkpoint import load_model, newest
from perception.training.loop import fit


class Models:
    """The models in a folder, and their training drives."""

    def __init__(self, out: Path) -> None:
        self.out = out
        boston, singapore = [*TARGETS.values()][:3], TARGETS["singapore"]
        conditions = [SOURCE, *boston, SOURCE, singapore, *(c for c, _ in COMBINATIONS.values())]
        if not (out / "drives" / "v1.0-sim").exists():
            print("simulating the drives", flush=True)
            simulate(out / "drives", SCENES, SAMPLES, 3, ["-".join(c) for c in conditions])
        self.tables = NuScenesTables(out / "drives", "v1.0-sim")

    def tokens(self, split: str, domain: str) -> list[str]:
        conditions = SOURCE if domain == "source" else TARGETS.get(domain) or COMBINATIONS[domain][0]
        return trainable.with_conditions(self.tables, self.tables.samples(split), conditions)

    def config(self, seed: int, **training: Any) -> Config:
        config = load_config(find_config("tiny"))
        options = {"precision": "bf16", "checkpoint_every": 10_000, "steps": BASE_STEPS} | training
        train = config.train.model_copy(update=options)
        return config.model_copy(update={"modules": (), "seed": seed, "train": train})

    def trained(self, run: Path, train: Callable[[], None]) -> PerceptionModel:
        """The model of this run, after calling `train` if there is none yet."""
        with locked(run):
            if newest(run) is None:
                train()
        return load_model(run)[0]

    def base(self) -> PerceptionModel:
        run = self.out / "base"

        def train() -> None:
            torch.manual_seed(0)
            model = PerceptionModel(self.config(0))
            trainable.joint(model)
            fit(model, self.tables, self.tokens("sim_train", "source"), run)

        return self.trained(run, train)

    def prepared(self, seed: int, target: str, name: str) -> PerceptionModel:
        """The base, prepared for training in this way."""
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
            trainable.post_hoc(model, [config.modules[-1].name])
        else:
            trainable.base(model, way.parts)
        model.config = config
        return model

    def adapted(self, seed: int, target: str, name: str) -> PerceptionModel:
        run = self.out / f"seed{seed}" / target / name.replace(" ", "-")

        def train() -> None:
            fit(self.prepared(seed, target, name), self.tables, self.tokens("sim_train", target), run)

        return self.trained(run, train)

    def together(self, seed: int, way: str = UNION) -> PerceptionModel:
        """The base with the modules of all single targets."""
        model = self.base()
        for target in TARGETS:
            trained = self.adapted(seed, target, way)
            model.bank.add(trained.bank.modules[target])
            model.load_state_dict(trained.state_dict(), strict=False)
        return model.eval()

    def router(self, seed: int, name: str) -> PerceptionModel:
        """The first seed's modules, and a router trained on the drives of all single conditions."""
        run = self.out / f"seed{seed}" / "routers" / "".join(c for c in name if c.isalpha())

        def train() -> None:
            together = self.together(0, ROUTED)
            content = self.config(seed, steps=STEPS, learning_rate=5e-3).model_dump(mode="json")
            modules = [spec.model_dump(mode="json") for spec in together.bank.modules.values()]
            model = PerceptionModel(parse_config(content | {"modules": modules, "routing": ROUTERS[name]}, name))
            model.load_state_dict(together.state_dict(), strict=False)
            trainable.routing(model)
            tokens = [token for domain in ("source", *TARGETS) for token in self.tokens("sim_train", domain)]
            fit(model, self.tables, tokens, run)

        return self.trained(run, train)

    def fused(self, seed: int, a: str, b: str) -> PerceptionModel:
        """Two modules fused by attention, which was trained on drives of either condition."""
        run, text = self.out / f"seed{seed}" / "fusions" / f"{a}-{b}", f"fuse({a}, {b})"

        def train() -> None:
            model, block = self.together(seed), parse_block(text)
            config = self.config(seed, steps=STEPS, learning_rate=2e-3)
            modules = tuple(model.bank.modules.values())
            model.config = config.model_copy(update={"modules": modules, "fusions": (text,)})
            add_fusion(model.bank, block)
            model.bank.activate(block)
            trainable.post_hoc(model, [fuse.key for fuse in fuses(block)])
            fit(model, self.tables, self.tokens("sim_train", a) + self.tokens("sim_train", b), run)

        model = self.trained(run, train)
        model.bank.activate(parse_block(text))
        return model

    def inputs(self, tokens: list[str]) -> Iterator[tuple[dict[str, torch.Tensor], list[Conditions]]]:
        """The network's inputs, frame by frame."""
        spec = InputSpec.of(self.config(0))
        for token in tokens:
            frame = self.tables.frame(token, Reads(spec.grid.reference, spec.sweeps, annotations=False))
            yield {k: torch.from_numpy(v) for k, v in prepare(frame, spec).items()}, [frame.conditions]
