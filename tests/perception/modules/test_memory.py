"""The memory: the warp against a loop in double precision, the blend, the identity it begins with, and its graph."""

import contextlib
import copy
import io
from itertools import pairwise
from math import floor, pi

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import config, disturb, inputs, model
from pydantic import ValidationError
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from perception.bev.memory import STATE, MemorySlot
from perception.config import parse_config
from perception.errors import InputError
from perception.frame import Conditions
from perception.grid import BevGrid
from perception.model import PerceptionModel
from perception.modules.aggregation.representations import AttentionFusion
from perception.modules.composition import Fuse
from perception.modules.computation.computation import Site
from perception.modules.computation.memory import FusedMap, Memory, Remembered
from perception.modules.route import Route
from perception.modules.spec import Module, ModuleUnion, parse_module
from perception.state import MOTION_INPUTS

GRID = BevGrid(x=(-4.0, 8.0), y=(-3.0, 5.0), cell=0.5)  # 16 rows, 24 columns, not centred on the vehicle
CHANNELS = 3
strides = pytest.mark.parametrize("stride", [1, 2])  # sides of a cell of the state, in cells of the map
meters, turns, tilts = st.floats(-9, 9), st.floats(-pi, pi), st.floats(-0.1, 0.1)


def rigid(x: float, y: float, yaw: float, tilt: float = 0.0, z: float = 0.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("zyx", [yaw, tilt, -tilt / 2]).as_matrix()
    matrix[:3, 3] = [x, y, z]
    return matrix


def warp_by_loops(state: np.ndarray, motion: np.ndarray, grid: BevGrid) -> tuple[np.ndarray, np.ndarray]:
    """The map (C, rows, columns) bilinearly at where each cell's centre was, and the weights inside of the map."""
    rows, columns = grid.shape
    moved, inside = np.zeros_like(state), np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            here = [grid.x[0] + (column + 0.5) * grid.cell, grid.y[0] + (row + 0.5) * grid.cell, 0.0, 1.0]
            x, y, _, _ = np.linalg.inv(motion) @ here
            u, v = (x - grid.x[0]) / grid.cell - 0.5, (y - grid.y[0]) / grid.cell - 0.5  # 0 is the first cell's centre
            for j in (floor(v), floor(v) + 1):
                for i in (floor(u), floor(u) + 1):
                    weight = (1 - abs(u - i)) * (1 - abs(v - j))
                    if 0 <= i < columns and 0 <= j < rows:
                        moved[:, row, column] += weight * state[:, j, i]
                        inside[row, column] += weight
    return moved, inside


@settings(deadline=None, max_examples=15)
@given(meters, meters, turns, tilts, st.floats(-1, 1), st.sampled_from([1, 2, 4]))
def test_the_warp_is_a_loop_over_cells(x, y, yaw, tilt, z, stride):
    layer, grid = FusedMap(GRID, CHANNELS), GRID.coarser(stride)
    state = torch.randn(CHANNELS, *grid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    motion = rigid(x, y, yaw, tilt, z)
    expected = warp_by_loops(state.numpy(), motion, grid)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        moved, inside = layer.warp(state[None].to(dtype), torch.from_numpy(motion)[None].to(dtype))
        np.testing.assert_allclose(moved[0], expected[0], atol=tolerance)
        np.testing.assert_allclose(inside[0, 0], expected[1], atol=tolerance)


def test_the_places_are_computed_in_single_precision_whatever_the_map_is():
    """Half a thousand cells from the origin, half precision would be cells away."""
    grid = BevGrid(x=(-102.4, 102.4), y=(-12.8, 12.8), cell=0.2)
    layer, state = FusedMap(grid, 1), torch.rand(1, 1, *grid.shape)
    motion = torch.from_numpy(rigid(0.37, 0.11, 0.01))[None].float()
    expected, _ = layer.warp(state.half().float(), motion)
    moved, _ = layer.warp(state.half(), motion.half().float())
    torch.testing.assert_close(moved, layer.warp(state.half().float(), motion.half().float())[0], rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer.warp(state.half().float(), motion)[0], expected, rtol=0, atol=0)


def memory(dtype: torch.dtype = torch.float32, size: float = 0.5, stride: int = 1) -> tuple[FusedMap, Memory]:
    """With random numbers for all parameters."""
    layer = FusedMap(GRID, CHANNELS).to(dtype)
    module, generator = Memory(layer, hidden=4, stride=stride), torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=size, generator=generator)
    return layer, module.eval()


def past_of(frames: int = 2, valid: float = 1.0, elapsed: float = 0.5, stride: int = 1) -> dict[str, Tensor]:
    motion = torch.from_numpy(rigid(-2.1, 0.4, 0.1)).float().repeat(frames, 1, 1)
    state = torch.rand(frames, CHANNELS, *GRID.coarser(stride).shape, generator=torch.Generator().manual_seed(1))
    every = (state, motion, torch.full((frames,), valid), torch.full((frames,), elapsed))
    return dict(zip((STATE, *MOTION_INPUTS), every, strict=True))


def fused_of(frames: int = 2) -> Tensor:
    return torch.rand(frames, CHANNELS, *GRID.shape, generator=torch.Generator().manual_seed(2))


def remember(layer: FusedMap, module: Memory, fused: Tensor, past: dict[str, Tensor]) -> Tensor:
    """H."""
    return module.output(seen(fused, past, layer), layer, None)


def seen(fused: Tensor, past: dict[str, Tensor], layer: FusedMap) -> Remembered:
    return Remembered(fused, past.get(STATE), past, layer)


def largest(fused: Tensor, stride: int) -> Tensor:
    """The largest value in each cell of a state, by comparing all that lie in it."""
    parts = [fused[..., i::stride, j::stride] for i in range(stride) for j in range(stride)]
    return torch.stack(parts).max(dim=0).values


@strides
def test_by_its_formula(stride):
    """At one cell of the state, in double precision; the gate's convolution by a loop over its taps."""
    layer, module = memory(torch.float64, stride=stride)
    fused, past = fused_of().double(), {name: each.double() for name, each in past_of(stride=stride).items()}
    past["elapsed"][1] = 0.1
    found = remember(layer, module, fused, past)
    moved, inside = (part.detach() for part in layer.warp(past["state"], past["current_from_previous"]))
    now = largest(fused, stride)
    known = moved + (1 - inside) * now
    frame, row, column = 1, 6, 9
    joined = torch.cat([now, known], dim=1)[frame]
    hidden = module.mix.bias + 0.1 * module.elapsed
    for i in range(3):
        for j in range(3):
            hidden = hidden + module.mix.weight[:, :, i, j] @ joined[:, row + i - 1, column + j - 1]
    gate = module.gate.weight[:, :, 0, 0] @ hidden.clamp(min=0) + module.gate.bias
    lacking = torch.stack([before.max() - now.max() for before, now in zip(moved[frame], now[frame], strict=True)])
    weight = (10 * module.scale).tanh() / (1 + (-gate - module.whole.weight @ lacking).exp())
    change = weight * (known - now)[frame, :, row, column]
    for i in range(stride * row, stride * (row + 1)):
        for j in range(stride * column, stride * (column + 1)):
            torch.testing.assert_close(found[frame, :, i, j], fused[frame, :, i, j] + change, rtol=1e-12, atol=1e-12)


@strides
def test_the_frame_keeps_every_bit_where_the_past_is_not_valid_or_was_outside_of_the_map(stride):
    layer, module = memory(stride=stride)
    fused, past = fused_of(), past_of(stride=stride)
    _, inside = layer.warp(past["state"], past["current_from_previous"])
    outside = (layer.spread(inside) == 0).expand_as(fused)
    assert 0.05 < outside.float().mean() < 0.95
    found = remember(layer, module, fused, past)
    assert torch.equal(found[outside], fused[outside])
    assert (found != fused)[~outside].float().mean() > 0.9
    mixed = remember(layer, module, fused, past | {"state_valid": torch.tensor([0.0, 1.0])})
    assert torch.equal(mixed[0], fused[0])
    assert torch.equal(mixed[1], found[1])
    assert remember(layer, module, fused, {}) is fused
    assert torch.equal(fused + module(Site(seen(fused, {}, layer), fused, layer, None)), fused)


def test_a_process_without_frames_for_it_has_it_in_its_graph(monkeypatch):
    """As of the other kinds, in test_contract.py."""
    monkeypatch.setattr("perception.io.distributed.processes", lambda: 2)
    monkeypatch.setattr("perception.io.distributed.total", lambda values: values + 1)  # the other one has a frame
    slot, (_, module) = MemorySlot(GRID, CHANNELS), memory()
    slot.computations["m"], slot.current.route = module, Route({"m": torch.zeros(2)})
    found = slot.remember(fused_of(), past_of())
    assert torch.equal(found, fused_of())
    found.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_a_frame_that_sees_nothing_opens_the_gate_of_a_new_memory():
    """The maximum of the map falls; with a scale that a few steps reach it keeps the past."""
    layer, past = FusedMap(GRID, CHANNELS), past_of()
    module = Memory(layer, hidden=4)
    nn.init.constant_(module.scale, 0.3)
    past["state"] = 5 * past["state"]
    known, inside = layer.warp(past["state"], past["current_from_previous"])

    def share(fused: Tensor) -> float:
        there = (inside.expand_as(fused) == 1) & ((known - fused).abs() > 0.1)
        return float(((remember(layer, module, fused, past) - fused)[there] / (known - fused)[there]).median())

    assert share(torch.zeros_like(known)) > 0.95
    assert share(5 * fused_of()) < 0.9


@settings(max_examples=50, deadline=None)
@given(
    scales=st.lists(st.floats(-3, 3), min_size=2, max_size=3),
    motion=st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3.2, 3.2)),
    stride=st.sampled_from([1, 2]),
)
def test_several_memories_do_not_let_a_state_grow(scales, motion, stride):
    """Over a long outage, whatever they learned; one alone adds what it does without the bound."""
    slot = MemorySlot(GRID, CHANNELS).eval()
    layer = slot.layer
    for i, scale in enumerate(scales):
        slot.computations[f"m{i}"] = memory(stride=stride)[1]
        nn.init.constant_(slot.computations[f"m{i}"].scale, scale)
    slot.current.route = Route(dict.fromkeys(slot.computations, 1.0))
    past, blind = (
        past_of(1, stride=stride) | {"current_from_previous": torch.from_numpy(rigid(*motion)).float()[None]},
        0 * fused_of(1),
    )
    most = past["state"].max()
    for _ in range(30):
        past["state"] = layer.reduce(slot.remember(blind, past).detach(), past["state"])
    assert past["state"].abs().max() <= 1.001 * most


