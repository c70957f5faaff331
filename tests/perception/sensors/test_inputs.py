"""Pillars against a loop over points; pictures and projections against painted pixels; predictions."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from bench_pillars import pillars, street
from hypothesis import given, settings
from hypothesis import strategies as st
from painted import _pixel, painted_frame, spot_of
from repository import ROOT
from vocabulary import CAMERAS, NUSCENES, RIG

from perception.config import CameraBranch, Image, Lidar, load_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.grid import BevGrid
from perception.sensors.inputs import InputSpec, fit_width, prepare, warp
from perception.sensors.lidar.pillars import group
from perception.tasks import tasks_of
from perception.tasks.detection.config import DetectionHead, Suppression
from perception.tasks.map.config import MapHead
from perception.tasks.result import to_prediction

TINY = ROOT / "configs" / "tiny.yaml"


def _grouped_one_by_one(
    points: np.ndarray, grid: BevGrid, max_pillars: int, points_per_pillar: int
) -> dict[int, list[np.ndarray]]:
    """The definition: every point goes to its cell, then the fullest cells are kept, then their first points."""
    rows, columns = grid.shape
    cells: dict[int, list[np.ndarray]] = {}
    for point in points:
        x, y, z = map(float, point[:3])
        if grid.x[0] <= x < grid.x[1] and grid.y[0] <= y < grid.y[1] and grid.z[0] <= z < grid.z[1]:
            column = min(int((x - grid.x[0]) / grid.cell), columns - 1)
            row = min(int((y - grid.y[0]) / grid.cell), rows - 1)
            cells.setdefault(row * columns + column, []).append(point)
    fullest = sorted(cells, key=lambda cell: (-len(cells[cell]), cell))[:max_pillars]
    return {cell: cells[cell][:points_per_pillar] for cell in sorted(fullest)}


def _grouped(
    points: np.ndarray, grid: BevGrid, max_pillars: int, points_per_pillar: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `group` leaves of pillars, counts and cells that held something else before; the padding is checked."""
    pillars = np.full((max_pillars, points_per_pillar, 5), np.nan, np.float32)
    counts, cells = np.full(max_pillars, -7, np.int32), np.full(max_pillars, -7, np.int32)
    found = group(points, grid, pillars, counts, cells)
    assert not pillars[found:].any()
    assert not counts[found:].any()
    assert (cells[found:] == grid.cells).all()
    return pillars[:found], counts[:found], cells[:found]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    number=st.integers(0, 200),
    spread=st.floats(0.1, 8),
    grid=st.sampled_from(
        [
            BevGrid(x=(-4.0, 4.0), y=(-3.0, 3.0), cell=1.0),
            BevGrid(x=(-4.0, 4.2), y=(-1.1, 3.0), z=(-1.0, 1.0), cell=0.7),
            BevGrid(x=(-4.0, 4.5), y=(-1.1, 2.7), cell=0.7),  # reaches beyond its last cells
            BevGrid(x=(-60.0, 60.0), y=(-50.0, 50.0), cell=0.1),  # more cells than 16 bits count
        ]
    ),
    max_pillars=st.integers(1, 60),
    points_per_pillar=st.integers(1, 6),
)
def test_grouping_equals_a_loop_over_points(
    seed: int, number: int, spread: float, grid: BevGrid, max_pillars: int, points_per_pillar: int
) -> None:
    rng = np.random.default_rng(seed)
    points = (rng.normal(size=(number, 5)) * spread).astype(np.float32)
    points[rng.random(number) < 0.2, 0] = grid.x[0]  # on the edge
    points[rng.random(number) < 0.2, 1] = grid.y[1]
    pillar_points, counts, cells = _grouped(points, grid, max_pillars, points_per_pillar)
    expected = _grouped_one_by_one(points, grid, max_pillars, points_per_pillar)
    assert cells.tolist() == list(expected)
    assert counts.tolist() == [len(kept) for kept in expected.values()]
    assert pillar_points.shape == (len(expected), points_per_pillar, 5)
    for pillar, kept in zip(pillar_points, expected.values(), strict=True):
        np.testing.assert_array_equal(pillar[: len(kept)], kept)
        assert not pillar[len(kept) :].any()


