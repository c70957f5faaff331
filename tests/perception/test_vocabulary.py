"""What the product is told as data: taxonomies, rigs, configurations; and rotations, by which all of it is placed."""

import math
import re
from pathlib import Path
from typing import Any

import mmdet3d_networks
import numpy as np
import pytest
import yaml
from commands import one_line_error
from hypothesis import given
from hypothesis import strategies as st
from made_up import random_boxes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.constants import DETECTION_NAMES
from nuscenes.eval.detection.utils import category_to_detection_name, detection_name_to_rel_attributes
from nuscenes.eval.lidarseg.utils import LidarsegClassMapper
from pyquaternion import Quaternion
from repository import ROOT
from scipy.spatial.transform import Rotation
from vocabulary import NUSCENES, RIG

from perception.config import find_config, load_config, parse_config
from perception.datasets.sweeps import Sweep, join_lidars
from perception.frame import PER_POINT, Frame
from perception.geometry import quaternion, quaternions, rotation_about, rotation_matrices
from perception.mmdet3d import centerpoint, pillarnest
from perception.mmdet3d.checkpoint import read_config
from perception.model import PerceptionModel
from perception.rig import Box, Mount, Rig, load_rig, order_by_view
from perception.tasks.detection.scores import DetectionScores
from perception.taxonomy import PointClass, Taxonomy, load_taxonomy

# Taxonomies.


def test_nuscenes_is_as_the_devkit_has_it() -> None:
    assert {*NUSCENES.class_names} == {*DETECTION_NAMES}
    ours = NUSCENES.labels_of_categories()
    assert [NUSCENES.class_names[label] for label in ours.values()] == [category_to_detection_name(n) for n in ours]
    assert {each.name: each.range for each in NUSCENES.classes} == config_factory("detection_cvpr_2019").class_range
    tracked = [each.name for each in NUSCENES.classes if each.tracked]
    assert {*tracked} == {*config_factory("tracking_nips_2019").class_names}
    mapper = object.__new__(LidarsegClassMapper)
    mapper.ignore_class = mapper.get_ignore_class()
    points = [each.name for each in NUSCENES.point_classes]
    assert {name: i + 1 for i, name in enumerate(points)} | {"ignore": 0} == mapper.get_coarse2idx()
    coarse = {fine: name for fine, name in mapper.get_fine2coarse().items() if name != "ignore"}
    assert {fine: points[i] for fine, i in NUSCENES.point_labels_of_categories().items()} == coarse
    for label, name in enumerate(NUSCENES.class_names):
        possible = zip(NUSCENES.attributes, NUSCENES.possible_attributes(label), strict=True)
        assert {attribute for attribute, there in possible if there} == {*detection_name_to_rel_attributes(name)}


CAR, VAN, ROAD = {"name": "car"}, {"name": "van", "categories": ["car"]}, {"name": "road"}
WAY = {"name": "way", "categories": ["road"]}


TOP, FRONT = {"name": "top"}, {"name": "front"}
MINIMAL = {load_taxonomy: {"name": "own", "classes": [CAR]}, load_rig: {"name": "mine", "lidars": [TOP]}}
WRONG: dict[Any, list[tuple[dict[str, Any], str]]] = {
    load_taxonomy: [
        ({"classes": [CAR, CAR]}, "classes: 'car' is there twice"),
        ({"classes": [CAR, VAN]}, "category 'car' is of two classes"),
        ({"classes": [CAR | {"attributes": ["parked", "moving"]}]}, "attribute 'parked' of car is not among"),
        ({"point_classes": [ROAD, WAY]}, "point_classes: category 'road' is of two classes"),
        ({"point_classes": [{"name": "noise", "solid": False}, ROAD]}, "those that are not `solid` stand last"),
        ({"conditions": {"weather": ["snow"], "season": ["snow"]}}, "conditions: 'snow' is there twice"),
        ({"conditions": {"weather": ["heavy-rain"]}}, "conditions.weather.0: string should match"),
        ({"conditions": {"weather": ["dry"]}, "simulated": {"always": ["snow"]}}, "simulated: 'snow' is not among"),
    ],
    load_rig: [
        ({"lidars": []}, "(top level): `lidars` is empty; a rig has at least one LiDAR, whose time is the frame's"),
        ({"cameras": [TOP], "lidars": [TOP]}, "(top level): two sensors are called 'top'"),
        ({"lidars": [{"name": "lidar"}]}, "(top level): a sensor is called 'lidar', which stands for others"),
        (
            {"cameras": [FRONT | {"lens": {"focal": 9.0, "distortion": [1.0]}}]},
            "cameras.0.lens.distortion: has 1 coefficients; OpenCV's models have 4, 5 or 8",
        ),
    ],
}


