"""A small perception model, and small networks of slots, with random weights."""

import copy
from functools import cache
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from vocabulary import NUSCENES, RIG

from deploy.golden import synthetic_frame
from deploy.tolerances import LEAST, Ranked, Spread, Tolerances
from perception.config import Config, find_config, load_config, parse_config
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.modules.computation.kinds import KINDS
from perception.modules.slot import Slot
from perception.modules.spec import Module
from perception.sensors.inputs import InputSpec, prepare
from perception.tasks import tasks_of
from perception.tasks.task import Task

FOG = Conditions(weather="fog")
BRANCHES = ("lidar.*", "camera.*", "fuse*", "trunk.*", "heads.*")
AFFINE = [kind for kind, computation in KINDS.items() if computation.affine]


def spec(name: str, kind: str, *slots: str, **options: object) -> Module:
    """A module that runs in fog."""
    return TypeAdapter(Module).validate_python(
        {"name": name, "kind": kind, "slots": slots or ("trunk.*",), "when": ["fog"], **options}
    )


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
    frames = [prepare(synthetic_frame("ego", RIG, seed), InputSpec.of(config())) for seed in seeds]
    return {name: torch.cat([torch.from_numpy(frame[name]) for frame in frames]) for name in frames[0]}


@torch.no_grad()
def settled(model: PerceptionModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
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
    settled(model, inputs(7, 8))
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
