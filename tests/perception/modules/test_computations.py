"""The contract of computation functions: all kinds, over random layers that they attach to, in float64."""

import copy
import itertools

import pytest
import torch
from computations import AFFINE, CASES, assert_near, delta_of, fixed, make, places, randomize, slot_with, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from perception.modules.aggregation.composition import Average, Parallel, Stack
from perception.modules.computation.computation import CHANNELWISE, Affine
from perception.modules.computation.kinds import KINDS
from perception.modules.route import Route
from perception.modules.slot import Slot

every_kind = pytest.mark.parametrize("case", CASES)
every_affine_kind = pytest.mark.parametrize("case", AFFINE)
few = settings(deadline=None, max_examples=10)
weights = st.sampled_from([1.0, -0.7, 0.0])
PAIRS = [  # affine kinds that share a layer
    pair for pair in itertools.product(AFFINE, AFFINE)
    if set(KINDS[CASES[pair[0]][0]].layers) & set(KINDS[CASES[pair[1]][0]].layers)
]  # fmt: skip


def test_every_kind_is_tested():
    assert {kind for kind, _ in CASES.values()} == set(KINDS)
    assert all(kind == KINDS[kind].kind for kind in KINDS)


@every_kind
@few
@given(st.data(), st.sampled_from([torch.float32, torch.float64]), weights)
def test_a_new_module_is_the_identity_bit_for_bit(case, data, dtype, weight):
    layer, x, z = data.draw(places(case))
    layer, x = layer.to(dtype), x.to(dtype)
    slot = slot_with(layer, Route({"m": weight}, z=z), m=make(case, layer))
    assert torch.equal(slot(x), layer(x))


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_have_the_type_of_the_layers(case, dtype):
    for kind in KINDS[CASES[case][0]].layers:
        module = make(case, fixed(kind).layer.to(dtype))
        assert {t.dtype for t in module.state_dict().values() if t.is_floating_point()} == {dtype}
        assert all(p.requires_grad for p in module.parameters())


@every_affine_kind
@few
@given(st.data(), weights)
def test_folded_equals_unfolded(case, data, weight):
    layer, x, z = place = data.draw(places(case, frames=1))
    slot = slot_with(layer, Route({"m": weight}, z=z), m=trained(case, layer))
    unfolded = slot(x)
    assert_near(unfolded, layer(x) + weight * delta_of(slot.computations["m"], place))
    slot.fold()
    assert len(slot.computations) == 0
    assert_near(slot(x), unfolded)


