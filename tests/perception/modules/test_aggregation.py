"""Merging modules by their task vectors."""

from typing import Any

import numpy as np
import pytest
import torch
from banks import add, new_bank
from computations import assert_near as close
from computations import randomize, slot_with
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from vocabulary import Z

from perception.errors import InputError
from perception.modules.aggregation.composition import Average, Parallel
from perception.modules.aggregation.merge import Merging, merge_modules
from perception.modules.aggregation.parameters import average, dare, task_arithmetic, ties, weighted
from perception.modules.bank import Bank
from perception.modules.computation.computation import Site
from perception.modules.computation.low_rank import LowRank
from perception.modules.route import Route


def f64(*numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


EXAMPLE = [f64(0.9, -0.1, 0.4, -0.6, 0.05), f64(-0.5, 0.8, 0.3, -0.2, 0), f64(0.3, -0.7, -0.1, -0.9, 0.6)]


@pytest.mark.parametrize("split", [5, 2])  # one tensor, or two that are trimmed together
def test_ways_to_merge_by_hand(split):
    vectors = [{"a": t[:split], "b": t[split:]} for t in EXAMPLE]
    merged = ties(vectors, keep=3 / 5)
    close(torch.cat([merged["a"], merged["b"]]), f64(0.9, 0.8, 0.35, -0.75, 0.6))
    plain = average(vectors)
    close(torch.cat([plain["a"], plain["b"]]), sum(EXAMPLE) / 3)
    vectors = [{"v": f64(1.0, 2.0)}, {"v": f64(10.0, -4.0)}]
    close(weighted(vectors, [2.0, -0.5])["v"], f64(2 - 5, 4 + 2))  # weights are used as they are
    close(task_arithmetic(vectors, 0.5)["v"], f64(5.5, -1.0))


# Quarters, so that sums are exact and the elected sign does not hang on rounding.
entries = st.integers(-20, 20).map(lambda n: n / 4)
tables = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(entries, min_size=n, max_size=n), min_size=1, max_size=12)
)


@settings(deadline=None, max_examples=200)
@given(tables, st.sampled_from([0.1, 0.2, 0.5, 0.6, 1.0]))
def test_ties_is_the_brute_force_loop(table, keep):
    columns = list(zip(*table, strict=True))  # of each module
    kept = []
    for column in columns:
        count = max(1, round(keep * len(column)))
        smallest = sorted(map(abs, column), reverse=True)[count - 1]
        kept.append([v if abs(v) >= smallest else 0.0 for v in column])
    expected = []
    for row in zip(*kept, strict=True):
        total = sum(row)
        agreeing = [v for v in row if v * total > 0]
        expected.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    merged = ties([{"v": f64(*column)} for column in columns], keep)["v"]
    close(merged, f64(*expected))


@settings(deadline=None, max_examples=50)
@given(st.lists(entries, min_size=1, max_size=6), st.integers(1, 5), st.floats(0.01, 1))
def test_equal_members_are_the_identity_and_one_member_is_itself(values, count, keep):
    vector = {"v": f64(*values)}
    close(average([vector] * count)["v"], vector["v"])
    close(weighted([vector] * count, [1 / count] * count)["v"], vector["v"])
    close(task_arithmetic([vector] * count, 1 / count)["v"], vector["v"])
    close(ties([vector] * count, keep=1.0)["v"], vector["v"])
    close(ties([vector] * count, keep)["v"], ties([vector], keep)["v"])
    assert torch.equal(task_arithmetic([vector], 1.0)["v"], vector["v"])
    assert torch.equal(dare([vector], 0.0, torch.Generator())[0]["v"], vector["v"])


