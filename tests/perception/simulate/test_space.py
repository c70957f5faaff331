"""What simulated drives tell of every point, voxel and unknown obstacle."""

import itertools
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import shapely
from hypothesis import example, given
from hypothesis import strategies as st
from made_up import classified
from nuscenes.eval.lidarseg.utils import LidarsegClassMapper
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_io import load_bin_file
from shapely.geometry import Polygon
from simulated import WORLDS, boxes, courses, in_town, outline, pave
from vocabulary import NUSCENES, RIG

from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.grid import VoxelGrid, occupancy_classes, traverse
from perception.rig import load_rig
from perception.simulate import scenario
from perception.simulate.annotate import Seen, find_crossed, find_pictured, voxel_classes
from perception.simulate.city import build_city
from perception.simulate.conditions import Extras, parse
from perception.simulate.drive import Drive
from perception.simulate.nuscenes_writer import VERSION
from perception.simulate.obstacles import CLEARANCE, KINDS, with_obstacles
from perception.simulate.scenario import build_world
from perception.simulate.simulate import simulate
from perception.simulate.snapshot import CATEGORIES, Ground, Solids
from perception.simulate.world import World
from perception.simulate.worlds import Worlds
from perception.tasks.metric import CountedFrames
from perception.tasks.occupancy.task import detection_labels
from perception.tasks.points.task import PointsMetric
from perception.taxonomy import PointClass, load_taxonomy

RECORDED = courses("clear-day-boston", "rain-night-singapore")  # of the fixture sim_root
GRID = VoxelGrid(x=(-4.0, 4.0), y=(-3.2, 3.2), z=(-1.0, 2.2))
CLASS = {name: i for i, name in enumerate(occupancy_classes(NUSCENES))}
FREE = len(CLASS) - 1


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drive of two keyframes with obstacles and voxels, after a run that was interrupted there."""
    out, extras = tmp_path_factory.mktemp("space"), Extras(obstacles=True, occupancy=True)
    (out / "lidarseg" / VERSION).mkdir(parents=True)
    (out / "lidarseg" / VERSION / "left_lidarseg.bin").write_bytes(b"1")
    rig = RIG.model_copy(update={"cameras": (RIG.cameras[0].model_copy(update={"size": (160, 90)}),)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenario, "MAX_CANDIDATES", 1)
        simulate(out, 1, 2, 0, [replace(each, extras=extras) for each in in_town("clear-day-boston")], rig=rig)
    return out


def test_every_point_is_where_its_category_is(sim_root: Path) -> None:
    """In an annotated box, on the map's ground or beside both; only rain is noise."""
    tables = NuScenesTables(sim_root, VERSION)
    lidarseg = {file: sim_root / label for file, label in tables._lidarseg.files.items()}
    assert len(lidarseg) == len(tables.samples())
    devkit, seen = NuScenes(VERSION, str(sim_root), verbose=False), set[str]()
    fine = LidarsegClassMapper(devkit).get_fine2coarse()
    for course, scene in zip(RECORDED, tables.scenes(), strict=True):
        ground, sample = build_city(course.place).ground, tables.samples(selectors=[scene])[0]
        recording = tables.recordings[sample]["LIDAR_TOP"]
        numbers = load_bin_file(str(lidarseg[recording.file]))
        points = np.fromfile(sim_root / recording.file, np.float32).reshape(-1, 5)[:, :3].astype(np.float64)
        pose = tables.recordings.global_from_ego(recording) @ tables.recordings.ego_from_sensor[recording.calibration]
        points = points @ pose[:3, :3].T + pose[:3, 3]
        assert len(numbers) == len(points)
        assert (numbers == 0).any() == scene.endswith("2")  # only the second is in rain
        # Within 60 m all agents are annotated that have points; those that move are up to 25 ms away from their boxes.
        near = np.linalg.norm(points[:, :2] - points[:, :2].mean(axis=0), axis=1) < 60
        boxed: dict[str, np.ndarray] = {}  # whether a point is in a box of a category, made wider by 0.75 m
        for box in map(devkit.get_box, devkit.get("sample", sample)["anns"]):
            local = np.abs((points - box.center) @ box.rotation_matrix)
            inside = (local <= box.wlh[[1, 0, 2]] / 2 + 0.75).all(axis=1)
            boxed[box.name] = boxed.get(box.name, False) | inside
        for name, inside in boxed.items():
            assert inside[near & (numbers == CATEGORIES.index(name))].all()
        for number in {*numbers[near].tolist()}:
            name = devkit.lidarseg_idx2name_mapping[number]
            seen.add(fine[name])
            own = points[numbers == number]
            if name.startswith("flat"):
                kinds = {Ground.GRASS: "flat.terrain", Ground.WALKWAY: "flat.sidewalk"}
                of_map = [kinds.get(Ground(kind), "flat.driveable_surface") for kind in ground.at(own[:, :2]).tolist()]
                assert np.mean(np.array(of_map) == name) > 0.98  # the noise of a range moves some over an edge
                assert np.abs(own[:, 2]).max() < 0.15
            elif name.startswith("static"):
                assert own[:, 2].min() > -0.15
                assert own[:, 2].max() > 2
    assert {"car", "driveable_surface", "sidewalk", "terrain", "manmade", "vegetation", "pedestrian"} <= seen
    devkit.get_sample_lidarseg_stats(devkit.sample[0]["token"])