@pytest.mark.parametrize(("load", "change", "says"), [(load, *row) for load in WRONG for row in WRONG[load]])
def test_a_wrong_taxonomy_or_rig_is_told_in_one_line(tmp_path: Path, load: Any, change: Any, says: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(MINIMAL[load] | change))
    with one_line_error(at=f"{file}: ", says=says):
        load(file)


def test_a_configuration_names_it_or_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "taxonomy.yaml"
    path.write_text(yaml.safe_dump(MINIMAL[load_taxonomy] | {"conditions": {"weather": ["dry", "snow"]}}))
    content = {"name": "a", "taxonomy": str(path), "tasks": {"detection": {}}}
    config = parse_config(content, "a.yaml")
    assert config.taxonomy == load_taxonomy(path)
    assert parse_config(config.model_dump(mode="json"), "again") == config
    taken = {"name": "own", "classes": [CAR], "conditions": {"sight": ["lidar"]}}
    with one_line_error(exactly="a.yaml: (top level): taxonomy: conditions: 'lidar' stands for something else"):
        parse_config({**content, "taxonomy": taken}, "a.yaml")
    noise = PointClass(name="noise", solid=False)
    assert PointClass.model_validate(noise.model_dump()) == noise
    bare = parse_config({"name": "a"}, "b")
    assert (bare.taxonomy, bare.rig) == (NUSCENES, RIG)
    snow = {"name": "snow", "kind": "low_rank", "when": ["snow"]}
    assert parse_config(content | {"modules": [snow]}, "a.yaml").modules[0].when == ("snow",)
    with one_line_error(says="modules.snow.when: 'snow' is none of clear, rain"):
        parse_config({"name": "a", "modules": [snow]}, "a.yaml")
    with one_line_error(says="tasks.map: the taxonomy own has no map layers"):
        parse_config(content | {"tasks": {"map": {}}}, "a.yaml")
    with one_line_error(says="the groups, one after the other, must be car"):
        parse_config(content | {"tasks": {"detection": {"groups": [["truck"]]}}}, "a.yaml")
    with one_line_error(at="munich: no such YAML file, nor one that comes with the package: kitti, "):
        load_taxonomy("munich")


def test_without_attributes_the_other_errors_weigh_as_much_as_all() -> None:
    (truth, found), scenes = random_boxes(np.random.default_rng(1), 6), np.zeros(6, np.int64)
    bare = Taxonomy(name="bare", classes=tuple(each.model_copy(update={"attributes": ()}) for each in NUSCENES.classes))
    ours, full = (DetectionScores(truth, found, scenes, each).score() for each in (bare, NUSCENES))
    assert np.isnan(ours.mean_errors[0, 4])
    np.testing.assert_array_equal(ours.mean_errors[0, :4], full.mean_errors[0, :4])
    share = np.maximum(0, 1 - ours.mean_errors[0, :4]).mean()
    assert ours.nds[0] == pytest.approx((ours.mean_ap[0] + share) / 2, abs=1e-12)


# Rigs.

angles = st.floats(-360, 360)


