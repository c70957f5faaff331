"""The map memory against a loop over cells, on worlds seen from moving poses, and its size over a long drive."""

import math
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabulary import MAP_CLASSES, NUSCENES, PRIOR

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.grid import BevGrid
from perception.tasks.map import memory as map_memory
from perception.tasks.map.iou import MapIou
from perception.tasks.map.memory import REACH, MapMemory

SMALL = BevGrid(x=(-4.0, 6.0), y=(-5.0, 3.0), cell=1.0)
CLASSES = len(MAP_CLASSES)
PRIOR_ODDS = np.log(PRIOR) - np.log1p(-np.array(PRIOR))
UNSEEN = np.broadcast_to(np.array(PRIOR, np.float32)[:, None, None], (CLASSES, *SMALL.shape))


def pose(x: float, y: float, yaw: float, pitch: float = 0.0) -> np.ndarray:
    """(4, 4) global from reference."""
    turn = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    tilt = np.array([[math.cos(pitch), 0, math.sin(pitch)], [0, 1, 0], [-math.sin(pitch), 0, math.cos(pitch)]])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn @ tilt, (x, y, 0.3)
    return matrix


def fused_cell_by_cell(
    grid: BevGrid, frames: list[tuple[np.ndarray, np.ndarray]], at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The definition: a cell of the ground adds what the frames' cells in which its middle lies say beyond the prior.

    Returns (6, rows, columns) probabilities around the pose `at`; and (rows, columns) how many frames they are of.
    """
    odds: dict[tuple[int, int], np.ndarray] = {}
    counts: dict[tuple[int, int], int] = {}
    rows, columns = grid.shape
    for probabilities, global_from_reference in frames:
        position = global_from_reference[:2, 3] / grid.cell
        for i in range(math.floor(position[1]) - 12, math.floor(position[1]) + 12):
            for j in range(math.floor(position[0]) - 12, math.floor(position[0]) + 12):
                ground = np.array([(j + 0.5) * grid.cell, (i + 0.5) * grid.cell]) - global_from_reference[:2, 3]
                x, y = np.linalg.solve(global_from_reference[:2, :2], ground)
                column, row = (x - grid.x[0]) / grid.cell, (y - grid.y[0]) / grid.cell
                if not (-0.25 <= row < rows + 0.25 and -0.25 <= column < columns + 0.25):
                    continue
                cell = (min(max(math.floor(row), 0), rows - 1), min(max(math.floor(column), 0), columns - 1))
                p = probabilities[(slice(None), *cell)].astype(np.float64)
                added = odds.get((i, j), np.zeros(CLASSES)) + (np.log(p / (1 - p)) - PRIOR_ODDS).clip(-3, 3)
                odds[i, j], counts[i, j] = added.clip(-8, 8), counts.get((i, j), 0) + 1
    around, looks = np.zeros((CLASSES, rows, columns)), np.zeros((rows, columns), int)
    for row in range(rows):
        for column in range(columns):
            point = [grid.x[0] + (column + 0.5) * grid.cell, grid.y[0] + (row + 0.5) * grid.cell, 0, 1]
            x, y = (at @ point)[:2] / grid.cell
            cell = (math.floor(y), math.floor(x))
            if cell in odds:
                around[:, row, column] = 1 / (1 + np.exp(-odds[cell] - PRIOR_ODDS))
                looks[row, column] = counts[cell]
    return around, looks


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(
        st.tuples(st.floats(-40, 40), st.floats(-40, 40), st.floats(-4, 4), st.floats(-0.1, 0.1)),
        min_size=1,
        max_size=4,
    ),
)
def test_fusion_equals_a_loop_over_cells(seed: int, moves: list[tuple[float, float, float, float]]) -> None:
    """Wherever the vehicle goes; the window moves along."""
    rng, memory, frames = np.random.default_rng(seed), MapMemory(SMALL, PRIOR), []
    x, y = 1234.567, -987.654
    for dx, dy, yaw, pitch in moves:
        # Irrational steps, so that no middle of a cell lies on an edge of another.
        x, y = x + dx * math.sqrt(2), y + dy * math.sqrt(3)
        at = pose(x + 0.01 * rng.random(), y + 0.01 * rng.random(), yaw + 0.01 * rng.random(), pitch)
        frames.append((rng.uniform(0.02, 0.98, (CLASSES, *SMALL.shape)).astype(np.float32), at))
        memory.update(*frames[-1])
        expected, looks = fused_cell_by_cell(SMALL, frames, at)
        assert looks.min() >= 1  # every cell of the newest frame is known
        # A frame rounds to 1 / 4096 of probability, which is 0.006 of log odds at 0.02, and to 1 / 256 of those.
        np.testing.assert_allclose(memory.around(at), expected, atol=0.25 * 0.009 * len(frames))


def world(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(6, ...) bool: streets, crossings and what lines them, in the global frame."""
    u, v = np.abs(x % 60 - 30), np.abs(y % 80 - 40)
    street = (u < 7) | (v < 5)
    return np.stack(
        [
            street,
            (u < 7) & (v > 6) & (v < 10),
            ~street & ((u < 10) | (v < 8)),
            (u < 7) & (v > 11) & (v < 13),
            (u > 15) & (v > 20),
            street & ((u < 1) | (v < 1)),
        ]
    )


def seen_from(at: np.ndarray, grid: BevGrid) -> np.ndarray:
    """(6, rows, columns) what is where, on the grid of a frame."""
    centers = grid.centers().astype(np.float64)
    ground = centers @ at[:2, :2].T + at[:2, 3]
    return world(ground[..., 0], ground[..., 1])


def noisy(truth: np.ndarray, rng: np.random.Generator, noise: float = 1.0) -> np.ndarray:
    """What a calibrated network gives: Bayes' rule for a measurement of 1 or -1 with normal noise in 3 x 3 patches."""
    white = rng.normal(size=(CLASSES, truth.shape[1] + 2, truth.shape[2] + 2))
    patches = np.lib.stride_tricks.sliding_window_view(white, (3, 3), axis=(1, 2)).mean(axis=(3, 4)) * 3
    measured = 2.0 * truth - 1 + noise * patches
    return (1 / (1 + np.exp(-PRIOR_ODDS[:, None, None] - 2 * measured / noise**2))).astype(np.float32)


def test_a_static_world_seen_with_noise_is_seen_better_together() -> None:
    grid, rng = BevGrid(x=(-25.6, 25.6), y=(-25.6, 25.6), cell=0.8), np.random.default_rng(0)
    memory, single, fused = MapMemory(grid, PRIOR), MapIou(MAP_CLASSES), MapIou(MAP_CLASSES)
    for i in range(40):
        at = pose(600 + 2.5 * i, 1000 + 10 * math.sin(i / 8), math.atan(0.5 * math.cos(i / 8)))
        truth = seen_from(at, grid)
        probabilities = noisy(truth, rng)
        memory.update(probabilities, at)
        if i >= 10:
            single.add(probabilities, truth)
            fused.add(memory.around(at), truth)
    alone, together = single.result(), fused.result()
    for name in MAP_CLASSES:
        assert together["iou_0.5"][name] > alone["iou_0.5"][name] + 0.05, name
    assert together["iou_0.5"]["mean"] > alone["iou_0.5"]["mean"] + 0.2


def test_a_simulated_drive_is_seen_better_together(sim_root: Path) -> None:
    """From its poses over its own map; the third frame has two before it."""
    grid, rng = BevGrid(), np.random.default_rng(6)
    tables, single, fused = NuScenesTables(sim_root, "v1.0-sim"), MapIou(MAP_CLASSES), MapIou(MAP_CLASSES)
    for scene in tables.scenes():
        memory = MapMemory(grid, PRIOR)
        for sample in tables.samples(selectors=[scene]):
            frame = tables.frame(sample, annotations=False, lidar=False, cameras=False)
            area = MapExpansion.load(sim_root, frame.location, NUSCENES.map_layers)
            truth = area.rasterize(frame, grid)
            probabilities = noisy(truth, rng)
            memory.update(probabilities, frame.global_from_reference)
        single.add(probabilities, truth)
        fused.add(memory.around(frame.global_from_reference), truth)
    alone, together = single.result(), fused.result()
    for name in MAP_CLASSES:
        if alone["iou_0.5"][name] is not None:
            assert together["iou_0.5"][name] > alone["iou_0.5"][name], name
    assert together["iou_0.5"]["mean"] > alone["iou_0.5"]["mean"] + 0.05


def test_a_vehicle_that_stands_converges_to_what_is_there() -> None:
    """To the last cell: the grid lies on the global cells."""
    grid, rng = BevGrid(x=(-12.8, 12.8), y=(-12.8, 12.8), cell=0.8), np.random.default_rng(1)
    memory, at = MapMemory(grid, PRIOR), pose(800.0, 1600.0, 0.0)
    truth = seen_from(at, grid)
    wrong = []
    for _ in range(30):
        probabilities = noisy(truth, rng, 0.7)
        memory.update(probabilities, at)
        wrong.append(np.count_nonzero((probabilities > 0.5) != truth) / truth.size)
    assert np.mean(wrong) > 0.01
    np.testing.assert_array_equal(memory.around(at) > 0.5, truth)


def test_a_map_that_changed_is_learned_anew() -> None:
    """However long it was otherwise: certainty is limited."""
    memory, at = MapMemory(SMALL, PRIOR), pose(0, 0, 0)
    for frames, value, evidence in ((1, 1, 3), (1000, 1, 8), (1, 0, 5), (6, 0, -8)):
        for _ in range(frames):
            memory.update(np.full((CLASSES, *SMALL.shape), value, np.float32), at)
        expected = 1 / (1 + np.exp(-PRIOR_ODDS - evidence))
        np.testing.assert_allclose(memory.around(at)[:, 3, 3], expected, rtol=1e-5)


def test_a_network_that_sees_nothing_changes_nothing() -> None:
    """What it says then is how common the classes are."""
    memory, at, rng = MapMemory(SMALL, PRIOR), pose(0, 0, 0), np.random.default_rng(8)
    memory.update(rng.random((CLASSES, *SMALL.shape)).astype(np.float32), at)
    before = memory.around(at)
    for _ in range(20):
        memory.update(UNSEEN, at)
    np.testing.assert_allclose(memory.around(at), before, atol=0.12)


@pytest.mark.parametrize(("away", "remembered"), [(REACH - 1, True), (500.0, False)])
def test_revisits(away: float, remembered: bool) -> None:
    memory, rng = MapMemory(SMALL, PRIOR), np.random.default_rng(2)
    home, silent = pose(77.3, -41.2, 0.4), np.full((CLASSES, *SMALL.shape), np.nan, np.float32)
    memory.update(rng.random((CLASSES, *SMALL.shape)).astype(np.float32), home)
    before = memory.around(home)
    assert np.abs(before - UNSEEN).max() > 0.3
    for distance in [*np.arange(0, away, 10), away, *np.arange(away, 0, -10)]:
        memory.update(silent, pose(77.3 + distance * 0.8, -41.2 - distance * 0.6, -0.6))
    np.testing.assert_array_equal(memory.around(home), before if remembered else UNSEEN)


def test_memory_is_as_stated_over_a_long_drive() -> None:
    """20 km, with jumps."""
    rng, memory = np.random.default_rng(3), MapMemory(SMALL, PRIOR)
    probabilities = rng.random((CLASSES, *SMALL.shape)).astype(np.float32)
    size = memory.bytes
    side = 2 * (math.ceil(math.hypot(6, 5) + REACH) + 32)
    assert size == 2 * CLASSES * side * side
    memory.update(probabilities, pose(0, 0, 0))
    tracemalloc.start()
    try:
        for i in range(1500):
            at = pose(13.3 * i, -7.7 * i if i % 500 else 9e4, 0.01 * i)
            memory.update(probabilities, at)
            memory.around(at)
            if i == 100:
                tracemalloc.reset_peak()
                early = tracemalloc.get_traced_memory()[0]
        late, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert memory.bytes == size
    assert late - early < 10_000
    assert peak < 2 * size + 200_000  # the window is copied when it moves
    assert len(pickle.dumps(memory)) < size + 2_000


def test_the_same_frames_give_the_same_bytes() -> None:
    rng = np.random.default_rng(4)
    frames = [
        (rng.random((CLASSES, *SMALL.shape)).astype(np.float32), pose(9.1 * i, 3.3 * i, 0.1 * i)) for i in range(20)
    ]
    one, other = MapMemory(SMALL, PRIOR), MapMemory(SMALL, PRIOR)
    for i, (probabilities, at) in enumerate(frames):
        one.update(probabilities, at)
        other.update(np.array(probabilities), np.array(at))
        if i == 10:
            other = pickle.loads(pickle.dumps(other))
        assert one.around(at).tobytes() == other.around(at).tobytes()


def test_what_none_has_seen_is_as_common_as_anywhere() -> None:
    memory, at = MapMemory(SMALL, PRIOR), pose(5, 5, 1)
    np.testing.assert_array_equal(memory.around(at), UNSEEN)
    memory.update(np.full((CLASSES, *SMALL.shape), np.nan, np.float32), at)
    np.testing.assert_array_equal(memory.around(at), UNSEEN)
    memory.update(np.ones((CLASSES, *SMALL.shape), np.float32), at)
    np.testing.assert_array_equal(memory.around(pose(1e6, -1e6, 0)), UNSEEN)


def test_a_map_of_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a map of \(6, 10, 8\) on a grid of 8 x 10 cells"):
        MapMemory(SMALL, PRIOR).update(np.zeros((CLASSES, 10, 8), np.float32), pose(0, 0, 0))


def test_fusing_works_on_what_the_grid_covers_not_on_all_that_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, peaks = np.random.default_rng(5), []
    probabilities = rng.random((CLASSES, *SMALL.shape)).astype(np.float32)
    for reach in (REACH, 4 * REACH):
        monkeypatch.setattr(map_memory, "REACH", reach)
        memory, at = MapMemory(SMALL, PRIOR), pose(5.0, 2.0, 0.7)
        memory.update(probabilities, at)
        tracemalloc.start()
        memory.update(probabilities, at)
        memory.around(at)
        peaks.append((tracemalloc.get_traced_memory()[1], memory.bytes))
        tracemalloc.stop()
    (near, small), (far, large) = peaks
    assert large > 4 * small
    assert far < 1.1 * near < small
