"""MAN TruckScenes: its vocabulary, its tables and its scores are its devkit's, on what is simulated for a truck."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pypcd4
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import one_line_error
from rich.console import Console
from truckscenes.eval.common.constants import TAG_NAMES
from truckscenes.eval.detection.config import config_factory
from truckscenes.eval.detection.constants import ATTRIBUTE_NAMES
from truckscenes.eval.detection.evaluate import DetectionEval
from truckscenes.eval.detection.utils import category_to_detection_name, detection_name_to_rel_attributes
from truckscenes.utils.data_classes import LidarPointCloud
from truckscenes.utils.geometry_utils import points_in_box
from truckscenes.utils.splits import create_splits_scenes

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.descriptions import phases_of
from perception.datasets.nuscenes.splits import official_splits
from perception.datasets.pcd import read_pcd
from perception.evaluation.evaluate import Breakdown, evaluate
from perception.frame import Conditions, Frame, Prediction
from perception.grid import BevGrid
from perception.rig import load_rig
from perception.sensors.inputs import InputSpec
from perception.simulate.layouts import tagged_description, tags
from perception.tasks.detection.devkit import DEVKITS, open_devkit
from perception.tasks.detection.official import compare, require_official
from perception.taxonomy import load_taxonomy

TRUCKSCENES, RIG, DEVKIT = load_taxonomy("truckscenes"), load_rig("truck"), DEVKITS["truckscenes"]
VERSION, MINI = "v1.0-sim", "v1.0-mini"
SPEC = InputSpec(BevGrid(), lidar=None, camera=None, rig=RIG)
CONFIG = config_factory("detection_cvpr_2024")


def test_the_vocabulary_is_the_devkits() -> None:
    ours = TRUCKSCENES.labels_of_categories()
    assert {name: TRUCKSCENES.class_names[label] for name, label in ours.items()} == {
        name: category_to_detection_name(name) for name in ours
    }
    assert {each.name: each.range for each in TRUCKSCENES.classes} == CONFIG.class_range
    assert {*TRUCKSCENES.attributes} == {*ATTRIBUTE_NAMES}
    for label, name in enumerate(TRUCKSCENES.class_names):
        possible = zip(TRUCKSCENES.attributes, TRUCKSCENES.possible_attributes(label), strict=True)
        assert {attribute for attribute, there in possible if there} == {*detection_name_to_rel_attributes(name)}
    assert [f"{kind}.{value}" for kind, values in TRUCKSCENES.conditions.items() for value in values] == TAG_NAMES
    theirs = create_splits_scenes()
    assert official_splits(theirs["val"]) == {name: theirs[name] for name in official_splits(theirs["val"])}


@pytest.fixture(scope="module")
def tables(truck_root: Path) -> NuScenesTables:
    return NuScenesTables(truck_root, VERSION, RIG, TRUCKSCENES)


@pytest.fixture(scope="module")
def devkit(truck_root: Path) -> Any:
    return open_devkit(truck_root, VERSION, DEVKIT)


def test_the_devkit_loads_what_is_simulated(tables: NuScenesTables, devkit: Any) -> None:
    """Sensors, points and their times, poses, boxes with their points inside, motion."""
    assert {row["name"] for row in devkit.category} >= {*TRUCKSCENES.labels_of_categories()}
    counted = 0
    for row, token in zip(devkit.sample, tables.samples(), strict=True):
        frame = tables.frame(token, sweeps=2, grid_reference="lidar")
        assert {*row["data"]} == {*RIG.sensors.names} == {*frame.cameras, *RIG.sensors.lidars}
        for i, name in enumerate(RIG.sensors.lidars):
            cloud, lags = LidarPointCloud.from_file_multisweep(devkit, row, name, "LIDAR_LEFT", 3, min_distance=0.0)
            outside = np.concatenate([off_the_truck(devkit, i, sweep) for sweep in chain(devkit, row["data"][name])])
            own = frame.of_lidar(i).points
            np.testing.assert_allclose(own[:, :3], cloud.points[:3, outside].T, atol=1e-3)
            np.testing.assert_array_equal(own[:, 3], cloud.points[3, outside])
            np.testing.assert_allclose(own[:, 4], lags[0, outside], atol=1e-5)
        boxes = tables.boxes(token)
        kept = [
            a for a in row["anns"] if category_to_detection_name(devkit.get("sample_annotation", a)["category_name"])
        ]
        for i, annotation in enumerate(kept):
            box, stored = devkit.get_box(annotation), devkit.get("sample_annotation", annotation)
            np.testing.assert_array_equal(boxes.centers[i], box.center)
            np.testing.assert_array_equal(boxes.velocities[i], devkit.box_velocity(annotation))
            assert TRUCKSCENES.class_names[boxes.labels[i]] == category_to_detection_name(box.name)
            assert boxes.num_points[i] == stored["num_lidar_pts"]
            counted += stored["num_lidar_pts"]
        inside = 0
        for name in RIG.sensors.lidars:
            path, seen, _ = devkit.get_sample_data(row["data"][name])
            points = LidarPointCloud.from_file(path).points[:3]
            inside += sum(int(points_in_box(box, points).sum()) for box in seen) if name == "LIDAR_LEFT" else 0
        assert 0 < inside <= boxes.num_points.sum()
    assert counted > 1000
    poses = [row for row in devkit.sample_data if row["channel"] == "LIDAR_LEFT"]
    for before, after in pairwise(poses):
        start, end = (np.array(devkit.get("ego_pose", row["token"])["translation"]) for row in (before, after))
        seconds = 1e-6 * (after["timestamp"] - before["timestamp"])
        moving = devkit.get("ego_motion_chassis", after["token"])
        if seconds < 0.1:
            assert np.hypot(moving["vx"], moving["vy"]) == pytest.approx(np.linalg.norm(end - start) / seconds, abs=0.5)


def chain(devkit: Any, token: str) -> list[dict[str, Any]]:
    """A keyframe's sweep and the two before it."""
    rows = [devkit.get("sample_data", token)]
    while len(rows) < 3 and rows[-1]["prev"]:
        rows.append(devkit.get("sample_data", rows[-1]["prev"]))
    return rows


