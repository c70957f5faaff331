"""Blocks: what validation accepts, their text form, what they compute, by hand and folded; attention over modules."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from banks import add, new_bank
from commands import one_line_error
from computations import AFFINE, CASES, make_trained, randomize
from computations import assert_near as close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from vocabulary import Z

from perception.errors import InputError
from perception.modules.aggregation.representations import AttentionFusion, add_fusion
from perception.modules.bank import Bank
from perception.modules.composition import Average, Fuse, Parallel, Stack, names, parse_block
from perception.modules.computation.computation import Site
from perception.modules.route import Route
from perception.modules.slot import Slot
from perception.modules.spec import COMPUTATIONS

BUILD = {"stack": Stack, "parallel": Parallel, "average": Average, "fuse": Fuse}
FOLDED = [case for case in AFFINE if COMPUTATIONS[CASES[case][0]].attaches_to(nn.Conv2d(3, 4, 3, 2, 1))]
NAMES = ("a", "b", "c", "d", "stack", "no-lidar_2")
weights = st.floats(-1e6, 1e6, allow_nan=False)


def trees(names):
    """Blocks as plain data: a name, or (type, members, weights)."""

    def block(kind, parts):
        own = st.none() | st.lists(weights, min_size=len(parts), max_size=len(parts))
        return st.tuples(st.just(kind), st.just(parts), own if kind == "average" else st.none())

    def extend(inner):
        return st.tuples(st.sampled_from(sorted(BUILD)), st.lists(inner, max_size=3)).flatmap(lambda d: block(*d))

    return st.recursive(names, extend, max_leaves=6)


def build(tree: Any) -> Any:
    if isinstance(tree, str):
        return tree
    kind, members, own = tree
    parts = [build(member) for member in members]
    return Average(*parts, weights=own) if kind == "average" else BUILD[kind](*parts)


def leaves(tree: Any) -> list[str]:
    return [tree] if isinstance(tree, str) else [name for member in tree[1] for name in leaves(member)]


def allowed(tree: Any) -> bool:
    """The documented rule, apart from modules that come twice."""
    if isinstance(tree, str):
        return True
    kind, members, _ = tree
    enough = len(members) >= (2 if kind == "fuse" else 1)
    return enough and all(isinstance(m, str) or m[0] != kind for m in members) and all(map(allowed, members))


@settings(max_examples=300)
@given(trees(st.sampled_from(NAMES)))
def test_validation_accepts_exactly_what_is_documented(tree):
    if allowed(tree) and len(leaves(tree)) == len(set(leaves(tree))):
        assert names(build(tree)) == leaves(tree)
    else:
        with pytest.raises(InputError):
            build(tree)


def distinct(tree: Any, counter: list[int]) -> Any:
    """The tree with modules m0, m1, ... in the place of its leaves."""
    if isinstance(tree, str):
        counter[0] += 1
        return f"m{counter[0] - 1}"
    return tree[0], [distinct(member, counter) for member in tree[1]], tree[2]


def valid_trees() -> st.SearchStrategy[Any]:
    return trees(st.just("m")).filter(allowed).map(lambda tree: distinct(tree, [0]))


@given(valid_trees(), st.sampled_from(["", " ", "\n  "]))
def test_the_text_form_reads_back_whatever_the_space_between_tokens(tree, space):
    block = build(tree)
    text = str(block).replace(" ", "")
    for mark in "(),*":
        text = text.replace(mark, f"{space}{mark}{space}")
    again = parse_block(text)
    assert str(again) == str(block)
    assert again == block


def test_text_forms():
    assert parse_block("rain") == "rain"
    block = parse_block("stack(rain, average(0.7*night, .3*fog), parallel(a, fuse(b, c-1)))")
    assert block == Stack("rain", Average("night", "fog", weights=[0.7, 0.3]), Parallel("a", Fuse("b", "c-1")))
    assert str(block) == "stack(rain, average(0.7*night, 0.3*fog), parallel(a, fuse(b, c-1)))"
    assert parse_block("average(stack, average)") == Average("stack", "average")  # modules with such names
    assert Average("a", "b", weights=[0.5, 0.5]) == Average("a", "b")
    assert len({Average("a", "b"), Average("a", "b", weights=[1, 1]), Parallel("a", "b")}) == 3


NO_BLOCKS = [
    ("", ">>><<<", "expected the name of a module or a block", 1),
    ("stack(rain, averge(a, b))", "stack(rain, >>>averge<<<(a, b))", "there are stack, parallel,", 13),
    ("stack(rain, 3d)", "stack(rain, >>>3<<<d)", "only an average has weights", 13),
    ("stack(rain", "stack(rain>>><<<", "expected , or )", 11),
    ("stack(a, b))", "stack(a, b)>>>)<<<", "the block ends before this", 12),
    ("average(0.5*a, b)", "average(0.5*a, >>>b<<<)", "for all its members or for none", 16),
]


@pytest.mark.parametrize(("text", "shows", "says", "character"), NO_BLOCKS)
def test_what_is_no_block_is_shown_in_its_place(text, shows, says, character):
    with one_line_error(rf"\(character {character}\)$", at=f"{shows}: ", says=says):
        parse_block(text)


NESTING = "cannot stand directly in parallel; write its members in its place"
WRONG = [
    (Stack, "stack(): stack needs 1 or more members"),
    (lambda: Parallel(Stack("y"), Parallel("z")), f"parallel(stack(y), >>>parallel(z)<<<): parallel {NESTING}"),
    (lambda: Stack("a", Average("b", "a")), "stack(a, >>>average(b, a)<<<): module 'a' is in the block twice"),
    (lambda: Stack("a", "b c"), "stack(a, >>>b c<<<): a module's name is a letter, then letters, digits, _ and -"),
    (lambda: Average("a", "b", weights=[1, math.nan]), "average(a, >>>b<<<): its weight nan is not a finite number"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_errors_show_the_nesting_that_is_wrong(make, message):
    with one_line_error(exactly=message):
        make()


def put(slot: Slot, name: str, case: str) -> Any:
    """A module with random numbers at the slot."""
    slot.computations[name] = make_trained(case, slot.layer)
    return slot.computations[name]


def conv_slot(seed: int = 0) -> Slot:
    torch.manual_seed(seed)
    return Slot("s", nn.Conv2d(3, 4, 3, stride=2, padding=1, dtype=torch.float64)).eval()


def route(block: Any, **module_weights: float) -> Route:
    return Route({name: module_weights.get(name, 1.0) for name in names(block)}, block=block)


X = torch.randn(2, 3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def brute(tree, slot, x, y, module_weights):
    """The output of a tree on the output y so far; deltas as differences of outputs."""
    if isinstance(tree, str):
        site = Site(x, y, slot.layer, slot.current.route.z)
        return y + module_weights[tree] * slot.computations[tree](site) if tree in slot.computations else y
    kind, members, own = tree
    if kind == "stack":
        for member in members:
            y = brute(member, slot, x, y, module_weights)
        return y
    shares = [1.0 if kind == "parallel" else 1 / len(members)] * len(members) if own is None else own
    total = y.clone()
    for member, share in zip(members, shares, strict=True):
        total += share * (brute(member, slot, x, y, module_weights) - y)
    return total


def tame(tree: Any) -> Any:
    """With weights of the size of one."""
    if isinstance(tree, str):
        return tree
    kind, members, own = tree
    return kind, [tame(member) for member in members], None if own is None else [math.sin(w) for w in own]


@settings(max_examples=80)
@given(valid_trees().filter(lambda tree: "fuse" not in str(tree)).map(tame), st.data())
def test_folding_a_nest_equals_running_it_and_running_it_the_brute_force(tree, data):
    """A module that is not at the slot adds nothing; the shares of the others stay."""
    slot, block = conv_slot(data.draw(st.integers(0, 99))), build(tree)
    module_weights = {name: data.draw(st.sampled_from([1.0, -0.7, 0.0, 0.3])) for name in leaves(tree)}
    for name in leaves(tree):
        if case := data.draw(st.sampled_from([*FOLDED, None])):
            put(slot, name, case)
    slot.current.route = Route(module_weights, block=block, z=torch.rand(1, Z, dtype=torch.float64))
    running = slot(X)
    close(running, brute(tree, slot, X, slot.layer(X), module_weights))
    assert slot.folds(slot.current.route)
    slot.fold(slot.current.route)
    assert len(slot.computations) == 0
    close(slot(X), running)


SHAPES = [
    (nn.Conv2d(2, 3, 1), (2, 3, 2, 4)),
    (nn.ConvTranspose2d(2, 3, 2), (2, 3, 2, 4)),
    (nn.Linear(2, 3), (2, 4, 3)),
    (nn.BatchNorm1d(3), (5, 3)),
    (nn.BatchNorm1d(3), (5, 3, 1)),
    (nn.BatchNorm2d(3), (2, 3, 2, 4)),
]


def fusion_of(layer: Any) -> AttentionFusion:
    torch.manual_seed(0)
    fusion = AttentionFusion(copy.deepcopy(layer).double(), Fuse("a", "b", "c"))
    for matrix in fusion.parameters():
        nn.init.normal_(matrix)
    return fusion


def site_and_parts(layer: Any, shape: tuple[int, ...], count: int = 3) -> tuple[Site, list[Tensor]]:
    y, *parts = torch.randn(count + 1, *shape, dtype=torch.float64)
    return Site(y, y, layer, None), parts


def cells(tensor: Tensor, layer: Any) -> np.ndarray:
    """(cells, channels)"""
    last = tensor if isinstance(layer, nn.Linear) else tensor.movedim(1, -1)
    return last.detach().reshape(-1, 3).numpy()


@pytest.mark.parametrize(("layer", "shape"), SHAPES, ids=str)
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
    for order in ([2, 0, 1], [1, 0, 2]):
        close(fusion(site, [parts[i] for i in order]), joint)
    assert not fusion(site, [torch.zeros_like(part) for part in parts]).any()
    nn.init.eye_(fusion.value)
    close(fusion(site, [parts[0]] * 4), parts[0])
    assert torch.equal(fusion(site, parts[:1]), parts[0])
    new = AttentionFusion(copy.deepcopy(layer).double(), Fuse("a", "b"))
    close(new(site, parts), sum(parts) / 3)
    new(site, parts).square().sum().backward()  # though Q starts at zero it learns, and so K does after the first step
    assert float(new.query.grad.norm()) > 0


FUSE = Fuse("a", Stack("b", "c"))


@pytest.fixture
def fused() -> Bank:
    """Two members of FUSE at the slots one, two and up, one at rows; all with random numbers."""
    bank = new_bank()
    add(bank, "a", slots=("one", "two", "up"))
    add(bank, "b", "scale_shift", slots=("one", "two", "rows"))
    add(bank, "c", slots=("two", "up"))
    add_fusion(bank, FUSE)
    for slot in bank.slots.values():
        randomize(slot.fusions)
    return bank


def run(bank: Bank, slot: str, x: Tensor, block: Any, **weights: float | Tensor) -> Tensor:
    bank.current.route = Route(weights, block=block)
    output: Tensor = bank.slots[slot](x)
    return output


def test_attention_is_where_two_members_meet_and_frozen_where_the_base_is(fused):
    assert [name for name, slot in fused.slots.items() if FUSE.key in slot.fusions] == ["one", "up", "two"]
    assert fused.slots["one"].fusions[FUSE.key].value.shape == (6, 6)
    for frozen, block in ((False, Fuse("a", "b")), (True, Fuse("b", "c"))):
        fused.network.requires_grad_(not frozen)
        add_fusion(fused, block)
        parts = [slot.fusions[block.key] for slot in fused.slots.values() if block.key in slot.fusions]
        assert {p.requires_grad for part in parts for p in part.parameters()} == {not frozen}
    add(fused, "d", "rescale", slots=("norm", "one"))
    for block, message in (
        (FUSE, r"fuse\(a, stack\(b, c\)\): the model already has its attention"),
        (Fuse("b", "a"), "already has its attention"),  # it is one, in whatever order the members are named
        (Fuse("c", "d"), r"fuse\(c, d\): no slot has two of its members"),
        (Fuse("a", "gone"), r"fuse\(a, gone\): the model has no module called 'gone'"),
    ):
        with pytest.raises(InputError, match=message):
            add_fusion(fused, block)
    with pytest.raises(InputError, match=r"slot one has no attention for fuse\(a, d\): add it"):
        run(fused, "one", torch.randn(1, 4, 5, 6, dtype=torch.float64), Fuse("a", "d"), a=1.0, d=1.0)


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


def test_attention_survives_the_graph_export(fused):
    """Whatever stands in the key of a block."""
    fused.current.route = Route({"a": 1.0, "b": 1.0, "c": 1.0}, block=FUSE)
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    program = torch.export.export(fused.network, (x,))
    close(program.module()(x), fused.network(x))
