"""Small networks, with random weights that matter: of the product, of slots alone, with anchors, and to train."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exported import folder
from torch import Tensor, nn
from vocabulary import CONDITIONS, NUSCENES, RIG

from deploy.golden import synthetic_frame
from deploy.precision.measure import LEAST, Ranked, Spread, Tolerances
from perception.checkpoint import save_model
from perception.config import Config, find_config, load_config, parse_config
from perception.frame import Boxes, Conditions
from perception.model import PerceptionModel
from perception.modules.bank import Bank
from perception.modules.computation.weight_delta import LowRank
from perception.modules.routing.fixed import make_fixed_routes
from perception.modules.routing.learned import LearnedRouter
from perception.modules.slot import Slot
from perception.modules.spec import COMPUTATIONS, LearnedRouting, Module, parse_module
from perception.sensors import SENSORS
from perception.sensors.inputs import prepare
from perception.tasks import TASKS, tasks_of
from perception.tasks.task import Task
from perception.training.loader import Batch

FOG = Conditions(weather="fog")
BRANCHES = ("lidar.*", "camera.*", "fuse*", "trunk.*", "heads.*")
KIND_NAMES = [kind for kind in COMPUTATIONS if kind != "memory"]  # which stands at a slot of its own
AFFINE = [kind for kind, computation in COMPUTATIONS.items() if computation.affine]


def spec(name: str, kind: str, *slots: str, **options: object) -> Module:
    """A module that runs in fog."""
    return parse_module({"name": name, "kind": kind, "slots": slots or ("trunk.*",), "when": ["fog"], **options})


@cache
def config() -> Config:
    """`tiny` without modules and subcells, with a view of 26 m and pictures of 64 x 32 pixels.

    With subcells the best of many random scores are nearly alike.
    """
    content = load_config(find_config("tiny")).model_dump(mode="json")
    content["grid"] |= {"x": [-12.8, 12.8], "y": [-12.8, 12.8]}
    content["model"]["lidar"] |= {"max_pillars": 200, "channels": 16}
    content["model"]["camera"]["image"] = {"height": 32, "width": 64}
    content["tasks"]["detection"]["subcells"] = 1
    return parse_config(content | {"modules": []}, "tiny")


@cache
def tasks() -> dict[str, Task[Any]]:
    """Of `config`: detection and map."""
    return tasks_of(config().tasks, config().head_grid, NUSCENES)


@cache
def inputs(*seeds: int) -> dict[str, Tensor]:
    """A batch with one frame for each seed."""
    frames = [prepare(synthetic_frame("ego", RIG, seed), config().spec) for seed in seeds]
    return {name: torch.cat([torch.from_numpy(frame[name]) for frame in frames]) for name in frames[0]}


@torch.no_grad()
def settle_statistics(model: PerceptionModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs in training, whose statistics the normalisations take over."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    outputs: dict[str, Tensor] = model.train()(inputs)
    for norm in norms:
        norm.momentum = 0.1
    return outputs


@cache
def _model() -> tuple[PerceptionModel, Tensor]:
    """With torch's random state behind it."""
    torch.manual_seed(0)
    model = PerceptionModel(config())
    settle_statistics(model, inputs(7, 8))
    return model.eval(), torch.get_rng_state()


def model() -> PerceptionModel:
    """A copy of one model without modules, with statistics of real activations.

    Modules that are added to it begin with the same weights, whichever tests ran before.
    """
    made, state = _model()
    torch.set_rng_state(state)
    return copy.deepcopy(made)


def disturb(network: nn.Module, name: str, size: float = 0.1, seed: int = 0) -> None:
    """Random numbers on all parameters of the module of this name, as if it had learned something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if f".computations.{name}." in key:
                parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


class Layers(nn.Module):
    """Every type of layer that a slot may hold, in float64: (B, 2, H, W) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Slot("conv", nn.Conv2d(2, 4, 3, padding=1, bias=False))
        self.norm = Slot("conv.norm", nn.BatchNorm2d(4))
        self.up = Slot("up", nn.ConvTranspose2d(4, 4, 2, 2))
        self.linear = Slot("head.linear", nn.Linear(4, 6))
        self.last = Slot("head.norm", nn.BatchNorm1d(6))
        self.double()
        for norm in (self.norm.layer, self.last.layer):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.up(self.norm(self.conv(x))))
        y: Tensor = self.last(self.linear(x.mean(dim=(2, 3))))
        return y


def uniform_tolerances(most: float, tasks: dict[str, Task[Any]]) -> Tolerances:
    """The same for every quantity, in its unit, with no detection lost."""
    bound, spread = LEAST.all(tasks), Spread(each=most, mean=most)
    ranked = Ranked(score=spread, center=spread, size=spread, heading=spread, velocity=spread, lost=0)
    dense = {output: dict.fromkeys(channels, spread) for output, channels in bound.dense.items()}
    return Tolerances(ranked=dict.fromkeys(bound.ranked, ranked), dense=dense)


