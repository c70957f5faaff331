"""T4 and MAN TruckScenes, near to nuScenes' layout: vocabulary, tables, clouds and scores are their devkits'."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pypcd4
import pytest
from commands import one_line_error
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from t4_devkit import Tier4
from truckscenes.eval.common.constants import TAG_NAMES
from truckscenes.eval.detection.config import config_factory
from truckscenes.eval.detection.constants import ATTRIBUTE_NAMES
from truckscenes.eval.detection.evaluate import DetectionEval
from truckscenes.eval.detection.utils import category_to_detection_name, detection_name_to_rel_attributes
from truckscenes.utils.data_classes import LidarPointCloud
from truckscenes.utils.geometry_utils import points_in_box
from truckscenes.utils.splits import create_splits_scenes

from perception.datasets.files import read_cloud, read_image, read_pcd
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables, official_splits
from perception.datasets.nuscenes.descriptions import phases_of
from perception.datasets.sources import JoinedTables, open_source
from perception.evaluation.evaluate import Breakdown, evaluate
from perception.frame import Conditions, Frame, Prediction
from perception.grid import BevGrid
from perception.rig import load_rig
from perception.sensors.inputs import InputSpec
from perception.simulate.nuscenes_writer import describe_by_tags, tags
from perception.tasks.detection.devkit import DEVKITS, compare, open_devkit, require_official
from perception.taxonomy import load_taxonomy

T4, T4_RIG = load_taxonomy("t4"), load_rig("t4")
NAMES = {"vehicle.car": "car", "vehicle.truck": "vehicle.truck", "human.pedestrian.adult": "pedestrian"}
ATTRIBUTES = {"vehicle.moving": "vehicle_state.driving", "vehicle.parked": "vehicle_state.parked"}
DISTORTION = [-0.3, 0.1, 0.001, -0.002, 0.01]  # of one camera
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def t4_root(sim_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated drives, each in a folder of its own."""
    root = tmp_path_factory.mktemp("t4")
    tables = {path.stem: json.loads(path.read_text()) for path in (sim_root / "v1.0-sim").glob("*.json")}
    for number, scene in enumerate(tables["scene"]):
        folder = root / f"drive{number}" / "0"
        (folder / "annotation").mkdir(parents=True)
        kept = {scene["token"]} | {row["token"] for row in tables["sample"] if row["scene_token"] == scene["token"]}
        kept |= {row["instance_token"] for row in tables["sample_annotation"] if row["sample_token"] in kept}
        keys = {"sample_data": "sample_token", "sample_annotation": "sample_token"}
        keys |= dict.fromkeys(("scene", "sample", "instance"), "token")
        content = {
            name: [dict(row) for row in rows if name not in keys or row[keys[name]] in kept]
            for name, rows in tables.items()
            if name not in {"splits", "lidarseg"}
        }
        channels = as_t4(content)
        for i, row in enumerate(content["sample_data"]):
            channel = channels[row["calibrated_sensor_token"]]
            row["fileformat"] = "jpg" if channel.startswith("CAM") else "pcd.bin"
            file = f"data/{channel}/{i}.{row['fileformat']}"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).symlink_to(sim_root / row["filename"])
            row["filename"] = file
        blind = [row for row in content["sample_data"] if channels[row["calibrated_sensor_token"]] == "CAM_BACK"]
        blind[0]["is_valid"] = False
        for name, rows in content.items():
            (folder / "annotation" / f"{name}.json").write_text(json.dumps(rows))
    (root / "splits.json").write_text(json.dumps({"train": ["drive0"], "val": ["scene-0002"]}))
    return root


def as_t4(content: dict[str, Rows]) -> dict[str, str]:
    """Write the rows in T4's words; returns the channel of each calibration."""
    for row in content["log"]:
        row["data_captured"] = row.pop("date_captured")
    for row in content["sensor"]:
        row["channel"] = {"LIDAR_TOP": "LIDAR_CONCAT"}.get(row["channel"], row["channel"])
    channel = {row["token"]: row["channel"] for row in content["sensor"]}
    for row in content["calibrated_sensor"]:
        distorted = channel[row["sensor_token"]] == "CAM_FRONT"
        row["camera_distortion"] = (DISTORTION if distorted else [0.0] * 5) if row["camera_intrinsic"] else []
    for row in content["category"]:
        row["name"] = NAMES.get(row["name"], row["name"])
        del row["index"]
    for row in content["attribute"]:
        row["name"] = ATTRIBUTES.get(row["name"], row["name"])
    content["attribute"].append({"token": "seen", "name": "occlusion_state.none", "description": ""})
    for row in content["sample_annotation"]:
        row["attribute_tokens"] = ["seen", *row["attribute_tokens"]]
    for row in content["instance"]:
        row["instance_name"] = "a"
    return {row["token"]: channel[row["sensor_token"]] for row in content["calibrated_sensor"]}


