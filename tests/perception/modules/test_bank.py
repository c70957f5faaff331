"""The life of a module: added, trained, frozen, merged, deleted; and a base that keeps every bit through all of it."""

import copy
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import BRANCHES, FOG, KIND_NAMES, Layers, disturb, inputs, model, spec
from torch import Tensor, nn
from vocabulary import CONDITIONS

from perception.errors import InputError
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.modules.aggregation.representations import add_fusion
from perception.modules.bank import Bank
from perception.modules.composition import Fuse, Stack
from perception.modules.route import Route
from perception.modules.routing.fixed import make_fixed_routes
from perception.modules.spec import COMPUTATIONS
from perception.modules.status import compact


class Routed(Layers):
    """A network of all types of layers, whose modules run in fog, as the perception model's do."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.bank = Bank(self.eval(), CONDITIONS)

    def forward(self, x, conditions):
        ((route, _),) = make_fixed_routes(self.bank, ["detection"], conditions, {})
        with self.bank.current.running(route):
            return {"y": super().forward(x)}


def batch(network: nn.Module, *seeds: int) -> Any:
    """Inputs with one frame for each seed."""
    if isinstance(network, PerceptionModel):
        return inputs(*seeds)
    frames = [torch.randn(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(frames)


def outputs(network: Any, conditions: Conditions | None = None) -> dict[str, Tensor]:
    with torch.no_grad():
        return network.eval()(batch(network, 1), [conditions or Conditions()])


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """The same names and bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def of_module(network: nn.Module, name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state(network).items() if f".computations.{name}." in key}


