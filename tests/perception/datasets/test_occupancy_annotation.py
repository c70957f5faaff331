"""Occupancy from recorded drives: one of which all is known, a real one, what is refused; and what it is made of, each
part against the plain way to compute it."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandaset_drive as written
import pytest
import walled_drive as walled
from commands import one_line_error, refuses, succeeds
from hypothesis import given
from hypothesis import strategies as st
from made_up import keyframe
from pandaset_drive import Object, rig_of
from scipy.spatial.transform import Rotation, Slerp
from walled_drive import GRID, WalledDrive

from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.occupancy import drive as gathering
from perception.datasets.occupancy import returns as reading
from perception.datasets.occupancy.drive import ThinnedCloud, gather
from perception.datasets.occupancy.returns import NONE, UNKNOWN, BoxMotion, Movable, Returns, motion_between, owners
from perception.datasets.occupancy.writing import (
    annotate,
    annotate_drives,
    find_seen_by_cameras,
    link_dataroot,
    voxel_classes,
)
from perception.datasets.pandaset import PandaSet
from perception.datasets.sources import open_source
from perception.frame import Boxes
from perception.grid import OTHERS, Occupancy, VoxelGrid, occupancy_classes
from perception.io.files import make_folder
from perception.taxonomy import load_taxonomy

GROUND, WALL, CAR, FREE = 1, 2, 3, 4  # classes of voxels


@pytest.fixture
def every_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points are not thinned."""
    monkeypatch.setattr(gathering, "CELL", 1e-4)


def annotated(source: Keyframes, sample: str, used: str = "0123", sweeps: int = 0, grid: VoxelGrid = GRID) -> Occupancy:
    drive = gather(source, list(used), sweeps, grid)
    return annotate(source.frame(sample), source, drive, grid)


def voxels_of(points: np.ndarray, grid: VoxelGrid = GRID) -> np.ndarray:
    """(levels, rows, columns) bool: those with a point."""
    flat, inside = grid.indices(points)
    result = np.zeros(grid.shape, bool)
    result.reshape(-1)[flat[inside]] = True
    return result


def met(kind: str, sample: int, used: str) -> np.ndarray:
    """(N, 3) what the LiDAR met of a kind at the used keyframes, in the vehicle's frame at one of them; of the car's
    points where they are on it then."""
    parts = []
    for k in map(int, used):
        points, kinds = walled.cast(walled.SPEED * walled.PERIOD * k, walled.car_at(walled.PERIOD * k))
        points = points[kinds == walled.POINTS.index(kind)]
        if kind == "car":
            points[:, 0] += walled.CAR_SPEED * walled.PERIOD * (sample - k)
        parts.append(points - [walled.SPEED * walled.PERIOD * sample, 0, 0])
    return np.concatenate(parts)


@pytest.mark.usefixtures("every_point")
@pytest.mark.parametrize("sample", [0, 2])
def test_voxels_of_a_known_world(sample: int) -> None:
    voxels = annotated(WalledDrive(), str(sample))
    of = {kind: voxels_of(met(kind, sample, "0123")) for kind in walled.POINTS}
    np.testing.assert_array_equal(voxels.classes != FREE, of["ground"] | of["wall"] | of["car"])
    alone = {kind: of[kind] & ~np.logical_or.reduce([of[k] for k in of if k != kind]) for kind in of}
    for kind, number in zip(walled.POINTS, (GROUND, WALL, CAR), strict=True):
        assert alone[kind].any()
        assert (voxels.classes[alone[kind]] == number).all(), kind
    assert not (met("car", sample, "0123")[:, 1] > 0).any()