def off_the_truck(devkit: Any, lidar: int, sweep: dict[str, Any]) -> np.ndarray:
    """(N,) bool: points of a sweep that are not on the truck itself."""
    points = LidarPointCloud.from_file(str(Path(devkit.dataroot) / sweep["filename"])).points[:3].T.astype(np.float32)
    mount = RIG.lidars[lidar].ego_from_sensor.astype(np.float32)
    return ~RIG.own.contains(points @ mount[:3, :3].T + mount[:3, 3])


def test_descriptions_are_tags_also_where_a_drive_changes(tables: NuScenesTables, devkit: Any) -> None:
    (scene,) = devkit.scene
    assert {*scene["description"].split(";")} <= {*TAG_NAMES}
    expected = Conditions(
        weather="clear", area="city", daytime="noon", season="summer", lighting="illuminated", structure="regular",
        construction="unchanged",
    )  # fmt: skip
    assert [tables.conditions(token) for token in tables.samples()] == [expected] * 3
    wet = Conditions(weather="rain", light="night", city="boston")
    text = tagged_description([(0.0, Conditions(weather="clear", light="day")), (1.25, wet)], TRUCKSCENES)
    assert {"weather.clear", "daytime.noon"} < {*text.split(";")}
    assert "weather.rain" not in text.split(";")  # for the devkit the drive is as it starts
    assert phases_of(text, "", TRUCKSCENES) == [
        (0.0, expected),
        (1.25, Conditions(**{**expected, "weather": "rain", "daytime": "night", "lighting": "dark"})),
    ]
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
    content["instance"].append(
        {"token": "rack", "category_token": "rack", "nbr_annotations": 1, "first_annotation_token": "rack",
         "last_annotation_token": "rack"}
    )  # fmt: skip
    content["sample_annotation"].append(
        {**parked, "token": "rack", "instance_token": "rack", "size": [9.0, 9.0, 9.0], "prev": "", "next": ""}
    )
    for name, table in content.items():
        (root / MINI / f"{name}.json").write_text(json.dumps(table))
    return NuScenesTables(root, MINI, RIG, TRUCKSCENES)


def perturbed(tables: NuScenesTables) -> Callable[[Frame], Prediction]:
    """Most of the annotations, moved, resized, turned, sped up and renamed by chance, and false ones of all classes."""
    rng = np.random.default_rng(0)

    def predict(frame: Frame) -> Prediction:
        boxes = tables.boxes(frame.token)
        assert boxes is not None
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

    return predict


