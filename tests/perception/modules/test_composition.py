"""Blocks: what validation accepts, their text form, what they compute, by hand and folded; attention over modules."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from banks import add, new_bank
from commands import one_line_error
from computations import AFFINE, CASES, randomize, trained
from computations import assert_near as close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from vocabulary import Z

from perception.errors import InputError
from perception.modules.aggregation.composition import Average, Fuse, Parallel, Stack, names
from perception.modules.aggregation.notation import parse_block
from perception.modules.aggregation.representations import AttentionFusion, add_fusion
from perception.modules.bank import Bank
from perception.modules.computation.computation import Site
from perception.modules.computation.kinds import KINDS
from perception.modules.module_record import SPECS
from perception.modules.route import Route
from perception.modules.slot import Slot

BUILD = {"stack": Stack, "parallel": Parallel, "average": Average, "fuse": Fuse}
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


@settings(deadline=None, max_examples=300)
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


@settings(deadline=None, max_examples=100)
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


@pytest.mark.parametrize(
    ("text", "shows", "says", "character"),
    [
        ("", ">>><<<", "expected the name of a module or a block", 1),
        ("stack(rain, averge(a, b))", "stack(rain, >>>averge<<<(a, b))", "there are stack, parallel,", 13),
        ("stack(rain, 3d)", "stack(rain, >>>3<<<d)", "only an average has weights", 13),
        ("stack(rain", "stack(rain>>><<<", "expected , or )", 11),
        ("stack(rain night)", "stack(rain >>>night<<<)", "expected , or )", 12),
        ("stack()", "stack(>>>)<<<", "expected the name", 7),
        ("stack(a,)", "stack(a,>>>)<<<", "expected the name", 9),
        ("stack(a, b))", "stack(a, b)>>>)<<<", "the block ends before this", 12),
        ("average(0.5*a, b)", "average(0.5*a, >>>b<<<)", "for all its members or for none", 16),
        ("average(a, 2*b)", "average(a, >>>2<<<*b)", "for all its members or for none", 12),
        ("average(2 a)", "average(2 >>>a<<<)", "expected *", 11),
        ("2*a", ">>>2<<<*a", "expected the name", 1),
        ("a, b", "a>>>,<<< b", "the block ends before this", 2),
        ("stack(a; b)", "stack(a>>>;<<< b)", "expected , or )", 8),
    ],
)  # fmt: skip
def test_what_is_no_block_is_shown_in_its_place(text, shows, says, character):
    with one_line_error(rf"\(character {character}\)$", at=f"{shows}: ", says=says):
        parse_block(text)


FLAT = "; write its members in its place"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Stack, "stack(): stack needs 1 or more members"),
        (lambda: Fuse("a"), "fuse(a): fuse needs 2 or more members"),
        (
            lambda: Parallel("x", Stack("y", Parallel("z")), Parallel("a", "b")),
            "parallel(x, stack(y, parallel(z)), >>>parallel(a, b)<<<): parallel cannot stand directly in parallel"
            + FLAT,
        ),
        (lambda: Stack("a", Average("b", "a")), "stack(a, >>>average(b, a)<<<): module 'a' is in the block twice"),
        (lambda: Stack("a", "b c"), "stack(a, >>>b c<<<): a module's name is a letter, then letters, digits, _ and -"),
        (lambda: Stack("a", 3), "stack(a, >>>3<<<): a member is a name or a block, not int"),
        (lambda: Average("a", "b", weights=[1.0]), "average(a, b): 2 members, 1 weights"),
        (
            lambda: Average("a", "b", weights=[0.5, math.nan]),
            "average(a, >>>b<<<): its weight nan is not a finite number",
        ),
        (
            lambda: parse_block("fuse(a, fuse(b, c))"),
            "fuse(a, >>>fuse(b, c)<<<): fuse cannot stand directly in fuse" + FLAT,
        ),
    ],
)
def test_errors_show_the_nesting_that_is_wrong(make, message):
    with one_line_error(exactly=message):
        make()


def put(slot: Slot, name: str, case: str):
    """A module with random numbers at the slot."""
    slot.computations[name] = trained(case, slot.layer)
    return slot.computations[name]


def conv_slot(seed: int = 0) -> Slot:
    torch.manual_seed(seed)
    return Slot("s", nn.Conv2d(3, 4, 3, stride=2, padding=1, dtype=torch.float64)).eval()


def route(block: Any, **module_weights: float) -> Route:
    return Route({name: module_weights.get(name, 1.0) for name in names(block)}, block=block)


X = torch.randn(2, 3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", [Stack, Parallel])
@pytest.mark.parametrize("kind", ["scale_shift", "low_rank", "series_adapter"])
def test_beside_a_module_that_does_nothing_there_is_only_the_other(make, kind):
    slot = conv_slot()
    put(slot, "a", kind)
    slot.computations["null"] = KINDS["low_rank"](slot.layer, rank=1)  # type: ignore[call-arg]
    slot.route = route("a")
    alone = slot(X)
    assert not torch.allclose(alone, slot.layer(X))
    for block in (make("a", "null"), make("null", "a")):
        slot.route = route(block)
        assert torch.equal(slot(X), alone)


def test_a_member_of_an_average_that_is_not_at_the_slot_counts_as_zero():
    slot = conv_slot()
    put(slot, "a", "low_rank")
    slot.route = route("a")
    delta = slot(X) - slot.layer(X)
    slot.route = route(Average("a", "elsewhere"))
    close(slot(X) - slot.layer(X), delta / 2)
    slot.route = route(Average("elsewhere", "nowhere"))
    assert torch.equal(slot(X), slot.layer(X))


def test_nested_blocks_by_hand():
    """On single numbers: y = 2 x + 1, modules that multiply and add."""
    layer = nn.Linear(1, 1, dtype=torch.float64)
    nn.init.constant_(layer.weight, 2.0)
    nn.init.constant_(layer.bias, 1.0)
    slot = Slot("s", layer)
    for name, scale, shift in (("a", 3.0, 0.0), ("b", 1.0, 5.0), ("c", 0.5, 1.0), ("d", -1.0, 2.0)):
        module: Any = KINDS["scale_shift"](layer)  # type: ignore[call-arg]
        nn.init.constant_(module.scale, scale)
        nn.init.constant_(module.shift, shift)
        slot.computations[name] = module
    x = torch.tensor([[1.0]], dtype=torch.float64)  # y = 3
    expected = {
        "stack(a, b)": 3 * 3 + 5,
        "stack(b, a)": (3 + 5) * 3,
        "parallel(a, b)": 3 + 6 + 5,
        "average(a, b)": 3 + (6 + 5) / 2,
        "stack(a, average(b, c), d)": -(9 + (5 - 3.5) / 2) + 2,  # a: 9; b adds 5, c adds 0.5 * 9 + 1 - 9
        "parallel(stack(a, b), d)": 3 + (14 - 3) + (-1 - 3),
        "average(0.25*stack(a, parallel(b, c)), 2*d)": 3 + 0.25 * ((9 + 5 - 3.5) - 3) + 2 * (-1 - 3),
    }
    for text, value in expected.items():
        slot.route = route(parse_block(text))
        assert slot(x).item() == pytest.approx(value, abs=1e-12), text
    slot.route = route(parse_block("stack(a, b)"), a=0.5, b=2.0)
    assert slot(x).item() == pytest.approx(3 + 0.5 * 6 + 2 * 5, abs=1e-12)


def brute(tree, slot, x, y, module_weights):
    """The output of a tree on the output y so far; deltas as differences of outputs."""
    if isinstance(tree, str):
        return y + module_weights[tree] * slot.computations[tree](Site(x, y, slot.layer, slot.route.z))
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


def affine_trees():
    def has_fuse(tree):
        return not isinstance(tree, str) and (tree[0] == "fuse" or any(map(has_fuse, tree[1])))

    def tame(tree):
        """Weights of the size of one."""
        if isinstance(tree, str):
            return tree
        return tree[0], [tame(m) for m in tree[1]], None if tree[2] is None else [math.sin(w) for w in tree[2]]

    return valid_trees().filter(lambda tree: not has_fuse(tree)).map(tame)


@settings(deadline=None, max_examples=80)
@given(affine_trees(), st.data())
def test_folding_a_nest_equals_running_it_and_running_it_the_brute_force(tree, data):
    slot, block = conv_slot(data.draw(st.integers(0, 99))), build(tree)
    cases = [case for case in AFFINE if KINDS[CASES[case][0]].attaches_to(slot.layer)]
    module_weights = {name: data.draw(st.sampled_from([1.0, -0.7, 0.0, 0.3])) for name in leaves(tree)}
    for name in leaves(tree):
        put(slot, name, data.draw(st.sampled_from(cases)))
    slot.route = Route(module_weights, block=block, z=torch.rand(1, Z, dtype=torch.float64))
    running = slot(X)
    close(running, brute(tree, slot, X, slot.layer(X), module_weights))
    assert slot.folds()
    slot.fold()
    assert len(slot.computations) == 0
    close(slot(X), running)


def test_a_fuse_block_of_which_one_member_is_at_the_slot_folds():
    slot = conv_slot()
    put(slot, "a", "low_rank")
    put(slot, "b", "scale_shift")
    slot.route = route(Stack(Fuse("a", "elsewhere"), "b"))
    running = slot(X)
    slot.fold()
    assert len(slot.computations) == 0
    close(slot(X), running)


@pytest.mark.parametrize("case", ["prompt", "concatenated"])
def test_prompts_add_up_or_are_read_side_by_side_in_any_order(case):
    slot = conv_slot()
    prompts = [put(slot, name, case) for name in ("a", "b")]
    maps = [nn.functional.interpolate(p.map, (6, 7), mode="bilinear").expand(2, -1, -1, -1) for p in prompts]
    if case == "prompt":
        expected = slot.layer(X + maps[0] + maps[1])
    else:
        weight = torch.cat([slot.layer.weight, *(p.mix.weight for p in prompts)], dim=1)
        expected = nn.functional.conv2d(torch.cat([X, *maps], dim=1), weight, slot.layer.bias, 2, 1)
    for block in (Stack("a", "b"), Stack("b", "a"), Parallel("a", "b")):
        slot.route = route(block)
        close(slot(X), expected)


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
    for order in ([2, 0, 1], [1, 0, 2]):
        close(fusion(site, [parts[i] for i in order]), joint)
    first = fusion_of(layer, identity=True)
    close(first(site, [parts[0]] * 4), parts[0])
    assert torch.equal(first(site, parts[:1]), parts[0])
    new = AttentionFusion(copy.deepcopy(layer).double(), Fuse("a", "b"))
    close(new(site, parts), sum(parts) / 3)
    new(site, parts).square().sum().backward()  # though Q starts at zero it learns, and so K does after the first step
    assert float(new.query.grad.norm()) > 0


@every_layer
def test_attention_gradients(layer, shape):
    fusion, (site, parts) = fusion_of(layer), site_and_parts(layer, shape, 2)
    names = [name for name, _ in fusion.named_parameters()]

    def joint(y: Tensor, a: Tensor, b: Tensor, *matrices: Tensor) -> Tensor:
        arguments = (site._replace(y=y), [a, b])
        return torch.func.functional_call(fusion, dict(zip(names, matrices, strict=True)), arguments)

    inputs = [t.detach().requires_grad_() for t in (site.y, *parts, *fusion.parameters())]
    assert torch.autograd.gradcheck(joint, inputs)


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
    for name in "abc":
        add(bank, name)
    for frozen, block in ((False, Fuse("a", "b")), (True, Fuse("a", "c"))):
        bank.network.requires_grad_(not frozen)
        add_fusion(bank, block)
        parts = [slot.fusions[block.key] for slot in bank.slots.values() if block.key in slot.fusions]
        assert {p.requires_grad for part in parts for p in part.parameters()} == {not frozen}
    with pytest.raises(InputError, match="already has its attention"):
        add_fusion(bank, Fuse("b", "a"))  # it is one attention, in whatever order the members are named
    with pytest.raises(InputError, match=r"slot one has no attention for fuse\(b, c\): add it"):
        run(bank, "one", torch.randn(1, 4, 5, 6, dtype=torch.float64), Fuse("b", "c"), b=1.0, c=1.0)


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


def test_attention_survives_the_graph_export(fused):
    """Whatever stands in the key of a block."""
    fused.apply(Route({"a": 1.0, "b": 1.0, "c": 1.0}, block=FUSE))
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    program = torch.export.export(fused.network, (x,))
    close(program.module()(x), fused.network(x))