def test_free_is_what_rays_cross() -> None:
    voxels = annotated(WalledDrive(), "1")
    centers, free = GRID.centers(), voxels.seen_by_lidar & (voxels.classes == FREE)
    assert not free[centers[..., 1] > walled.WALL + 0.2].any()  # behind the wall
    assert not free[centers[..., 2] < -0.4].any()  # below the ground
    hidden = (np.abs(centers[..., 0] - walled.car_at(0.5) + 1) < 1.4) & (centers[..., 1] < -5.4)
    hidden &= centers[..., 2] < 0.6
    assert hidden.any()
    assert free[hidden].any()  # behind the car, from keyframes in which it is elsewhere
    assert not annotated(WalledDrive(), "1", "1").seen_by_lidar[hidden & (centers[..., 1] > -6.2)].any()
    within = (np.abs(centers - [walled.car_at(0.5) - 1, walled.CAR_Y, 0.8]) < [1.7, 0.6, 0.4]).all(axis=-1)
    assert not free[within].any()  # inside the car, where rays passed before it came
    assert free[(np.abs(centers - [0, 3, 1.2]) < 0.3).all(axis=-1)].any()
    assert (voxels.seen_by_lidar | (voxels.classes == FREE)).all()

    points, _ = walled.cast(walled.SPEED * walled.PERIOD, walled.car_at(walled.PERIOD))
    share = np.linspace(0, 1, 200)[:, None, None]
    march = walled.LIDAR + share * (points - [walled.SPEED * walled.PERIOD, 0, 0] - walled.LIDAR)
    assert voxels.seen_by_lidar[voxels_of(march.reshape(-1, 3))].all()  # by rays of the keyframe itself, boxes or not


def test_sweeps_between_keyframes_put_the_car_where_it_was() -> None:
    """Also if a keyframe lacks its velocity; without an id it is as it is seen in the keyframe."""
    source = WalledDrive(labelled=False)
    boxes = {k: source.recording(k).annotated("boxes") for k in "0123"}
    boxes["2"] = replace(boxes["2"], velocities=boxes["2"].velocities * np.nan)
    source.boxes = boxes.__getitem__
    voxels = annotated(source, "2", "12", sweeps=4)
    box = boxes["2"].centers[0] - [2 * walled.SPEED * walled.PERIOD, 0, 0]
    off = np.abs(GRID.centers() - box)[..., 0]
    assert {*voxels.classes.ravel().tolist()} == {0, CAR, FREE}  # without any labels only boxes tell
    assert not (voxels.classes == CAR)[off > 2.0 + 0.4].any()
    above = (GRID.centers()[..., 2] > 0.4) & (GRID.centers()[..., 1] < -2)  # only the car is there
    assert not (voxels.classes != FREE)[above & (off > 2.0 + 0.4)].any()
    few = annotated(WalledDrive(labelled=False), "2", "12")
    assert (voxels.classes != FREE).sum() > (few.classes != FREE).sum()
    unnamed, alone = annotated(WalledDrive(instance=""), "1"), annotated(WalledDrive(), "1", "1")
    np.testing.assert_array_equal((unnamed.classes == CAR)[above], (alone.classes == CAR)[above])


def test_rays_begin_where_the_lidar_was_then() -> None:
    source = WalledDrive()
    found = reading.returns_of(source.frame("2", Reads(sweeps=4)), source, 4)
    assert len(np.unique(found.ages)) == 5
    expected = walled.LIDAR + np.outer(walled.SPEED * (2 * walled.PERIOD - found.ages), [1, 0, 0])
    np.testing.assert_allclose(found.origins, expected, atol=1e-5)
    np.testing.assert_array_equal(found.own, found.ages == 0)


@pytest.mark.usefixtures("every_point")
def test_sweeps_count_once() -> None:
    """Six sweeps before each keyframe reach beyond the last one, 0.5 s before."""
    drive = gather(WalledDrive(labelled=False), ["1", "2"], 6, GRID)
    found = sum(cloud.content()[2].sum() for cloud in (drive.static, *drive.objects.values()))
    times = [0.5 - 0.1 * age for age in range(7)] + [1.0 - 0.1 * age for age in range(5)]
    assert found == sum(len(walled.cast(walled.SPEED * t, walled.car_at(t))[0]) for t in times)