def test_frames_and_boxes_are_the_devkits(t4_root: Path) -> None:
    folder = t4_root / "drive0" / "0"
    tables, devkit = open_source(folder, None, T4_RIG, T4), Tier4("annotation", str(folder), verbose=False)
    assert isinstance(tables, NuScenesTables)
    labels, found = T4.labels_of_categories(), 0
    for row, token in zip(devkit.sample, tables.samples(), strict=True):
        boxes = tables.recording(token).annotated("boxes")
        annotations = [devkit.get("sample_annotation", each) for each in row.ann_3ds]
        kept = [each for each in annotations if each.category_name in labels]
        theirs = [devkit.get_box3d(each.token) for each in kept]
        np.testing.assert_array_equal(boxes.centers, [box.center for box in theirs])
        np.testing.assert_array_equal(boxes.sizes, [box.wlh for box in theirs])
        assert boxes.labels.tolist() == [labels[each.category_name] for each in kept]
        names = [[devkit.get("attribute", name).name for name in each.attribute_tokens] for each in kept]
        known = [[T4.attributes.index(name) for name in each if name in T4.attributes] or [-1] for each in names]
        assert boxes.attributes.tolist() == [each[0] for each in known]
        found += (boxes.attributes >= 0).sum()
        frame = tables.frame(token)
        data = {name: devkit.get("sample_data", each) for name, each in row.data.items()}
        assert {*frame.cameras} == {name for name, each in data.items() if each.is_valid} - {"LIDAR_CONCAT"}
        raw = np.fromfile(devkit.get_sample_data_path(row.data["LIDAR_CONCAT"]), np.float32).reshape(-1, 5)
        assert 0 < len(frame.points) <= len(raw)
        for name, camera in frame.cameras.items():
            picture = read_image(Path(devkit.get_sample_data_path(row.data[name]))).image
            intrinsics = devkit.get("calibrated_sensor", data[name].calibrated_sensor_token).camera_intrinsic
            np.testing.assert_array_equal(camera.intrinsics, intrinsics)
            rectified = cv2.undistort(picture, intrinsics, np.array(DISTORTION))
            np.testing.assert_array_equal(camera.image, rectified if name == "CAM_FRONT" else picture)
    assert found > 10


def test_many_drives_are_one_data_set(t4_root: Path, tables: NuScenesTables, tmp_path: Path) -> None:
    """With splits that list scenes or folders; some cannot be joined."""
    joined = open_source(t4_root, None, T4_RIG, T4)
    assert (type(joined), joined.version) == (JoinedTables, "annotation")
    assert (joined.scenes(), joined.samples()) == (tables.scenes(), tables.samples())
    assert [joined.scenes(split) for split in ("train", "val")] == [["scene-0001"], ["scene-0002"]]
    assert joined.samples(selectors=["scene-0002:0-2"]) == tables.samples(selectors=["scene-0002:0-2"])
    for token in joined.samples():
        ours, theirs = joined.frame(token, Reads(cameras=False)), tables.frame(token, Reads(cameras=False))
        np.testing.assert_array_equal(ours.points, theirs.points)
        assert (ours.scene, ours.timestamp) == (theirs.scene, theirs.timestamp)
        assert joined.recording(token).annotated("map") is None
        assert len(ours.boxes) == len(joined.recording(token).annotated("boxes"))
    assert not any(joined.recording(token).annotated("bicycle_racks") for token in joined.samples())
    with one_line_error(at=t4_root, says="has no split test; known are train, val, all"):
        joined.scenes("test")
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(t4_root / "drive0")
    with one_line_error(at=tmp_path, says="both have a scene scene-0001; remove one"):
        open_source(tmp_path, None, T4_RIG, T4)
    with one_line_error(says="these drives are of another vehicle than the rig nuscenes: they have no LIDAR_TOP"):
        open_source(t4_root, None, None, T4)


# MAN TruckScenes.

