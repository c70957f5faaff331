"""From points to pillars, inputs and features, each against a loop over points or the definition."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from exported import bundle, checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import _pixel, keyframe, paint_frame, spot_of
from repository import ROOT
from torch import Tensor, nn
from vocabulary import CAMERAS, CONDITIONS, RIG

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import differences, synthetic_frame
from perception.checkpoint import load_model
from perception.config import load_config
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.grid import BevGrid
from perception.modules.bank import Bank
from perception.modules.route import Route
from perception.modules.spec import parse_module
from perception.sensors import SENSORS
from perception.sensors.camera.config import CameraBranch, Image
from perception.sensors.camera.picture import fit_width, warp
from perception.sensors.inputs import PILLARS, InputSpec, prepare, without_padding
from perception.sensors.lidar.config import Lidar
from perception.sensors.lidar.network import PillarEncoder
from perception.sensors.lidar.pillars import group

# 4 rows, 8 columns
GRID = BevGrid(x=(-4.0, 4.0), y=(-2.0, 2.0), z=(-2.0, 2.0), cell=1.0)
COUNTS = torch.tensor([[2, 3, 1, 0], [3, 0, 0, 0]], dtype=torch.int32)  # frames with 6 and 3 points
CELLS = torch.tensor([[3, 17, 30, 32], [9, 32, 32, 32]], dtype=torch.int32)
FRAMES = [0, 0, 0, 0, 0, 0, 1, 1, 1]
# Of the ten features of a point, float32 as in the network.
SCALE = torch.tensor([1 / 4, 1 / 4, 1 / 2, 1 / 255, 2, 1, 1, 1, 1, 1]).double()


def _grouped_one_by_one(points, grid, max_pillars, points_per_pillar):
    """The definition: every point goes to its cell, then the fullest cells are kept, then their first points."""
    rows, columns = grid.shape
    cells = {}
    for point in points:
        x, y, z = map(float, point[:3])
        if grid.x[0] <= x < grid.x[1] and grid.y[0] <= y < grid.y[1] and grid.z[0] <= z < grid.z[1]:
            column = min(int((x - grid.x[0]) / grid.cell), columns - 1)
            row = min(int((y - grid.y[0]) / grid.cell), rows - 1)
            cells.setdefault(row * columns + column, []).append(point)
    fullest = sorted(cells, key=lambda cell: (-len(cells[cell]), cell))[:max_pillars]
    return {cell: cells[cell][:points_per_pillar] for cell in sorted(fullest)}


def _check_grouping(points, grid, max_pillars, points_per_pillar):
    """`group` leaves of pillars, counts and cells that held something else before what the loop does, and padding."""
    pillars = np.full((max_pillars, points_per_pillar, 5), np.nan, np.float32)
    counts, cells = np.full(max_pillars, -7, np.int32), np.full(max_pillars, -7, np.int32)
    found = group(points, grid, pillars, counts, cells)
    expected = _grouped_one_by_one(points, grid, max_pillars, points_per_pillar)
    padded = np.zeros_like(pillars)
    for pillar, kept in zip(padded, expected.values(), strict=False):
        pillar[: len(kept)] = kept
    rest = max_pillars - len(expected)
    assert found == len(expected)
    assert cells.tolist() == [*expected, *[grid.cells] * rest]
    assert counts.tolist() == [*map(len, expected.values()), *[0] * rest]
    np.testing.assert_array_equal(pillars, padded)
    return cells, counts


GRIDS = [
    BevGrid(x=(-4.0, 4.0), y=(-3.0, 3.0), cell=1.0),
    BevGrid(x=(-4.0, 4.2), y=(-1.1, 3.0), z=(-1.0, 1.0), cell=0.7),
    BevGrid(x=(-4.0, 4.5), y=(-1.1, 2.7), cell=0.7),  # reaches beyond its last cells
    BevGrid(x=(-60.0, 60.0), y=(-50.0, 50.0), cell=0.1),  # more cells than 16 bits count
]
numbers = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 200), st.floats(0.1, 8))


@settings(max_examples=150)
@given(numbers, st.sampled_from(GRIDS), st.integers(1, 60), st.integers(1, 6))
def test_grouping_equals_a_loop_over_points(drawn, grid, max_pillars, points_per_pillar):
    seed, number, spread = drawn
    rng = np.random.default_rng(seed)
    points = (rng.normal(size=(number, 5)) * spread).astype(np.float32)
    points[rng.random(number) < 0.2, 0] = grid.x[0]  # on the edge
    points[rng.random(number) < 0.2, 1] = grid.y[1]
    _check_grouping(points, grid, max_pillars, points_per_pillar)


def test_more_pillars_than_16_bits_count_and_a_point_at_the_far_edge() -> None:
    """Every cell twice, in random order: the first of both, at the first place of its pillar."""
    grid = BevGrid(x=(0.0, 300.0), y=(0.0, 300.0), cell=1.0)
    cell_of_point = np.random.default_rng(0).permutation(np.repeat(np.arange(grid.cells), 2))
    points = np.zeros((len(cell_of_point), 5), np.float32)
    points[:, 0], points[:, 1] = cell_of_point % 300 + 0.5, cell_of_point // 300 + 0.5
    points[:, 4] = np.arange(len(points))
    assert _check_grouping(points, grid, grid.cells, 1)[0].tolist() == list(range(grid.cells))
    edge = np.nextafter(np.float32(51.2), np.float32(0))
    cells, _ = _check_grouping(np.array([[edge, edge, 0, 0, 0]], np.float32), BevGrid(), 1, 1)
    assert cells.tolist() == [BevGrid().cells - 1]


@pytest.mark.parametrize("size", [(900, 1600), (1080, 1920)])
@pytest.mark.parametrize("image", [Image(height=h, width=w) for h, w in ((256, 704), (448, 800))])
def test_projections_hit_the_pixels_that_show_the_point(size: tuple[int, int], image: Image) -> None:
    point = np.array([20.0, 2.5, 0.4])
    spec = InputSpec(BevGrid(), {"camera": CameraBranch(image=image)}, RIG)
    inputs = prepare(paint_frame(point, size), spec)
    assert inputs["images"].shape == (1, 6, image.height, image.width, 3)
    expected = _pixel(inputs["image_from_reference"][0, 0].astype(np.float64), point)
    np.testing.assert_allclose(spot_of(inputs["images"][0, 0]), expected, atol=0.08)


def test_fitting_keeps_the_bottom_and_the_edges_of_pixels_and_averages_all():
    affine = fit_width((900, 1600, 3), Image(height=256, width=704))
    np.testing.assert_allclose(affine @ [-0.5, 899.5, 1], [-0.5, 255.5, 1], atol=1e-9)
    np.testing.assert_allclose(affine @ [1599.5, 899.5, 1], [703.5, 255.5, 1], atol=1e-9)

    low, striped = np.full((10, 40, 3), 200, np.uint8), np.zeros((64, 64, 3), np.uint8)
    image = warp(low, fit_width(low.shape, Image(height=16, width=40)), Image(height=16, width=40))
    assert not image[:6].any()  # black rows on top
    np.testing.assert_array_equal(image[6:], low)
    striped[::4] = 240
    image = warp(striped, fit_width(striped.shape, Image(height=16, width=16)), Image(height=16, width=16))
    np.testing.assert_allclose(image, 60, atol=1)


def test_inputs_of_a_frame_and_of_one_with_missing_sensors(recorded_root):
    tables, spec = NuScenesTables(recorded_root, "v1.0-tiny"), load_config(ROOT / "configs" / "tiny.yaml").spec
    frame = tables.frame(tables.samples()[1], Reads(sweeps=spec.sweeps))
    inputs = prepare(frame, spec)
    pillars, image = spec.lidar.max_pillars, Image(height=96, width=256)
    assert {name: (array.shape, array.dtype.name) for name, array in inputs.items()} == {
        "pillar_points": ((1, pillars, 8, 5), "float32"),
        "pillar_counts": ((1, pillars), "int32"),
        "pillar_cells": ((1, pillars), "int32"),
        "images": ((1, 6, 96, 256, 3), "uint8"),
        "image_from_reference": ((1, 6, 3, 4), "float32"),
    }
    occupied = inputs["pillar_counts"][0] > 0
    assert inputs["pillar_counts"].sum() == spec.grid.inside(frame.points).sum()
    assert (inputs["pillar_cells"][0, ~occupied] == spec.grid.cells).all()
    assert (inputs["pillar_cells"][0, occupied] < spec.grid.cells).all()
    for i, name in enumerate(CAMERAS):
        affine = fit_width(frame.cameras[name].image.shape, image)
        expected = affine @ frame.image_from_reference(name)
        np.testing.assert_allclose(inputs["image_from_reference"][0, i], expected, rtol=1e-6)

    frame = tables.frame(tables.samples()[0], Reads(lidar=False))
    del frame.cameras["CAM_BACK"]
    inputs = prepare(frame, spec)
    assert not inputs["pillar_points"].any()
    assert not inputs["pillar_counts"].any()
    assert (inputs["pillar_cells"] == spec.grid.cells).all()
    seen = [name != "CAM_BACK" for name in CAMERAS]
    assert inputs["images"][0].any(axis=(1, 2, 3)).tolist() == seen
    assert inputs["image_from_reference"][0].any(axis=(1, 2)).tolist() == seen

    assert set(prepare(frame, InputSpec(BevGrid(), {"lidar": Lidar()}, RIG))) == set(
        PILLARS
    )  # a model without a camera
    assert set(prepare(frame, InputSpec(BevGrid(), {"camera": CameraBranch()}, RIG))) == set(inputs) - set(PILLARS)
    with pytest.raises(ValueError, match="the frame is in 'ego'"):
        prepare(frame, InputSpec(BevGrid(reference="lidar"), {"lidar": Lidar()}, RIG))


def inputs_with(pillars: int) -> dict[str, np.ndarray]:
    """Of a frame with a point in each of so many cells, of which the network keeps `max_pillars` at most."""
    spec = bundle().spec
    rows, columns = spec.grid.shape
    cells = np.random.default_rng(pillars).permutation(rows * columns)[:pillars]
    points = np.zeros((pillars, 5), np.float32)
    points[:, 0] = spec.grid.x[0] + (cells % columns + 0.5) * spec.grid.cell
    points[:, 1] = spec.grid.y[0] + (cells // columns + 0.5) * spec.grid.cell
    points[:, 3] = cells % 251
    return prepare(replace(synthetic_frame("ego", RIG), **keyframe(points)), spec)


@pytest.mark.parametrize("pillars", [0, 37, 12_500])
def test_any_number_of_pillars_gives_what_torch_gives_with_padding(pillars: int) -> None:
    padded = inputs_with(pillars)
    assert padded["pillar_counts"].shape == (1, 12_000)
    assert (padded["pillar_counts"] > 0).sum() == min(pillars, 12_000)
    with torch.no_grad():
        outputs = load_model(checkpoint())[0].predict({k: torch.from_numpy(v) for k, v in padded.items()})
    expected = {name: value.numpy() for name, value in outputs.items()}
    assert differences(expected, OnnxRuntimeEngine(bundle().onnx).run(padded), bundle().manifest.tolerances) == []
    # The graph itself, with padding and without, without what the engine makes of it.
    session = onnxruntime.InferenceSession(bundle().onnx, providers=["CPUExecutionProvider"])
    for inputs in (padded, without_padding(padded)):
        found = dict(zip(expected, session.run(list(expected), inputs), strict=True))
        assert differences(expected, found, bundle().manifest.tolerances) == []


class Net(nn.Module):
    """An encoder with a bank of modules, in float64."""

    def __init__(self, encoder: str, *modules: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lidar = PillarEncoder(Lidar(channels=5, points_per_pillar=3, encoder=encoder), GRID).double()
        self.lidar.norm.layer.momentum = 1.0  # the statistics of the last batch
        nn.init.normal_(self.lidar.norm.layer.bias)
        nn.init.uniform_(self.lidar.norm.layer.weight, 0.5, 2.0)
        self.bank = Bank(self, CONDITIONS, sensors=SENSORS)
        for module in modules:
            self.bank.add(parse_module({"when": [], **module}))
        for name, parameter in self.named_parameters():
            if "computations" in name:
                nn.init.normal_(parameter)

    def forward(self, points: Tensor, counts: Tensor = COUNTS) -> Tensor:
        inputs = {"pillar_points": points, "pillar_counts": counts, "pillar_cells": CELLS}
        features: Tensor = self.lidar(inputs)[0]
        return features


def _pillars(points: Tensor) -> Iterator[tuple[int, int, int, Tensor]]:
    """Frame, row and column of each pillar with points, and these."""
    for frame, pillar in np.ndindex(2, 4):
        if count := int(COUNTS[frame, pillar]):
            yield frame, *divmod(int(CELLS[frame, pillar]), 8), points[frame, pillar, :count]


def _points() -> Tensor:
    """(2, 4, 3, 5) inside their cells."""
    points = torch.zeros(2, 4, 3, 5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for _, row, column, real in _pillars(points):
        real[:] = torch.rand(real.shape, generator=generator, dtype=torch.float64)
        real[:, :2] += torch.tensor([GRID.x[0] + column, GRID.y[0] + row])
    return points


def _ten_features(points: Tensor) -> Tensor:
    """(9, 10) of the real points, one by one."""
    found = []
    for _, row, column, real in _pillars(points):
        center = torch.tensor([GRID.x[0] + column + 0.5, GRID.y[0] + row + 0.5])
        found += [torch.cat([point, point[:3] - real[:, :3].mean(0), point[:2] - center]) for point in real]
    return torch.stack(found) * SCALE


def _expected(y: Tensor, network: Net, mean: Tensor | None = None, variance: Tensor | None = None) -> Tensor:
    """The feature map for outputs y (9, 5) of the linear layer, normalised by hand, by default with y's statistics."""
    norm = network.lidar.norm.layer
    mean, variance = (y.mean(0), y.var(0, unbiased=False)) if mean is None else (mean, variance)
    left = ((y - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias).clamp(min=0)
    canvas = torch.zeros(2, 5, 4, 8, dtype=torch.float64)
    for frame, row, column, real in _pillars(_points()):
        canvas[frame, :, row, column] = left[: len(real)].amax(0)
        left = left[len(real) :]
    return canvas


def test_in_evaluation_each_encoder_equals_a_loop_over_points():
    real, masked, points = Net("real").eval(), Net("masked").eval(), _points()
    for network in (real, masked):
        norm = network.lidar.norm.layer
        norm.running_mean.copy_(torch.linspace(-0.5, 0.5, 5))
        norm.running_var.copy_(torch.linspace(0.5, 2.0, 5))
    y = _ten_features(points) @ real.lidar.linear.layer.weight.T
    torch.testing.assert_close(real(points), _expected(y, real, norm.running_mean, norm.running_var))
    assert torch.equal(real(points), masked(points))
    assert not torch.equal(real.train()(points), masked.train()(points))


def test_statistics_outputs_and_gradients_are_those_of_the_real_points() -> None:
    network, points = Net("real").train(), _points()
    linear, norm = network.lidar.linear.layer, network.lidar.norm.layer
    weights = [linear.weight, norm.weight, norm.bias]
    cost = torch.randn(2, 5, 4, 8, dtype=torch.float64)
    features = network(points)
    gradients = torch.autograd.grad((features * cost).sum(), weights)

    y = _ten_features(points) @ linear.weight.T
    torch.testing.assert_close(norm.running_mean, y.mean(0).detach())
    torch.testing.assert_close(norm.running_var, y.var(0).detach())
    expected = _expected(y, network)
    torch.testing.assert_close(features, expected)
    for one, other in zip(gradients, torch.autograd.grad((expected * cost).sum(), weights), strict=True):
        torch.testing.assert_close(one, other)
    assert (expected > 0).any(dim=(0, 2, 3)).all()


@pytest.mark.parametrize("vectors", [1, 2])
def test_modules_run_on_the_points_of_their_frames(vectors: int) -> None:
    slots = {"slots": ["lidar.pillar"]}
    network = Net(
        "real",
        {"name": "low", "kind": "low_rank", "rank": 2, **slots},
        {"name": "turned", "kind": "film", **slots},
        {"name": "absent", "kind": "low_rank", "rank": 1, **slots},
    ).train()
    z = torch.randn(vectors, network.lidar.linear.computations["turned"].scale.shape[1], dtype=torch.float64)
    weights = {"low": torch.tensor([0.5, 2.0]).double(), "turned": 1.0, "absent": torch.tensor([0.0, 1.0]).double()}
    network.bank.current.route = Route(weights, z=z, static=False)
    features, points = network(_points()), _ten_features(_points())

    low, turned, absent = (network.lidar.linear.computations[name] for name in weights)
    rows = []
    for point, frame in zip(points, FRAMES, strict=True):
        base = network.lidar.linear.layer.weight @ point
        own = z[frame if len(z) > 1 else 0]
        delta = weights["low"][frame] * low.b.weight @ low.a.weight @ point
        delta = delta + (turned.scale @ own) * base + turned.shift @ own
        if frame == 1:
            delta = delta + absent.b.weight @ absent.a.weight @ point
        rows.append(base + delta)
    torch.testing.assert_close(features, _expected(torch.stack(rows), network))


def test_a_normalisation_trained_on_a_frozen_base_sees_real_points() -> None:
    network = Net("real", {"name": "own", "kind": "batch_norm", "slots": ["lidar.pillar.norm"]})
    network.bank.train("own")
    network.bank.current.route = Route({"own": 1.0})
    before = network.lidar.norm.layer.running_mean.clone()
    own = network.lidar.norm.computations["own"].norm
    own.momentum = 1.0
    network(_points())
    y = _ten_features(_points()) @ network.lidar.linear.layer.weight.T
    torch.testing.assert_close(own.running_mean, y.mean(0).detach())
    assert torch.equal(network.lidar.norm.layer.running_mean, before)


@pytest.mark.parametrize("points", [0, 1])
def test_without_points_there_are_no_statistics(points: int) -> None:
    network = Net("real").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    counts = torch.zeros_like(COUNTS)
    counts[0, 0] = points
    features = network(_points(), counts)
    features.sum().backward()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert features.isfinite().all()
    assert (features[0, :, 0, 3] > 0).any() == bool(points)
    assert all(parameter.grad is not None for parameter in network.parameters())  # as distributed training wants it
    assert network.lidar.norm.layer.training