EVERYWHERE = ("trunk.*", "heads.*")


class Net(nn.Module):
    """A map (B, 4, 6, 8) through two slots."""

    def __init__(self, modules: list[LowRank], routing: LearnedRouting | None = None) -> None:
        super().__init__()
        self.one, self.two = Slot("trunk.one", nn.Conv2d(4, 4, 3, 2, 1)), Slot("heads.two", nn.Conv2d(4, 3, 1))
        self.bank = Bank(self, CONDITIONS, TASKS, SENSORS)
        for module in modules:
            self.bank.add(module)
        self.chooser = LearnedRouter(routing, 4, self.bank) if routing else None

    def forward(self, x: Tensor, sensors: dict[str, Tensor], conditions: list[Conditions] | None = None) -> Tensor:
        ((fixed, tasks),) = make_fixed_routes(self.bank, ["detection"], conditions or [], {})
        self.route = self.chooser(x, fixed, sensors, tasks, conditions or []) if self.chooser else fixed
        with self.bank.current.running(self.route):
            y: Tensor = self.two(self.one(x))
        return y

    def predict(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"y": self(inputs["x"], {"lidar": inputs["lidar"] > 0})}


ROUTED = [
    LowRank.Options(name="rain", slots=EVERYWHERE, rank=2, when=("rain",)),
    LowRank.Options(name="blind", slots=("trunk.*",), rank=2, when=("no-lidar",)),
    LowRank.Options(name="seeing", slots=EVERYWHERE, rank=2, when=("lidar", "night")),
]