@pytest.mark.parametrize("drop", [0.1, 0.5, 0.9])
def test_dare_drops_or_rescales_and_keeps_the_expected_value(drop):
    """The mean over the seeds is within 4 sigma; an entry's variance is v^2 p / (1 - p)."""
    values, seeds = f64(1.0, -2.0, 0.5, 0.0), 4000
    drawn = torch.stack([dare([{"v": values}], drop, torch.Generator().manual_seed(s))[0]["v"] for s in range(seeds)])
    dropped = drawn == 0
    close(torch.where(dropped, values / (1 - drop), drawn), (values / (1 - drop)).expand_as(drawn))
    sigma = values.abs() * (drop / (1 - drop) / seeds) ** 0.5
    assert bool(((drawn.mean(dim=0) - values).abs() <= 4 * sigma).all())
    share = dropped[:, :3].double().mean(dim=0)
    assert bool(((share - drop).abs() <= 4 * (drop * (1 - drop) / seeds) ** 0.5).all())


def test_dare_draws_for_each_module_of_its_own():
    vector = {"v": torch.ones(64, dtype=torch.float64)}
    first, second = dare([vector, vector], 0.5, torch.Generator().manual_seed(3))
    assert not torch.equal(first["v"], second["v"])
    again = dare([vector, vector], 0.5, torch.Generator().manual_seed(3))
    assert torch.equal(again[0]["v"], first["v"])
    assert torch.equal(again[1]["v"], second["v"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: average([]), "nothing to merge"),
        (lambda: weighted([{"v": f64(1)}], [1, 2]), "1 modules, 2 weights"),
        (lambda: average([{"v": f64(1)}, {"v": f64(1, 2)}]), r"modules 1 and 2 .* v is \(1,\) in one and \(2,\)"),
        (lambda: ties([{"v": f64(1)}, {"w": f64(1)}], 0.5), r"v is \(1,\) in one and missing in the other"),
        (lambda: ties([{"v": f64(1)}], 0.0), "TIES keeps a share of more than 0 and at most 1 of the entries, not 0.0"),
        (lambda: ties([{"v": f64(1)}], 1.1), "not 1.1"),
        (lambda: dare([{"v": f64(1)}], 1.0, torch.Generator()), "DARE drops .* less than 1 of the entries, not 1.0"),
    ],
)
def test_what_cannot_be_merged_is_said(call, message):
    with pytest.raises(InputError, match=message):
        call()


@st.composite
def layers(draw: st.DrawFn) -> Any:
    torch.manual_seed(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from([nn.Conv2d, nn.ConvTranspose2d, nn.Linear]))
    if kind is nn.Linear:
        return nn.Linear(draw(st.integers(1, 6)), draw(st.integers(1, 6)), dtype=torch.float64)
    groups = draw(st.sampled_from([1, 2, 3]))
    sizes = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
    return kind(*sizes, draw(st.sampled_from([1, 2, (3, 1)])), groups=groups, dtype=torch.float64)


def group_matrices(weight: np.ndarray, layer: Any) -> list[np.ndarray]:
    """The matrix of each group whose rank is bounded: (O/g, I/g k k), transposed convolutions (I/g, O/g k k)."""
    return [part.reshape(len(part), -1) for part in np.split(weight, getattr(layer, "groups", 1))]


@settings(deadline=None, max_examples=100)
@given(layers(), st.integers(1, 4), st.sampled_from([None, 0.5, 6.0]))
def test_the_truncation_error_is_the_tail_of_the_singular_values(layer, rank, alpha):
    vector = torch.randn_like(layer.weight)
    module = LowRank(layer, rank, alpha)
    module.set_task_vector({"weight": vector}, layer)
    kept = module.task_vector(layer)["weight"]
    assert kept.shape == vector.shape
    wanted, got = group_matrices(vector.numpy(), layer), group_matrices(kept.numpy(), layer)
    for full, cut in zip(wanted, got, strict=True):
        singular = np.linalg.svd(full, compute_uv=False)
        assert np.linalg.matrix_rank(cut) <= rank
        assert abs(np.linalg.norm(full - cut) - np.linalg.norm(singular[rank:])) <= 1e-12 * max(1, singular[0])


