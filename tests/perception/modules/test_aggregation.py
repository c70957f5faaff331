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
from perception.modules.aggregation.merge import Merging, dare, merge_modules, ties, weighted_sum
from perception.modules.bank import Bank
from perception.modules.composition import Average, Parallel
from perception.modules.computation.computation import Site
from perception.modules.computation.weight_delta import LowRank
from perception.modules.route import Route


def f64(*numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_weights_are_used_as_they_are_and_vectors_of_other_layers_are_refused():
    vectors = [{"v": f64(1.0, 2.0)}, {"v": f64(10.0, -4.0)}]
    close(weighted_sum(vectors, [2.0, -0.5])["v"], f64(2 - 5, 4 + 2))
    with pytest.raises(InputError, match=r"modules 1 and 2 .* v is \(2,\) in one and missing in the other"):
        ties([vectors[0], {"w": f64(1)}], 0.5)


# Quarters, so that sums are exact and the elected sign does not hang on rounding.
entries = st.integers(-20, 20).map(lambda n: n / 4)
tables = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(entries, min_size=n, max_size=n), min_size=1, max_size=12)
)


@settings(max_examples=200)
@given(tables, st.sampled_from([0.1, 0.2, 0.5, 0.6, 1.0]), st.integers(0, 11))
def test_ties_is_the_brute_force_loop(table, keep, split):
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
    vectors = [{"v": f64(*column[:split]), "w": f64(*column[split:])} for column in columns]  # trimmed together
    merged = ties(vectors, keep)
    close(torch.cat([merged["v"], merged["w"]]), f64(*expected))


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


@settings(max_examples=50)
@given(layers(), st.integers(1, 3), st.integers(0, 2))
def test_a_low_rank_module_comes_back_from_its_product_and_learns_on_from_zero(layer, rank, more):
    module, copied = LowRank(layer, rank, alpha=2.0), LowRank(layer, rank + more)
    randomize(module)
    copied.set_task_vector(module.task_vector(layer), layer)
    shape = (layer.in_features,) if isinstance(layer, nn.Linear) else (layer.in_channels, 5, 4)
    x = torch.randn(2, *shape, dtype=torch.float64)
    close(slot_with(layer, m=copied)(x), slot_with(layer, m=module)(x))
    module.set_task_vector({"weight": torch.zeros_like(layer.weight)}, layer)
    module(Site(x, layer(x), layer, None)).sum().backward()  # both factors at zero would have no gradient for ever
    assert bool((module.b.weight.grad.flatten(1).norm(dim=0) > 0).all())


bank = pytest.fixture(new_bank)


def vector(bank, name):
    layers = {slot: bank.slots[slot].layer for slot in bank.at(name)}
    vectors = {slot: module.task_vector(layers[slot]) for slot, module in bank.at(name).items()}
    return {f"{slot}/{key}": tensor for slot, own in vectors.items() for key, tensor in own.items()}


def outputs(bank: Bank, block: Any) -> dict[str, Tensor]:
    """What each slot gives for an input of its own, so that the slots' differences do not mix."""
    torch.manual_seed(1)
    route = Route({"a": 1.0, "b": 1.0, "c": 1.0, "new": 1.0}, block=block, z=torch.rand(1, Z, dtype=torch.float64))
    bank.current.route = route
    shapes = {"one": (2, 4, 5, 6), "up": (2, 6, 5, 6), "two": (2, 4, 5, 6), "norm": (2, 4, 5, 6), "rows": (2, 7, 4)}
    return {name: bank.slots[name](torch.randn(shape, dtype=torch.float64)) for name, shape in shapes.items()}


LINEAR: dict[str, list[dict[str, Any]]] = {  # kinds whose output is linear in the task vector, options of members
    "low_rank": [{"rank": 1}, {"rank": 2, "alpha": 3.0}, {"rank": 4, "alpha": -1.0}],
    "sparse_delta": [{"share": 0.1}, {"share": 0.03}, {"share": 0.5}],
    "prompt": [{"size": 3}] * 3,
    **{kind: [{}] * 3 for kind in ("series_adapter", "parallel_adapter", "rescale", "scale_shift", "film")},
}
WAYS = [
    ("average", {}, Average("a", "b", "c")),
    ("average", {"weights": [0.7, -2.0, 0.1]}, Average("a", "b", "c", weights=[0.7, -2.0, 0.1])),
    ("average", {"strength": 0.5}, Average("a", "b", "c", weights=[1 / 6] * 3)),
    ("task_arithmetic", {}, Parallel("a", "b", "c")),
    ("task_arithmetic", {"strength": 0.3}, Average("a", "b", "c", weights=[0.3] * 3)),
    ("dare", {"drop": 0.0}, Parallel("a", "b", "c")),
]


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize(("method", "arguments", "block"), WAYS)
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
    for name, share in (("s", 0.7), ("t", 0.6)):
        add(bank, name, "sparse_delta", share=share)
    merge_modules(bank, "dense", ["s", "t"], Merging("average"))
    assert bank.modules["dense"].share == 1.0


