"""What annotated occupancy is made of, each against the plain way to compute it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandaset_drive as written
import pytest
import walled_drive as walled
from pandaset_drive import rig_of
from scipy.spatial.transform import Rotation, Slerp

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.occupancy.annotation import voxel_classes
from perception.datasets.occupancy.camera_views import seen_by_cameras
from perception.datasets.occupancy.crossed_voxels import CrossedVoxels
from perception.datasets.occupancy.levels import Levels
from perception.datasets.occupancy.objects import Motion, motion_between, owners
from perception.datasets.occupancy.returns import NONE, UNKNOWN, Returns
from perception.datasets.occupancy.thinned_cloud import ThinnedCloud
from perception.datasets.pandaset import PandaSet
from perception.evaluation.occupancy_geometry import GeometricFigures, geometric_figures
from perception.frame import Boxes
from perception.voxels import OTHERS, VoxelGrid


def boxes_of(centers: np.ndarray, rotations: np.ndarray, names: list[str], velocity: float = np.nan) -> Boxes:
    n = len(centers)
    upright = Boxes.from_yaws(
        centers, np.tile([2.0, 5.0, 1.5], (n, 1)), np.zeros(n), np.full((n, 2), velocity), *np.zeros((3, n))
    )
    return replace(upright, rotations=rotations, instances=np.array(names, "U8"))


def test_points_of_a_box_that_moves_and_turns() -> None:
    rng = np.random.default_rng(0)
    turns = [Rotation.from_rotvec(rng.uniform(-0.9, 0.9, (3, 3))) for _ in range(2)]
    centers = [np.array([[0.0, 0, 0], [40, 0, 0], [0, 60, 2]]) + rng.uniform(-4, 4, (3, 3)) for _ in range(2)]
    motion = Motion(*(boxes_of(c, t.as_matrix(), ["a", "b", "c"]) for c, t in zip(centers, turns, strict=True)))
    shares, box = rng.uniform(-0.2, 1.1, 500), rng.integers(0, 3, 500)
    local = rng.uniform(-1, 1, (500, 3)) * [2.6, 1.1, 0.85]  # half of the box, and the margin
    outside = local * [1.05, 1, 1]
    outside[:, 0] = np.copysign(2.65, local[:, 0])
    points, beyond = np.zeros((2, 500, 3))
    for n, share in enumerate(shares):
        b = box[n]
        slerp = Slerp([-1, 0, 1, 2], _extrapolated(turns[0][b], turns[1][b]))(share)
        middle = centers[0][b] + share * (centers[1][b] - centers[0][b])
        points[n], beyond[n] = (slerp.apply(each[n]) + middle for each in (local, outside))
    owner, found = owners(points, shares, motion, 0.1)
    np.testing.assert_array_equal(owner, box)
    np.testing.assert_allclose(found, local, atol=1e-9)
    assert (owners(beyond, shares, motion, 0.1)[0] == -1).all()


def test_a_point_in_two_boxes_is_of_the_first() -> None:
    boxes = boxes_of(np.array([[0.0, 0, 0], [2, 0, 0]]), np.tile(np.eye(3), (2, 1, 1)), ["a", "b"])
    owner, local = owners(np.array([[1.0, 0, 0], [3, 0, 0]]), np.ones(2), Motion(boxes, boxes), 0)
    assert owner.tolist() == [0, 1]
    np.testing.assert_allclose(local, [[1, 0, 0], [1, 0, 0]])


def _extrapolated(start: Rotation, end: Rotation) -> Rotation:
    step = start.inv() * end
    return Rotation.concatenate([start * step.inv(), start, end, end * step])


def test_boxes_of_one_keyframe_move_on_by_their_velocity() -> None:
    still = np.tile(np.eye(3), (2, 1, 1))
    before = boxes_of(np.array([[0.0, 0, 0], [9, 0, 0]]), still, ["both", "gone"], 3.0)
    ahead = np.array([[1.0, 0, 0], [20, 0, 0], [30, 0, 0]])
    after = boxes_of(ahead, np.tile(np.eye(3), (3, 1, 1)), ["both", "", "new"])
    motion = motion_between(before, after, 0.5)
    assert motion.start.instances.tolist() == motion.end.instances.tolist() == ["both", "", "new", "gone"]
    np.testing.assert_allclose(motion.start.centers[:, 0], [0, 20, 30, 9])  # unknown velocities are none
    np.testing.assert_allclose(motion.end.centers, [[1, 0, 0], [20, 0, 0], [30, 0, 0], [10.5, 1.5, 0]])


def test_crossed_voxels_are_those_between_the_planes_that_a_ray_meets() -> None:
    rng, cell = np.random.default_rng(1), 0.5
    crossed, seen = CrossedVoxels(cell, (9.0, 9.0, 4.0)), set[tuple[int, ...]]()
    for start in ([-211.0, 87, 3], [-210.3, 86.8, 3], [160.0, -290, 9]):  # two sweeps at one place, one at another
        origins = np.array(start) + rng.uniform(-0.2, 0.2, (30, 3))
        ends = origins + rng.uniform(-8, 8, (30, 3)) * [1, 1, 0.4]
        crossed.add(origins, ends)
        for origin, end in zip(origins, ends, strict=True):
            seen |= between_planes(origin / cell, end / cell) - {tuple(np.floor(end / cell).astype(int).tolist())}
        around = np.stack(np.meshgrid(*[np.arange(-20, 20)] * 3), -1).reshape(-1, 3)
        near = np.floor(np.array(start) / cell).astype(int) + around
        expected = np.array([tuple(each) in seen for each in near.tolist()])
        assert expected.sum() > 200
        np.testing.assert_array_equal(crossed.at((near + 0.5) * cell), expected)


def between_planes(start: np.ndarray, end: np.ndarray) -> set[tuple[int, ...]]:
    """The voxels of edge 1 on a ray, each by the middle of the part of the ray that is in it."""
    planes = [np.arange(np.ceil(min(a, b)), max(a, b)) for a, b in zip(start, end, strict=True)]
    meets = [(plane - a) / (b - a) for plane, a, b in zip(planes, start, end, strict=True)]
    shares = np.sort(np.concatenate([[0, 1], *meets]))
    middles = start + ((shares[1:] + shares[:-1]) / 2)[:, None] * (end - start)
    return {tuple(each) for each in np.floor(middles).astype(int).tolist()}


def test_thinned_cloud_keeps_one_point_a_cell_and_class_and_counts_all() -> None:
    rng = np.random.default_rng(2)
    anchor = np.array([4e5, 5e6, 30.0])
    points, classes = anchor + rng.uniform(-1, 1, (3000, 3)), rng.integers(-2, 3, 3000)
    cloud = ThinnedCloud(0.25, anchor)
    for part in np.array_split(np.arange(3000), 7):
        cloud.add(points[part], classes[part])
        cloud.content()  # thins what was thinned before
    kept, kinds, counts = cloud.content()
    places = np.floor((points - anchor).astype(np.float32).astype(np.float64) / 0.25).astype(int)
    expected = Counter((*place, kind) for place, kind in zip(places.tolist(), classes.tolist(), strict=True))
    cells = np.floor((kept - anchor) / 0.25).astype(int).tolist()
    assert {(*c, k): n for c, k, n in zip(cells, kinds.tolist(), counts.tolist(), strict=True)} == expected
    first = {(*p, k): n for n, (p, k) in reversed([*enumerate(zip(places.tolist(), classes.tolist(), strict=True))])}
    np.testing.assert_allclose(kept, points[sorted(first.values())], atol=1e-6)


def test_class_of_a_voxel_is_that_of_most_points() -> None:
    rng, grid = np.random.default_rng(3), VoxelGrid((0, 2), (0, 2), (0, 2), 0.5)
    points, classes, counts = rng.uniform(-0.3, 2.3, (400, 3)), rng.integers(-1, 3, 400), rng.integers(1, 4, 400)
    occupied, found = voxel_classes(points, classes, counts, grid, 3)
    flat, inside = grid.indices(points)
    for voxel in range(64):
        mine = inside & (flat == voxel)
        votes = [counts[mine & (classes == kind)].sum() for kind in (-1, 0, 1, 2)]
        assert occupied.reshape(-1)[voxel] == mine.any()
        assert found.reshape(-1)[voxel] == int(np.argmax(votes))  # OTHERS, which is 0, without a point


def test_voxels_without_annotated_points_take_the_nearest_class() -> None:
    grid = VoxelGrid((0, 8), (0, 0.4), (0, 0.4))
    x = np.array([0.2, 0.6, 1.0, 1.4, 3.0, 7.8])
    points = np.column_stack([x, np.full((6, 2), 0.2)])
    classes = np.array([1, UNKNOWN, UNKNOWN, 0, UNKNOWN, NONE])
    occupied, found = voxel_classes(points, classes, np.ones(6, int), grid, 2)
    voxels = (x / 0.4).astype(int)
    assert np.flatnonzero(occupied).tolist() == voxels.tolist()
    assert found[0, 0, voxels].tolist() == [2, 2, 1, 1, 1, OTHERS]
    nothing = voxel_classes(points, np.full(6, UNKNOWN), np.ones(6, int), grid, 2)
    assert (nothing[1] == OTHERS).all()


def test_cameras_see_what_nothing_hides() -> None:
    """Against a march from the camera to the middle of each voxel."""
    rng, grid = np.random.default_rng(4), VoxelGrid((-2, 6), (-4, 4), (-1, 3), 0.5)
    frame = walled.WalledDrive().frame("1")
    occupied, seen = rng.random((2, *grid.shape)) < [[[[0.03]]], [[[0.8]]]]
    found = seen_by_cameras(frame, occupied, seen, grid)
    camera = np.array([0.3, 0.1, 1.5])
    expected = np.zeros(grid.shape, bool)
    for place in np.argwhere(seen):
        middle = grid.centers()[tuple(place)].astype(float)
        ahead, left, up = middle - camera
        if ahead < 0.1 or not (-0.5 <= 49.5 - 50 * left / ahead < 99.5 and -0.5 <= 29.5 - 50 * up / ahead < 59.5):
            continue
        flat, inside = grid.indices(camera + np.linspace(0, 1, 4000)[:, None] * (middle - camera))
        own = np.ravel_multi_index(tuple(place), grid.shape)
        met = set(flat[inside].tolist()) - {own}
        expected[tuple(place)] = not occupied.reshape(-1)[[*met]].any()
    assert 100 < expected.sum() < seen.sum() / 2
    np.testing.assert_array_equal(found, expected)


def returns_at(points: np.ndarray) -> Returns:
    n = len(points)
    return Returns(points, np.zeros((n, 3)), np.zeros(n, np.int16), np.zeros(n), np.ones(n, bool))


def test_levels_add_up_and_wait_where_no_ground_is_shared() -> None:
    rng, levels = np.random.default_rng(5), Levels()
    ground = np.column_stack([rng.uniform(-30, 30, (20_000, 2)), np.zeros(20_000)])
    ground[:4000, 2] = rng.uniform(0, 0.9, 4000)  # things on it
    heights = []
    for n, x in enumerate([0.0, 5.0, 9.0, 500.0, 503.0]):
        pose = np.eye(4)
        pose[:3, 3] = x, 0, -0.2 * n
        heights.append(levels.next(returns_at(ground + np.array([500 if x > 100 else 0, 0, -0.2 * n])), pose))
    np.testing.assert_allclose(heights, [0, 0.2, 0.4, 0.4, 0.6], atol=1e-9)


def test_geometric_figures_of_rays_that_are_counted_by_hand() -> None:
    grid = VoxelGrid((0, 10), (0, 3), (0, 1), 1.0)
    occupied = np.zeros(grid.shape, bool)
    occupied[0, 1, [3, 6]] = True
    origin = np.array([-2.0, 1.5, 0.5])
    returns = np.array([[6.5, 1.5, 0.5], [2.5, 1.5, 0.5], [4.5, 1.5, 0.5], [15.0, 1.5, 0.5], [8.5, 1.5, 0.5]])
    found = geometric_figures(occupied, grid, origin, returns)
    # They cross 6, 2, 4, 10 and 8 voxels, of which 1, 0, 1, 2 and 2 are occupied; the fourth ends outside.
    assert found == GeometricFigures(4, 1, 3, 30, 6, 5, 4)
    scored = geometric_figures(occupied, grid, origin, returns, scored=np.array([True, False, True, True, False]))
    assert scored == GeometricFigures(2, 1, 2, 30, 6, 5, 4)
    ignored = np.zeros(grid.shape, bool)
    ignored[0, 1, :5] = True
    assert geometric_figures(occupied, grid, origin, returns, ignored=ignored) == GeometricFigures(4, 1, 3, 9, 2, 3, 2)
    shares = (found + scored).shares()
    assert (shares["returns"], shares["in_occupied"], shares["near_occupied"]) == (6, 2 / 6, 5 / 6)
    assert (shares["rays"], shares["violations"], shares["violating_rays"]) == (10, 0.2, 0.8)
    assert np.isnan(GeometricFigures().shares()["violations"])


def test_rays_of_nuscenes_begin_at_the_lidar(tables: NuScenesTables) -> None:
    sample = tables.samples()[1]
    ((times, places),) = tables.lidar_paths(sample, 2)
    own = tables.frame(sample, "lidar", cameras=False)
    assert times[-1] == own.timestamp
    np.testing.assert_allclose(places[-1], own.global_from_reference[:3, 3], atol=1e-9)
    ages = np.unique(tables.frame(sample, "lidar", 2, cameras=False).points[:, 4])
    np.testing.assert_allclose(np.sort(1e-6 * (own.timestamp - times)), ages, atol=1e-6)
    seconds = np.diff(times)[-1] * 1e-6
    assert 0.01 < np.linalg.norm(places[-1] - places[-2]) / seconds < 30


@pytest.mark.parametrize("lidars", [(0, 1), (1,)])
def test_rays_of_pandaset_begin_at_its_lidars(tmp_path: Path, lidars: tuple[int, ...]) -> None:
    written.write_drive(tmp_path, [], {})
    paths = PandaSet(tmp_path, rig_of(*lidars)).lidar_paths("007-02")
    assert len(paths) == len(lidars)
    for n, (times, places) in zip(lidars, paths, strict=True):
        seconds = 1e-6 * times - written.START
        ahead, up = ((0.81, 2.26), (1.40, 1.98))[n]
        left = (0.0, 0.02)[n]
        expected = [written.world_from_lidar(t) @ [-left, ahead, up + written.GROUND, 1] for t in seconds]
        np.testing.assert_allclose(places, np.array(expected)[:, :3], atol=1e-4)