@settings(deadline=None, max_examples=50)
@given(layers(), st.integers(1, 3), st.integers(0, 2))
def test_a_low_rank_module_comes_back_from_its_product(layer, rank, more):
    module, copied = LowRank(layer, rank, alpha=2.0), LowRank(layer, rank + more)
    randomize(module)
    copied.set_task_vector(module.task_vector(layer), layer)
    shape = (layer.in_features,) if isinstance(layer, nn.Linear) else (layer.in_channels, 5, 4)
    x = torch.randn(2, *shape, dtype=torch.float64)
    close(slot_with(layer, m=copied)(x), slot_with(layer, m=module)(x))


def test_a_module_set_to_zero_learns_on():
    """Both factors at zero would have no gradient for ever."""
    layer = nn.Conv2d(3, 4, 3)
    module = LowRank(layer, 2)
    module.set_task_vector({"weight": torch.zeros_like(layer.weight)}, layer)
    module(Site(torch.randn(1, 3, 5, 5), torch.zeros(1, 4, 3, 3), layer, None)).sum().backward()
    assert bool((module.b.weight.grad.flatten(1).norm(dim=0) > 0).all())


@pytest.fixture
def bank() -> Bank:
    return new_bank()


def vector(bank, name):
    layers = {slot: bank.slots[slot].layer for slot in bank.at(name)}
    vectors = {slot: module.task_vector(layers[slot]) for slot, module in bank.at(name).items()}
    return {f"{slot}/{key}": tensor for slot, own in vectors.items() for key, tensor in own.items()}


def outputs(bank: Bank, block: Any) -> dict[str, Tensor]:
    """What each slot gives for an input of its own, so that the slots' differences do not mix."""
    torch.manual_seed(1)
    route = Route({"a": 1.0, "b": 1.0, "c": 1.0, "new": 1.0}, block=block, z=torch.rand(1, Z, dtype=torch.float64))
    bank.apply(route)
    shapes = {"one": (2, 4, 5, 6), "up": (2, 6, 5, 6), "two": (2, 4, 5, 6), "norm": (2, 4, 5, 6), "rows": (2, 7, 4)}
    return {name: bank.slots[name](torch.randn(shape, dtype=torch.float64)) for name, shape in shapes.items()}


LINEAR: dict[str, list[dict[str, Any]]] = {  # kinds whose output is linear in the task vector, options of members
    "low_rank": [{"rank": 1}, {"rank": 2, "alpha": 3.0}, {"rank": 4, "alpha": -1.0}],
    "sparse_delta": [{"share": 0.1}, {"share": 0.03}, {"share": 0.5}],
    "prompt": [{"size": 3}] * 3,
    "series_adapter": [{}] * 3,
    "parallel_adapter": [{}] * 3,
    "rescale": [{}] * 3,
    "scale_shift": [{}] * 3,
    "film": [{}] * 3,
}


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize(
    ("method", "arguments", "block"),
    [
        ("average", {}, Average("a", "b", "c")),
        ("average", {"weights": [0.7, -2.0, 0.1]}, Average("a", "b", "c", weights=[0.7, -2.0, 0.1])),
        ("average", {"strength": 0.5}, Average("a", "b", "c", weights=[1 / 6] * 3)),
        ("task_arithmetic", {}, Parallel("a", "b", "c")),
        ("task_arithmetic", {"strength": 0.3}, Average("a", "b", "c", weights=[0.3] * 3)),
        ("dare", {"drop": 0.0}, Parallel("a", "b", "c")),
    ],
)
def test_the_merged_module_gives_what_its_members_give_side_by_side(bank, kind, method, arguments, block):
    for name, options in zip("abc", LINEAR[kind], strict=True):
        add(bank, name, kind, **options)
    before = {key: tensor.clone() for key, tensor in bank.network.state_dict().items()}
    missing = merge_modules(bank, "new", ["a", "b", "c"], Merging(method, **arguments))
    assert missing.keys() == bank.at("a").keys()
    assert max(missing.values()) < 1e-12
    expected, merged = outputs(bank, block), outputs(bank, "new")
    for slot in expected:
        close(merged[slot], expected[slot])
    base = outputs(bank, "none")
    assert all((expected[slot] - base[slot]).abs().max() > 0.01 for slot in missing)
    after = bank.network.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items()), "the members stay as they are"
    assert bank.modules["new"].when == ()