def test_which_returns_are_of_an_object() -> None:
    """By hand: a car of 2 x 4 x 1.6 m at the origin of the ground, and a sign, which does not move, at x = 10 m."""
    one = WalledDrive().recording("0").annotated("boxes")
    parts = (replace(one, centers=np.array([[x, 0, 0.8]]), labels=np.array([n])) for n, x in enumerate((0.0, 10.0)))
    boxes = Boxes.joined(*parts)
    ground, car = GROUND - 1, CAR - 1  # classes of points
    cases = [  # place, class -> box, class, whether it stands still
        ((0.0, 0, 0.1), UNKNOWN, -1, UNKNOWN, True),  # the road below the car
        ((0.0, 0, 0.3), UNKNOWN, 0, car, False),
        ((0.0, 0, 0.1), car, 0, car, False),
        ((0.0, 0, 0.3), ground, -1, ground, True),
        ((0.0, 0, 0.3), NONE, 0, NONE, False),
        ((2.05, 0, 0.5), car, 0, car, False),  # a mirror
        ((2.15, 0, 0.5), car, -1, car, False),  # in no box, but nothing that stands still
        ((5.0, 0, 0.5), UNKNOWN, -1, UNKNOWN, True),
        ((10.0, 0, 0.5), UNKNOWN, -1, NONE, True),  # signs have no class of points
    ]
    n = len(cases)
    points, classes = np.array([c[0] for c in cases]), np.array([c[1] for c in cases], np.int16)
    returns = Returns(points, np.zeros((n, 3)), classes, np.zeros(n), *np.zeros((2, n), np.uint8))
    found = Movable(WalledDrive()).assign(returns, BoxMotion(boxes, boxes), 1.0)
    assert found.owner.tolist() == [c[2] for c in cases]
    assert found.classes.tolist() == [c[3] for c in cases]
    assert found.static.tolist() == [c[4] for c in cases]


def test_hills_that_poses_do_not_know_are_levelled() -> None:
    hilly = walled.HillyDrive()
    drive = gather(hilly, list("0123"), 0, GRID)
    heights = [drive.heights[sample] for sample in "0123"]
    # The lowest points of a column may be as far apart as the ground falls in it.
    error = 0.5 * np.tan(walled.SLOPE)
    assert (np.abs(np.subtract(heights, [walled.height(k) for k in range(4)])) <= error * np.arange(4)).all()
    x, y, z = np.moveaxis(GRID.centers(), -1, 0)
    lane = (np.abs(y) < 1.5) & (np.abs(x) < 8)  # the ground, and nothing else
    for sample in "03":
        voxels = annotate(hilly.frame(sample), hilly, drive, GRID)
        occupied = voxels.classes != FREE
        assert set(z[occupied & lane].round(1).tolist()) == {0.0}
        assert not voxels.seen_by_lidar[lane & (z < -0.7)].any()
        assert (occupied & lane).sum() > (annotated(hilly, sample, sample).classes != FREE)[lane].sum()


@given(
    lags=st.lists(st.integers(-49, 49), min_size=1, max_size=3), every=st.integers(1, 6), more=st.integers(0, 9),
    late=st.integers(0, 30), seed=st.integers(0, 99),
)  # fmt: skip
def test_each_sweep_counts_once(lags: list[int], every: int, more: int, late: int, seed: int) -> None:
    """Ten a second of each LiDAR, whose points have times of their own, one keyframe in `every`; more are read."""
    rng, counted, begun = np.random.default_rng(seed), Counter[tuple[int, int]](), np.full(256, -np.inf)
    offsets = np.append(rng.uniform(0, 0.1, (len(lags), 7)), np.full((len(lags), 1), 0.1), axis=1)
    for keyframe_sweep in range(every + more, every + more + 4 * every, every):
        now, rows = 1.7e9 + 0.1 * keyframe_sweep, []
        for lidar, lag in enumerate(lags):
            for number in range(every + more + 1):
                ages = np.maximum(0.1 * number - 1e-3 * lag + offsets[lidar] - 1e-3 * late, 0).astype(np.float32)
                rows += [(age, number, lidar) for age in ages]
        ages, numbers, owners_ = np.array(rows).T
        sweeps_, none = (numbers.astype(np.uint8), owners_.astype(np.uint8)), np.zeros((len(ages), 3))
        returns = Returns(none, none, numbers, ages, *sweeps_)
        found = gathering._not_measured(returns, now, begun)
        pairs = zip(found.lidars.tolist(), (keyframe_sweep - found.sweeps.astype(int)).tolist(), strict=True)
        counted.update(pairs)
    assert {*counted.values()} == {8}
    assert len(counted) == len(lags) * (every + more + 3 * every + 1)


