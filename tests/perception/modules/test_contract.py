"""What holds for all kinds of modules: over random layers, by frame and cell, in cost and in exported graphs."""

import contextlib
import copy
import io
import itertools
import math

import numpy as np
import onnxruntime
import pytest
import torch
from computations import (
    AFFINE,
    CASES,
    Place,
    assert_near,
    delta_of,
    inputs_like,
    make,
    make_trained,
    place_of,
    places,
    randomize,
    slot_with,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from vocabulary import Z

from perception.grid import BevGrid
from perception.modules.composition import Average, Parallel, Stack
from perception.modules.computation.computation import CHANNELWISE, Affine, Site
from perception.modules.computation.memory import FusedMap
from perception.modules.route import Route
from perception.modules.slot import Slot
from perception.modules.spec import COMPUTATIONS

every_kind = pytest.mark.parametrize("case", CASES)
few = settings(deadline=None, max_examples=10)
weights = st.sampled_from([1.0, -0.7, 0.0])
PAIRS = [  # affine kinds that share a layer
    pair for pair in itertools.product(AFFINE, AFFINE)
    if set(COMPUTATIONS[CASES[pair[0]][0]].layers) & set(COMPUTATIONS[CASES[pair[1]][0]].layers)
]  # fmt: skip
ROWS = 2  # of each frame, as slots in the camera branch have six


def attached(case):
    """A place for each class of layers that the kind attaches to."""
    return [place_of(kind) for kind in COMPUTATIONS[CASES[case][0]].layers]


@every_kind
@few
@given(st.data(), st.sampled_from([torch.float32, torch.float64]), weights)
def test_a_new_module_is_the_identity_bit_for_bit(case, data, dtype, weight):
    layer, x, z = data.draw(places(case))
    layer, x = layer.to(dtype), x.to(dtype)
    slot = slot_with(layer, Route({"m": weight}, z=z), m=make(case, layer))
    assert torch.equal(slot(x), layer(x))


@every_kind
def test_a_module_has_the_type_and_the_device_of_its_layer(case):
    """Also where the weights of a route are on the CPU; the device `meta` has shapes without numbers."""
    route = Route({"m": torch.tensor([0.0, 1.0])}, z=torch.randn(2, Z))
    for layer, x, _ in attached(case):
        slot = slot_with(layer, route, m=make(case, layer)).to("meta")
        assert slot(x.to("meta")).shape == layer(x).shape
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            module = make(case, layer.to(dtype))
            assert {t.dtype for t in module.state_dict().values() if t.is_floating_point()} == {dtype}
            assert all(p.requires_grad for p in module.parameters())


@every_kind
@few
@given(st.data())
def test_a_module_alone_computes_and_learns_as_by_its_delta(case, data):
    layer, x, z = data.draw(places(case))
    module = make_trained(case, layer)
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


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@settings(deadline=None, max_examples=2)
@given(st.data(), weights)
def test_two_modules_fold_together_and_one_after_the_other(pair, data, weight):
    layer, x, z = data.draw(places(*pair, frames=1))
    modules = {name: make_trained(case, layer) for name, case in zip("ab", pair, strict=True)}
    for block in (Stack("a", "b"), Parallel("a", "b"), Average("a", "b", weights=[0.3, -1.2])):
        slot = slot_with(layer, Route({"a": -0.7, "b": weight}, z=z, block=block), **modules)
        unfolded = slot(x)
        slot.fold(slot.current.route)
        assert_near(slot(x), unfolded)
    slot = slot_with(layer, Route({"m": 1.0}, z=z), m=modules["a"])
    slot(x)
    slot.fold(slot.current.route)
    slot.computations["m"] = make_trained(pair[1], slot.layer)
    unfolded = slot(x)
    slot.fold(slot.current.route)
    assert_near(slot(x), unfolded)


def test_what_is_not_affine_refuses_to_fold_and_stays_at_its_slot():
    layer, x, _ = place_of(nn.Conv2d)
    module = make_trained("bottleneck", layer)
    with pytest.raises(NotImplementedError, match="bottleneck is not affine"):
        module.fold(Affine.of(layer), layer, None)
    slot = slot_with(layer, Route({"a": 1.0, "m": 1.0}), a=make_trained("rescale", layer), m=module)
    before = slot(x)
    slot.fold(slot.current.route)
    assert list(slot.computations) == ["a", "m"]
    assert torch.equal(slot(x), before)
    assert torch.equal(slot.layer.weight, layer.weight)


NOT_MERGED = {"concatenated", "bottleneck", "hypernetwork"}


@every_kind
@few
@given(st.data())
def test_a_task_vector_is_zero_at_first_and_says_all_that_was_learned(case, data):
    layer, x, z = data.draw(places(case))
    new, module = make(case, layer), make_trained(case, layer)
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


def test_a_kind_attaches_to_the_layers_that_it_can_change():
    others = set(COMPUTATIONS) - {kind for kind, _ in CASES.values()}
    assert others == {"memory"}, "a kind that these tests leave out; test_memory.py is about the one at its own slot"
    for name, kind in COMPUTATIONS.items():
        assert kind.kind == name
        if name in others:
            assert not any(kind.attaches_to(place_of(layer).layer) for layer in CHANNELWISE)
            continue
        assert {layer for layer in CHANNELWISE if kind.attaches_to(place_of(layer).layer)} == set(kind.layers)
        foreign = (nn.ReLU(), nn.LayerNorm(4), nn.Conv1d(2, 2, 1), nn.Sequential(), FusedMap(BevGrid(), 4))
        assert not any(kind.attaches_to(layer) for layer in foreign)
    parallel, hyper = (
        COMPUTATIONS["parallel_adapter"].attaches_to,
        COMPUTATIONS["hypernetwork"].attaches_to,
    )
    assert parallel(nn.Conv2d(2, 2, (3, 5), padding=(2, 4), dilation=2))
    assert not parallel(nn.Conv2d(2, 2, 3))  # the middle tap is not over the output's own cell
    assert not parallel(nn.Conv2d(2, 2, 2, padding=1))  # there is no middle tap
    assert not hyper(nn.Conv2d(2, 2, 1, groups=2))
    assert not COMPUTATIONS["rescale"].attaches_to(nn.BatchNorm2d(2, affine=False))  # nothing to fold into
    assert not COMPUTATIONS["batch_norm"].attaches_to(nn.BatchNorm2d(2, track_running_stats=False))


# Outside of convolutions and matrix products, which torch's counter passes over: at each cell the normalisations of
# the series adapter, and for each frame the generator of the hypernetwork.
UNCOUNTED = {"series_adapter": 2 * 4}
SCALES = ("batch_norm", "rescale", "scale_shift", "film")
PER_FRAME = {"hypernetwork": 7 * 8 + 8 * 4 * 2}


@every_kind
def test_the_stated_multiplications_are_those_that_torch_counts(case):
    for kind in COMPUTATIONS[CASES[case][0]].layers:
        layer, x, z = place_of(kind, **({"stride": 2} if kind in (nn.Conv2d, nn.ConvTranspose2d) else {}))
        x = x[:1]  # of a prompt all frames share one convolution
        site = Site(x, layer(x), layer, z)
        module = make_trained(case, layer)
        if case in SCALES:
            assert module.multiply_adds(layer) == 4
            continue
        with FlopCounterMode(display=False) as counter:
            module(site)
        # A transposed convolution multiplies at each cell of its input.
        at_inputs = kind is nn.ConvTranspose2d and case in ("low_rank", "sparse_delta")
        cells = math.prod((x if at_inputs else site.y).shape[2:])
        stated = cells * (module.multiply_adds(layer) - UNCOUNTED.get(case, 0)) + PER_FRAME.get(case, 0)
        assert counter.get_total_flops() == 2 * stated


def test_a_slot_runs_the_modules_of_its_route_and_no_others():
    """By weights for all slots, or for this one; without any it gives its layer's output bit for bit."""
    place = place_of(nn.Conv2d)
    modules = {name: make_trained("low_rank", place.layer) for name in "ab"}
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
    module = make_trained(case, place.layer)
    weight = torch.tensor(weights, dtype=torch.float64, requires_grad=learned)
    out = slot_with(place.layer, Route({"m": weight}, z=z), m=module)(place.x)
    expected = place.layer(place.x).clone()
    for i, one in enumerate(weights):
        rows = slice(i * ROWS, (i + 1) * ROWS)
        own = None if z is None else z[i : i + 1]
        expected[rows] += one * delta_of(module, Place(place.layer, place.x[rows], own))
    assert_near(out, expected)
    if not learned:
        without = torch.tensor([w == 0 for w in weights]).repeat_interleave(ROWS)
        assert torch.equal(out[without], place.layer(place.x)[without])


@every_kind
def test_the_gradient_of_a_weight_is_the_products_sum_of_gradient_and_delta(case):
    for place in attached(case):
        module = make_trained(case, place.layer)
        weight = torch.tensor([0.0, -0.7], dtype=torch.float64, requires_grad=True)
        out = slot_with(place.layer, Route({"m": weight}, z=place.z), m=module)(place.x)
        toward = torch.randn_like(out)
        out.backward(toward)
        products = (toward * delta_of(module, place)).unflatten(0, (2, ROWS)).flatten(1).sum(dim=1)
        assert_near(weight.grad, products.detach())


@every_kind
def test_each_cell_has_its_weight(case):
    for kind in set(COMPUTATIONS[CASES[case][0]].layers) - {nn.Linear, nn.BatchNorm1d}:
        place = place_of(kind)
        module = make_trained(case, place.layer)
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
    place = place_of(nn.BatchNorm2d if case == "batch_norm" else nn.Conv2d)
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
    for layer, x, z in attached(case):
        layer, x = layer.float(), x.float()
        slot = slot_with(layer, Route({"m": torch.tensor(weights)}, z=z), m=make_trained(case, layer))
        exact = slot(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(slot(x).float(), exact, rtol=0.1, atol=0.1)


@every_kind
def test_a_process_without_frames_of_a_module_has_it_in_its_graph(case, monkeypatch):
    """Gradients are exchanged, so that all processes need them where one has such frames."""
    monkeypatch.setattr("perception.io.distributed.processes", lambda: 2)
    monkeypatch.setattr("perception.io.distributed.total", lambda values: values + 1)  # the other one has a frame
    for layer, x, z in attached(case):
        for known in (None, z, torch.eye(Z)[:2]):
            module = make_trained(case, layer).train()
            before = copy.deepcopy(dict(module.named_buffers()))
            slot = Slot("s", layer)
            slot.computations["m"], slot.current.route = module, Route({"m": torch.zeros(2)}, z=known)
            y = slot(x)
            assert torch.equal(y, layer(x))
            y.sum().backward()
            assert all(p.grad is not None and not p.grad.any() for p in module.parameters())
            for name, value in module.named_buffers():
                assert torch.equal(value, before[name]) or name.endswith("num_batches_tracked"), name


class Network(nn.Module):
    """A slot with each of the layers, as the model has them."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = Slot("down", nn.Conv2d(3, 4, 3, 2, 1, bias=False)), Slot("norm", nn.BatchNorm2d(4))
        self.up, self.mix = Slot("up", nn.ConvTranspose2d(4, 4, 2, 2, bias=False)), Slot("mix", nn.Linear(4, 4))
        self.norm1d = Slot("norm1d", nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.norm(self.down(x)).relu()).relu()
        return self.norm1d(self.mix(x.mean((2, 3))))


class Side(nn.ModuleDict):
    """Networks side by side in one graph, which exports in a fraction of the time of as many graphs."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: network(x) for name, network in self.items()}


@pytest.mark.slow("exports one graph with all kinds")
def test_all_kinds_export_and_compute_the_same_in_onnx_runtime():
    torch.manual_seed(0)
    base, x = Network().eval(), torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(1))
    randomize(base)
    networks = {"base": base}
    for case in CASES:
        networks[case] = copy.deepcopy(base)
        for slot in networks[case].children():
            if COMPUTATIONS[CASES[case][0]].attaches_to(slot.layer):
                slot.computations["m"] = make_trained(case, slot.layer)
            slot.current.route = Route({"m": 1.0}, z=torch.ones(1, Z))
        assert (networks[case](x) - base(x)).abs().max() > 1e-3
    networks["by frame"] = copy.deepcopy(networks["film"])
    for slot in networks["by frame"].children():
        slot.current.route = Route({"m": torch.tensor([0.0, 0.5])}, z=torch.eye(Z)[:2])
    with contextlib.redirect_stdout(io.StringIO()):
        graph = torch.onnx.export(
            Side(networks).eval(), (x,), dynamo=True, opset_version=18, output_names=list(networks), verbose=False
        ).model_proto
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = session.run(list(networks), {session.get_inputs()[0].name: x.numpy()})
    for name, output in zip(networks, outputs, strict=True):
        expected = networks[name](x).detach().numpy()
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5, err_msg=name)
    assert not any(node.domain for node in graph.graph.node), "operators of the standard alone"