def test_options_of_merged_modules_follow_from_their_members(bank):
    add(bank, "a", rank=1)
    add(bank, "b", rank=2, alpha=3.0)
    merge_modules(bank, "new", ["a", "b"], Merging("average"), when=["rain"])
    assert (bank.modules["new"].rank, bank.modules["new"].alpha, bank.modules["new"].when) == (3, None, ("rain",))
    for name, share in (("s", 0.7), ("t", 0.6)):
        add(bank, name, "sparse_delta", share=share)
    merge_modules(bank, "dense", ["s", "t"], Merging("average"))
    assert bank.modules["dense"].share == 1.0


def test_a_merged_sparse_module_has_room_for_masks_that_do_not_overlap(bank):
    """Shares are rounded to whole entries: two times 2 of 12 are more than twice 0.13 of them."""
    for name, score in (("a", 1), ("b", -1)):
        add(bank, name, "sparse_delta", slots=("one", "rows"), share=0.13)
        for slot, module in bank.at(name).items():
            weight = bank.slots[slot].layer.weight
            module.select(score * torch.arange(weight.numel()).reshape(weight.shape))
            randomize(module)
    merge_modules(bank, "new", ["a", "b"], Merging("task_arithmetic"))
    for key, tensor in vector(bank, "new").items():
        assert int((tensor != 0).sum()) == {"one/weight": 28, "rows/weight": 4}[key]
        close(tensor, vector(bank, "a")[key] + vector(bank, "b")[key])


def test_a_cut_rank_reports_the_share_that_is_lost(bank):
    add(bank, "a", rank=2)
    add(bank, "b", rank=2)
    missing = merge_modules(bank, "new", ["a", "b"], Merging("task_arithmetic"), rank=1)
    full = {key: tensor + vector(bank, "b")[key] for key, tensor in vector(bank, "a").items()}
    assert missing.keys() == {"one", "up", "two", "rows"}
    for slot, lost in missing.items():
        weight, layer = full[f"{slot}/weight"].numpy(), bank.slots[slot].layer
        tails = [np.linalg.svd(matrix, compute_uv=False)[1:] for matrix in group_matrices(weight, layer)]
        assert lost == pytest.approx(np.linalg.norm(np.concatenate(tails)) / np.linalg.norm(weight), rel=1e-12)
        assert lost > 0.01


def test_ties_trims_over_all_slots_and_equal_members_merge_to_what_one_alone_gives(bank):
    add(bank, "a", "parallel_adapter")
    add(bank, "b", "parallel_adapter")
    merge_modules(bank, "new", ["a", "b"], Merging("ties", keep=0.3, strength=2.0))
    expected = ties([vector(bank, "a"), vector(bank, "b")], 0.3)
    for key, tensor in expected.items():
        close(vector(bank, "new")[key], 2 * tensor)
    merge_modules(bank, "same", ["a", "a"], Merging("ties", keep=1.0))
    for key, tensor in vector(bank, "a").items():
        close(vector(bank, "same")[key], tensor)


def test_dare_drops_nothing_of_batch_norms(bank):
    for name in ("a", "b"):
        add(bank, name, "batch_norm", slots=("norm",))
    merge_modules(bank, "sum", ["a", "b"], Merging("task_arithmetic"))
    merge_modules(bank, "new", ["a", "b"], Merging("dare", drop=0.9))
    for key, value in bank.at("sum")["norm"].state_dict().items():
        assert torch.equal(bank.at("new")["norm"].state_dict()[key], value)


