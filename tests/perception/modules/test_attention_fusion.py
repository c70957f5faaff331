"""Attention over what modules add, at single layers and at the slots of a bank."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from banks import add, new_bank
from computations import assert_near as close
from computations import randomize
from torch import Tensor, nn

from perception.errors import InputError
from perception.modules.aggregation.composition import Fuse, Stack
from perception.modules.aggregation.representations import AttentionFusion, add_fusion
from perception.modules.bank import Bank
from perception.modules.computation.computation import Site
from perception.modules.module_record import SPECS
from perception.modules.route import Route

SHAPES = [
    (nn.Conv2d(2, 3, 1), (2, 3, 2, 4)),
    (nn.ConvTranspose2d(2, 3, 2), (2, 3, 2, 4)),
    (nn.Linear(2, 3), (2, 4, 3)),
    (nn.BatchNorm1d(3), (5, 3)),
    (nn.BatchNorm1d(3), (5, 3, 1)),
    (nn.BatchNorm2d(3), (2, 3, 2, 4)),
]
every_layer = pytest.mark.parametrize(("layer", "shape"), SHAPES, ids=str)


def fusion_of(layer: Any, *, identity: bool = False) -> AttentionFusion:
    """Attention with random Q and K, and a random V or the identity that it starts with."""
    torch.manual_seed(0)
    fusion = AttentionFusion(copy.deepcopy(layer).double(), Fuse("a", "b", "c"))
    for matrix in (fusion.query, fusion.key) if identity else fusion.parameters():
        nn.init.normal_(matrix)
    return fusion


def site_and_parts(layer: Any, shape: tuple[int, ...], count: int = 3) -> tuple[Site, list[Tensor]]:
    y, *parts = torch.randn(count + 1, *shape, dtype=torch.float64)
    return Site(y, y, layer, None), parts


def cells(tensor: Tensor, layer: Any) -> np.ndarray:
    """(cells, channels)"""
    last = tensor if isinstance(layer, nn.Linear) else tensor.movedim(1, -1)
    return last.detach().reshape(-1, 3).numpy()


@every_layer
def test_attention_is_the_equation_at_each_cell(layer, shape):
    fusion, (site, parts) = fusion_of(layer), site_and_parts(layer, shape)
    q, k, v = (m.detach().numpy() for m in (fusion.query, fusion.key, fusion.value))
    y, members = cells(site.y, layer), [cells(part, layer) for part in parts]
    expected = np.empty_like(y)
    for i in range(len(y)):
        scores = np.array([(q @ y[i]) @ (k @ member[i]) / np.sqrt(3) for member in members])
        shares = np.exp(scores) / np.exp(scores).sum()
        expected[i] = sum(share * (v @ member[i]) for share, member in zip(shares, members, strict=True))
    joint = fusion(site, parts)
    assert joint.shape == site.y.shape
    assert np.abs(cells(joint, layer) - expected).max() < 1e-12 * np.abs(expected).max()


@every_layer
def test_attention_over_duplicates_is_one_of_them_and_order_does_not_matter(layer, shape):
    fusion, (site, parts) = fusion_of(layer), site_and_parts(layer, shape)
    close(fusion_of(layer, identity=True)(site, [parts[0]] * 4), parts[0])
    for order in ([2, 0, 1], [1, 0, 2]):
        close(fusion(site, [parts[i] for i in order]), fusion(site, parts))


@every_layer
def test_attention_over_one_member_with_the_first_values_is_that_member(layer, shape):
    site, parts = site_and_parts(layer, shape, 1)
    assert torch.equal(fusion_of(layer, identity=True)(site, parts), parts[0])


@every_layer
def test_new_attention_is_the_mean_of_the_members(layer, shape):
    site, parts = site_and_parts(layer, shape)
    close(AttentionFusion(copy.deepcopy(layer).double(), Fuse("a", "b"))(site, parts), sum(parts) / 3)


@every_layer
def test_attention_gradients(layer, shape):
    fusion, (site, parts) = fusion_of(layer), site_and_parts(layer, shape, 2)
    names = [name for name, _ in fusion.named_parameters()]

    def joint(y: Tensor, a: Tensor, b: Tensor, *matrices: Tensor) -> Tensor:
        arguments = (site._replace(y=y), [a, b])
        return torch.func.functional_call(fusion, dict(zip(names, matrices, strict=True)), arguments)

    inputs = [t.detach().requires_grad_() for t in (site.y, *parts, *fusion.parameters())]
    assert torch.autograd.gradcheck(joint, inputs)


def test_new_attention_learns_which_member_to_ask():
    """Though Q starts at zero it has a gradient, and so K has one after the first step."""
    layer = nn.Linear(3, 3)
    fusion, (site, parts) = AttentionFusion(layer.double(), Fuse("a", "b")), site_and_parts(layer, (8, 3))
    fusion(site, parts).square().sum().backward()
    assert float(fusion.query.grad.norm()) > 0


@pytest.fixture
def bank() -> Bank:
    return new_bank()


FUSE = Fuse("a", Stack("b", "c"))


@pytest.fixture
def fused(bank: Bank) -> Bank:
    """Two members of FUSE at the slots one, two and up, one at rows; all with random numbers."""
    add(bank, "a", slots=("one", "two", "up"))
    add(bank, "b", "scale_shift", slots=("one", "two", "rows"))
    add(bank, "c", slots=("two", "up"))
    add_fusion(bank, FUSE)
    for slot in bank.slots.values():
        randomize(slot.fusions)
    return bank


def run(bank: Bank, slot: str, x: Tensor, block: Any, **weights: float | Tensor) -> Tensor:
    bank.apply(Route(weights, block=block))
    output: Tensor = bank.slots[slot](x)
    return output


def test_attention_is_where_two_members_meet(fused):
    keys = [name for name, slot in fused.slots.items() if FUSE.key in slot.fusions]
    assert keys == ["one", "up", "two"]
    assert fused.slots["one"].fusions[FUSE.key].value.shape == (6, 6)
    with pytest.raises(InputError, match=r"fuse\(a, stack\(b, c\)\): the model already has its attention"):
        add_fusion(fused, FUSE)
    add(fused, "d", slots=("norm",), kind="rescale")
    with pytest.raises(InputError, match=r"fuse\(a, d\): no slot has two of its members"):
        add_fusion(fused, Fuse("a", "d"))
    with pytest.raises(InputError, match=r"fuse\(a, gone\): the model has no module called 'gone'"):
        add_fusion(fused, Fuse("a", "gone"))


def test_new_attention_is_frozen_where_the_base_is(bank):
    add(bank, "a")
    add(bank, "b")
    add(bank, "c")
    for frozen, block in ((False, Fuse("a", "b")), (True, Fuse("a", "c"))):
        bank.network.requires_grad_(not frozen)
        add_fusion(bank, block)
        parts = [slot.fusions[block.key] for slot in bank.slots.values() if block.key in slot.fusions]
        assert parts
        assert all(p.requires_grad is not frozen for part in parts for p in part.parameters())
    with pytest.raises(InputError, match="already has its attention"):
        add_fusion(bank, Fuse("b", "a"))  # it is one attention, in whatever order the members are named


def test_modules_that_do_nothing_give_the_base_bit_for_bit_through_attention(bank):
    for name in "ab":
        bank.add(SPECS.validate_python({"name": name, "kind": "low_rank", "slots": ("one",)}))
    add_fusion(bank, Fuse("a", "b"))
    randomize(bank.slots["one"].fusions)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    assert torch.equal(run(bank, "one", x, Fuse("a", "b"), a=1.0, b=1.0), bank.slots["one"].layer(x))


def test_a_slot_joins_its_members_by_its_attention(fused):
    slot, x = fused.slots["two"], torch.randn(2, 4, 5, 6, dtype=torch.float64)
    y = slot.layer(x)
    a = run(fused, "two", x, "a", a=1.0) - y
    stacked = run(fused, "two", x, Stack("b", "c"), b=1.0, c=1.0) - y
    joint = slot.fusions[FUSE.key](Site(x, y, slot.layer, None), [a, stacked])
    close(run(fused, "two", x, FUSE, a=1.0, b=1.0, c=1.0), y + joint)
    close(run(fused, "two", x, Fuse(Stack("b", "c"), "a"), a=1.0, b=1.0, c=1.0), y + joint)
    lone = torch.randn(2, 5, 4, dtype=torch.float64)  # at rows there is only b, and no attention
    assert torch.equal(run(fused, "rows", lone, FUSE, a=1.0, b=1.0, c=1.0), run(fused, "rows", lone, "b", b=1.0))


def test_a_frame_gets_the_same_whatever_else_is_in_its_batch(fused):
    """Members that a frame, or a cell, does not run take no part in its attention."""
    x = torch.randn(4, 4, 5, 6, dtype=torch.float64)
    runs = {"a": [1, 1, 0, 0], "b": [1, 0, 1, 0], "c": [1, 0, 0, 0]}
    by_frame = {name: torch.tensor(weight, dtype=torch.float32) for name, weight in runs.items()}
    mixed = run(fused, "two", x, FUSE, **by_frame)
    by_cell = {name: weight[:, None, None, None].expand(4, 1, 5, 6) for name, weight in by_frame.items()}
    close(run(fused, "two", x, FUSE, **by_cell), mixed)
    for i in range(4):
        chosen = {name: 1.0 for name in runs if runs[name][i]}
        close(mixed[i : i + 1], run(fused, "two", x[i : i + 1], FUSE, **chosen))
        close(mixed[i : i + 1], run(fused, "two", x[i : i + 1], FUSE, **{n: float(w[i]) for n, w in runs.items()}))


def test_members_without_attention_are_refused_with_what_to_do(bank):
    add(bank, "a")
    add(bank, "b")
    with pytest.raises(InputError, match=r"slot one has no attention for fuse\(a, b\): add it"):
        run(bank, "one", torch.randn(1, 4, 5, 6, dtype=torch.float64), Fuse("a", "b"), a=1.0, b=1.0)


def test_attention_survives_the_graph_export(fused):
    """Whatever stands in the key of a block."""
    fused.apply(Route({"a": 1.0, "b": 1.0, "c": 1.0}, block=FUSE))
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    program = torch.export.export(fused.network, (x,))
    close(program.module()(x), fused.network(x))