TRUCKSCENES, RIG, DEVKIT = load_taxonomy("truckscenes"), load_rig("truck"), DEVKITS["truckscenes"]
VERSION, MINI = "v1.0-sim", "v1.0-mini"
CONFIG = config_factory("detection_cvpr_2024")


def test_the_vocabulary_is_the_devkits() -> None:
    ours = TRUCKSCENES.labels_of_categories()
    assert [TRUCKSCENES.class_names[i] for i in ours.values()] == [category_to_detection_name(n) for n in ours]
    assert {each.name: each.range for each in TRUCKSCENES.classes} == CONFIG.class_range
    assert {*TRUCKSCENES.attributes} == {*ATTRIBUTE_NAMES}
    for label, name in enumerate(TRUCKSCENES.class_names):
        possible = zip(TRUCKSCENES.attributes, TRUCKSCENES.possible_attributes(label), strict=True)
        assert {attribute for attribute, there in possible if there} == {*detection_name_to_rel_attributes(name)}
    assert [f"{kind}.{value}" for kind, values in TRUCKSCENES.conditions.items() for value in values] == TAG_NAMES
    theirs = create_splits_scenes()
    assert official_splits(theirs["val"]) == {name: theirs[name] for name in official_splits(theirs["val"])}


@pytest.fixture(scope="module")
def trucks(truck_root: Path) -> NuScenesTables:
    return NuScenesTables(truck_root, VERSION, RIG, TRUCKSCENES)


@pytest.fixture(scope="module")
def devkit(truck_root: Path) -> Any:
    return open_devkit(truck_root, VERSION, DEVKIT)


def test_the_devkit_loads_what_is_simulated(trucks: NuScenesTables, devkit: Any) -> None:
    """Sensors, points and their times, poses, boxes with their points inside, motion."""
    assert {row["name"] for row in devkit.category} >= {*TRUCKSCENES.labels_of_categories()}
    counted = 0
    for row, token in zip(devkit.sample, trucks.samples(), strict=True):
        frame = trucks.frame(token, Reads(sweeps=2, reference="lidar"))
        assert {*row["data"]} == {*RIG.sensors.names} == {*frame.cameras, *RIG.sensors.lidars}
        for i, name in enumerate(RIG.sensors.lidars):
            cloud, lags = LidarPointCloud.from_file_multisweep(devkit, row, name, "LIDAR_LEFT", 3, min_distance=0.0)
            outside = off_the_truck(devkit, i, row["data"][name])
            own = frame.of_lidar(i).points
            np.testing.assert_allclose(own[:, :3], cloud.points[:3, outside].T, atol=1e-3)
            np.testing.assert_array_equal(own[:, 3], cloud.points[3, outside])
            np.testing.assert_allclose(own[:, 4], lags[0, outside], atol=1e-5)
        boxes = trucks.recording(token).annotated("boxes")
        kept = [a for a in row["anns"] if category_to_detection_name(devkit.get_box(a).name)]
        theirs = [devkit.get_box(a) for a in kept]
        np.testing.assert_array_equal(boxes.centers, [box.center for box in theirs])
        np.testing.assert_array_equal(boxes.velocities, [devkit.box_velocity(a) for a in kept])
        names = [TRUCKSCENES.class_names[label] for label in boxes.labels]
        assert names == [category_to_detection_name(box.name) for box in theirs]
        assert boxes.num_points.tolist() == [devkit.get("sample_annotation", a)["num_lidar_pts"] for a in kept]
        counted += boxes.num_points.sum()
        path, seen, _ = devkit.get_sample_data(row["data"]["LIDAR_LEFT"])
        points = LidarPointCloud.from_file(path).points[:3]
        assert 0 < sum(points_in_box(box, points).sum() for box in seen) <= boxes.num_points.sum()
    assert counted > 1000
    poses = [row for row in devkit.sample_data if row["channel"] == "LIDAR_LEFT"]
    for before, after in pairwise(poses):
        start, end = (np.array(devkit.get("ego_pose", row["token"])["translation"]) for row in (before, after))
        seconds = 1e-6 * (after["timestamp"] - before["timestamp"])
        moving = devkit.get("ego_motion_chassis", after["token"])
        if seconds < 0.1:
            assert np.hypot(moving["vx"], moving["vy"]) == pytest.approx(np.linalg.norm(end - start) / seconds, abs=0.5)


