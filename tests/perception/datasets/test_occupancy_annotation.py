"""Occupancy from recorded drives: a drive of which everything is known, a real one, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandaset_drive as written
import pytest
import walled_drive as walled
from commands import one_line_error, refuses, succeeds
from pandaset_drive import SPINNING, Object
from walled_drive import GRID, WalledDrive

from perception.atomic import made
from perception.datasets.keyframes import Keyframes
from perception.datasets.occupancy import drive as gathering
from perception.datasets.occupancy.annotation import annotate
from perception.datasets.occupancy.drive import gather
from perception.datasets.occupancy.movable import Movable
from perception.datasets.occupancy.objects import Motion
from perception.datasets.occupancy.returns import NONE, UNKNOWN, Returns, returns_of
from perception.datasets.occupancy.writing import annotate_drives, link_dataroot
from perception.datasets.pandaset import PandaSet
from perception.frame import Boxes
from perception.sources import open_source
from perception.taxonomy import load_taxonomy
from perception.voxels import Occupancy, VoxelGrid, occupancy_classes

GROUND, WALL, CAR, FREE = 1, 2, 3, 4  # classes of voxels


@pytest.fixture
def every_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points are not thinned."""
    monkeypatch.setattr(gathering, "CELL", 1e-4)


def annotated(source: Keyframes, sample: str, used: str = "0123", sweeps: int = 0, grid: VoxelGrid = GRID) -> Occupancy:
    drive = gather(source, list(used), sweeps, grid)
    assert drive is not None
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
    made = annotated(WalledDrive(), str(sample))
    of = {kind: voxels_of(met(kind, sample, "0123")) for kind in walled.POINTS}
    np.testing.assert_array_equal(made.classes != FREE, of["ground"] | of["wall"] | of["car"])
    alone = {kind: of[kind] & ~np.logical_or.reduce([of[k] for k in of if k != kind]) for kind in of}
    for kind, number in zip(walled.POINTS, (GROUND, WALL, CAR), strict=True):
        assert alone[kind].any()
        assert (made.classes[alone[kind]] == number).all(), kind
    assert not (met("car", sample, "0123")[:, 1] > 0).any()


def test_an_object_without_an_id_is_as_it_is_seen_in_the_keyframe() -> None:
    made, alone = annotated(WalledDrive(instance=""), "1"), annotated(WalledDrive(), "1", "1")
    off_the_ground = (GRID.centers()[..., 2] > 0.4) & (GRID.centers()[..., 1] < -2)
    np.testing.assert_array_equal((made.classes == CAR)[off_the_ground], (alone.classes == CAR)[off_the_ground])


def test_free_is_what_rays_cross() -> None:
    made = annotated(WalledDrive(), "1")
    centers, free = GRID.centers(), made.seen_by_lidar & (made.classes == FREE)
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
    assert (made.seen_by_lidar | (made.classes == FREE)).all()

    points, _ = walled.cast(walled.SPEED * walled.PERIOD, walled.car_at(walled.PERIOD))
    share = np.linspace(0, 1, 200)[:, None, None]
    march = walled.LIDAR + share * (points - [walled.SPEED * walled.PERIOD, 0, 0] - walled.LIDAR)
    assert made.seen_by_lidar[voxels_of(march.reshape(-1, 3))].all()  # by rays of the keyframe itself, boxes or not


class UnknownVelocity(WalledDrive):
    """The velocity is not annotated in keyframe 2."""

    def boxes(self, sample: str) -> Boxes:
        boxes = super().boxes(sample)
        return replace(boxes, velocities=boxes.velocities * (np.nan if sample == "2" else 1))


def test_sweeps_between_keyframes_put_the_car_where_it_was() -> None:
    made = annotated(UnknownVelocity(labelled=False), "2", "12", sweeps=4)
    box = WalledDrive().boxes("2").centers[0] - [2 * walled.SPEED * walled.PERIOD, 0, 0]
    off = np.abs(GRID.centers() - box)[..., 0]
    assert {*made.classes.ravel().tolist()} == {0, CAR, FREE}  # without any labels only boxes tell
    assert not (made.classes == CAR)[off > 2.0 + 0.4].any()
    above = (GRID.centers()[..., 2] > 0.4) & (GRID.centers()[..., 1] < -2)  # only the car is there
    assert not (made.classes != FREE)[above & (off > 2.0 + 0.4)].any()
    few = annotated(WalledDrive(labelled=False), "2", "12")
    assert (made.classes != FREE).sum() > (few.classes != FREE).sum()


