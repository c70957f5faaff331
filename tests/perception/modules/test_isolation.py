"""A module for one task changes the outputs of that task and of no other."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from networks import config, disturb, spec
from torch import Tensor, nn
from vocabulary import RIG

from deploy.golden import synthetic_frame
from perception.config import parse_config
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.modules.spec import parse_module
from perception.sensors.inputs import prepare
from perception.tasks import TASKS
from perception.tasks.task import part_of

POINTS = 500
HEADS = {
    "points": {"max_points": POINTS},
    "occupancy": {"x": [-8, 8], "y": [-8, 8], "z": [-1, 0.6], "cell": 0.8, "channels": 8},
}
CONDITIONS = [Conditions(weather="rain")]
REACHED = TASKS.keys() - {"conditions"}  # which is recognised from pictures, before all slots


@cache
def inputs() -> dict[str, Tensor]:
    arrays = prepare(synthetic_frame("ego", RIG, 0), replace(config().spec, points=POINTS))
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@cache
def network() -> PerceptionModel:
    """With a head of every task, and statistics of real activations."""
    content = config().model_dump(mode="json")
    heads = {name: content["tasks"].get(name) or HEADS.get(name, {}) for name in TASKS}
    torch.manual_seed(0)
    model = PerceptionModel(parse_config(content | {"tasks": heads}, "a head of every task"))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            nn.init.ones_(module.weight)  # some begin at zero, so that nothing before them has an effect
    outputs(model)
    return model.eval()


def slots_of_layers(task: str | None = None) -> list[str]:
    """All but that of the memory, which is of all tasks; with a task without those of other heads."""
    every = [slot for slot in network().bank.slots if slot != "memory"]
    return [slot for slot in every if task is None or slot.split(".")[0] != "heads" or slot.split(".")[1] == task]


@torch.no_grad()
def outputs(model: PerceptionModel) -> dict[str, dict[str, Tensor]]:
    """By task."""
    dense = model(inputs(), CONDITIONS)
    return {task: dict(part_of(task, dense)) for task in model.tasks}


def changed(model: PerceptionModel) -> set[str]:
    """The tasks of which an output is not, bit for bit, that of the network without modules."""
    base, now = without_modules(), outputs(model)
    return {task for task in base if any(not torch.equal(now[task][name], base[task][name]) for name in base[task])}


@cache
def without_modules() -> dict[str, dict[str, Tensor]]:
    return outputs(network())


def add_module(model: PerceptionModel, task: str, *slots: str) -> None:
    """One that runs for this task, as if it had learned something."""
    model.bank.add(spec(f"for_{task}", "scale_shift", *slots, when=[task]))
    disturb(model, f"for_{task}")


def test_a_module_at_any_slot_changes_the_tasks_behind_it():
    """One slot of each part, as parts run theirs one after the other."""
    model = copy.deepcopy(network())
    parts = {tuple(slot.split(".")[:2]): slot for slot in slots_of_layers()}
    assert {slot.split(".")[0] for slot in parts.values()} == {"lidar", "camera", "fuse", "fused", "trunk", "heads"}
    for slot in parts.values():
        for task in TASKS:
            add_module(model, task, slot)
        part, _, rest = slot.partition(".")
        assert changed(model) == ({rest.split(".")[0]} if part == "heads" else REACHED), slot
        for task in TASKS:
            model.bank.delete(f"for_{task}")
    assert changed(model) == set()


@torch.no_grad()
def drive(model: PerceptionModel) -> dict[str, dict[str, Tensor]]:
    """By task, and of the state, the outputs on the second of two frames, between which the vehicle moves."""
    motion = torch.eye(4)[None]
    motion[0, 0, 3] = -1.5
    states = model.no_states(1)
    for frame in range(2):
        past = {"state_valid": torch.tensor([float(frame > 0)]), "elapsed": torch.tensor([0.5])}
        dense = model(inputs() | past | states | {"current_from_previous": motion}, CONDITIONS)
        states = {"state": dense["next_state"]}
    return {task: dict(part_of(task, dense)) for task in model.tasks} | {"state": states}


@pytest.mark.parametrize("task", sorted(REACHED))
def test_a_module_changes_its_own_task_alone_over_a_drive_with_a_memory(task):
    """The state is of all tasks, so it knows nothing of a module for one of them; deployed networks agree."""
    base = copy.deepcopy(network())
    base.bank.add(parse_module({"name": "memory", "kind": "memory"}))
    disturb(base, "memory", 0.5)
    model = copy.deepcopy(base)
    add_module(model, task, *slots_of_layers(task))
    expected, found, deployed = drive(base), drive(model), drive(model.deployed(*CONDITIONS))
    differ = {part for part in expected if any(not torch.equal(found[part][k], v) for k, v in expected[part].items())}
    assert differ == {task}
    for part, tensors in deployed.items():
        common = tensors.keys() & found[part].keys()  # a deployed head may compute its own instead
        assert common
        for name in common:
            torch.testing.assert_close(tensors[name], found[part][name], rtol=1e-3, atol=1e-3)