def off_the_truck(devkit: Any, lidar: int, token: str) -> np.ndarray:
    """(N,) bool: points of a keyframe's sweep and the two before it that are not on the truck itself."""
    mount, found = RIG.lidars[lidar].ego_from_sensor.astype(np.float32), []
    while token and len(found) < 3:
        row = devkit.get("sample_data", token)
        points = LidarPointCloud.from_file(str(Path(devkit.dataroot) / row["filename"])).points[:3].T.astype(np.float32)
        found.append(~RIG.own.contains(points @ mount[:3, :3].T + mount[:3, 3]))
        token = row["prev"]
    return np.concatenate(found)


def test_descriptions_are_tags_also_where_a_drive_changes(trucks: NuScenesTables, devkit: Any) -> None:
    assert {*devkit.scene[0]["description"].split(";")} <= {*TAG_NAMES}
    known = ("clear", "city", "noon", "summer", "illuminated", "regular", "unchanged")
    kinds = ("weather", "area", "daytime", "season", "lighting", "structure", "construction")
    expected = Conditions(**dict(zip(kinds, known, strict=True)))
    assert [trucks.conditions(token) for token in trucks.samples()] == [expected] * 3
    wet = Conditions(weather="rain", light="night", city="boston")
    text = describe_by_tags([(0.0, Conditions(weather="clear", light="day")), (1.25, wet)], TRUCKSCENES)
    assert {"weather.clear", "daytime.noon"} < {*text.split(";")}
    assert "weather.rain" not in text.split(";")  # for the devkit the drive is as it starts
    later = Conditions(**{**expected, "weather": "rain", "daytime": "night", "lighting": "dark"})
    assert phases_of(text, "", TRUCKSCENES) == [(0.0, expected), (1.25, later)]
    assert tags({"weather": "sleet"}, TRUCKSCENES)[0].startswith("area.")  # which it has no tag for
    assert phases_of("weather.sleet;area.highway", "", TRUCKSCENES)[0][1] == Conditions(area="highway")


@pytest.fixture(scope="module")
def mini(truck_root: Path, tmp_path_factory: pytest.TempPathFactory) -> NuScenesTables:
    """The same as the devkit's own split, with objects of all classes and something on wheels in a bicycle rack."""
    root = tmp_path_factory.mktemp("mini")
    (root / MINI).mkdir()
    content = {path.stem: json.loads(path.read_text()) for path in (truck_root / VERSION).glob("*.json")}
    del content["splits"]
    content["scene"][0]["name"] = create_splits_scenes()["mini_val"][0]
    category = {row["name"]: row["token"] for row in content["category"]}
    attribute = {row["name"]: row["token"] for row in content["attribute"]}
    content["category"].append({"token": "rack", "name": "static_object.bicycle_rack", "description": ""})
    seen = {row["instance_token"] for row in content["sample_annotation"] if row["num_lidar_pts"] > 3}
    cars = [row for row in content["instance"] if row["category_token"] == category["vehicle.car"]]
    bare = ("animal", "movable_object.barrier", "movable_object.trafficcone")
    others = (*bare, "static_object.traffic_sign", "vehicle.ego_trailer", "vehicle.other", "vehicle.bicycle")
    names = dict(zip([row["token"] for row in cars if row["token"] in seen], 3 * others, strict=False))
    rows = {name: [] for name in others}
    for row in content["instance"]:
        row["category_token"] = category[names[row["token"]]] if row["token"] in names else row["category_token"]
    for row in content["sample_annotation"]:
        name = names.get(row["instance_token"])
        if name is not None:
            rows[name].append(row)
            family = {"vehicle.bicycle": "cycle.with_rider", "static_object.traffic_sign": "traffic_sign.overhanging"}
            row["attribute_tokens"] = [attribute[family.get(name, "vehicle.moving")]] if name not in bare else []
    parked = rows["vehicle.bicycle"][0]
    first_and_last = dict.fromkeys(("first_annotation_token", "last_annotation_token"), "rack")
    content["instance"].append({"token": "rack", "category_token": "rack", "nbr_annotations": 1, **first_and_last})
    rack = {"token": "rack", "instance_token": "rack", "size": [9.0, 9.0, 9.0], "prev": "", "next": ""}
    content["sample_annotation"].append(parked | rack)
    for name, table in content.items():
        (root / MINI / f"{name}.json").write_text(json.dumps(table))
    return NuScenesTables(root, MINI, RIG, TRUCKSCENES)