def test_grouping_of_ten_sweeps_equals_a_loop_over_points() -> None:
    """The cloud of tools/bench.py: many chunks, more pillars than fit, and pillars with more points than fit."""
    grid, points = BevGrid(cell=0.2), street()
    pillar_points, counts, cells = _grouped(points, grid, 30_000, 20)
    expected = _grouped_one_by_one(points, grid, 30_000, 20)
    assert len(cells) == 30_000
    assert cells.tolist() == list(expected)
    assert counts.tolist() == [len(kept) for kept in expected.values()]
    assert counts.max() == 20
    padded = np.zeros_like(pillar_points)
    for pillar, kept in zip(padded, expected.values(), strict=True):
        pillar[: len(kept)] = kept
    np.testing.assert_array_equal(pillar_points, padded)


def test_more_pillars_than_16_bits_count() -> None:
    """Every cell twice, in random order: the first of both, at the first place of its pillar."""
    grid = BevGrid(x=(0.0, 300.0), y=(0.0, 300.0), cell=1.0)
    cell_of_point = np.random.default_rng(0).permutation(np.repeat(np.arange(grid.cells), 2))
    points = np.zeros((len(cell_of_point), 5), np.float32)
    points[:, 0], points[:, 1] = cell_of_point % 300 + 0.5, cell_of_point // 300 + 0.5
    points[:, 4] = np.arange(len(points))
    pillar_points, counts, cells = _grouped(points, grid, grid.cells, 1)
    np.testing.assert_array_equal(cells, np.arange(grid.cells))
    assert (counts == 1).all()
    np.testing.assert_array_equal(pillar_points[:, 0, 4], np.unique(cell_of_point, return_index=True)[1])


def test_benchmark_of_the_grouping() -> None:
    figures = pillars(argparse.Namespace(config="nuscenes/fusion", rounds=1))
    assert figures.keys() == {"points", "ms"}
    assert 290_000 < figures["points"] < 310_000
    assert figures["ms"] > 0


def test_points_at_the_far_edge_stay_on_the_grid() -> None:
    grid = BevGrid()
    edge = np.nextafter(np.float32(51.2), np.float32(0))
    cells = _grouped(np.array([[edge, edge, 0, 0, 0]], np.float32), grid, 1, 1)[2]
    assert cells.tolist() == [grid.cells - 1]


@pytest.mark.parametrize("size", [(900, 1600), (450, 800), (1080, 1920)])
@pytest.mark.parametrize(
    "image", [Image(height=256, width=704), Image(height=128, width=352), Image(height=448, width=800)]
)
def test_projections_hit_the_pixels_that_show_the_point(size: tuple[int, int], image: Image) -> None:
    point = np.array([20.0, 2.5, 0.4])
    spec = InputSpec(BevGrid(), None, CameraBranch(image=image), RIG)
    inputs = prepare(painted_frame(point, size), spec)
    assert inputs["images"].shape == (1, 6, image.height, image.width, 3)
    expected = _pixel(inputs["image_from_reference"][0, 0].astype(np.float64), point)
    np.testing.assert_allclose(spot_of(inputs["images"][0, 0]), expected, atol=0.08)


def test_fitting_keeps_the_bottom_and_the_edges_of_pixels() -> None:
    affine = fit_width((900, 1600, 3), Image(height=256, width=704))
    np.testing.assert_allclose(affine @ [-0.5, 899.5, 1], [-0.5, 255.5, 1], atol=1e-9)
    np.testing.assert_allclose(affine @ [1599.5, 899.5, 1], [703.5, 255.5, 1], atol=1e-9)


def test_a_low_picture_gets_black_rows_on_top() -> None:
    recorded = np.full((10, 40, 3), 200, np.uint8)
    image = warp(recorded, fit_width(recorded.shape, Image(height=16, width=40)), Image(height=16, width=40))
    assert not image[:6].any()
    np.testing.assert_array_equal(image[6:], recorded)