@every_kind
@few
@given(st.data())
def test_a_module_alone_computes_and_learns_as_by_its_delta(case, data):
    layer, x, z = data.draw(places(case))
    module = trained(case, layer)
    alone = slot_with(layer, Route({"m": 1.0}, z=z), m=module)
    beside = slot_with(layer, Route({"m": 1.0}, z=z, block=Average("m")), m=copy.deepcopy(module))
    for slot in (alone, beside):
        slot.computations.train()  # batch norms normalise by the batch, and the layer's do not
    y, expected = alone(x), beside(x)
    assert_near(y, expected)
    direction = torch.randn_like(y)
    for out in (y, expected):
        (out * direction).sum().backward()
    for one, other in zip(alone.computations.parameters(), beside.computations.parameters(), strict=True):
        assert_near(one.grad, other.grad)
    for one, other in zip(alone.computations.buffers(), beside.computations.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


every_pair = pytest.mark.parametrize("pair", PAIRS, ids="-".join)


@every_pair
@settings(deadline=None, max_examples=2)
@given(st.data(), weights)
def test_two_folded_modules_equal_two_unfolded(pair, data, weight):
    layer, x, z = data.draw(places(*pair, frames=1))
    modules = {name: trained(case, layer) for name, case in zip("ab", pair, strict=True)}
    for block in (Stack("a", "b"), Parallel("a", "b"), Average("a", "b", weights=[0.3, -1.2])):
        slot = slot_with(layer, Route({"a": -0.7, "b": weight}, z=z, block=block), **modules)
        unfolded = slot(x)
        slot.fold()
        assert_near(slot(x), unfolded)


@every_pair
@settings(deadline=None, max_examples=2)
@given(st.data())
def test_a_module_folds_into_a_layer_that_has_taken_one_in(pair, data):
    layer, x, z = data.draw(places(*pair, frames=1))
    slot = slot_with(layer, Route({"m": 1.0}, z=z), m=trained(pair[0], layer))
    slot(x)
    slot.fold()
    slot.computations["m"] = trained(pair[1], slot.layer)
    unfolded = slot(x)
    slot.fold()
    assert_near(slot(x), unfolded)


@every_affine_kind
@few
@given(st.data())
def test_a_backup_of_the_layer_undoes_a_fold_bit_for_bit(case, data):
    layer, x, z = data.draw(places(case, frames=1))
    slot = slot_with(layer, Route({"m": 1.0}, z=z), m=trained(case, layer))
    backup, before = copy.deepcopy(slot), slot(x)
    slot.fold()
    slot.layer, slot.computations, slot.constant = backup.layer, backup.computations, backup.constant
    assert torch.equal(slot(x), before)
    assert torch.equal(slot.layer(x), layer(x))


def test_what_is_not_affine_refuses_to_fold_and_stays_at_its_slot():
    layer, x, _ = fixed(nn.Conv2d)
    module = trained("bottleneck", layer)
    with pytest.raises(NotImplementedError, match="bottleneck is not affine"):
        module.fold(Affine.of(layer), layer, None)
    slot = slot_with(layer, Route({"a": 1.0, "m": 1.0}), a=trained("rescale", layer), m=module)
    before = slot(x)
    slot.fold()
    assert list(slot.computations) == ["a", "m"]
    assert torch.equal(slot(x), before)
    assert torch.equal(slot.layer.weight, layer.weight)
    assert [kind for kind in KINDS if not KINDS[kind].affine] == ["bottleneck"]


@every_kind
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradients_equal_finite_differences_and_leave_a_frozen_layer_alone(case, training):
    for kind in KINDS[CASES[case][0]].layers:
        layer, x, z = fixed(kind)
        slot = slot_with(layer, Route({"m": -0.7}, z=z), m=trained(case, layer))
        slot.computations.train(training)
        before = copy.deepcopy(slot.layer.state_dict())
        parameters = list(slot.computations.parameters())
        direction = torch.randn_like(slot(x))

        def along_direction(*_, slot=slot, x=x, direction=direction):
            return (direction * slot(x)).sum()

        assert torch.autograd.gradcheck(along_direction, (x.requires_grad_(), *parameters))
        slot(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in parameters)
        assert all(p.grad is None for p in slot.layer.parameters())
        assert all(torch.equal(slot.layer.state_dict()[name], before[name]) for name in before)


@every_kind
@few
@given(st.data())
def test_copies_and_saved_tensors_keep_the_function(case, data):
    layer, x, z = data.draw(places(case))
    slot = slot_with(layer, Route({"m": 1.0}, z=z), m=trained(case, layer))
    expected = slot(x)
    assert torch.equal(copy.deepcopy(slot)(x), expected)
    other = slot_with(layer, slot.route, m=make(case, layer))
    other.load_state_dict(slot.state_dict())
    assert torch.equal(other(x), expected)
    assert torch.allclose(slot.float()(x.float()).double(), expected, rtol=1e-4, atol=1e-4)
    assert slot(x.float()).dtype == torch.float32


NOT_MERGED = {"concatenated", "bottleneck", "hypernetwork"}


@every_kind
@few
@given(st.data())
def test_a_task_vector_is_zero_at_first_and_says_all_that_was_learned(case, data):
    layer, x, z = data.draw(places(case))
    new, module = make(case, layer), trained(case, layer)
    if case in NOT_MERGED:
        with pytest.raises(NotImplementedError, match="cannot be merged"):
            new.task_vector(layer)
        return
    zero = new.task_vector(layer)
    assert not any(t.any() for t in zero.values())
    expected = slot_with(layer, Route({"m": 1.0}, z=z), m=module)(x)
    vector = module.task_vector(layer)
    assert {k: t.shape for k, t in vector.items()} == {k: t.shape for k, t in zero.items()}
    new.set_task_vector(vector, layer)
    randomize(module)  # the vector is a copy
    assert_near(slot_with(layer, Route({"m": 1.0}, z=z), m=new)(x), expected)
    new.set_task_vector(zero, layer)
    assert_near(slot_with(layer, Route({"m": 1.0}, z=z), m=new)(x), layer(x))


# The sum of two low-rank or sparse deltas may need more rank or entries than the module has; a normalisation is not
# linear in its statistics.
@pytest.mark.parametrize("case", sorted(CASES.keys() - NOT_MERGED - {"low_rank", "sparse_delta", "batch_norm"}))
@few
@given(st.data(), st.floats(-1, 1))
def test_task_vectors_add_as_their_deltas_do(case, data, share):
    place = data.draw(places(case))
    a, b, both = trained(case, place.layer), trained(case, place.layer), make(case, place.layer).eval()
    one, other = a.task_vector(place.layer), b.task_vector(place.layer)
    both.set_task_vector({key: one[key] + share * other[key] for key in one}, place.layer)
    assert_near(delta_of(both, place), delta_of(a, place) + share * delta_of(b, place))


LINEAR = {nn.Conv2d, nn.ConvTranspose2d, nn.Linear}
ATTACHES = {
    "low_rank": LINEAR,
    "sparse_delta": LINEAR,
    "batch_norm": {nn.BatchNorm1d, nn.BatchNorm2d},
    "prompt": {nn.Conv2d},
    "concatenated": {nn.Conv2d},
    "series_adapter": {nn.Conv2d, nn.ConvTranspose2d},
    "parallel_adapter": {nn.Conv2d, nn.Linear},
    "bottleneck": LINEAR,
    "rescale": set(CHANNELWISE),
    "scale_shift": set(CHANNELWISE),
    "film": set(CHANNELWISE),
    "hypernetwork": {nn.Conv2d, nn.Linear},
}


@every_kind
def test_a_kind_attaches_to_the_layers_that_it_can_change(case):
    attaches = KINDS[CASES[case][0]].attaches_to
    assert {kind for kind in CHANNELWISE if attaches(fixed(kind).layer)} == ATTACHES[case]
    assert not any(attaches(layer) for layer in (nn.ReLU(), nn.LayerNorm(4), nn.Conv1d(2, 2, 1), nn.Sequential()))


def test_a_kind_does_not_attach_to_a_layer_of_the_right_class_that_it_cannot_change():
    parallel, hyper = KINDS["parallel_adapter"].attaches_to, KINDS["hypernetwork"].attaches_to
    assert parallel(nn.Conv2d(2, 2, (3, 5), padding=(2, 4), dilation=2))
    assert not parallel(nn.Conv2d(2, 2, 3))  # the middle tap is not over the output's own cell
    assert not parallel(nn.Conv2d(2, 2, 2, padding=1))  # there is no middle tap
    assert not hyper(nn.Conv2d(2, 2, 1, groups=2))
    assert not KINDS["rescale"].attaches_to(nn.BatchNorm2d(2, affine=False))  # nothing to fold into
    assert not KINDS["batch_norm"].attaches_to(nn.BatchNorm2d(2, track_running_stats=False))


def test_a_new_series_adapter_keeps_unit_statistics_without_a_call_of_train():
    layer, x, _ = fixed(nn.Conv2d)
    slot = Slot("s", layer)
    slot.computations["m"] = make("series_adapter", layer)
    slot.route = Route({"m": 1.0})
    assert torch.equal(slot(x), layer(x))