def test_own_roof_is_no_occupancy() -> None:
    source = WalledDrive()
    frame = source.frame("0")
    roof = np.array([[0.5, 0.2, 1.9, 0, 0]], np.float32)
    classes = np.append(frame.class_of_point, 1).astype(np.int16)
    own = keyframe(np.concatenate([frame.points, roof])) | {"class_of_point": classes}
    both = replace(frame, **own)
    drive = gather(source, ["0"], 0, GRID)
    ours, without = (annotate(each, source, drive, GRID).classes for each in (both, frame))
    np.testing.assert_array_equal(ours, without)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two frames of PandaSet's layout with 300 points and their classes."""
    rng, none = np.random.default_rng(3), np.zeros(300)
    points = np.column_stack([rng.uniform([-9, 4, -0.4], [9, 23, 2], (300, 3)), none, none, none])
    later = points + np.array([0, 0, 0, 0, written.PERIOD, 0])
    folder, kinds = tmp_path / "data", rng.choice([*written.CLASSES], 300)
    folder.mkdir()
    car = Object("Car", "parked", (3.0, 20.0, 0.3), yaw=0.4)
    written.write_drive(folder, [car], {0: points, 1: later}, {0: kinds, 1: kinds})
    for name in ("02", "03"):
        (folder / "007" / "lidar" / f"{name}.pkl.gz").unlink()
    return folder


def test_the_written_dataroot_is_read_as_any(root: Path, tmp_path: Path) -> None:
    before, out = sorted(root.rglob("*")), tmp_path / "out"
    selected = ("--scenes", "007:1-2", "--rig", "pandaset_64", "--json")
    counts = json.loads(succeeds("annotate-occupancy", root, "--out", out, *selected))
    assert counts == {"out": str(out), "drives": 1, "keyframes": 1, "without_lidar": 0}
    assert sorted(root.rglob("*")) == before
    source = open_source(out, None)
    frame, found = source.frame("007-01"), source.recording("007-01").annotated("occupancy")
    assert source.recording("007-01").exists("occupancy")
    assert source.recording("007-01").exists("points")
    flat, inside = found.grid.indices(frame.points)
    assert inside.sum() > 100
    assert (found.classes.reshape(-1)[flat[inside]] < len(occupancy_classes(source.taxonomy)) - 1).all()
    assert open_source(root, None).recording("007-01").annotated("occupancy") is None
    link_dataroot(root, out)  # as when more keyframes are annotated into the same folder
    annotate_drives(PandaSet(root), ["007:1-2"], 0, root)  # a dataroot may hold its own voxels
    assert [PandaSet(root).recording(f"007-0{i}").exists("occupancy") for i in (0, 1)] == [False, True]
    link_dataroot(root, make_folder(tmp_path / "other"))  # with voxels of its own, not with links to these
    assert not PandaSet(tmp_path / "other").recording("007-01").exists("occupancy")


def test_refused(root: Path, tmp_path: Path) -> None:
    source, out = PandaSet(root), tmp_path / "out"
    with one_line_error(says="in the dataroot"):
        annotate_drives(source, [], 0, root / "new")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "007").write_text("something else")
    with one_line_error(at=tmp_path / "full" / "007", says="choose another --out"):
        annotate_drives(source, [], 0, tmp_path / "full")
    with one_line_error(at="taxonomy t4", says="point_classes"):
        annotate_drives(PandaSet(root, None, load_taxonomy("t4")), [], 0, out)
    (root / "007" / "annotations" / "cuboids" / "01.pkl.gz").unlink()
    with one_line_error(at=root, says="007-01 has no boxes"):
        annotate_drives(source, [], 0, out)
    assert "no such scene" in refuses("annotate-occupancy", root, "--out", out, "--scenes", "008")