def test_falling_snow_is_a_class_of_points_and_none_of_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a taxonomy with `noise`, read back from a drive in snow: a perfect head has IoU 1, one that calls flakes cars
    has 0. Voxels are those of nuScenes' own taxonomy."""
    monkeypatch.setattr(scenario, "MAX_CANDIDATES", 1)
    conditions = {**NUSCENES.conditions, "weather": ("snow",)}
    classes = (*NUSCENES.point_classes, PointClass(name="noise", solid=False))
    winter = NUSCENES.model_copy(update={"conditions": conditions, "point_classes": classes})
    assert occupancy_classes(winter) == occupancy_classes(NUSCENES)
    assert winter.voxel_colours() == NUSCENES.voxel_colours()
    assert detection_labels(winter).tolist() == detection_labels(NUSCENES).tolist()
    (course,) = parse(["snow-day-boston"], winter, Worlds(), Extras(occupancy=True))
    course = replace(course, place=in_town("clear-day-boston")[0].place)
    simulate(tmp_path / "snow", 1, 1, 0, [course], rig=RIG.model_copy(update={"cameras": ()}))
    tables, metric = NuScenesTables(tmp_path / "snow", VERSION, taxonomy=winter), CountedFrames(PointsMetric(winter))
    frame = tables.frame(tables.samples()[0], Reads(sweeps=0, cameras=False, truth=("points", "occupancy")))
    truth = frame.keyframe_classes
    noise = truth == 16
    assert noise.any()
    metric.add(frame, classified(truth))
    scores = metric.report()["points"]
    assert scores["classes"]["noise"] == scores["mean"] == 1
    called = CountedFrames(PointsMetric(winter))
    called.add(frame, classified(np.where(noise, CLASS["car"] - 1, truth)))
    assert called.report()["points"]["classes"]["noise"] == 0
    assert frame.truth["occupancy"].classes.max() == FREE