def moved(network: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def learn(network: Any, *modules: str) -> None:
    """Train as a loop does that knows nothing of modules: training mode, an optimizer over all there is, decay."""
    network.bank.train(*modules)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.02, weight_decay=0.1)
    for seed in (3, 4):
        network.train()
        dense = network(batch(network, 2, seed), [FOG, FOG])
        loss = sum((value - 1).square().mean() for value in dense.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# Every kind on the small network, one on the perception model.
PLACES = [(kind, Routed, ("conv*", "up", "head.*")) for kind in KIND_NAMES] + [("low_rank", model, BRANCHES)]


def some_slots(data: st.DataObject, network: Any, kind: str, patterns: tuple[str, ...]) -> list[str]:
    able = [slot for slot in network.bank.slots.values() if COMPUTATIONS[kind].attaches_to(slot.layer)]
    globs = [glob for glob in patterns if any(fnmatchcase(slot.name, glob) for slot in able)]
    return data.draw(st.lists(st.sampled_from(globs), min_size=1, max_size=2, unique=True))


@pytest.mark.parametrize(("kind", "make", "patterns"), PLACES)
@settings(max_examples=2, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_is_done_with_modules_the_base_keeps_every_bit(kind, make, patterns, data):
    network = make()
    pristine, expected, fingerprint = state(network), outputs(network), network.bank.base_hash()
    moves = ["add", "train", *data.draw(st.lists(st.sampled_from(["add", "train", "delete"]), max_size=3))]
    bank = network.bank
    for i, move in enumerate(moves):
        there = list(bank.modules)
        if move == "add":
            chosen = kind if i == 0 else data.draw(st.sampled_from(KIND_NAMES))
            bank.add(spec(f"m{i}", chosen, *some_slots(data, network, chosen, patterns)))
        elif move == "train" and there:
            names = data.draw(st.lists(st.sampled_from(there), min_size=1, unique=True))
            before = {name: of_module(network, name) for name in there}
            learn(network, *names)
            for name in there:
                assert same(before[name], of_module(network, name)) == (name not in names)
        elif there:
            bank.delete(data.draw(st.sampled_from(there)))
        after = state(network)
        assert all(torch.equal(after[name], value) for name, value in pristine.items())
        assert same(outputs(network), expected)
        assert bank.base_hash() == fingerprint
        assert bool(bank.modules) or after.keys() == pristine.keys()


@pytest.mark.parametrize(
    ("a", "b", "make"),
    [*((a, b, Routed) for a, b in pairwise([*KIND_NAMES, KIND_NAMES[0]])), ("series_adapter", "low_rank", model)],
)
def test_training_a_second_module_leaves_the_first_bit_for_bit(a, b, make):
    network = make()
    base, slots = outputs(network), ("trunk.*", "heads.*") if make is model else ("*",)
    network.bank.add(spec("a", a, *slots))
    learn(network, "a")
    network.bank.activate("a")
    expected, tensors = outputs(network, FOG), of_module(network, "a")
    assert not same(expected, base)
    assert all(value.isfinite().all() for value in expected.values())

    network.bank.add(spec("b", b, *slots))
    network.bank.activate(Stack("a", "b"))
    learn(network, "b")
    assert not same(outputs(network, FOG), expected)
    network.bank.activate("a")
    assert same(outputs(network, FOG), expected)
    assert same(of_module(network, "a"), tensors)


def owners(keys: Iterable[str]) -> set[str]:
    """The modules that parts or tensors belong to, or `base`."""
    return {key.split(".computations.")[1].split(".")[0] if ".computations." in key else "base" for key in keys}


def learning(network: nn.Module) -> set[str]:
    """Whose parameters get gradients."""
    return owners(key for key, parameter in network.named_parameters() if parameter.requires_grad)


def in_training(network: nn.Module) -> set[str]:
    """Whose batch normalisations and other layers are in training mode."""
    parts = network.named_modules()
    return owners(key for key, part in parts if key and part.training and not isinstance(part, nn.ModuleDict))


def two_modules() -> PerceptionModel:
    network = model()
    network.bank.add(spec("a", "batch_norm", "trunk.*"))
    network.bank.add(spec("b", "low_rank", "heads.*"))
    return network


def test_what_trains_follows_the_networks_mode_and_all_else_stays_in_evaluation():
    network = two_modules()
    network.bank.train("a")
    assert learning(network) == in_training(network) == {"a"}
    network.train()  # as any loop may
    network(inputs(1), [FOG])
    assert in_training(network) == {"a"}
    network.eval()
    network(inputs(1), [FOG])
    assert in_training(network) == set()
    network.train()
    twin = copy.deepcopy(network)
    network.bank.train("b")
    assert learning(network) == in_training(network) == {"b"}
    network.bank.freeze("b")
    assert learning(network) == in_training(network) == set()
    twin.train()
    twin(inputs(1), [FOG])
    assert in_training(twin) == {"a"}
    twin.bank.add(spec("c", "rescale"))  # waits to be named
    assert learning(twin) == {"a"}
    twin.bank.train("a", "c")
    assert learning(twin) == {"a", "c"}
    assert learning(network) == in_training(network) == set()


def test_the_attention_of_a_fuse_block_trains_alone_by_its_key_and_goes_with_its_modules():
    network = model()
    pristine = state(network)
    for name in ("a", "b", "stack", "c"):
        network.bank.add(spec(name, "low_rank", "heads.*"))
        disturb(network, name)
    block = Fuse("b", "a")
    add_fusion(network.bank, block)
    network.bank.activate(block)
    before = state(network)
    learn(network, block.key)
    assert moved(network, before)
    assert all(f".fusions.{block.key}." in name for name in moved(network, before))

    network.bank.activate(None)
    add_fusion(network.bank, Fuse("c", Stack("b", "a")))
    network.bank.delete("stack")  # in the key of a block this is a type, no module
    fusions = [name for name in state(network) if ".fusions." in name and name.endswith("query")]
    assert len(fusions) == 2 * len(network.bank.at("a"))
    network.bank.delete("a")
    assert not any(".fusions." in name for name in state(network))
    network.bank.delete("b")
    network.bank.delete("c")
    assert same(state(network), pristine)


def test_the_fingerprint_depends_on_types_and_shapes_but_not_on_memory_format():
    def fingerprint(weight: Tensor) -> str:
        layer = nn.Linear(1, 1, bias=False)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return Bank(layer, CONDITIONS).base_hash()

    assert fingerprint(torch.zeros(2, 3)) == fingerprint(torch.zeros(2, 3))
    for same_bytes in (torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32)):
        assert fingerprint(same_bytes) != fingerprint(torch.zeros(2, 3))
    cells = torch.randn(2, 3, 4, 4)
    last = cells.to(memory_format=torch.channels_last)
    assert last.stride() != cells.stride()
    assert fingerprint(last) == fingerprint(cells)


@settings(max_examples=20)
@given(st.data())
def test_the_fingerprint_sees_every_bit_of_every_parameter_and_buffer(data):
    network = Layers()
    bank = Bank(network, CONDITIONS)
    before = bank.base_hash()
    tensor = network.state_dict()[data.draw(st.sampled_from(sorted(network.state_dict())))]
    raw = tensor.reshape(-1).view(torch.uint8)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert bank.base_hash() != before


def layers(*kinds: str) -> tuple[Layers, Bank]:
    """Every type of layer, with a module of each kind, called after it, that has learned something."""
    torch.manual_seed(0)
    network = Layers().eval()
    bank = Bank(network, CONDITIONS)
    for i, kind in enumerate(kinds):
        bank.add(spec(kind, kind, "*"))
        disturb(network, kind, seed=i)
    return network, bank


def test_a_prompt_that_has_not_run_does_not_fold():
    _, bank = layers("low_rank", "prompt")
    with pytest.raises(InputError, match="run a frame through the model first"):
        bank.fold({name: [Route({"low_rank": 1.0, "prompt": 1.0})] for name in bank.slots})


def test_status_counts_by_hand():
    _, bank = layers()
    bank.add(spec("lora", "low_rank", "conv", "head.*", rank=2))
    bank.add(spec("neck", "bottleneck", "up", reduction=2))
    bank.train("lora")
    bank.activate("neck")
    base = 4 * 2 * 9 + 2 * 4 + 4 * 4 * 4 + 4 + 4 * 6 + 6 + 2 * 6
    lora, neck = bank.status()
    assert (lora.name, lora.kind, lora.slots, lora.where) == ("lora", "low_rank", 2, ["conv", "head.linear"])
    assert lora.parameters == lora.multiply_adds == (2 * 2 * 9 + 2 * 4) + (2 * 4 + 2 * 6) == lora.share * base
    assert (lora.folds, lora.when, lora.state) == (True, ["fog"], ["training"])
    assert (neck.slots, neck.where, neck.parameters) == (1, ["up"], 4 * 2 + 2 * 4)
    assert (neck.folds, neck.state) == (False, ["active", "frozen"])


NAMES = ("a", "a.norm", "a.b", "a.b.c", "ab", "ab.x", "b.a", "b.b", "b.b.c")


@given(st.lists(st.sampled_from(NAMES), min_size=1, unique=True), st.data())
def test_compact_names_match_the_chosen_slots_and_no_others(able, data):
    chosen = data.draw(st.lists(st.sampled_from(able), unique=True))
    globs = compact(chosen, able)
    assert {name for name in able if any(fnmatchcase(name, glob) for glob in globs)} == set(chosen)
    assert len(globs) <= len(chosen)


def test_globs_take_the_slots_that_fit_and_deleting_leaves_no_trace():
    network, bank = layers()
    before = state(network)
    for slots, message in (
        (("conv", "tronk.*"), r"no slot is called 'tronk.*'; there are conv, conv.norm, up,"),
        (("head.norm",), r"low_rank does not attach to BatchNorm1d, which is what 'head.norm' names"),
    ):
        with pytest.raises(InputError, match=message):
            bank.add(spec("a", "low_rank", *slots))
    assert same(state(network), before)
    bank.add(spec("a", "low_rank", "head.*", "conv*"))
    bank.add(spec("b", "rescale", "*"))
    assert set(bank.at("a")) == {"head.linear", "conv"}
    assert set(bank.at("b")) == set(bank.slots)
    with pytest.raises(InputError, match="already has a module called 'a'"):
        bank.add(spec("a", "low_rank", "up"))
    for action in (bank.activate, bank.train, bank.freeze, bank.delete):
        with pytest.raises(InputError, match="no module called 'rain'; there are: a, b"):
            action("rain")
    bank.activate(Stack("b", "a"))
    with pytest.raises(InputError, match="module 'a' is active"):
        bank.delete("a")
    bank.activate("b")
    bank.delete("a")
    bank.activate(None)
    bank.delete("b")
    assert same(state(network), before)