@given(angles, angles, angles)
def test_the_mount_is_scipys_rotation(yaw: float, pitch: float, roll: float) -> None:
    mount = Mount(position=(1.0, 2.0, 3.0), yaw=yaw, pitch=pitch, roll=roll)
    expected = Rotation.from_euler("ZYX", [yaw, pitch, roll], degrees=True).as_matrix()
    np.testing.assert_allclose(mount.ego_from_mount[:3, :3], expected, atol=1e-11)
    assert mount.ego_from_mount[:3, 3].tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", ["nuscenes", "truck", "shuttle", "kitti"])
def test_rigs_that_come_with_the_package(name: str, tmp_path: Path) -> None:
    """By name, by file and inline they are the same, and simulated as they are."""
    rig = load_rig(name)
    rig.require_calibration()
    assert rig.calibrate() == rig
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(rig.model_dump(mode="json")))
    assert load_rig(file) == rig == Rig.model_validate_json(rig.model_dump_json())
    for camera in rig.cameras:  # they look along their mount: z is its x, the optical axis; x is right, y down
        mount, pose = camera.mount.ego_from_mount[:3, :3], camera.ego_from_sensor[:3, :3]
        np.testing.assert_array_equal(pose.T, [-mount[:, 1], -mount[:, 2], mount[:, 0]])
    for given_as in (name, str(file), rig.model_dump(mode="json")):
        config = parse_config({"name": "a", "rig": given_as}, "a.yaml")
        assert config.rig == parse_config(config.model_dump(mode="json"), "checkpoint.json").rig == rig


def test_an_unknown_rig_and_one_without_what_is_needed(tmp_path: Path) -> None:
    """Without mounts it is enough for a network; to simulate, the first sensor that lacks one is named, and golden
    frames spread them evenly."""
    known = "kitti, nuscenes, pandaset, pandaset_64, shuttle, t4, truck; did you mean truck?"
    with one_line_error(exactly=f"trukc: no such YAML file, nor one that comes with the package: {known}"):
        load_rig("trukc")
    with one_line_error(exactly=f"{tmp_path}/a.yaml: cannot read the rig (FileNotFoundError)"):
        load_rig(tmp_path / "a.yaml")
    blind = {"name": "blind", "lidars": [TOP]}
    with one_line_error(exactly="a.yaml: (top level): model.camera: the rig blind has no camera"):
        parse_config({"name": "a", "rig": blind, "model": {"camera": {}}}, "a.yaml")
    content = {"name": "mine", "cameras": [{"name": n} for n in "abc"], "lidars": [TOP]}
    rig = parse_config({"name": "a", "rig": content}, "a.yaml").rig
    with one_line_error(exactly="rig mine: top has no `mount`, its calibration; add it"):
        rig.require_calibration()
    spread = rig.calibrate()
    assert [camera.mount and camera.mount.yaw for camera in spread.cameras] == [0, 120, 240]
    with one_line_error(exactly="rig mine: a has no `lens`, its calibration; add it"):
        spread.require_calibration()


def test_the_order_by_view() -> None:
    for name, prefix, ahead, behind in (
        ("nuscenes", "CAM_", "FRONT_LEFT FRONT FRONT_RIGHT", "BACK_LEFT BACK BACK_RIGHT"),
        ("truck", "CAMERA_", "LEFT_FRONT RIGHT_FRONT", "LEFT_BACK RIGHT_BACK"),
    ):
        yaws = {each.name.removeprefix(prefix): np.radians(each.mount.yaw) for each in load_rig(name).cameras}
        assert order_by_view(yaws) == (ahead.split(), behind.split())