def test_rays_begin_where_the_lidar_was_then() -> None:
    source = WalledDrive()
    found = returns_of(source.frame("2", sweeps=4), source, 4)
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
    one = WalledDrive().boxes("0")
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
    returns = Returns(points, np.zeros((n, 3)), classes, np.zeros(n), np.ones(n, bool))
    found = Movable(WalledDrive()).assigned(returns, Motion(boxes, boxes), 1.0)
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
        made = annotate(hilly.frame(sample), hilly, drive, GRID)
        occupied = made.classes != FREE
        assert set(z[occupied & lane].round(1).tolist()) == {0.0}
        assert not made.seen_by_lidar[lane & (z < -0.7)].any()
        assert (occupied & lane).sum() > (annotated(hilly, sample, sample).classes != FREE)[lane].sum()


def test_own_roof_is_no_occupancy() -> None:
    source = WalledDrive()
    frame = source.frame("0")
    roof = np.array([[0.5, 0.2, 1.9, 0, 0]], np.float32)
    classes = np.append(frame.class_of_point, 1).astype(np.int16)
    both = replace(frame, points=np.concatenate([frame.points, roof]), class_of_point=classes)
    drive = gather(source, ["0"], 0, GRID)
    ours, without = (annotate(each, source, drive, GRID).classes for each in (both, frame))
    np.testing.assert_array_equal(ours, without)


def test_real_points_lie_in_voxels_of_their_class(pandaset_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a count of a keyframe's labelled points; cars that have left between two keyframes leave no voxel."""
    monkeypatch.setattr(gathering, "CELL", 1e-3)
    source, grid = PandaSet(pandaset_root, SPINNING), VoxelGrid((-12.0, 12.0), (-12.0, 12.0), cell=0.8)
    drive = gather(source, ["002-16"], 0, grid)
    frame = source.frame("002-16", cameras=False)
    made = annotate(frame, source, drive, grid)
    names = occupancy_classes(source.taxonomy)
    flat, inside = grid.indices(frame.points)
    inside &= np.linalg.norm(frame.points[:, :2], axis=1) > 3  # the roof
    assert (made.classes.reshape(-1)[flat[inside]] < len(names) - 1).all()
    votes = np.zeros((made.classes.size, len(names)), np.int64)
    np.add.at(votes, (flat[inside], frame.class_of_point[inside] + 1), 1)
    first, second = np.sort(votes, axis=1)[:, :-3:-1].T
    clear = first > second + 2
    np.testing.assert_array_equal(made.classes.reshape(-1)[clear], votes.argmax(axis=1)[clear])
    assert (votes.argmax(axis=1)[clear] == names.index("car")).any()


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
    frame, found = source.frame("007-01"), source.occupancy("007-01")
    assert source.has_occupancy("007-01")
    assert source.has_point_classes("007-01")
    flat, inside = found.grid.indices(frame.points)
    assert inside.sum() > 100
    assert (found.classes.reshape(-1)[flat[inside]] < len(occupancy_classes(source.taxonomy)) - 1).all()
    assert open_source(root, None).occupancy("007-01") is None
    link_dataroot(root, out)  # as when more keyframes are annotated into the same folder


def test_a_dataroot_may_hold_its_own_voxels(root: Path, tmp_path: Path) -> None:
    annotate_drives(PandaSet(root), ["007:1-2"], 0, root)
    assert [PandaSet(root).has_occupancy(f"007-0{i}") for i in (0, 1)] == [False, True]
    link_dataroot(root, made(tmp_path / "other"))  # with voxels of its own, not with links to these
    assert not PandaSet(tmp_path / "other").has_occupancy("007-01")


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
    made = open_source(tmp_path / "out", None)
    assert [made.has_occupancy(sample) for sample in made.samples()] == [True, False, True]
    for file in (files[0], files[2]):
        file.unlink()
    with one_line_error("no LiDAR file of the 3 keyframes"):
        annotate_drives(source, [], 1, tmp_path / "again")
