"""Routing in the whole model: by facts, by a chooser, and in the exported graph."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from routed import LITTLE, assert_same, frame_inputs, little, module
from torch import Tensor, nn
from vocabulary import CONDITIONS, RIG

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import differences, synthetic_frame
from deploy.onnx_export import to_onnx
from deploy.tolerances import LEAST
from perception.config import parse_config
from perception.errors import InputError
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.modules.route import Route
from perception.modules.routing import load_balance
from perception.modules.routing.show_route import routing_table
from perception.training import trainable
from perception.training.loader import batch_labels


def copied_base(model: PerceptionModel, to: PerceptionModel) -> PerceptionModel:
    own = model.state_dict()
    to.load_state_dict({key: own[key] for key in to.state_dict()})
    return to


ALL = [
    module("rain", "rain"), module("night", "night"), module("boston", "boston"), module("blind", "no-lidar"),
    module("cam", slots=("camera.*",)),
]  # fmt: skip


@torch.no_grad()
def test_without_modules_for_a_frame_the_model_is_the_base_bit_for_bit() -> None:
    model = little(ALL[:4], camera=True)
    base = copied_base(model, little([], camera=True))
    inputs = frame_inputs(model, 1, 2)
    assert_same(model(inputs), base(inputs))
    assert_same(model(inputs, [Conditions(weather="clear", light="day", city="singapore"), Conditions()]), base(inputs))
    wet = model(inputs, [Conditions(weather="rain"), Conditions()])
    assert not torch.allclose(wet["detection/heatmap"][0], base(inputs)["detection/heatmap"][0])
    torch.testing.assert_close(wet["detection/heatmap"][1], base(inputs)["detection/heatmap"][1])


@torch.no_grad()
def test_swapping_a_module_that_does_not_run_leaves_every_bit() -> None:
    model = little(ALL, camera=True)
    inputs, tags = frame_inputs(model, 1), [Conditions(weather="rain", light="day", city="singapore")]
    before = model(inputs, tags)
    for name in ("night", "boston", "blind"):
        for slot in model.bank.slots.values():
            if name in slot.computations:
                nn.init.normal_(slot.computations[name].b.weight)
    assert_same(model(inputs, tags), before)
    nn.init.normal_(model.bank.slots["trunk.stage0.0"].computations["rain"].b.weight)
    assert not torch.equal(model(inputs, tags)["detection/heatmap"], before["detection/heatmap"])


@torch.no_grad()
def test_a_mixed_batch_equals_its_frames_one_by_one() -> None:
    model = little(ALL, camera=True)
    inputs = frame_inputs(model, 1, 2, 3)
    inputs["pillar_counts"][1] = 0  # frame 1 has no LiDAR, frame 2 no pictures
    inputs["pillar_points"][1] = 0
    inputs["pillar_cells"][1] = 32 * 32
    inputs["images"][2], inputs["image_from_reference"][2] = 0, 0
    tags = [
        Conditions(weather="rain", light="night", city="boston"),
        Conditions(),
        Conditions(weather="rain", light="day"),
    ]
    together = model(inputs, tags)
    for i, tag in enumerate(tags):
        alone = model({name: value[i : i + 1] for name, value in inputs.items()}, [tag])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][i], value[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tasks_with_their_own_modules_in_the_trunk_get_their_own_passes() -> None:
    modules = [module("find", "detection", slots=("trunk.*",)), module("draw", "map", slots=("trunk.*",))]
    model = little(modules)
    inputs = frame_inputs(model, 1)
    outputs = model(inputs)
    assert len(model.routes) == 2
    model.bank.activate("find")
    found = model(inputs)
    model.bank.activate("draw")
    drawn = model(inputs)
    assert not torch.allclose(found["map/logits"], drawn["map/logits"])
    for name, value in outputs.items():
        assert torch.equal(value, (drawn if name == "map/logits" else found)[name])


# ---- the whole model with a chooser


def test_without_routing_the_model_has_no_chooser_and_with_it_all_its_keys_are_the_choosers() -> None:
    plain = little(ALL[:2]).state_dict().keys()
    assert not [key for key in plain if "chooser" in key]
    more = little(ALL[:2], {"kind": "learned", "choose": "reinforce"}).state_dict().keys()
    assert plain < more
    assert all(key.startswith("chooser.") for key in more - plain)


def test_configuration_of_the_routing_is_strict() -> None:
    with pytest.raises(InputError, match=r"x: routing\.choose: input should be 'soft', 'top_k', 'gumbel'"):
        parse_config(LITTLE | {"routing": {"kind": "learned", "choose": "hard"}}, "x")
    with pytest.raises(InputError, match=r"x: routing\.width: is not a known key"):
        parse_config(LITTLE | {"routing": {"kind": "learned", "width": 3}}, "x")
    with pytest.raises(InputError, match=r"x: routing\.kind: input should be 'learned'"):
        parse_config(LITTLE | {"routing": {"kind": "fixed"}}, "x")


@torch.no_grad()
def test_the_chooser_serves_the_slots_after_the_fusion_and_tags_the_others() -> None:
    """With all logits on `rain`, the model is the one that runs it after the fusion alone, whatever the tags say."""
    modules = [module("rain", "rain", slots=("lidar.*", "trunk.*")), module("night", "night")]
    model = little(modules, {"kind": "learned", "choose": "gumbel"})
    fixed = copied_base(model, little(modules))
    nn.init.constant_(model.chooser.options["rain"].bias, 1e4)
    inputs = frame_inputs(model, 1)
    served = {name: {"rain": 1.0} for name in model.bank.slots if name.startswith(("trunk.", "heads."))}
    for tags, before in (([], {}), ([Conditions(weather="rain", light="night")], {"rain": 1.0})):
        fixed.bank.active = Route(before, served)
        assert_same(model(inputs, tags), fixed(inputs))
    model.bank.activate("night")
    fixed.bank.activate("night")
    assert_same(model(inputs), fixed(inputs))


def test_routing_losses_of_a_training_batch_teach_the_chooser() -> None:
    model = little(ALL[:4], {"kind": "learned", "choose": "reinforce", "balance": 0.1, "supervise": 0.5}).train()
    inputs = frame_inputs(model, 1, 2)
    model(
        inputs,
        [
            Conditions(weather="rain", light="day", city="boston"),
            Conditions(weather="clear", light="night", city="singapore"),
        ],
    )
    losses = model.routing_losses(torch.tensor([1.0, 2.0]))
    assert losses.keys() == {"balance", "supervision", "reinforce"}
    chooser = dict(model.chooser.named_parameters())
    for loss in losses.values():
        gradients = torch.autograd.grad(loss, list(chooser.values()), retain_graph=True)
        assert sum(g.abs().sum() for g in gradients) > 0
    assert little(ALL[:4]).routing_losses() == {}
    assert little(ALL[:4]).routing_balance() == {}
    evenness = model.routing_balance()
    assert losses["balance"].item() == pytest.approx(0.1 * evenness["gshard"])
    assert evenness == load_balance.report(model.routes[0].logits, model.routes[0].chosen)
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()  # in the middle of training, too


@pytest.mark.parametrize("task", ["detection", "map"])
def test_a_module_of_another_task_is_no_option(task: str) -> None:
    modules = [module("find", "detection", slots=("trunk.*",)), module("draw", "map", slots=("trunk.*",))]
    model = little(modules, {"kind": "learned"})
    model(frame_inputs(model, 1))
    detection, drawing = model.routes
    other, route = ("draw", detection) if task == "detection" else ("find", drawing)
    weights = route.at("trunk.stage0.0")
    assert weights[other].item() == 0
    assert 0 < weights["find" if task == "detection" else "draw"].item() < 1


# ---- a recogniser beside the route


def test_what_is_recognised_shapes_neither_base_nor_modules() -> None:
    model = little(ALL[:2], recognising=True).train()
    tags = [Conditions(weather="rain", light="day", city="boston"), Conditions(weather="clear", light="night")]
    dense = model(frame_inputs(model, 1, 2), tags)
    frames = [replace(synthetic_frame("ego", RIG, seed=0), conditions=known) for known in tags]
    labels = batch_labels([{"conditions": model.tasks["conditions"].labels(frame)} for frame in frames])
    losses = model.losses(dense, labels)
    assert losses.keys() == {f"conditions/{kind}" for kind in CONDITIONS}
    torch.stack([loss.mean() for loss in losses.values()]).sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if name.startswith("added.conditions.")}
    assert not [name for name in little(ALL[:2]).state_dict() if name.startswith("added.")]


@torch.no_grad()
def test_what_is_recognised_is_a_distribution_of_each_kind_and_the_rest_of_the_output_stays() -> None:
    model = little(ALL[:2], recognising=True)
    plain = copied_base(model, little(ALL[:2]))
    inputs, tags = frame_inputs(model, 1), [Conditions(weather="rain")]
    found = model.predict(inputs, tags)
    recognised = found.pop("conditions/probabilities")
    assert_same(found, plain.predict(inputs, tags))
    for kind in recognised.split([len(values) for values in CONDITIONS.values()], dim=1):
        torch.testing.assert_close(kind.sum(dim=1), torch.ones(1))


@torch.no_grad()
def test_while_a_recogniser_learns_modules_run_whatever_the_tags_say() -> None:
    model = little([module("rain", "rain"), module("night", "night")], recognising=True)
    trainable.added_task(model, "conditions")
    inputs, found = frame_inputs(model, 1), set()
    torch.manual_seed(0)
    for _ in range(60):
        model(inputs, [Conditions(weather="clear", light="day", city="boston")])
        found.add(frozenset(model.routes[0].weights))
    assert found == {frozenset(), frozenset({"rain"}), frozenset({"night"}), frozenset({"rain", "night"})}
    assert {name.split(".")[0] for name, _ in trainable.parameters(model)} == {"added"}


def test_a_head_learns_beside_a_router_that_has_nothing_to_choose_for_it() -> None:
    modules = [module("rain", "rain", slots=("trunk.*",)), module("night", "night", slots=("trunk.*",))]
    model = little(modules, {"kind": "learned", "balance": 0.1}, recognising=True)
    inputs, tags = frame_inputs(model, 1), [Conditions(weather="clear", light="day", city="boston")]
    model.train()(inputs, tags)
    assert model.routing_losses()
    assert model.routing_balance()
    trainable.added_task(model, "conditions")
    assert all(name.startswith("conditions/") for name in model(inputs, tags))
    assert len(model.routes) == 1
    assert model.routing_losses() == model.routing_balance() == {}


# ---- export


def test_an_exported_model_keeps_its_chooser_and_folds_what_is_before_it() -> None:
    modules = [module("rain", "rain", slots=("trunk.*",)), module("blind", "no-lidar", slots=("trunk.*",))]
    routing = {"kind": "learned", "choose": "top_k", "k": 2, "level": "slot"}
    model = little([*modules, module("beam", "rain", slots=("lidar.*",))], routing)
    folded = model.folded(Conditions(weather="rain"))
    assert (folded.bank.folded, list(folded.bank.modules)) == (("beam",), ["rain", "blind"])
    inputs = frame_inputs(model, 1)
    expected = predicted(folded, inputs)
    assert differences(predicted(model, inputs, [Conditions(weather="rain")]), expected, LEAST.all(model.tasks)) == []
    content = to_onnx(folded, arrays(inputs), list(expected)).SerializeToString()
    assert differences(expected, OnnxRuntimeEngine(content).run(arrays(inputs)), LEAST.all(model.tasks)) == []

    blind = {"pillar_points": 0, "pillar_counts": 0, "pillar_cells": 32 * 32}
    inputs = {name: torch.full_like(inputs[name], value) for name, value in blind.items()}
    expected = predicted(folded, inputs)
    assert any(row.weight > 0 for row in routing_table(folded.routes[0], folded.bank) if row.module == "blind")
    assert differences(expected, OnnxRuntimeEngine(content).run(arrays(inputs)), LEAST.all(model.tasks)) == []


def predicted(
    model: PerceptionModel, inputs: dict[str, Tensor], tags: Sequence[Conditions] = ()
) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return arrays(model.predict(inputs, tags))


def arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in tensors.items()}