def test_a_frame_that_does_not_say_what_is_of_its_keyframe_is_refused() -> None:
    pose, points, sweeps = np.eye(4), np.zeros((3, 5), np.float32), np.array([0, 1, 1], np.uint8)
    for said in (None, sweeps[:2]):
        with pytest.raises(ValueError, match="frame t: `sweep_of_point` does not say of each point"):
            _ = Frame("t", 0, "ego", pose, pose, points, {}, sweep_of_point=said).keyframe_points
    frame = Frame("t", 0, "ego", pose, pose, points, {}, sweep_of_point=sweeps, lidar_of_point=sweeps)
    assert [frame.without_points().__dict__[name] for name in PER_POINT] == [None] * 4


@pytest.mark.parametrize(("lidars", "masked", "left"), [
    (None, "b", 3), (None, "a", None), (None, "ab", None),  # the second one has no points
    ([0, 1, 1], "a", 2), ([0, 1, 1], "b", 1), ([0, 1, 1], "c", 3), ([0, 1, 1], "ab", None),
])  # fmt: skip
def test_a_frame_without_a_lidar_has_the_points_of_the_others(lidars: Any, masked: str, left: int | None) -> None:
    pose, points, sweeps = np.eye(4), np.zeros((3, 5), np.float32), np.zeros(3, np.uint8)
    of_point = None if lidars is None else np.array(lidars, np.uint8)
    frame = Frame("t", 0, "ego", pose, pose, points, {}, sweep_of_point=sweeps, lidar_of_point=of_point)
    seen = frame.without(masked, "ab").points
    assert (None if seen is None else len(seen)) == left


def test_the_own_vehicle_is_cropped_in_its_own_frame() -> None:
    own = Box(center=(1.0, 0.0, 1.0), size=(4.0, 2.0, 2.0))
    mount = Mount(position=(1.0, 0.0, 2.5), yaw=90.0, pitch=20.0)
    rng = np.random.default_rng(1)
    ego = rng.uniform([-4, -4, -1], [6, 4, 4], (2000, 3))
    ego = ego[(np.abs(np.abs(ego - own.center) - np.array(own.size) / 2) > 1e-4).all(axis=1)]
    local = np.linalg.inv(mount.ego_from_mount)
    rows = np.pad(ego @ local[:3, :3].T + local[:3, 3], ((0, 0), (0, 2))).astype(np.float32)
    swept = Sweep(rows, 0, np.eye(4), mount.ego_from_mount)
    points = join_lidars({0: [swept]}, 0, np.eye(4), own).points
    outside = ~((np.abs(ego - own.center) <= np.array(own.size) / 2).all(axis=1))
    assert 0 < (~outside).sum() < len(ego)
    np.testing.assert_allclose(points[:, :3], ego[outside], atol=1e-5)


# Configurations.

CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs").glob("nuscenes/*.yaml")])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configurations_are_valid_and_build(path: Path) -> None:
    config = load_config(path)
    model, grid = PerceptionModel(config), config.grid.build()
    assert all(n % config.model.trunk.stride == 0 for n in grid.shape)
    assert ("camera" in dict(model.named_children())) == (config.model.camera is not None)


@pytest.mark.parametrize(
    ("text", "overrides", "says"),
    [
        ("nmae: a", "", "nmae: is not a known key; did you mean name?"),
        ("name: a", "tasks.detection.top_m=3", "tasks.detection.top_m: is not a known key; did you mean top_k?"),
        ("name: a", "train.schedule.kind=cosin", "'step', got 'cosin'; did you mean cosine?"),
        ("name: a\nmodules: [{name: a, kind: low_rnk}]", "", "modules.0: 'low_rnk' is none of 'low_rank', "),
        ("name: a\nmodules: [{name: a, kind: low_rank, rnk: 3}]", "", ".rnk: is not a known key; did you mean rank?"),
        ("name: a", "data.format=KITTI", r"pattern '^[\w.]+:\w+$', got 'KITTI'"),
        ("name: a\nmodel: {trunk: {chanels: [3]}}", "", "model.trunk.chanels: is not a known key"),
        ("name: a\ntrain: {steps: many}", "", "train.steps: input should be a valid integer, got 'many'"),
        ("name: a\ntrain: {steps: 9, epochs: 2}", "", "train: give `steps` or `epochs`, one of them"),
        ("name: a\ntrain: {schedule: {kind: step}}", "", "train.schedule: `milestones` are for the kind `step`"),
        ("name: a\nmodel: {lidar: null}", "", "the model has no sensor; give `lidar`, `camera` or `scanners`"),
        ("name: a\nmodel: {scanners: [radar]}", "", "model.scanners: input should be a valid dictionary"),
        ("name: a\nmodel: {scanners: {sonar: {}}}", "", "model.scanners.sonar: is not a known key"),
        ("name: a\nmodel: {scanners: {lidar: {}}}", "", "model.scanners: lidar has a place of its own"),
        ("name: a\ntrain: {drop_lidar: 0.1, drop: [lidar]}", "", "train.drop: input should be a valid dictionary"),
        ("name: a\ntrain: {3: 1}", "", "train.3: keys should be strings"),
        ("name: a\nmodel: {trunk: {channels: [3, 4]}}", "", "channels, blocks and strides must have the same length"),
        ("{}", "", "name: field required"),
        ("name: [", "", "not valid YAML"),
        (5000 * "[", "", "the configuration is nested too deeply"),
        ("name: a", "train.batch", "train.batch: write KEY=VALUE, such as train.batch=8"),
        ("name: a", "name.first=b", "name.first=b: first would be a key of 'a', which has none"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, text: str, overrides: str, says: str) -> None:
    path = tmp_path / "c.yaml"
    with one_line_error(at=path, says="cannot read the configuration"):
        load_config(path)
    path.write_text(text)
    with one_line_error(at="" if overrides else path, says=says):
        load_config(path, overrides.split())


def test_keys_are_overridden_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: a\ntrain: {steps: 9, batch: 2}")
    config = load_config(path, ["train.batch=8", "data.augment=null", "train.validation.split=val", "seed=3"])
    assert (config.train.batch, config.train.steps, config.seed) == (8, 9, 3)
    assert config.data.augment is None
    assert config.train.validation.split == "val"
    path.write_text("name: a\ntrain: {drop: {lidar: 0.2, cameras: 0.2}}")
    assert load_config(path, ["train.drop_lidar=0.5"]).train.drop == {"lidar": 0.5, "cameras": 0.2}


# Published configurations of mmdet3d and PillarNeSt, of which ours have the networks.

_PUBLISHED = {  # of the small networks -> published
    "[-12.0, -13.0, -10.0, 13.0, 13.0, 10.0]": "[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]",
    "max_num_points=6": "max_num_points=20",
    "(500, 700)": "(30000, 40000)",
    "max_num=40": "max_num=500",
    "head_conv=8": "head_conv=64",
    "share_conv_channel=8": "share_conv_channel=64",
    "sweeps_num=2": "sweeps_num=9",
}
_CENTERPOINT = {  # centerpoint_pillar02_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d
    "[0.4, 0.4, 8]": "[0.2, 0.2, 8]",
    "[-12.8, -12.8, -5.0, 12.8, 12.8, 3.0]": "[-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]",
    "feat_channels=[8]": "feat_channels=[64]",
    "[8, 12, 16]": "[64, 128, 256]",
    "[1, 1, 2]": "[3, 5, 5]",
    "out_channels=[8, 8, 8]": "out_channels=[128, 128, 128]",
}
_PILLARNEST = {  # pillarnest_tiny
    "[0.4, 0.4, 8]": "[0.15, 0.15, 8]",
    "[-12.8, -12.8, -5.0, 12.8, 12.8, 3.0]": "[-54, -54, -5.0, 54, 54, 3.0]",
    "feat_channels=[8]": "feat_channels=[48]",
    "arch=dict(depths=[2, 1, 1, 2, 1], channels=[48, 12, 16, 16, 20]), in_channels=8": "arch='tiny', in_channels=48",
    "[16, 16, 20]": "[96, 96, 96]",
    "out_channels=[8, 8, 8]": "out_channels=[96, 96, 96]",
    "iou_score_beta=0.4": "iou_score_beta=0.5",
}


def at_full_size(folder: Path, text: str, changes: dict[str, str]) -> Any:
    """What is read from a configuration of a small network at its published size."""
    for old, new in (_PUBLISHED | changes).items():
        assert old in text
        text = text.replace(old, new)
    (folder / "published.py").write_text(text)
    return read_config(folder / "published.py")


def test_centerpoint_is_mmdet3ds(tmp_path: Path) -> None:
    imported = centerpoint.configuration(at_full_size(tmp_path, mmdet3d_networks.CONFIGS["centerpoint"], _CENTERPOINT))
    ours = load_config(find_config("nuscenes/centerpoint"))
    assert (ours.grid, ours.model) == (imported.grid, imported.model)
    found, theirs = (each.tasks["detection"].model_dump() for each in (ours, imported))
    radii, wanted = found["suppression"].pop("radii"), theirs["suppression"].pop("radii")
    assert [round(radius, 3) for radius in wanted] == list(radii)
    assert found == theirs


def test_lidar_is_pillarnests(tmp_path: Path) -> None:
    """But for the vehicle's frame and the heatmaps of classes with subcells."""
    imported = pillarnest.configuration(at_full_size(tmp_path, mmdet3d_networks.CONFIGS["pillarnest"], _PILLARNEST))
    ours = load_config(find_config("nuscenes/lidar"))
    assert (ours.grid.x, ours.grid.y, ours.grid.cell) == (imported.grid.x, imported.grid.y, imported.grid.cell)
    assert ours.model.trunk.model_copy(update={"drop_path": 0.0}) == imported.model.trunk
    assert ours.model.lidar.model_copy(update={"overflow": "first"}) == imported.model.lidar
    found, theirs = ({k: v.shape for k, v in PerceptionModel(c).state_dict().items()} for c in (ours, imported))
    further = {name for name in found if name.startswith("heads.map.") or "_attribute." in name}
    finer = {name for name in found if re.search(r"group[45]_heatmap\.1\.", name)}
    assert found.keys() - further == theirs.keys()
    assert {name for name, shape in theirs.items() if found[name] != shape} == finer


# Rotations are pyquaternion's, at every angle and to the last digits.

halves = [(0, *axis) for axis in [*np.eye(3).tolist(), (1, 1, 0), (1, -1, 1)]]  # whose w defeats a division by it
some = st.sampled_from(halves) | st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 1e-3)


@given(st.lists(some, min_size=1, max_size=4))
def test_quaternions_and_matrices_are_pyquaternions(elements: list[tuple[float, ...]]) -> None:
    units = [Quaternion(each).unit for each in elements]
    matrices = np.array([unit.rotation_matrix for unit in units])
    np.testing.assert_allclose(rotation_matrices(np.array(elements)), matrices, atol=1e-14)
    for expected, *found in zip(units, quaternions(matrices), map(quaternion, matrices), strict=True):
        for each in found:
            assert each[0] >= 0
            assert Quaternion.absolute_distance(expected, Quaternion(each)) < 1e-12
            np.testing.assert_allclose(Quaternion(each).rotation_matrix, expected.rotation_matrix, atol=1e-14)
    assert quaternions(np.zeros((0, 3, 3))).shape == (0, 4)


@given(some, st.floats(-math.pi, math.pi))
def test_a_turn_about_an_axis_is_pyquaternions(elements: tuple[float, ...], angle: float) -> None:
    axis = Quaternion(elements).unit.elements[1:]
    if np.linalg.norm(axis) > 1e-3:
        expected = Quaternion(axis=axis, radians=angle).rotation_matrix
        np.testing.assert_allclose(rotation_about(axis / np.linalg.norm(axis), angle), expected, atol=1e-14)