def test_scores_are_the_devkits(mini: NuScenesTables, tmp_path: Path) -> None:
    """Its evaluation as it is, on its own split; and those of a tag are our slice."""
    require_official(mini)
    rng, console, slices = np.random.default_rng(0), Console(quiet=True), Breakdown(by=("weather",))

    def perturbed(frame: Frame) -> Prediction:
        """Most annotations, moved, resized, turned, sped up and renamed by chance, and false ones of all classes."""
        boxes = mini.recording(frame.token).annotated("boxes")
        found = boxes.select(rng.permutation(np.repeat(np.arange(len(boxes)), 3))[: 2 * len(boxes)])
        count = len(found)
        other = rng.random(count) < 0.1
        moved = replace(
            found,
            centers=found.centers + rng.normal(0, 0.6, (count, 3)),
            sizes=found.sizes * rng.uniform(0.8, 1.25, (count, 3)),
            velocities=found.velocities + rng.normal(0, 0.5, (count, 3)),
            labels=np.where(other, rng.integers(0, 12, count), found.labels),
            attributes=np.where(rng.random(count) < 0.3, rng.integers(-1, 11, count), found.attributes),
            scores=rng.integers(1, 40, count) / 40,
        )
        return Prediction({"detection": moved.transformed(np.linalg.inv(frame.global_from_reference))})

    spec = InputSpec(BevGrid(), {}, RIG, truth=("boxes", "bicycle_racks"))
    metrics = evaluate(perturbed, mini, "mini_val", [], tmp_path, spec, console, slices)
    assert all(metrics["ground_truth"].values()), metrics["ground_truth"]
    path = str(tmp_path / "results_nusc.json")
    official = open_devkit(mini.dataroot, MINI, DEVKIT)
    judge = DetectionEval(official, CONFIG, path, "mini_val", str(tmp_path / "devkit"), verbose=False)
    scored = judge.evaluate(evaluate_tags=True)[0]
    names = ("label_aps", "mean_dist_aps", "label_tp_errors", "tp_errors", "tp_scores")
    theirs, of_part = (scored[tag].serialize() for tag in ("all", "weather.clear"))
    assert_equal({name: metrics[name] for name in names}, {name: theirs[name] for name in names})
    for ours, their in ((metrics, theirs), (metrics["slices"]["weather"]["clear"], of_part)):
        assert_equal([ours["mAP"], ours["NDS"]], [their["mean_ap"], their["nd_score"]])
    compared = compare(tmp_path, mini, metrics, console)["official"]
    assert compared["largest_difference"] <= 1e-9
    assert compared["ground_truth"] == metrics["ground_truth"]
    assert 0.05 < compared["mAP"] < 0.95
    assert compared["version"] == DEVKIT.version


def test_without_a_devkit_there_are_no_official_scores(truck_root: Path, tmp_path: Path) -> None:
    with one_line_error(exactly="the taxonomy t4 names no `devkit` that scores it; leave out --official"):
        require_official(NuScenesTables(truck_root, VERSION, RIG, load_taxonomy("t4")))
    with one_line_error(at=tmp_path, says="truckscenes-devkit cannot load v1.0-none: Database version not found"):
        open_devkit(tmp_path, "v1.0-none", DEVKIT)


def assert_equal(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert theirs
        for key, value in theirs.items():
            assert_equal(ours[str(key)], value)
    else:
        np.testing.assert_allclose(np.nan if ours is None else ours, theirs, rtol=0, atol=1e-9)


FIELDS = (("x", "F", 4), ("y", "F", 4), ("z", "F", 4), ("intensity", "F", 4), ("timestamp", "U", 8), ("ring", "U", 2))


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1), count=st.integers(0, 300), order=st.permutations(range(len(FIELDS))),
    encoding=st.sampled_from(["binary", "binary_compressed"]),
)  # fmt: skip
def test_point_clouds_are_read_as_the_devkit_reads_them(tmp_path_factory, seed, count, encoding, order):
    """Runs of equal values compress to copies of themselves."""
    rng, path = np.random.default_rng(seed), tmp_path_factory.mktemp("clouds") / "a.pcd"
    types = [f"<{kind.lower()}{size}" for _, kind, size in FIELDS]
    columns = [rng.integers(0, 4, count).repeat(rng.integers(1, 5))[:count].astype(each) for each in types]
    columns[0] = np.where(rng.random(count) < 0.1, np.nan, rng.normal(0, 9, count)).astype("<f4")
    names, types = [FIELDS[i][0] for i in order], [columns[i].dtype for i in order]
    cloud = pypcd4.PointCloud.from_points([columns[i] for i in order], names, types)
    cloud.save(path, encoding=pypcd4.Encoding(encoding))
    points, times = read_pcd(path)
    there = ~np.isnan(columns[0])
    np.testing.assert_array_equal(points, np.stack([columns[i] for i in (0, 1, 2, 3, 5)], axis=1)[there])
    np.testing.assert_array_equal(times, columns[4][there])