def test_the_drive_with_everything_is_read_by_all_and_its_voxels_fit_points_and_boxes(root: Path) -> None:
    devkit, tables, grid = NuScenes(VERSION, str(root), verbose=False), NuScenesTables(root, VERSION), VoxelGrid()
    unknown = {kind.category for kind in KINDS.values()}
    assert not unknown & {*NUSCENES.labels_of_categories(), *NUSCENES.point_labels_of_categories()}
    for sample in tables.samples():
        frame, recording = tables.frame(sample, Reads("ego")), tables.recording(sample)
        obstacles, voxels = recording.annotated("obstacles"), recording.annotated("occupancy")
        annotations = [devkit.get("sample_annotation", name) for name in devkit.get("sample", sample)["anns"]]
        theirs = [a["instance_token"] for a in annotations if a["category_name"] in unknown]
        assert obstacles.instances.tolist() == theirs
        assert len(obstacles) + len(recording.annotated("boxes")) == len(annotations)
        index, inside = grid.indices(frame.points)
        assert voxels.seen_by_lidar.ravel()[index[inside]].all()
        assert 0 < voxels.seen_by_cameras.mean() < voxels.seen_by_lidar.mean()  # one camera with a small picture
        # A point and what is in its voxel are mostly of one class; the surfaces have noise and meet other things.
        classes, found = frame.class_of_point[inside], voxels.classes.ravel()[index[inside]]
        for name in ("car", "driveable_surface", "manmade"):
            assert np.mean(found[classes == CLASS[name] - 1] == CLASS[name]) > 0.5
        cars = frame.boxes.select(frame.boxes.labels == NUSCENES.label("car"))
        others = obstacles.transformed(np.linalg.inv(frame.global_from_ego))
        for chosen, number in ((cars, CLASS["car"]), (others, CLASS["others"])):
            index, inside = grid.indices(chosen.centers)
            held = voxels.classes.ravel()[index[inside]]
            assert inside.any()
            assert number in held
            assert FREE not in held[chosen.sizes[inside, 2] > 1.5]  # no hole in a car's middle
    assert (obstacles.num_points > 0).any()
    for path in root.glob("gts/scene-0001/*/labels.npz"):  # the same seed gives the same bytes: no time of writing
        assert {entry.date_time for entry in ZipFile(path).infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.fixture(scope="module")
def obstacle_free() -> World:
    drive = Drive(0, 0, RECORDED[0], 2, 0, RIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenario, "MAX_CANDIDATES", 1)
        weather = drive.course.phases[0].surroundings.draw(drive.rng(0))
        return build_world(drive.course.place, weather, 1.0, drive.rng(1))


@pytest.mark.parametrize("seed", range(3))
def test_obstacles_lie_free_on_the_vehicles_paved_way(obstacle_free: World, seed: int) -> None:
    world, keyframes, before = obstacle_free, np.array([0.0, 0.5]), len(obstacle_free.agents)
    found = with_obstacles(world, keyframes, np.random.default_rng(seed))
    assert found.agents[:before] == world.agents
    np.testing.assert_array_equal(found.xy[:, :before], world.xy)
    new = found.agents[before:]
    assert len(new) >= 2
    outlines = [outline(each.xy[0], each.yaw[0], each.size[1], each.size[0]) for each in new]
    others = []
    for time in keyframes:
        pose = found.global_from_ego_at(float(time))
        others.append(outline(pose[:2, 3] + pose[:2, :2] @ [1.25, 0], np.arctan2(pose[1, 0], pose[0, 0]), 4.1, 1.9))
    for n, agent in enumerate(world.agents):
        for step in range(0, len(world.times), 5):
            if np.linalg.norm(world.xy[step, n] - world.ego_xy[0]) < 60:
                others.append(outline(world.xy[step, n], world.yaw[step, n], agent.size[1], agent.size[0]))
    for one, other in (*itertools.combinations(outlines, 2), *itertools.product(outlines, others)):
        assert one.distance(other) >= CLEARANCE - 1e-9
    poses = [found.global_from_ego_at(float(time)) for time in keyframes]
    places = [pose[:2, :2].T @ (each.xy[0] - pose[:2, 3]) for pose in poses for each in new]
    assert any(0 < x < 30 and abs(y) < 8 for x, y in places)
    for each, own in zip(new, outlines, strict=True):
        assert each.category in {kind.category for kind in KINDS.values()}
        assert (found.city.ground.at(np.array(own.exterior.coords)) != Ground.GRASS).all()
        halves, parts = each.size[[1, 0, 2]] / 2, each.parts  # the parts are in the annotated box
        assert (np.abs(parts[:, :2]) + parts[:, 3:5] / 2 <= halves[:2] + 1e-9).all()
        assert (parts[:, 2] + parts[:, 5] / 2 <= each.size[2] + 1e-9).all()
    grass = replace(world.city.ground, kinds=np.full_like(world.city.ground.kinds, Ground.GRASS))
    meadow = replace(world, city=replace(world.city, ground=grass))
    assert with_obstacles(meadow, keyframes[:1], np.random.default_rng(seed)).agents == world.agents


def test_a_truck_meets_obstacles_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another layout, whose categories are other ones; it has no classes of points, which voxels need."""
    monkeypatch.setattr(scenario, "MAX_CANDIDATES", 1)
    rig, taxonomy = load_rig("truck"), load_taxonomy("truckscenes")
    rig = rig.model_copy(update={"cameras": (), "lidars": rig.lidars[:1]})
    simulate(tmp_path, 1, 1, 0, parse(["clear-day-boston"], taxonomy, WORLDS, Extras(obstacles=True)), rig=rig)
    tables = NuScenesTables(tmp_path, VERSION, rig, taxonomy)
    (sample,) = tables.samples()
    assert len(tables.recording(sample).annotated("obstacles")) > 0
    assert not tables.recording(sample).exists("points")
    assert not (tmp_path / "lidarseg").exists()
    with pytest.raises(InputError, match="has no point_classes"):
        parse(["clear-day-boston"], taxonomy, WORLDS, Extras(occupancy=True))


def pose_of(x: float, y: float, yaw: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, :2], pose[:2, 3] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]], (x, y)
    return pose


_length = st.floats(0.05, 3)


@example((0.2, 0.2, 0.2, 0.4, 0.4, 0.4, 0.0), (0.0, 0.0, 0.0))
@given(
    st.tuples(st.floats(-5, 5), st.floats(-4, 4), st.floats(-0.5, 2), _length, _length, _length, st.floats(-4, 4)),
    st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(-4, 4)),
)
def test_a_solid_is_in_the_voxels_that_it_reaches_into(row: tuple, ego: tuple) -> None:
    """All that it fills much of, and none that it does not touch."""
    pose = pose_of(*ego)
    car = voxel_classes(boxes([row], category="vehicle.car"), pave(), pose, NUSCENES, GRID) == CLASS["car"]
    x, y, z, length, width, height, yaw = row
    inverse = np.linalg.inv(pose)
    corners = np.array(outline(np.array([x, y]), yaw, length, width).exterior.coords)
    own = Polygon(corners @ inverse[:2, :2].T + inverse[:2, 3])
    levels, rows, columns = GRID.shape
    left, low = GRID.x[0] + 0.4 * np.arange(columns), GRID.y[0] + 0.4 * np.arange(rows)[:, None]
    cells = shapely.box(left, low, left + 0.4, low + 0.4)
    bottom = GRID.z[0] + 0.4 * np.arange(levels)
    deep = (np.minimum(z + height / 2, bottom + 0.4) - np.maximum(z - height / 2, bottom))[:, None, None]
    touched = (shapely.distance(cells, own) < 1e-9) & (deep > -1e-9)
    # Within a voxel it has the area of a square of the spacing of its places, and more than the depth that it needs.
    held = (shapely.area(shapely.intersection(cells, own)) > 0.06) & (deep > 0.01)
    assert (car <= touched).all()
    assert (held <= car).all()


def test_what_fills_most_of_a_voxel_counts_and_the_ground_least() -> None:
    rows = (0.2, 0.2, 0.1, 0.4, 0.4, 0.2, 0.0), (0.25, 0.2, 0.15, 0.1, 0.1, 0.1, 0.0)
    debris, car = boxes(rows[:1], category="movable_object.debris"), boxes(rows[1:], category="vehicle.car")
    for both in (Solids.concatenate(debris, car), Solids.concatenate(car, debris)):
        found = voxel_classes(both, pave(Ground.WALKWAY), np.eye(4), NUSCENES, GRID)
        at = tuple(GRID.indices(np.array([[0.2, 0.2, 0.1]]))[0])
        assert found.ravel()[at] == CLASS["others"]
        assert (found[2] == CLASS["sidewalk"]).sum() == found[2].size - 1
        assert (np.delete(found, 2, axis=0) == FREE).all()
    spray = voxel_classes(boxes(rows[:1], category="noise"), pave(Ground.GRASS), np.eye(4), NUSCENES, GRID)
    assert (spray[2] == CLASS["terrain"]).all()


def walked(origin: np.ndarray, end: np.ndarray, filled: np.ndarray | None) -> list[int]:
    """The voxels on a ray, up to the first filled one."""
    path = [int(voxel) for _, (voxel,) in traverse(origin[None], end[None], GRID)]
    stop = next((i for i, voxel in enumerate(path) if filled is not None and filled.ravel()[voxel]), len(path))
    return path[: stop + 1]


@pytest.mark.parametrize("seed", range(3))
def test_sensors_see_what_their_rays_meet(seed: int) -> None:
    rng, pose = np.random.default_rng(seed), pose_of(30.0, -20.0, 0.7)
    inverse, filled = np.linalg.inv(pose), rng.random(GRID.shape) < 0.05
    filled[2] = True  # the ground
    cameras = [
        Seen(rng.uniform([28, -22, 0.5], [32, -18, 1.9]), rng.uniform([20, -30, 0], [40, -10, 4], (40, 3)))
        for _ in range(2)
    ]
    met, seen = np.zeros(GRID.shape, bool), np.zeros(GRID.shape, bool)
    for place, ends in cameras:
        own = np.zeros(GRID.shape, bool)
        start, stops = place @ inverse[:3, :3].T + inverse[:3, 3], ends @ inverse[:3, :3].T + inverse[:3, 3]
        for stop in stops:
            met.ravel()[walked(start, stop, None)] = True
            own.ravel()[walked(start, stop, filled)] = True
        centers, faces = GRID.centers().astype(np.float64), own.copy()
        for voxel in np.argwhere(filled):
            low, high = centers[tuple(voxel)] - 0.2, centers[tuple(voxel)] + 0.2
            for axis in range(3):  # x is the last of the arrays
                before = voxel.copy()
                before[2 - axis] += int(start[axis] > high[axis]) - int(start[axis] < low[axis])
                shown = (before >= 0).all() and (before < GRID.shape).all() and not filled[tuple(before)]
                faces[tuple(voxel)] |= shown and own[tuple(before)]
        seen |= faces
    np.testing.assert_array_equal(find_crossed(cameras, pose, GRID), met)
    np.testing.assert_array_equal(find_pictured(cameras, pose, GRID, filled), seen)
    assert seen.sum() < met.sum()
