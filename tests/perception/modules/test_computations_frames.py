"""All kinds of modules with a weight and a condition vector of its own for each frame, and with weights for cells."""

import copy

import pytest
import torch
from computations import CASES, Place, assert_near, delta_of, fixed, inputs_like, make, places, slot_with, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from vocabulary import Z

from perception.modules.computation.kinds import KINDS
from perception.modules.route import Route

every_kind = pytest.mark.parametrize("case", CASES)
ROWS = 2  # of each frame, as slots in the camera branch have six


def frame_by_frame(module: nn.Module, place: Place, weights: list[float]) -> torch.Tensor:
    """The layer's output with the module run on one frame after the other."""
    out = place.layer(place.x).clone()
    for i, weight in enumerate(weights):
        rows = slice(i * ROWS, (i + 1) * ROWS)
        z = None if place.z is None else place.z[i : i + 1]
        out[rows] += weight * delta_of(module, Place(place.layer, place.x[rows], z))
    return out


def test_a_slot_runs_the_modules_of_its_route_and_no_others():
    """By weights for all slots, or for this one; without any it gives its layer's output bit for bit."""
    place = fixed(nn.Conv2d)
    modules = {name: trained("low_rank", place.layer) for name in "ab"}
    y, a, b = place.layer(place.x), *(delta_of(module, place) for module in modules.values())
    for route, expected in (
        (Route({"a": 0.5, "b": -2}), y + 0.5 * a - 2 * b),
        (Route({"a": 1.0}, by_slot={"s": {"b": 3.0}, "t": {"a": 7.0}}), y + 3 * b),
        (Route({"a": 1.0}, by_slot={"s": {}}), y),
        (Route({"elsewhere": 1.0}), y),
        (Route(), y),
    ):
        out = slot_with(place.layer, route, **modules)(place.x)
        assert_near(out, expected)
        assert torch.equal(out, y) == (expected is y)


@every_kind
@settings(deadline=None, max_examples=10)
@given(st.data(), st.lists(st.sampled_from([0.0, 1.0, -0.7]), min_size=2, max_size=4), st.booleans())
def test_each_frame_has_its_weight_and_its_condition(case, data, weights, learned):
    place = data.draw(places(case))
    frames = len(weights)
    z = None if place.z is None else torch.randn(frames, Z)
    place = Place(place.layer, inputs_like(place, frames * ROWS), z)
    module = trained(case, place.layer)
    weight = torch.tensor(weights, dtype=torch.float64, requires_grad=learned)
    out = slot_with(place.layer, Route({"m": weight}, z=z), m=module)(place.x)
    assert_near(out, frame_by_frame(module, place, weights))
    if not learned:
        without = torch.tensor([w == 0 for w in weights]).repeat_interleave(ROWS)
        assert torch.equal(out[without], place.layer(place.x)[without])


@every_kind
def test_the_gradient_of_a_weight_is_the_products_sum_of_gradient_and_delta(case):
    for kind in KINDS[CASES[case][0]].layers:
        place = fixed(kind)
        module = trained(case, place.layer)
        weight = torch.tensor([0.0, -0.7], dtype=torch.float64, requires_grad=True)
        out = slot_with(place.layer, Route({"m": weight}, z=place.z), m=module)(place.x)
        toward = torch.randn_like(out)
        out.backward(toward)
        products = (toward * delta_of(module, place)).unflatten(0, (2, ROWS)).flatten(1).sum(dim=1)
        assert_near(weight.grad, products.detach())


@every_kind
def test_each_cell_has_its_weight(case):
    for kind in set(KINDS[CASES[case][0]].layers) - {nn.Linear, nn.BatchNorm1d}:
        place = fixed(kind)
        module = trained(case, place.layer)
        out = slot_with(place.layer, m=module)(place.x)
        rows, columns = out.shape[-2:]
        weight = torch.randn(4, 1, rows // 2, columns, dtype=torch.float64)
        weighted = slot_with(place.layer, Route({"m": weight}, z=place.z), m=module)(place.x)
        base, delta = place.layer(place.x), delta_of(module, place)
        for row in range(rows):
            for column in range(columns):
                expected = base[..., row, column] + weight[..., row // 2, column] * delta[..., row, column]
                assert_near(weighted[..., row, column], expected)


@pytest.mark.parametrize("case", ["batch_norm", "series_adapter"])
def test_frames_without_weight_stay_out_of_the_statistics(case):
    place = fixed(nn.BatchNorm2d if case == "batch_norm" else nn.Conv2d)
    some, alone = make(case, place.layer), make(case, place.layer)
    alone.load_state_dict(some.state_dict())
    slot = slot_with(place.layer, Route({"m": torch.tensor([0.0, 1.0])}), m=some)
    slot.computations.train()
    slot(place.x)
    before = copy.deepcopy(alone.state_dict())
    delta_of(alone.train(), place._replace(x=place.x[ROWS:]))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(some.state_dict()[name], value, rtol=1e-12, atol=0)
    moved = {name for name in before if not torch.equal(before[name], alone.state_dict()[name])}
    assert {name.rsplit(".", 1)[1] for name in moved} == {"running_mean", "running_var", "num_batches_tracked"}
    assert not any(name.startswith("after") for name in moved)  # BN2 of the series adapter holds still


@every_kind
@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_frames_have_weights_in_mixed_precision(case, weights):
    for kind in KINDS[CASES[case][0]].layers:
        layer, x, z = fixed(kind)
        layer, x = layer.float(), x.float()
        slot = slot_with(layer, Route({"m": torch.tensor(weights)}, z=z), m=trained(case, layer))
        exact = slot(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(slot(x).float(), exact, rtol=0.1, atol=0.1)


@every_kind
def test_weights_on_the_cpu_serve_a_network_on_another_device(case):
    for kind in KINDS[CASES[case][0]].layers:
        place = fixed(kind)
        route = Route({"m": torch.tensor([0.0, 1.0])}, z=torch.randn(2, Z))
        slot = slot_with(place.layer, route, m=make(case, place.layer)).to("meta")  # a device of shapes without numbers
        assert slot(place.x.to("meta")).shape == place.layer(place.x).shape