def randomise(network: Any, scale: float = 1.0) -> Any:
    """Modules and chooser with random numbers; new modules are the identity and a new chooser is indifferent."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if "computations" in name or name.startswith("chooser"):
            nn.init.normal_(parameter, 0, scale)
    return network


def make_learned_routing(choose: str = "soft", level: str = "global", **options: Any) -> LearnedRouting:
    return LearnedRouting.model_validate({"kind": "learned", "choose": choose, "level": level, **options})


def weights_at(network: Net, slot: str) -> dict[str, Tensor]:
    """Of the modules that the slot holds."""
    there = network.bank.slots[slot].computations
    return {name: w for name, w in network.route.at(slot).items() if name in there}


def softmax(values: np.ndarray) -> np.ndarray:
    e = np.exp(values - values.max())
    return e / e.sum()


LITTLE = {
    "name": "little",
    "grid": {"x": [-12.8, 12.8], "y": [-12.8, 12.8]},
    "model": {
        "lidar": {"max_pillars": 600, "points_per_pillar": 4, "channels": 8, "sweeps": 0},
        "fused_channels": 8,
        "trunk": {"channels": [8, 8], "blocks": [1, 1], "strides": [1, 2], "up_channels": 8, "stride": 1},
    },
    "tasks": {"detection": {"channels": 8, "top_k": 20}, "map": {"channels": 8}},
}
CAMERA = {
    "backbone": "resnet10t", "stages": [2], "channels": 8, "image": {"height": 32, "width": 64},
    "depth": {"bins": 8}, "heights": [0.0], "stride": 2,
}  # fmt: skip


def module(name: str, *when: str, slots: tuple[str, ...] = EVERYWHERE) -> dict[str, Any]:
    return {"name": name, "kind": "low_rank", "slots": list(slots), "rank": 2, "when": list(when)}


def little(
    modules: list[dict[str, Any]],
    routing: dict[str, Any] | None = None,
    camera: bool = False,
    recognising: bool = False,
) -> PerceptionModel:
    content: Any = copy.deepcopy(LITTLE) | {"modules": modules, "routing": routing}
    content["tasks"] |= {"conditions": {}} if recognising else {}
    content["model"] |= {"camera": CAMERA} if camera or recognising else {}
    torch.manual_seed(0)
    model = PerceptionModel(parse_config(content, "little"))
    heatmap: Any = model.heads["detection"].branches["heatmap"]
    nn.init.normal_(heatmap[1].layer.weight, 0, 0.3)  # so that the peaks differ
    return randomise(model, 0.2).eval()


def frame_inputs(model: PerceptionModel, *seeds: int) -> dict[str, Tensor]:
    frames = [prepare(synthetic_frame("ego", RIG, seed=seed), model.config.spec) for seed in seeds]
    return {name: torch.from_numpy(np.concatenate([f[name] for f in frames])) for name in frames[0]}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


SIDES = [[1.9, 4.6, 1.7], [0.7, 0.7, 1.8], [2.5, 0.5, 1.0]]
RAIN = {"name": "rain", "kind": "low_rank", "slots": ["lidar.*", "trunk.*", "heads.*"], "rank": 2, "when": ["rain"]}


def anchored_config(neck: str, modules: list[dict[str, object]] | None = None) -> Config:
    """With a `pyramid` of three maps, or with one that is `joined`; a view of 13 m, LiDAR alone."""
    pyramid = neck == "pyramid"
    anchors = [{"size": size, "bottom": -1.8, "x": [-12.8, 12.8], "y": [-12.7, 12.7]} for size in SIDES]
    suppression = {"threshold": 0.05, "kind": "rotated", "most": None, "total": 4000}
    content = {
        "name": f"anchored-{neck}",
        "grid": {"x": [-12.8, 12.8], "y": [-12.8, 12.8], "cell": 0.4, "reference": "lidar"},
        "model": {
            "lidar": {
                "max_pillars": 1500, "overflow": "first", "points_per_pillar": 8, "encoder": "padded", "hidden": [8],
                "channels": 8, "sweeps": 2,
            },
            "fusion": False, "fused_channels": 8,
            "trunk": {"channels": [8, 12, 16], "blocks": [1, 1, 1], "up_channels": 8, "stride": 2, "pyramid": pyramid},
        },
        "tasks": {"detection": {"anchors": {
            "anchors": anchors, "scales": [1, 2, 4] if pyramid else [1], "candidates": 200, "direction_offset": -0.7854,
            "suppression": suppression,
        }}},
        "modules": modules or [],
    }  # fmt: skip
    return parse_config(content, "test")


@cache
def anchored_run(neck: str, modular: bool = False) -> Path:
    """A run with this network: statistics of real activations, and scores that are low on an empty street."""
    out = folder() / f"run-anchored-{neck}-{modular}"
    torch.manual_seed(0)
    model = PerceptionModel(anchored_config(neck, [RAIN] if modular else None))
    inputs = prepare(synthetic_frame("lidar", RIG, seed=7), model.config.spec)
    dense = settle_statistics(model, {name: torch.from_numpy(array) for name, array in inputs.items()})
    with torch.no_grad():
        for name, deviation in {"classes": 1.0, "boxes": 0.2, "directions": 1.0}.items():
            layer = model.heads["detection"].branches[name].layer
            maps = [dense[f"detection/{name}.{i}"] for i in range(len(model.heads["detection"].config.scales))]
            layer.weight *= deviation / max(values.std() for values in maps)
        model.heads["detection"].branches["classes"].layer.bias.fill_(-5.2)
        for name, parameter in model.named_parameters():
            if "computations" in name:  # modules begin as the identity; these shall matter
                parameter.normal_(0, 0.05)
    save_model(out, model.config, model.eval())
    return out


def anchored_objects(seed: int, n: int) -> Boxes:
    """Random objects of about the anchors' sizes, away from each other."""
    rng = np.random.default_rng(seed)
    places = rng.choice(16, n, replace=False)
    centers = np.stack([places % 4 * 6.0 - 9, places // 4 * 6.0 - 9, rng.uniform(-1.5, 0, n)], 1)
    centers[:, :2] += rng.uniform(-1, 1, (n, 2))
    sizes = np.array(SIDES)[rng.integers(0, 3, n)]
    return Boxes.from_yaws(
        centers, sizes * rng.uniform(0.9, 1.1, (n, 3)), rng.uniform(-np.pi, np.pi, n), rng.normal(0, 3, (n, 2)),
        rng.integers(0, 10, n), np.full(n, -1), np.ones(n),
    )  # fmt: skip


def small(**training: object) -> Config:
    """Both sensors and both heads at a size that trains in a moment."""
    image, depth = {"height": 32, "width": 96}, {"bins": 8, "supervision": 0.5}
    camera = CAMERA | {"stages": [2, 3], "image": image, "depth": depth, "heights": [0.0, 1.0], "stride": 1}
    lidar = {"max_pillars": 1500, "points_per_pillar": 5, "channels": 8, "sweeps": 0}
    content = LITTLE | {"name": "small", "grid": {"cell": 3.2}, "data": {"augment": {}}}
    content |= {"model": LITTLE["model"] | {"lidar": lidar, "camera": camera}, "modules": [module("rain", "rain")]}
    defaults = {"steps": 6, "batch": 2, "checkpoint_every": 3, "drop": {"lidar": 0.3, "cameras": 0.3}}
    return parse_config(content | {"train": defaults | training}, "small")


LOADED = load_config(find_config("tiny")).model_dump()


def loader_config(train: dict[str, Any] | None = None, **data: Any) -> Config:
    content = {**LOADED, "train": {**LOADED["train"], "steps": 6, **(train or {})}, "data": {**LOADED["data"], **data}}
    return parse_config(content, "test")


def assert_equal_batches(a: Batch, b: Batch) -> None:
    assert a.tokens == b.tokens
    (some, facts), (others, same_facts) = (zip(*batch.frames, strict=True) for batch in (a, b))
    assert facts == same_facts
    torch.testing.assert_close((some, a.labels), (others, b.labels), rtol=0, atol=0, equal_nan=True)