def test_dare_is_unbiased_through_the_bank_and_follows_its_seed(bank):
    add(bank, "a", "rescale", slots=("one",))
    add(bank, "b", "rescale", slots=("one",))
    a, b = vector(bank, "a")["one/scale"], vector(bank, "b")["one/scale"]
    drawn = []
    for seed in range(600):
        merge_modules(bank, "new", ["a", "b"], Merging("dare", drop=0.5, seed=seed, weights=[0.5, 0.5]))
        drawn.append(vector(bank, "new")["one/scale"])
        bank.delete("new")
    sigma = 0.5 * (a**2 + b**2).sqrt() / 600**0.5  # p / (1 - p) = 1
    assert bool(((torch.stack(drawn).mean(dim=0) - (a + b) / 2).abs() <= 4 * sigma).all())
    merge_modules(bank, "new", ["a", "b"], Merging("dare", drop=0.5, seed=7, weights=[0.5, 0.5]))
    assert torch.equal(vector(bank, "new")["one/scale"], drawn[7])
    assert not torch.equal(drawn[7], drawn[8])


def test_merged_batch_normalisations_average_by_hand_and_keep_their_variances_positive(bank):
    for name in "ab":
        add(bank, name, "batch_norm", slots=("norm",))
    a, b = (bank.at(name)["norm"].norm.state_dict() for name in "ab")
    base = bank.slots["norm"].layer.state_dict()
    merge_modules(bank, "mean", ["a", "b"], Merging("average"))
    merge_modules(bank, "far", ["a", "b"], Merging("task_arithmetic", strength=-50.0))
    mean, far = (bank.at(name)["norm"].norm.state_dict() for name in ("mean", "far"))
    for key in ("weight", "bias", "running_mean", "running_var"):
        close(mean[key], (a[key] + b[key]) / 2)
        extrapolated = base[key] - 50 * (a[key] + b[key] - 2 * base[key])
        close(far[key], extrapolated.clamp(min=0) if key == "running_var" else extrapolated)
    assert bool((far["running_var"] == 0).any()), "the case is one where the sum is negative"
    assert bool(torch.isfinite(outputs(bank, "new")["norm"]).all())


@pytest.mark.parametrize(
    ("members", "arguments", "message"),
    [
        ("", {}, "nothing to merge"),
        ("low gone", {}, "no module called 'gone'; there are: low, "),
        ("low scale", {}, r"'low' is low_rank, 'scale' is rescale.*average\(low, scale\)"),
        ("low here", {}, r"only one of 'low' and 'here' is at rows, two, up; .*average\(low, here\)"),
        ("neck neck", {}, "'neck': bottleneck modules cannot be merged; use Parallel, Average or Stack"),
        ("small large", {}, r"modules 1 and 2 cannot be merged: one/map is .* size"),
        ("low low", {"method": "mean"}, "no way .* is called 'mean'; there are average, task_arithmetic, ties, dare"),
        ("low low", {"method": "ties", "weights": [1, 1]}, "ties .* takes no weights"),
        ("low low", {"weights": [1]}, "2 modules, 1 weights"),
        ("low low", {"rank": 0}, "module 'new': rank: input should be greater than 0, got 0"),
        ("scale scale", {"rank": 2}, "only low_rank modules have a rank"),
        ("low low", {"when": ["hail"]}, "'hail' is none of"),
        ("low low", {"name": "low"}, "already has a module called 'low'"),
        ("low low", {"name": "no name"}, "module 'no name': name: "),
    ],
)
def test_members_that_do_not_merge_are_refused_and_the_bank_stays(bank, members, arguments, message):
    add(bank, "low")
    add(bank, "here", slots=("one",))
    add(bank, "scale", "rescale")
    add(bank, "neck", "bottleneck", slots=("one",))
    add(bank, "small", "prompt", slots=("one",), size=2)
    add(bank, "large", "prompt", slots=("one",), size=3)
    keys = bank.network.state_dict().keys()
    of_bank = {key: arguments[key] for key in ("rank", "when") if key in arguments}
    way = {key: value for key, value in arguments.items() if key not in ("name", *of_bank)}
    with pytest.raises(InputError, match=message):
        merge_modules(
            bank, arguments.get("name", "new"), members.split(), Merging(**{"method": "average", **way}), **of_bank
        )
    assert bank.network.state_dict().keys() == keys
    assert list(bank.modules) == ["low", "here", "scale", "neck", "small", "large"]