def test_ranks_add_up_and_a_cut_rank_reports_the_share_that_is_lost(bank):
    add(bank, "a", rank=1)
    add(bank, "b", rank=2, alpha=3.0)
    merge_modules(bank, "new", ["a", "b"], Merging("average"), when=["rain"])
    assert (bank.modules["new"].rank, bank.modules["new"].alpha, bank.modules["new"].when) == (3, None, ("rain",))
    missing = merge_modules(bank, "cut", ["a", "b"], Merging("task_arithmetic"), rank=1)
    full = {key: tensor + vector(bank, "b")[key] for key, tensor in vector(bank, "a").items()}
    assert missing.keys() == {"one", "up", "two", "rows"}
    for slot, lost in missing.items():
        weight, layer = full[f"{slot}/weight"].numpy(), bank.slots[slot].layer
        tails = [np.linalg.svd(matrix, compute_uv=False)[1:] for matrix in group_matrices(weight, layer)]
        assert lost == pytest.approx(np.linalg.norm(np.concatenate(tails)) / np.linalg.norm(weight), rel=1e-12)
        assert lost > 0.01


def test_ties_trims_over_all_slots(bank):
    for name in "ab":
        add(bank, name, "parallel_adapter")
    merge_modules(bank, "new", ["a", "b"], Merging("ties", keep=0.3, strength=2.0))
    expected = ties([vector(bank, "a"), vector(bank, "b")], 0.3)
    for key, tensor in vector(bank, "new").items():
        close(tensor, 2 * expected[key])


def test_dare_draws_for_each_module_of_its_own_and_follows_its_seed(bank):
    for name in "ab":
        add(bank, name, "rescale", slots=("one",))
    vectors = [vector(bank, name) for name in "ab"]
    for seed in (0, 7):
        merge_modules(bank, f"new{seed}", ["a", "b"], Merging("dare", drop=0.5, seed=seed, weights=[0.5, 0.25]))
        drawn = dare(vectors, 0.5, torch.Generator().manual_seed(seed))
        close(vector(bank, f"new{seed}")["one/scale"], weighted_sum(drawn, [0.5, 0.25])["one/scale"])
    assert not torch.equal(*((values["one/scale"] == 0) for values in drawn))


def test_merged_batch_normalisations_average_by_hand_and_keep_their_variances_positive(bank):
    for name in "ab":
        add(bank, name, "batch_norm", slots=("norm",))
    a, b = (bank.at(name)["norm"].norm.state_dict() for name in "ab")
    base = bank.slots["norm"].layer.state_dict()
    merge_modules(bank, "mean", ["a", "b"], Merging("average"))
    merge_modules(bank, "new", ["a", "b"], Merging("task_arithmetic", strength=-50.0))
    merge_modules(bank, "thin", ["a", "b"], Merging("dare", drop=0.9))  # which drops nothing of statistics
    mean, far, thin = (bank.at(name)["norm"].norm.state_dict() for name in ("mean", "new", "thin"))
    for key in ("weight", "bias", "running_mean", "running_var"):
        close(mean[key], (a[key] + b[key]) / 2)
        for found, strength in ((far, -50), (thin, 1)):
            total = base[key] + strength * (a[key] + b[key] - 2 * base[key])
            close(found[key], total.clamp(min=0) if key == "running_var" else total)
    assert bool((far["running_var"] == 0).any()), "the case is one where the sum is negative"
    assert bool(torch.isfinite(outputs(bank, "new")["norm"]).all())


NOT_MERGED = [
    ("", {}, "nothing to merge"),
    ("low low", {"method": "ties", "keep": 0.0}, "TIES keeps .* more than 0 and at most 1 of the entries, not 0.0"),
    ("low low", {"method": "dare", "drop": 1.0}, "DARE drops .* less than 1 of the entries, not 1.0"),
    ("low gone", {}, "no module called 'gone'; there are: low, "),
    ("low scale", {}, r"'low' is low_rank, 'scale' is rescale.*average\(low, scale\)"),
    ("low here", {}, r"only one of 'low' and 'here' is at rows, two, up; .*average\(low, here\)"),
    ("neck neck", {}, "'neck': bottleneck modules cannot be merged; use Parallel, Average or Stack"),
    ("small large", {}, r"modules 1 and 2 cannot be merged: one/map is .* size"),
    ("low low", {"method": "mean"}, "no way .* is called 'mean'; there are average, task_arithmetic, ties, dare"),
    ("low low", {"method": "ties", "weights": [1, 1]}, "ties .* takes no weights"),
    ("scale scale", {"rank": 2}, "only low_rank modules have a rank"),
    ("low low", {"name": "low"}, "already has a module called 'low'"),
]


@pytest.mark.parametrize(("members", "arguments", "message"), NOT_MERGED)
def test_members_that_do_not_merge_are_refused_and_the_bank_stays(bank, members, arguments, message):
    add(bank, "low")
    add(bank, "here", slots=("one",))
    add(bank, "scale", "rescale")
    add(bank, "neck", "bottleneck", slots=("one",))
    add(bank, "small", "prompt", slots=("one",), size=2)
    add(bank, "large", "prompt", slots=("one",), size=3)
    keys = bank.network.state_dict().keys()
    of_bank = {key: arguments[key] for key in ("rank", "when", "name") if key in arguments}
    way = {"method": "average"} | {key: value for key, value in arguments.items() if key not in of_bank}
    with pytest.raises(InputError, match=message):
        merge_modules(bank, members=members.split(), merging=Merging(**way), **({"name": "new"} | of_bank))
    assert bank.network.state_dict().keys() == keys
    assert list(bank.modules) == ["low", "here", "scale", "neck", "small", "large"]