def test_shrinking_averages_all_pixels() -> None:
    recorded = np.zeros((64, 64, 3), np.uint8)
    recorded[::4] = 240
    image = warp(recorded, fit_width(recorded.shape, Image(height=16, width=16)), Image(height=16, width=16))
    np.testing.assert_allclose(image, 60, atol=1)


def test_inputs_of_a_frame(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    spec = InputSpec.of(load_config(TINY))
    frame = tables.frame(tables.samples()[1], sweeps=spec.sweeps)
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


def test_missing_sensors_are_padding_and_zeros(tiny_root: Path) -> None:
    tables, spec = NuScenesTables(tiny_root, "v1.0-tiny"), InputSpec.of(load_config(TINY))
    frame = tables.frame(tables.samples()[0], lidar=False)
    del frame.cameras["CAM_BACK"]  # type: ignore[attr-defined]
    inputs = prepare(frame, spec)
    assert not inputs["pillar_points"].any()
    assert not inputs["pillar_counts"].any()
    assert (inputs["pillar_cells"] == spec.grid.cells).all()
    seen = [name != "CAM_BACK" for name in CAMERAS]
    assert inputs["images"][0].any(axis=(1, 2, 3)).tolist() == seen
    assert inputs["image_from_reference"][0].any(axis=(1, 2)).tolist() == seen


def test_a_model_without_a_sensor_lacks_its_inputs(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    frame = tables.frame(tables.samples()[0])
    lidar_only = prepare(frame, InputSpec(BevGrid(), Lidar(), None, RIG))
    camera_only = prepare(frame, InputSpec(BevGrid(), None, CameraBranch(), RIG))
    assert set(lidar_only) == {"pillar_points", "pillar_counts", "pillar_cells"}
    assert set(camera_only) == {"images", "image_from_reference"}
    with pytest.raises(ValueError, match="the frame is in 'ego'"):
        prepare(frame, InputSpec(BevGrid(reference="lidar"), Lidar(), None, RIG))


def test_outputs_become_a_prediction() -> None:
    yaws = np.array([0.3, -3.0, 1.2])
    boxes = np.zeros((2, 3, 10), np.float32)
    boxes[1, :, :3] = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    boxes[1, :, 3:6] = [2, 4, 1.5]
    boxes[1, :, 6], boxes[1, :, 7] = 0.5 * np.sin(yaws), 0.5 * np.cos(yaws)  # a network's are not of length one
    boxes[1, :, 8:] = [3, -1]
    outputs = {
        "detection/boxes": boxes,
        "detection/scores": np.array([[1, 1, 1], [0.9, 0.5, 0.1]], np.float32),
        "detection/labels": np.array([[0, 0, 0], [3, 1, 8]]),
        "detection/attributes": np.array([[0, 0, 0], [5, 6, 2]]),
    }
    rules = Suppression(threshold=0.3, kind="circle", radii=(0.1,))
    tasks = tasks_of({"detection": DetectionHead(suppression=rules), "map": MapHead()}, BevGrid(), NUSCENES)
    second = {name: values[1:] for name, values in outputs.items()}
    prediction = to_prediction({"detection": tasks["detection"]}, second)
    assert "map" not in prediction.results
    assert prediction.results["detection"].labels.tolist() == [3, 1]
    assert prediction.results["detection"].attributes.tolist() == [5, 6]
    np.testing.assert_allclose(prediction.results["detection"].scores, [0.9, 0.5], atol=1e-7)
    np.testing.assert_allclose(prediction.results["detection"].yaws, yaws[:2], atol=1e-6)
    np.testing.assert_allclose(prediction.results["detection"].centers, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(prediction.results["detection"].velocities, [[3, -1, 0]] * 2)
    np.testing.assert_allclose(np.linalg.det(prediction.results["detection"].rotations), 1)
    maps = np.random.default_rng(0).random((1, 6, 4, 5))
    probabilities = to_prediction(tasks, {**second, "map/probabilities": maps}).results["map"]
    np.testing.assert_array_equal(probabilities, maps[0])