def test_scores_are_the_devkits(mini: NuScenesTables, tmp_path: Path) -> None:
    """Its evaluation as it is, on its own split; and those of a tag are our slice."""
    require_official(mini)
    console = Console(quiet=True)
    slices = Breakdown(by=("weather",))
    metrics = evaluate(perturbed(mini), mini, "mini_val", [], tmp_path, SPEC, console, slices)
    assert all(metrics["ground_truth"].values()), metrics["ground_truth"]
    path = str(tmp_path / "results_nusc.json")
    official = open_devkit(mini.dataroot, MINI, DEVKIT)
    judge = DetectionEval(official, CONFIG, path, "mini_val", str(tmp_path / "devkit"), verbose=False)
    scored = judge.evaluate(evaluate_tags=True)[0]
    assert_equal(metrics, scored["all"].serialize())
    part, theirs = metrics["slices"]["weather"]["clear"], scored["weather.clear"].serialize()
    assert part["mAP"] == pytest.approx(theirs["mean_ap"], abs=1e-9)
    assert part["NDS"] == pytest.approx(theirs["nd_score"], abs=1e-9)
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


def assert_equal(ours: Any, theirs: dict[str, Any]) -> None:
    names = {"mean_ap": "mAP", "nd_score": "NDS"}
    for key in ("mean_ap", "nd_score", "label_aps", "mean_dist_aps", "label_tp_errors", "tp_errors", "tp_scores"):
        pairs = _pairs(ours[names.get(key, key)], theirs[key])
        assert pairs
        for mine, their in pairs:
            np.testing.assert_allclose(np.nan if mine is None else mine, their, rtol=0, atol=1e-9)


def _pairs(ours: Any, theirs: Any) -> list[tuple[Any, float]]:
    if not isinstance(theirs, dict):
        return [(ours, theirs)]
    return [pair for key in theirs for pair in _pairs(ours[str(key)], theirs[key])]


FIELDS = (("x", "F", 4), ("y", "F", 4), ("z", "F", 4), ("intensity", "F", 4), ("timestamp", "U", 8), ("ring", "U", 2))


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1), count=st.integers(0, 300), order=st.permutations(range(len(FIELDS))),
    encoding=st.sampled_from(["binary", "binary_compressed"]),
)  # fmt: skip
def test_point_clouds_are_read_as_the_devkit_reads_them(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, encoding: str, order: list[int]
) -> None:
    """Runs of equal values compress to copies of themselves."""
    rng, path = np.random.default_rng(seed), tmp_path_factory.mktemp("clouds") / "a.pcd"
    columns = [
        rng.integers(0, 4, count).repeat(rng.integers(1, 5))[:count].astype(f"<{k.lower()}{n}") for _, k, n in FIELDS
    ]
    columns[0] = np.where(rng.random(count) < 0.1, np.nan, rng.normal(0, 9, count)).astype("<f4")
    names, types = [FIELDS[i][0] for i in order], [columns[i].dtype for i in order]
    cloud = pypcd4.PointCloud.from_points([columns[i] for i in order], names, types)
    cloud.save(path, encoding=pypcd4.Encoding(encoding))
    points, times = read_pcd(path)
    there = ~np.isnan(columns[0])
    np.testing.assert_array_equal(points, np.stack([columns[i] for i in (0, 1, 2, 3, 5)], axis=1)[there])
    np.testing.assert_array_equal(times, columns[4][there])


WRONG = {
    "no header": (b"VERSION 0.7\nFIELDS x y z\n", "it has no header that ends with DATA"),
    "no intensity": (b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 0\nDATA binary\n", "intensity"),
    "cut short": (b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS 9\nDATA binary\nabc", r"3 bytes for 9 points of 4 \(truncated"),
    "a strange type": (b"FIELDS x\nSIZE 4\nTYPE Q\nPOINTS 0\nDATA binary\n", "'Q'"),
    "text": (b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS 1\nDATA ascii\n1\n", "it is in ascii"),
    "damaged": (
        b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS 1\nDATA binary_compressed\n\x03\0\0\0\x04\0\0\0\xff\xff\xff", "are damaged"
    ),
    "cut in its lengths": (b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS 1\nDATA binary_compressed\nab", "buffer"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_damaged_point_cloud_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    content, says = WRONG[case]
    (tmp_path / "a.pcd").write_bytes(content)
    with one_line_error(says, at=tmp_path / "a.pcd"):
        read_pcd(tmp_path / "a.pcd")
