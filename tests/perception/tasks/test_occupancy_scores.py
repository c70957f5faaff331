"""Scores of occupancy and of what it calls unknown, against loops over voxels and marches along rays."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up import make_boxes
from occupied import CLASSES, FREE, random_occupancy
from vocabulary import NUSCENES

from perception.frame import Boxes, Frame
from perception.grid import OTHERS, BevGrid, Occupancy, VoxelGrid, traverse
from perception.io.files import jsonable
from perception.tasks.metric import CountedFrames, ReplayedFrames, Score, Weights, mean_shares, rings
from perception.tasks.occupancy.config import OccupancyHead
from perception.tasks.occupancy.metric import OccupancyMetric, confusion, geometric_iou, ious, parts
from perception.tasks.occupancy.obstacle_scores import driven, score_obstacles
from perception.tasks.occupancy.obstacles import obstacle_clusters
from perception.tasks.occupancy.rays import ORIGINS, cast, choose_origins, count_rays, directions, ray_ious
from perception.tasks.occupancy.result import OccupancyResult
from perception.tasks.occupancy.task import OccupancyTask

GRID = VoxelGrid((-16.0, 16.0), (-16.0, 16.0), (-1.0, 5.4), 0.8)


def boxes(*rows: tuple[float, float, float, float, float, int]) -> Boxes:
    """Of x, y, width, length, yaw and points."""
    x, y, width, length, yaw, points = np.array(rows, np.float64).reshape(-1, 6).T
    one = np.ones(len(x))
    made = make_boxes(np.column_stack([x, y, 0.5 * one]), np.column_stack([width, length, one]), yaw, labels=-1)
    return replace(made, num_points=points.astype(np.int64))


def street(seed: int, grid: VoxelGrid = GRID) -> np.ndarray:
    """(levels, rows, columns) classes: a road, and blocks of all classes on it."""
    rng = np.random.default_rng(seed)
    classes = np.full(grid.shape, FREE, np.uint8)
    classes[1] = 11
    for _ in range(30):
        row, column = rng.integers(0, grid.shape[1] - 3, 2)
        classes[1 : rng.integers(2, 6), row : row + 3, column : column + 2] = rng.integers(0, FREE)
    return classes


def test_ious_are_those_of_a_loop_over_classes_in_each_ring() -> None:
    rng = np.random.default_rng(0)
    truth, predicted, seen = street(1), street(2), rng.random(GRID.shape) < 0.5
    table = confusion(predicted, truth, seen, FREE + 1, GRID)
    distance = np.linalg.norm(GRID.centers()[..., :2], axis=-1)
    for bounds in (None, (0.0, 10.0), (10.0, 20.0)):
        low, high = bounds or (0.0, np.inf)
        chosen = seen & (distance >= low) & (distance < high)
        found = ious(parts(table[rings(bounds)].sum(axis=0)))
        for c in range(FREE):
            mine, true = (predicted == c) & chosen, (truth == c) & chosen
            expected = (mine & true).sum() / (mine | true).sum() if (mine | true).any() else np.nan
            assert found[c] == pytest.approx(expected, nan_ok=True)
        mine, true = (predicted != FREE) & chosen, (truth != FREE) & chosen
        share = geometric_iou(table[rings(bounds)].sum(axis=0))
        assert share == pytest.approx((mine & true).sum() / (mine | true).sum())
    assert geometric_iou(np.zeros((3, 3))) is None


@pytest.mark.parametrize("grid", [GRID, VoxelGrid(GRID.x, GRID.y, GRID.z, 1.6, "ego", 0.8)], ids=["cubes", "lower"])
def test_rays_hit_what_a_march_meets_first(grid: VoxelGrid) -> None:
    rng = np.random.default_rng(3)
    volume, count = street(4, grid), 120
    origins = np.column_stack([rng.uniform(-20, 20, count), rng.uniform(-20, 20, count), rng.uniform(1.5, 3, count)])
    rays = rng.normal(size=(count, 3)) * [1, 1, 0.2]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    (hits,) = cast(volume[None], grid, origins, rays, FREE)
    steps = np.arange(0, 60, 0.004)
    missed = 0
    for origin, ray, label, distance in zip(origins, rays, hits.classes, hits.distances, strict=True):
        index, inside = grid.indices(origin + steps[:, None] * ray)
        met = np.flatnonzero(inside & (volume.reshape(-1)[index] != FREE))
        if not len(met):
            assert label == FREE
            assert distance == pytest.approx(steps[inside][-1] if inside.any() else 0.0, abs=0.01)
            missed += 1
        elif abs(steps[met[0]] - distance) > 0.01:  # a corner that the march steps over
            corner, _ = grid.indices((origin + (distance + 1e-6) * ray)[None])
            assert volume.reshape(-1)[corner[0]] == label
            assert distance < steps[met[0]]
        else:
            assert label == volume.reshape(-1)[index[met[0]]]
    assert 10 < missed < 110


def test_ray_iou_is_that_of_a_loop_over_rays() -> None:
    """SparseOcc's definition: of the rays that meet something, those with the true class and a small error count."""
    truth, predicted = street(5), street(5)
    predicted[:, :20, :20] = street(6)[:, :20, :20]
    origins = np.array([[0.0, 0.0, 1.8], [3.0, -4.0, 1.8]])
    rays = np.tile(directions()[::17], (2, 1))
    starts = np.repeat(origins, len(rays) // 2, axis=0)
    found, true = cast(np.stack([predicted, truth]), GRID, starts, rays, FREE)
    counts = count_rays(found, true, FREE + 1, GRID)
    shares = ray_ious(counts.sum(axis=0))
    for i, threshold in enumerate((1, 2, 4)):
        for c in range(FREE):
            hits = union = 0
            for mine, a, its, b in zip(found.classes, found.distances, true.classes, true.distances, strict=True):
                if its != FREE:
                    hit = mine == c and its == c and abs(a - b) < threshold
                    hits, union = hits + hit, union + (1 if hit else int(mine == c) + int(its == c))
            assert shares[i, c] == pytest.approx(hits / union if union else np.nan, nan_ok=True)
    assert 0.1 < np.nanmean(shares) < 0.9
    same = ray_ious(count_rays(true, true, FREE + 1, GRID).sum(axis=0))
    assert np.nanmin(same) == 1
    near = counts[:1].sum(axis=0)[-1].sum()  # by the place of what the ray meets
    levels = np.linalg.norm(starts[:, :2] + rays[:, :2] * true.distances[:, None], axis=1)[true.classes != FREE]
    assert (levels < 9).sum() <= near <= (levels < 11).sum()


def test_rays_and_origins_are_sparseoccs() -> None:
    rays = directions()
    assert len(rays) % 360 == 0
    np.testing.assert_allclose(np.linalg.norm(rays, axis=1), 1)
    pitches = np.arcsin(rays[::360, 2])
    np.testing.assert_allclose(np.tan(-pitches[:10]), 1 / np.arange(1, 11))
    np.testing.assert_allclose(np.diff(pitches[9:]), pitches[9] - pitches[8])
    assert pitches[-2] < 0.21 <= pitches[-1]
    along = np.column_stack([np.linspace(-50, 50, 101), np.zeros(101), np.full(101, 1.8)])
    chosen = choose_origins(along, VoxelGrid())
    assert len(chosen) == ORIGINS
    assert chosen[0, 0] == -38
    assert chosen[-1, 0] == 38
    assert len(choose_origins(along[:14], VoxelGrid())) == 2


def result(classes: np.ndarray, others: np.ndarray | None = None) -> OccupancyResult:
    sure = (classes == OTHERS).astype(np.float32) if others is None else others
    return OccupancyResult(classes, (classes != FREE).astype(np.float32), sure, np.zeros(360, np.float32), GRID)


def test_clusters_are_the_connected_columns_of_no_class() -> None:
    """Against a flood fill."""
    rng = np.random.default_rng(1)
    others = rng.random(GRID.shape).astype(np.float32) ** 25
    others[0, 0, 0] = np.nan
    for probability in (0.5, 0.3):
        clusters = obstacle_clusters(result(street(0), others), probability)
        chosen = np.nan_to_num(others) > probability
        left, expected = {*zip(*np.nonzero(chosen.any(axis=0)), strict=True)}, []
        while left:
            cluster, border = set(), [left.pop()]
            while border:
                row, column = border.pop()
                cluster.add((row, column))
                near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
                left -= near
                border += near
            voxels = np.array([(level, r, c) for r, c in cluster for level in np.flatnonzero(chosen[:, r, c])])
            at = GRID.centers()[tuple(voxels.T)].astype(np.float64)
            low, high = at.min(axis=0) - 0.4, at.max(axis=0) + 0.4
            expected.append([*(low + high) / 2, *high - low, len(voxels), others[tuple(voxels.T)].mean()])
        found = np.column_stack([clusters.centers, clusters.sizes, clusters.voxels, clusters.probabilities])
        assert len(found) == len(expected) > 10
        wanted = np.array(expected)
        np.testing.assert_allclose(found[np.lexsort(found.T)], wanted[np.lexsort(wanted.T)], atol=1e-5)
        assert np.unique(clusters.cells).tolist() == [*range(len(expected) + 1)]


def test_obstacles_are_found_within_a_voxel_and_alarms_are_away_from_all() -> None:
    classes = np.full(GRID.shape, FREE, np.uint8)
    for x, y in ((4.4, 0.4), (-7.6, 8.4), (12.4, 0.4), (0.4, -9.2)):  # centres of voxels
        classes[1, int((y + 16) / 0.8), int((x + 16) / 0.8)] = OTHERS
    annotated = boxes(
        (3.0, 0.4, 0.4, 1.0, 0.0, 5),  # its side is 0.9 m from the voxel's centre: not found, but no alarm either
        (-7.6, 7.4, 1.0, 0.3, 0.0, 1),  # 0.5 m beside it: found
        (12.4, 2.0, 3.0, 0.2, np.pi / 2, 1),  # turned: along y it is narrow, 1.5 m away: not found, and an alarm
        (0.4, -9.2, 1.0, 1.0, 0.0, 0),  # without a point: no obstacle, but no alarm
        (20.0, 0.0, 1.0, 1.0, 0.0, 9),  # outside
    )
    clusters = obstacle_clusters(result(classes))
    assert len(clusters.voxels) == 4
    score = score_obstacles(clusters, GRID, annotated)
    np.testing.assert_allclose(score.distances, np.hypot([3, 7.6, 12.4], [0.4, 7.4, 2.0]))
    assert score.found.tolist() == [False, True, False]
    np.testing.assert_allclose(score.alarms, [np.hypot(12.4, 0.4)])
    nothing = score_obstacles(obstacle_clusters(result(np.full_like(classes, FREE))), GRID, annotated)
    assert nothing.found.tolist() == [False] * 3
    assert not len(nothing.alarms)
    assert len(score_obstacles(clusters, GRID, boxes()).alarms) == 4
    places = (("a", (0, 0)), ("a", (3, 4)), ("b", (100, 0)), ("b", (100, 2)))
    assert driven([{"scene": scene, "ego": place} for scene, place in places]) == 7


def test_the_metric_of_the_truth_is_perfect_and_that_of_parts_is_theirs() -> None:
    """Two drives; the frames of the first are right, and those of the second see nothing of a half."""
    truths = {f"{d}{i}": street(7 + i) for d in "ab" for i in range(2)}
    seen = np.random.default_rng(0).random(GRID.shape) < 0.7
    places = {token: np.array([5.0 * int(token[1]), 0.0, 0.0]) for token in truths}

    def obstacles(token: str) -> Boxes:
        moved = boxes((6.0, 0.0, 1.0, 1.0, 0.0, 3), (12.0, 0.0, 1.0, 1.0, 0.0, 3))
        return replace(moved, centers=moved.centers + places[token])

    def frame(token: str) -> Frame:
        path = np.array([places[each] + [0.9, 0, 1.8] for each in truths if each[0] == token[0]])
        voxels, ego = Occupancy(GRID, truths[token], seen, seen), np.eye(4)
        ego[:3, 3] = places[token]
        truth = {"occupancy": voxels, "obstacles": obstacles(token), "lidar_path": path}
        return Frame(token, 0, "ego", ego, ego, None, {}, scene=token[0], truth=truth)

    metric = CountedFrames(OccupancyMetric(NUSCENES, BevGrid()))
    for token, truth in truths.items():
        predicted = truth.copy()
        predicted[1, 20, 27], predicted[1, 20, 35] = OTHERS if token[0] == "a" else FREE, FREE
        if token[0] == "b":
            predicted[:, 20:] = FREE
        metric.add(frame(token), result(predicted))
    first, second = np.array([True, True, False, False]), np.array([False, False, True, True])
    right, half = metric.part(first), metric.part(second)
    assert min(right["occupancy_mIoU"], right["RayIoU"]) > 0.95
    assert all(0 < half[name] < 0.6 for name in ("occupancy_mIoU", "RayIoU"))
    alone = {i: metric.part(np.arange(4) == i)["occupancy_mIoU"] for i in range(4)}
    ranked = sorted(alone, key=alone.__getitem__)[:3]
    worst = metric.metric.find_worst(metric.counts, 3)
    assert [each.frame for each in worst] == ranked
    assert [each.values["occupancy_mIoU"] for each in worst] == pytest.approx([alone[i] for i in ranked])
    assert (right["obstacle_recall"], half["obstacle_recall"]) == (0.5, 0)
    assert metric.part(first, (0.0, 10.0))["obstacle_recall"] == 1
    assert metric.part(first, (10.0, 20.0))["obstacle_recall"] == 0
    scores = metric.report()
    table = sum(
        confusion(t if k[0] == "a" else np.where(np.arange(40)[:, None] >= 20, FREE, t), t, seen, 18, GRID).sum(axis=0)
        for k, t in truths.items()
    )
    assert scores["occupancy"]["geometric_IoU"] == pytest.approx(geometric_iou(table), abs=2e-3)
    own = scores["obstacles"]
    (curve,) = metric.metric.curves(metric.counts)
    assert curve.x.tolist() == [each["false_alarms_per_100_m"] for each in own["curve"]]
    assert curve.y.tolist() == [each["recall"] for each in own["curve"]]
    assert (own["obstacles"], own["recall"], own["metres"]) == (8, 0.25, 10)
    assert own["by_distance"] == {"within 10 m": 0.5, "within 20 m": 0.25, "within 30 m": 0.25, "within 40 m": 0.25}
    assert [row["probability"] for row in own["curve"]] == [0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 0.995, 0.999]
    assert len(metric.metric.tables(scores)) == 2
    assert set(scores["occupancy"]["IoU"]) == set(CLASSES[:-1])


# ---- gates on a replay


NEAR = {"x": (-12.8, 12.8), "y": (-12.8, 12.8)}
TASK = OccupancyTask(OccupancyHead(**NEAR, z=(-1.0, 2.2), cell=0.8), BevGrid(**NEAR), NUSCENES)


def test_gates_score_scenes_conditions_classes_and_ranges(tmp_path: Path) -> None:
    """Of two drives, the second one in rain."""
    grid, far, here = TASK.voxels, np.full(360, 12.8, np.float32), np.eye(4)
    frames = [Frame(f"{s}{i}", i * 10**6, "ego", here, here, None, {}, scene=s) for i, s in enumerate("aab")]
    truths = {frame.token: random_occupancy(frame.token, grid) for frame in frames}
    near, away = (6.0, 0.4, 1, 1, 0, 3), (11.0, 0.4, 1, 1, 0, 3)
    known = [{"occupancy": truths[frame.token], "obstacles": boxes(near, away)} for frame in frames]
    annotated = [replace(frame, truth=own) for frame, own in zip(frames, known, strict=True)]
    results = []
    for frame in frames:
        classes = truths[frame.token].classes.copy()
        classes[:, :, 16:][:, :, :10][classes[:, :, 16:26] == 0] = FREE
        classes[1, 16, 23] = 0  # the near one of the obstacles
        if frame.scene == "b":
            classes[:, :16] = FREE
        sure = {"occupied": (classes != FREE).astype(np.float32), "others": (classes == OTHERS).astype(np.float32)}
        results.append(TASK.result({"classes": classes, "free": far, **sure}))
    metric, scenes = OccupancyMetric(NUSCENES, TASK.grid), np.array(["a", "a", "b"])

    def counts(seen: Sequence[OccupancyResult], frames: Sequence[Frame] = annotated) -> Sequence[Any]:
        kept = [jsonable(metric.counts(frame, each)) for frame, each in zip(frames, seen, strict=True)]
        tokens = [frame.token for frame in frames]
        return metric.recorded(ReplayedFrames(tmp_path, tokens, np.zeros((3, 2)), np.arange(3)), kept)

    def score(
        name: str, chosen: Any = (True, True, True), bounds: Any = None, of: Sequence[Any] = counts(results)
    ) -> Score:
        return metric.scores(of, Weights.of(np.array(chosen), scenes, bounds))[name]

    distance = np.linalg.norm(grid.centers()[..., :2], axis=-1)
    for chosen, bounds in (((True, True, True), None), ((False, False, True), None), ((True,) * 3, (0.0, 10.0))):
        for c in (4, 16):
            hits = union = 0
            for i in np.flatnonzero(chosen):
                truth = truths[frames[i].token]
                seen = (truth.seen_by_cameras | truth.seen_by_lidar) & (distance < (bounds[1] if bounds else np.inf))
                mine, true = ((each == c) & seen for each in (results[i].classes, truth.classes))
                hits, union = hits + (mine & true).sum(), union + (mine | true).sum()
            assert score("seen_IoU", chosen, bounds).of_class(CLASSES[c]).values[0] == pytest.approx(hits / union)
    assert score("seen_mIoU").values[0] == pytest.approx(np.mean(score("seen_IoU").values[0]))
    first = replace(Weights.of(np.ones(3, bool), scenes), draws=np.array([[2.0, 0.0]]))
    assert metric.scores(counts(results), first)["seen_IoU"].of_class("car").values[0] == 1
    assert score("obstacle_recall", bounds=(0.0, 8.0)).values[0] == 1
    assert score("obstacle_recall", bounds=(8.0, 20.0)).values[0] < 1
    assert mean_shares(score("obstacle_recall").sizes).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert mean_shares(score("seen_mIoU").sizes).sum() == pytest.approx(1)
    other = counts([results[0], results[1], results[1]])
    assert score("seen_mIoU").same(score("seen_mIoU"))
    assert not score("seen_mIoU").same(score("seen_mIoU", of=other))
    assert not score("seen_mIoU", bounds=(0.0, 10.0)).same(score("seen_mIoU", bounds=(0.0, 10.0), of=other))
    unknown = counts(results, frames)
    assert all(score(name, of=unknown).sizes is None for name in ("obstacle_recall", "seen_mIoU"))


# ---- rays through voxels, against an intersection of every ray with every voxel

SPACE = VoxelGrid(x=(-2.0, 2.0), y=(-1.5, 2.0), z=(0.0, 1.5), cell=0.5)
# Whole numbers of half cells hit faces, edges and corners; the others are anywhere.
_coordinate = st.one_of(st.integers(-14, 14).map(lambda n: n / 4), st.floats(-4, 4))
_point = st.tuples(_coordinate, _coordinate, _coordinate)


def paths(origins: np.ndarray, ends: np.ndarray, grid: VoxelGrid) -> dict[int, list[int]]:
    """The voxels of each ray in order."""
    found: dict[int, list[int]] = {}
    for rays, voxels in traverse(origins, ends, grid):
        for ray, voxel in zip(rays.tolist(), voxels.tolist(), strict=True):
            found.setdefault(ray, []).append(voxel)
    return found


def spans(origin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(V,) shares of the ray's length at which it enters and leaves each voxel; enters > leaves: it misses it."""
    corners = SPACE.centers().reshape(-1, 3).astype(np.float64) - SPACE.cell / 2
    direction = end - origin
    enters, leaves = np.zeros(len(corners)), np.ones(len(corners))
    for axis in range(3):
        low, high = corners[:, axis], corners[:, axis] + SPACE.cell
        if abs(direction[axis]) < 1e-12:
            misses = (origin[axis] < low - 1e-9) | (origin[axis] > high + 1e-9)
            enters[misses] = np.inf
        else:
            a, b = (low - origin[axis]) / direction[axis], (high - origin[axis]) / direction[axis]
            enters, leaves = np.maximum(enters, np.minimum(a, b)), np.minimum(leaves, np.maximum(a, b))
    return enters, leaves


@settings(max_examples=150, deadline=None)
@example([((-1.75, 0.25, 0.25), (1.75, 0.25, 0.25))])
@example([((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))])
@example([((-3.0, -3.0, 0.5), (3.0, 3.0, 0.5))])
@example([((2.0, 0.0, 0.5), (3.0, 0.0, 0.5)), ((-3.0, 0.0, 0.5), (-2.0, 0.0, 0.5))])
@given(st.lists(st.tuples(_point, _point), min_size=1, max_size=4))
def test_a_ray_crosses_the_voxels_that_it_has_a_length_in(rays: list) -> None:
    origins, ends = np.array([a for a, _ in rays]), np.array([b for _, b in rays])
    found = paths(origins, ends, SPACE)
    columns, rows = SPACE.shape[2], SPACE.shape[1]
    for ray, (origin, end) in enumerate(zip(origins, ends, strict=True)):
        path = np.array(found.get(ray, []), np.int64)
        enters, leaves = spans(origin, end)
        length = max(float(np.linalg.norm(end - origin)), 1e-9)
        middle = origin + np.where(enters < leaves, (enters + leaves) / 2, 0)[:, None] * (end - origin)
        depth = (SPACE.cell / 2 - np.abs(middle - SPACE.centers().reshape(-1, 3))).min(axis=1)
        certain = (enters < leaves) & (depth > 1e-6)  # what runs along a face may be of either side
        assert {*np.flatnonzero(certain).tolist()} <= {*path.tolist()}
        assert np.all(enters[path] <= leaves[path] + 1e-6 / length)
        assert np.all(np.diff(enters[path]) >= -1e-6 / length)
        place = np.stack([path % columns, path // columns % rows, path // (columns * rows)], axis=1)
        assert np.all(np.abs(np.diff(place, axis=0)).sum(axis=1) == 1)
        for point, index in ((origin, 0), (end, -1)):
            (voxel,), (inside,) = SPACE.indices(point[None])
            assert not inside or path[index] == voxel


def test_rays_to_nowhere_cross_nothing_and_others_keep_their_index() -> None:
    origins, ends = (
        np.full((3, 3), [-1.75, 0.25, 0.25]),
        np.array([[-1.7, 0.25, 0.25], [np.nan, 0, 0], [-0.75, 0.25, 0.25]]),
    )
    assert {ray: len(path) for ray, path in paths(origins, ends, SPACE).items()} == {0: 1, 2: 3}
    assert list(traverse(origins[:0], ends[:0], SPACE)) == []