@strides
def test_two_memories_are_joined_by_attention(stride):
    """A new attention is the mean of its members; whatever it learns, the state stays within the bound."""
    slot, block = MemorySlot(GRID, CHANNELS).eval(), Fuse("one", "two")
    layer, modules = slot.layer, {"one": memory(stride=stride)[1], "two": memory(size=0.2, stride=stride)[1]}
    slot.computations.update(modules)
    slot.fusions[block.key] = attention = AttentionFusion(layer, block)
    slot.current.route = Route(dict.fromkeys(modules, 1.0), block=block)
    fused, past = fused_of(), past_of(stride=stride)
    each = [remember(layer, module, fused, past) for module in modules.values()]
    torch.testing.assert_close(slot.remember(fused, past), sum(each) / 2)
    nn.init.constant_(attention.value, 10.0)
    changed = layer.reduce(slot.remember(fused, past), past["state"])
    moved, inside = layer.warp(past["state"], past["current_from_previous"])
    now = layer.reduce(fused, past["state"])
    assert (changed - now).abs().max() > 0.1
    assert ((changed - now).abs() <= (moved - inside * now).abs() + 1e-6).all()
    assert torch.equal(slot.remember(fused, past | {"state_valid": torch.zeros(2)}), fused)


@strides
def test_the_bound_changes_no_bit_of_a_single_memory(stride):
    layer, module = memory(stride=stride)
    slot = MemorySlot(GRID, CHANNELS).eval()
    slot.computations.update({"m": module, "other": Memory(layer, hidden=4, stride=stride)})  # a new one adds nothing
    slot.current.route = Route({"m": 1.0, "other": 1.0})
    fused, past = fused_of(), past_of(stride=stride)
    assert torch.equal(slot.remember(fused, past), remember(layer, module, fused, past))
    assert torch.equal(slot.remember(fused, {}), fused)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_remembers_in_mixed_precision(dtype):
    """The map and the state may be in half of the precision; what is remembered has the map's type."""
    layer, module = memory()
    fused, past = fused_of(), past_of()
    exact = remember(layer, module, fused, past)
    with torch.autocast("cpu", torch.bfloat16):
        found = remember(layer, module, fused.to(dtype), past | {"state": past["state"].to(dtype)})
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)