def test_keyframes_without_lidar_are_left_out(tiny_root: Path, tmp_path: Path) -> None:
    source = open_source(tiny_root, None)
    files = sorted((tiny_root / "samples" / "LIDAR_TOP").iterdir())
    files[1].unlink()
    counts = annotate_drives(source, [], 1, tmp_path / "out")
    assert counts == {"drives": 1, "keyframes": 2, "without_lidar": 1}
    source = open_source(tmp_path / "out", None)
    assert [source.recording(sample).exists("occupancy") for sample in source.samples()] == [True, False, True]
    for file in (files[0], files[2]):
        file.unlink()
    with one_line_error("no LiDAR file of the 3 keyframes"):
        annotate_drives(source, [], 1, tmp_path / "again")


# Its parts.


def boxes_of(centers: np.ndarray, rotations: np.ndarray, names: list[str], velocity: float = np.nan) -> Boxes:
    n = len(centers)
    sizes, velocities = np.tile([2.0, 5.0, 1.5], (n, 1)), np.full((n, 2), velocity)
    upright = Boxes.from_yaws(centers, sizes, np.zeros(n), velocities, *np.zeros((3, n)))
    return replace(upright, rotations=rotations, instances=np.array(names, "U8"))


def test_points_of_a_box_that_moves_and_turns() -> None:
    rng = np.random.default_rng(0)
    turns = [Rotation.from_rotvec(rng.uniform(-0.9, 0.9, (3, 3))) for _ in range(2)]
    centers = [np.array([[0.0, 0, 0], [40, 0, 0], [0, 60, 2]]) + rng.uniform(-4, 4, (3, 3)) for _ in range(2)]
    motion = BoxMotion(*(boxes_of(c, t.as_matrix(), ["a", "b", "c"]) for c, t in zip(centers, turns, strict=True)))
    shares, box = rng.uniform(-0.2, 1.1, 500), rng.integers(0, 3, 500)
    local = rng.uniform(-1, 1, (500, 3)) * [2.6, 1.1, 0.85]  # half of the box, and the margin
    outside = local * [1.05, 1, 1]
    outside[:, 0] = np.copysign(2.65, local[:, 0])
    points, beyond = np.zeros((2, 500, 3))
    for n, share in enumerate(shares):
        b = box[n]
        step = turns[0][b].inv() * turns[1][b]
        keys = Rotation.concatenate([turns[0][b] * step.inv(), turns[0][b], turns[1][b], turns[1][b] * step])
        slerp = Slerp([-1, 0, 1, 2], keys)(share)
        middle = centers[0][b] + share * (centers[1][b] - centers[0][b])
        points[n], beyond[n] = (slerp.apply(each[n]) + middle for each in (local, outside))
    owner, found = owners(points, shares, motion, 0.1)
    np.testing.assert_array_equal(owner, box)
    np.testing.assert_allclose(found, local, atol=1e-9)
    assert (owners(beyond, shares, motion, 0.1)[0] == -1).all()
    both = boxes_of(np.array([[0.0, 0, 0], [2, 0, 0]]), np.tile(np.eye(3), (2, 1, 1)), ["a", "b"])
    owner, found = owners(np.array([[1.0, 0, 0], [3, 0, 0]]), np.ones(2), BoxMotion(both, both), 0)
    assert owner.tolist() == [0, 1]  # in two boxes it is of the first
    np.testing.assert_allclose(found, [[1, 0, 0], [1, 0, 0]])


def test_boxes_of_one_keyframe_move_on_by_their_velocity() -> None:
    still = np.tile(np.eye(3), (2, 1, 1))
    before = boxes_of(np.array([[0.0, 0, 0], [9, 0, 0]]), still, ["both", "gone"], 3.0)
    ahead = np.array([[1.0, 0, 0], [20, 0, 0], [30, 0, 0]])
    after = boxes_of(ahead, np.tile(np.eye(3), (3, 1, 1)), ["both", "", "new"])
    motion = motion_between(before, after, 0.5)
    assert motion.start.instances.tolist() == motion.end.instances.tolist() == ["both", "", "new", "gone"]
    np.testing.assert_allclose(motion.start.centers[:, 0], [0, 20, 30, 9])  # unknown velocities are none
    np.testing.assert_allclose(motion.end.centers, [[1, 0, 0], [20, 0, 0], [30, 0, 0], [10.5, 1.5, 0]])


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