STAMP, TIMED = 1_699_999_940_000_000, "x:4:F y:4:F z:4:F intensity:4:F"
UNITS = [("F", 1e6), ("F", 1e3), ("F", 1.0), ("U", 1.0), ("I", 1.0), ("I", 1e-3), ("U", 1e-3), ("F", 1e-3)]  # us


def timed(folder: Path, column: np.ndarray) -> Path:
    """A cloud of points with these times."""
    kind = f"timestamp:{column.itemsize}:{column.dtype.kind.upper()}"
    fields = [(name, "<f4") for name in ("x", "y", "z", "intensity")]
    rows = np.zeros(len(column), [*fields, ("timestamp", column.dtype)])
    rows["timestamp"] = column
    (folder / "a.pcd").write_bytes(cloud(f"{TIMED} {kind}", rows.tobytes(), len(column)))
    return folder / "a.pcd"


@pytest.mark.parametrize(("kind", "unit"), UNITS)
def test_times_of_points_are_read_in_any_unit(tmp_path: Path, kind: str, unit: float) -> None:
    """As drivers write them: float64 s of Hesai and RoboSense, float64 ns of Livox, whole us of TruckScenes."""
    times = STAMP + np.random.default_rng(0).integers(-999_999, 999_999, 200)
    path = timed(tmp_path, (times / unit).astype(f"<{kind.lower()}8"))
    np.testing.assert_allclose(read_cloud(path, STAMP)[1], times, rtol=0, atol=1)
    for far in (0, STAMP - 3_000_000, STAMP * 1000):
        with one_line_error("`timestamp` is not near the sweep's", at=path):
            read_cloud(path, far)


@pytest.mark.parametrize(
    "column", [np.full(9, 1e-6 * STAMP, "<f4"), np.full(9, np.nan), np.zeros(9, "<u4"), np.append(STAMP, 0)]
)
def test_times_that_are_not_near_the_sweep_are_told(tmp_path: Path, column: np.ndarray) -> None:
    """Such as seconds since 1970 in float32, which are steps of two minutes."""
    path = timed(tmp_path, column)
    with one_line_error("correct the file, or the sweep's time in the tables", at=path):
        read_cloud(path, STAMP)


def cloud(declared: str, content: bytes = b"", points: int = 0, form: str = "binary") -> bytes:
    names, sizes, types = zip(*(each.split(":") for each in declared.split()), strict=True)
    rows = {"FIELDS": names, "SIZE": sizes, "TYPE": types, "POINTS": [str(points)], "DATA": [form]}
    return "".join(f"{key} {' '.join(value)}\n" for key, value in rows.items()).encode() + content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"VERSION 0.7\nFIELDS x y z\n", "it has no header that ends with DATA"),
        (cloud("x:4:F y:4:F z:4:F"), "intensity"),
        (cloud("x:4:F", b"abc", points=9), r"3 bytes for 9 points of 4 \(truncated"),
        (cloud("x:4:F", b"1\n", 1, "ascii"), "it is in ascii"),
        *((cloud(f"x:{size}:{kind}", b"abcd", 1), "not a point cloud") for size in (0, -4, 3, 99) for kind in "FIU"),
        (cloud("x:0:F", np.zeros(3, "<u4").tobytes(), 1, "binary_compressed"), "not a point cloud"),
        (cloud("x:4:F", b"\x03\0\0\0\x04\0\0\0\xff\xff\xff", 1, "binary_compressed"), "are damaged"),
        (cloud("x:4:F", b"\x02\0\0\0\xff\xff\xff\xff\x00a", 1, "binary_compressed"), "are damaged"),  # 4 GB, it says
    ],
)
def test_a_damaged_point_cloud_is_told_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.pcd").write_bytes(content)
    with one_line_error(says, at=tmp_path / "a.pcd"):
        read_pcd(tmp_path / "a.pcd")