class Stage(nn.Module):
    """The memory alone, with the inputs of a network; its map and the next state."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.layer, self.module = memory(stride=stride)

    def forward(self, fused: Tensor, past: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        found = remember(self.layer, self.module, fused, past)
        return found, self.layer.reduce(found, past["state"])


@strides
def test_the_graph_is_of_standard_operators_with_one_grid_sample_of_four_dimensions(stride):
    stage = Stage(stride).eval()
    fused, past = fused_of(1), past_of(1, stride=stride)
    with contextlib.redirect_stdout(io.StringIO()):
        graph = torch.onnx.export(
            stage, (fused, past, {}), dynamo=True, opset_version=18, verbose=False,
            input_names=["fused", STATE, *MOTION_INPUTS], output_names=["map", "next_state"],
        ).model_proto  # fmt: skip
    inferred = onnx.shape_inference.infer_shapes(graph)
    nodes = [node for node in inferred.graph.node if node.op_type == "GridSample"]
    assert len(nodes) == 1
    kinds = {each.name: each.type.tensor_type for each in [*inferred.graph.value_info, *inferred.graph.input]}
    assert all(len(kinds[name].shape.dim) == 4 for name in nodes[0].input)
    assert kinds[nodes[0].input[1]].elem_type == onnx.TensorProto.FLOAT
    assert not {node.op_type for node in graph.graph.node} & {"If", "Loop", "Scan", "MatMul", "Where"}
    assert not any(node.domain for node in graph.graph.node)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for valid in (1.0, 0.0):
        past["state_valid"] = torch.tensor([valid])
        given = {"fused": fused.numpy()} | {name: each.numpy() for name, each in past.items()}
        found = session.run(None, given)
        assert valid or np.array_equal(found[0], fused.numpy())
        for ours, expected in zip(found, stage(fused, past), strict=True):
            np.testing.assert_allclose(ours, expected.detach(), rtol=1e-5, atol=1e-5)


# In the perception model.

PAST: dict[str, Tensor] = {
    "current_from_previous": torch.from_numpy(rigid(-2.0, 0.1, 0.05)).float().repeat(2, 1, 1),
    "state_valid": torch.tensor([1.0, 1.0]),
    "elapsed": torch.tensor([0.5, 0.4]),
}


def spec(name: str = "memory", **options: object) -> Module:
    return parse_module({"name": name, "kind": "memory", **options})


def with_memory(**options: object) -> PerceptionModel:
    network = model()
    network.bank.add(spec(**options))
    return network


def state_of(network: PerceptionModel) -> dict[str, Tensor]:
    return PAST | {"state": torch.rand(network.no_states(2)["state"].shape, generator=torch.Generator().manual_seed(0))}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    return {name for name in a if not torch.equal(a[name], b[name])}


@torch.no_grad()
def test_a_base_keeps_every_bit_when_a_memory_is_added_saved_loaded_and_deleted(tmp_path):
    base, frames = model(), inputs(1, 2)
    expected, fingerprint = base(frames), base.bank.base_hash()
    network = with_memory()
    past = state_of(network)
    assert network.state_dict().keys() - base.state_dict().keys()
    assert not differing(expected, network(frames))
    assert not differing(expected, network(frames | past)), "at first it is the identity"
    disturb(network, "memory", 0.5)
    learned = network(frames | past)
    assert differing(expected, learned) == set(expected)
    assert not differing(expected, network(frames)), "without a state"
    assert not differing(expected, network(frames | past | {"state_valid": torch.zeros(2)}))
    assert network.bank.base_hash() == fingerprint
    network.bank.save("memory", tmp_path / "memory")
    base.bank.load(tmp_path / "memory.json")
    assert not differing(learned, base(frames | past))
    assert base.bank.modules["memory"] == network.bank.modules["memory"].model_copy(update={"name": "memory"})
    base.bank.delete("memory")
    assert not differing(expected, base(frames))
    assert base.bank.base_hash() == fingerprint


@torch.no_grad()
@strides
def test_the_next_state_is_the_map_that_the_trunk_reads(stride):
    network, frames = with_memory(stride=stride), inputs(1, 2)
    disturb(network, "memory", 0.5)
    read = []
    network.trunk.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    found = network(frames | state_of(network))["next_state"]
    assert torch.equal(found, largest(read[0], stride))
    assert torch.equal(found, network.next_states(frames | state_of(network), [], None)["state"])
    assert found.shape == network.no_states(2)["state"].shape == (2, 32, 32 // stride, 32 // stride)
    assert "next_state" not in network(frames)
    maps = [each.next_states(frames, [], None)["state"] for each in (network, model())]
    assert torch.equal(*maps)


@torch.no_grad()
def test_it_runs_on_the_frames_that_have_its_conditions():
    network, frames = model(), inputs(1, 2)
    expected = network(frames)
    network.bank.add(spec(when=["fog"]))
    disturb(network, "memory", 0.5)
    found = network(frames | state_of(network), [Conditions(weather="fog"), Conditions(weather="rain")])
    assert all(torch.equal(found[name][1], expected[name][1]) for name in expected)
    assert all(not torch.equal(found[name][0], expected[name][0]) for name in expected)


def test_it_stands_at_its_own_slot_for_all_tasks_on_the_grid_that_it_was_trained_for(tmp_path):
    network = model()
    with pytest.raises(InputError, match=r"module a: all tasks share the memory; leave tasks out of its `when`"):
        network.bank.add(spec("a", when=["detection"]))
    both = {"kind": "memory"}, {"kind": "low_rank", "slots": ["trunk.*"]}
    with pytest.raises(InputError, match="leave tasks out"):
        network.bank.add(ModuleUnion.model_validate({"name": "a", "parts": both, "when": ["map"]}))
    with pytest.raises(InputError, match=r"memory does not attach to Conv2d"):
        network.bank.add(spec("a", slots=["fused"]))
    with pytest.raises(InputError, match=r"low_rank does not attach to FusedMap"):
        network.bank.add(parse_module({"name": "a", "kind": "low_rank", "slots": ["memory"]}))
    network.bank.add(spec())
    network.bank.save("memory", tmp_path / "m")
    content = config().model_dump(mode="json")
    content["grid"]["x"] = [-12.8, 0.0]
    narrow = PerceptionModel(parse_config(content, "narrow"))
    narrow.load_state_dict(model().state_dict())
    with pytest.raises(InputError, match=r"was a FusedMap \(32, 32, 32\), here it is a FusedMap \(32, 32, 16\)"):
        narrow.bank.load(tmp_path / "m")


@pytest.mark.parametrize(("limit", "least"), [("seconds", 1.2), ("speed", 70.0)])
def test_a_memory_does_not_shorten_another_one(tmp_path, limit, least):
    """They share the state: a stricter limit would change outputs also where the second one does not run."""
    network, other = with_memory(), model()
    says = rf"module b: with {limit} below {least:g} the memories that are here would forget sooner"
    other.bank.add(spec("b", **{limit: 0.9 * least}))
    other.bank.save("b", tmp_path / "b")
    with pytest.raises(InputError, match=says):
        network.bank.add(spec("b", **{limit: 0.9 * least}))
    with pytest.raises(InputError, match=says):
        network.bank.load(tmp_path / "b.json")
    assert [*network.bank.modules] == ["memory"]
    network.bank.add(spec("b", **{limit: 2 * least}))


def test_all_memories_have_cells_of_one_size_that_divide_the_map(tmp_path):
    network, other = with_memory(stride=2), with_memory(name="b")
    other.bank.save("b", tmp_path / "b")
    network.bank.save("memory", tmp_path / "memory")
    says = r"module {}: it has the stride {}, the memories that are here have {}, and all share a state"
    with pytest.raises(InputError, match=says.format("b", 1, 2)):
        network.bank.add(spec("b"))
    with pytest.raises(InputError, match=says.format("b", 1, 2)):
        network.bank.load(tmp_path / "b.json")
    with pytest.raises(InputError, match=says.format("memory", 2, 1)):
        model().bank.load(tmp_path / "b.json", tmp_path / "memory.json")
    network.bank.add(spec("b", stride=2))
    with pytest.raises(InputError, match=r"memory: stride 3 does not divide the fused map of 32 x 32 cells"):
        with_memory(stride=3)
    union = {"kind": "union", "parts": [{"kind": "memory"}, {"kind": "memory", "stride": 2}]}
    with pytest.raises(InputError, match=r"two parts of 'both' are at memory"):
        model().bank.add(parse_module({"name": "both", **union}))


@pytest.mark.parametrize(
    "option",
    [
        {"seconds": float("inf")},
        {"speed": float("nan")},
        {"frames": 1},
        {"spacing": [0.5, 0.1]},
    ],
)
def test_options_that_no_memory_can_have_are_refused(option):
    with pytest.raises(ValidationError, match=rf"memory\.{next(iter(option))}"):
        spec("a", **option)


@torch.no_grad()
def test_a_state_of_one_route_is_used_on_another():
    """The state after rain is warped into a dry frame's features: defined, and different from forgetting."""
    network, frames = with_memory(), inputs(1, 2)
    network.bank.add(parse_module({"name": "low", "kind": "low_rank", "slots": ["fuse*"], "when": ["rain"]}))
    for name in ("memory", "low"):
        disturb(network, name, 0.5)
    rain, dry = [Conditions(weather="rain")] * 2, [Conditions(weather="clear")] * 2
    states = [network(frames | state_of(network), known)["next_state"] for known in (rain, dry)]
    assert not torch.equal(*states)
    alone = copy.deepcopy(network)
    alone.bank.delete("low")
    outputs = [network(frames | PAST | {"state": state}, dry) for state in states]
    for state, found in zip(states, outputs, strict=True):
        assert not differing(found, alone(frames | PAST | {"state": state}))
    assert all(differing(a, b) for a, b in pairwise(outputs))