def test_class_of_a_voxel_is_that_of_most_points_or_of_the_nearest_annotated_ones() -> None:
    rng, grid = np.random.default_rng(3), VoxelGrid((0, 2), (0, 2), (0, 2), 0.5)
    points, classes, counts = rng.uniform(-0.3, 2.3, (400, 3)), rng.integers(-1, 3, 400), rng.integers(1, 4, 400)
    occupied, found = voxel_classes(points, classes, counts, grid, 3)
    flat, inside = grid.indices(points)
    for voxel in range(64):
        mine = inside & (flat == voxel)
        votes = [counts[mine & (classes == kind)].sum() for kind in (-1, 0, 1, 2)]
        assert occupied.reshape(-1)[voxel] == mine.any()
        assert found.reshape(-1)[voxel] == int(np.argmax(votes))  # OTHERS, which is 0, without a point

    grid, x = VoxelGrid((0, 8), (0, 0.4), (0, 0.4)), np.array([0.2, 0.6, 1.0, 1.4, 3.0, 7.8])
    points, voxels = np.column_stack([x, np.full((6, 2), 0.2)]), (x / 0.4).astype(int)
    classes = np.array([1, UNKNOWN, UNKNOWN, 0, UNKNOWN, NONE])
    occupied, found = voxel_classes(points, classes, np.ones(6, int), grid, 2)
    assert np.flatnonzero(occupied).tolist() == voxels.tolist()
    assert found[0, 0, voxels].tolist() == [2, 2, 1, 1, 1, OTHERS]
    assert (voxel_classes(points, np.full(6, UNKNOWN), np.ones(6, int), grid, 2)[1] == OTHERS).all()
    occupied, found = voxel_classes(points, np.array([1, 2, UNKNOWN, 0, 3, NONE]), np.ones(6, int), grid, 2)
    assert np.flatnonzero(occupied).tolist() == np.delete(voxels, [1, 4]).tolist()  # 2 and 3 are not solid
    assert found[0, 0, voxels].tolist() == [2, OTHERS, 1, 1, OTHERS, OTHERS]


def test_cameras_see_what_nothing_hides() -> None:
    """Against a march from the camera to the middle of each voxel."""
    rng, grid = np.random.default_rng(4), VoxelGrid((-2, 6), (-4, 4), (-1, 3), 0.5)
    frame = walled.WalledDrive().frame("1")
    occupied, seen = rng.random((2, *grid.shape)) < [[[[0.03]]], [[[0.8]]]]
    found = find_seen_by_cameras(frame, occupied, seen, grid)
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


def test_rays_of_nuscenes_begin_at_the_lidar(tables: NuScenesTables) -> None:
    sample = tables.samples()[1]
    ((times, places),) = tables.recording(sample, Reads(sweeps=2)).lidar_paths().values()
    own = tables.frame(sample, Reads("lidar", cameras=False))
    assert times[-1] == own.timestamp
    np.testing.assert_allclose(places[-1], own.global_from_reference[:3, 3], atol=1e-9)
    ages = np.unique(tables.frame(sample, Reads("lidar", 2, cameras=False)).points[:, 4])
    np.testing.assert_allclose(np.sort(1e-6 * (own.timestamp - times)), ages, atol=1e-6)
    seconds = np.diff(times)[-1] * 1e-6
    assert 0.01 < np.linalg.norm(places[-1] - places[-2]) / seconds < 30


@pytest.mark.parametrize("lidars", [(0, 1), (1,)])
def test_rays_of_pandaset_begin_at_its_lidars(tmp_path: Path, lidars: tuple[int, ...]) -> None:
    written.write_drive(tmp_path, [], {})
    paths = PandaSet(tmp_path, rig_of(*lidars)).recording("007-02", Reads()).lidar_paths()
    assert len(paths) == len(lidars)
    for n, (times, places) in zip(lidars, paths.values(), strict=True):
        seconds = 1e-6 * times - written.START
        ahead, up = ((0.81, 2.26), (1.40, 1.98))[n]
        left = (0.0, 0.02)[n]
        expected = [written.world_from_lidar(t) @ [-left, ahead, up + written.GROUND, 1] for t in seconds]
        np.testing.assert_allclose(places, np.array(expected)[:, :3], atol=1e-4)
