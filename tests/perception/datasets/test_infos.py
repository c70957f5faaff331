"""Infos of mmdet3d give the frames that the tables give, in every layout and convention; damage is told in one line."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import one_line_error
from damage import Change, put, without
from hypothesis import given, settings
from hypothesis import strategies as st
from infos import new_infos, old_infos, open_tiny, write_infos
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.geometry_utils import BoxVisibility
from tiny import write_tiny

from perception.datasets.infos import Infos, read_keyframes
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.sources import open_source
from perception.errors import InputError
from perception.io.unpickle import read_plain


@dataclass(frozen=True)
class Sources:
    tables: NuScenesTables
    devkit: NuScenes
    infos: Infos
    layout: str


@pytest.fixture(
    scope="module", params=["since 1.1, real", "before 1.0, real", "since 1.1, simulated", "1.0, simulated"]
)
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Tables, and infos beside links to their files."""
    layout, kind = request.param.split(", ")
    name, version = {"real": ("nuscenes_root", "v1.0-mini"), "simulated": ("sim_root", "v1.0-sim")}[kind]
    root, folder = request.getfixturevalue(name), tmp_path_factory.mktemp("infos")
    devkit = NuScenes(version, str(root), verbose=False)
    for name in ("samples", "sweeps"):
        (folder / name).symlink_to(root / name)
    old = old_infos(devkit, old_boxes=layout == "before 1.0")
    path = write_infos(folder / "nuscenes_infos_val.pkl", new_infos(old) if layout == "since 1.1" else old)
    return Sources(NuScenesTables(root, version), devkit, Infos(path), layout)


def test_frames_equal_the_tables(sources: Sources) -> None:
    """Poses since 1.1 are float32, of kilometres: what goes through them differs by 0.1 mm, all else by 1e-6."""
    places = 1e-4 if sources.layout == "since 1.1" else 1e-9
    seen = 0
    for scene in sources.tables.scenes():
        keyframes = sources.tables.samples(None, [scene])
        times = {token: sources.tables.recording(token).timestamp for token in keyframes}
        assert sources.infos.moments(keyframes[-1]) == times
    assert {*sources.infos.samples()} == {*sources.tables.samples()}
    for token in sources.tables.samples():
        both = (sources.infos, sources.tables)
        ours, theirs = (each.frame(token, Reads("lidar", sweeps=3, least_width=400)) for each in both)
        assert (ours.token, ours.timestamp, ours.reference) == (theirs.token, theirs.timestamp, theirs.reference)
        np.testing.assert_allclose(ours.global_from_ego, theirs.global_from_ego, atol=places)
        np.testing.assert_allclose(ours.global_from_reference, theirs.global_from_reference, atol=places)
        assert (ours.points is None) == (theirs.points is None)
        if ours.points is not None:
            # Points are float32, of up to 100 m: the spacing of those is 8e-6.
            np.testing.assert_allclose(ours.points[:, :3], theirs.points[:, :3], atol=2e-5)
            np.testing.assert_array_equal(ours.points[:, 3:], theirs.points[:, 3:])
            seen += 1
        assert ours.cameras.keys() == theirs.cameras.keys()
        for name, a in ours.cameras.items():
            b = theirs.cameras[name]
            assert a.timestamp == b.timestamp
            np.testing.assert_array_equal(a.image, b.image)
            np.testing.assert_array_equal(a.intrinsics, b.intrinsics)
            np.testing.assert_allclose(a.ego_from_camera, b.ego_from_camera, atol=1e-6)
            np.testing.assert_allclose(a.global_from_ego, b.global_from_ego, atol=places)
            mine, other = (each.image_from_reference(name) for each in (ours, theirs))
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=2e-3)  # focal length 1266, m: 2e-6
    assert seen >= 6


def test_boxes_equal_the_devkits(sources: Sources) -> None:
    """In the LiDAR's frame, where infos have them upright."""
    seen = 0
    for token in sources.tables.samples():
        truth = sources.tables.recording(token).annotated("boxes")
        ours = sources.infos.frame(token, Reads("lidar", lidar=False, cameras=False)).boxes
        channel = sources.devkit.get("sample", token)["data"]["LIDAR_TOP"]
        theirs = sources.devkit.get_sample_data(channel, BoxVisibility.NONE)[1]
        theirs = [box for box in theirs if category_to_detection_name(box.name)]
        np.testing.assert_allclose(ours.centers, np.reshape([box.center for box in theirs], (-1, 3)), atol=1e-6)
        np.testing.assert_allclose(ours.sizes, np.reshape([box.wlh for box in theirs], (-1, 3)), atol=1e-12)
        off = ours.yaws - [box.orientation.yaw_pitch_roll[0] for box in theirs]
        np.testing.assert_allclose(np.exp(1j * off), 1, atol=1e-6)
        seen += len(theirs)
        reads = Reads("lidar", lidar=False, cameras=False)
        turn = sources.tables.frame(token, reads).global_from_reference[:3, :3]
        flat = truth.velocities * [1, 1, 0]
        np.testing.assert_allclose(ours.velocities[:, :2], (flat @ turn)[:, :2], atol=1e-6)
        np.testing.assert_array_equal(ours.labels, truth.labels)
        np.testing.assert_array_equal(ours.num_points, truth.num_points)
        np.testing.assert_allclose(sources.infos.recording(token).annotated("boxes").centers, truth.centers, atol=2e-4)
        both = (each.recording(token).annotated("bicycle_racks") for each in (sources.infos, sources.tables))
        mine, other = (np.reshape(each, (-1, 10)) for each in both)
        other = other[: 0 if sources.layout == "since 1.1" else None]  # which holds the objects of the ten classes
        np.testing.assert_allclose(mine[:, :6], other[:, :6], atol=2e-4)
        np.testing.assert_allclose(mine[:, [6, 9]], other[:, [6, 9]], atol=5e-3)  # but for the tilt of the LiDAR
    assert seen > 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_tiny(folder := tmp_path_factory.mktemp("damage") / "tiny")
    return folder


@pytest.fixture(scope="module")
def contents(root: Path) -> dict[str, Any]:
    """Infos of the tiny drive in the old and the new layout, as they come out of a file."""
    old, boxes_since = (old_infos(open_tiny(root), old_boxes=each) for each in (True, False))
    made = {"old": old, "new": new_infos(boxes_since)}
    return {layout: read_plain(write_infos(root / "infos.pkl", content)) for layout, content in made.items()}


def no_vehicles(content: Any) -> None:
    for instance in (each for row in content["data_list"] for each in row["instances"]):
        instance["bbox_label_3d"] = 7


SKEWED = np.diag([1.0, 2.0, 1.0, 1.0]).tolist()
BACK, FIRST = "data_list.0.images.CAM_BACK", r"data_list\[0\]: "
DAMAGE: list[tuple[str, Change, str]] = [
    ("new", put("metainfo.dataset", "kitti"), "data_list: metainfo is of 'kitti'; only infos"),
    ("new", put("data_list", []), "data_list: no keyframe is in it"),
    ("new", without("metainfo"), "neither data_list and metainfo nor infos and metadata"),
    ("new", without("data_list.1.token"), r"list\[1\]: 'token' is missing"),
    ("new", without(f"{BACK}.lidar2cam"), FIRST + "'lidar2cam' is missing"),
    ("new", put("data_list.0.ego2global", SKEWED), FIRST + "ego2global is no rotation and translation"),
    ("new", put("data_list.0.ego2global.0.3", np.nan), FIRST + "ego2global holds something else than finite"),
    ("new", put("data_list.0.instances.0.bbox_3d.2", "a"), "bbox_3d is not 7 numbers"),
    ("new", put("data_list.0.instances.1.bbox_3d.4", 0.0), FIRST + "a box has a size that is not positive"),
    ("new", put("data_list.0.instances.0.bbox_label_3d", 12), FIRST + "bbox_label_3d is 12, which is no category"),
    ("new", put("data_list.0.timestamp", 1.5e15), FIRST + "timestamp is no time .* in seconds"),
    ("new", lambda all: all["data_list"].append(all["data_list"][0]), "its token is there twice"),
    ("new", no_vehicles, "written as before mmdet3d 1.0 is seen from vehicles, and none is annotated"),
    ("old", put("infos.0.gt_names", np.array(["car"])), r"infos\[0\]: gt_boxes is not 1 x 7 numbers"),
    ("old", put("infos.1.ego2global_rotation", [1.0, 1.0, 0.0, 0.0]), "no rotation: the quaternion's length is not 1"),
    ("old", put("infos.1.lidar_path", "a/.."), r"infos\[1\]: lidar_path names no file"),
]


@pytest.mark.parametrize(("layout", "damage", "says"), DAMAGE)
def test_damage_is_told_in_one_line(root: Path, contents: Any, layout: str, damage: Change, says: str) -> None:
    damage(content := copy.deepcopy(contents[layout]))
    path = write_infos(root / "nuscenes_infos_val.pkl", content)
    with one_line_error(says, at=f"{path}: "):
        Infos(path)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda path: open_source(path, "v1.0-mini"), "infos.pkl: infos have no --version"),
        (lambda path: open_source(path.parent / "absent.pkl", None), "absent.pkl: cannot read the file"),
        (lambda path: open_source(path, None).samples("val"), "has no split val; leave out --split"),
        (lambda path: open_source(path, None).samples(None, ["scene-0001"]), "no such scene in .*; it has drive-0001"),
        (lambda path: Infos(path).frame("1234"), "infos.pkl: no keyframe 1234"),
    ],
)
def test_what_infos_do_not_have(root: Path, contents: dict[str, Any], ask: Callable[[Path], Any], says: str) -> None:
    with one_line_error(says):
        ask(write_infos(root / "infos.pkl", contents["new"]))


def test_files_that_are_absent_or_do_not_fit(tmp_path: Path, contents: dict[str, Any]) -> None:
    """A file is a missing sensor; all of them are infos apart from their data."""
    with one_line_error(r"none of the 21 files .* such as .*samples/LIDAR_TOP/.*; put it into the data"):
        Infos(write_infos(tmp_path / "nuscenes_infos_val.pkl", contents["new"]))
    write_tiny(tmp_path / "tiny")
    infos = Infos(write_infos(tmp_path / "tiny" / "infos.pkl", contents["new"]))
    for name in ("LIDAR_TOP", "CAM_BACK"):
        min((tmp_path / "tiny" / "samples" / name).iterdir()).unlink()
    frames = [infos.frame(token, Reads(sweeps=1)) for token in infos.samples()]
    assert frames[0].points is None
    assert "CAM_BACK" not in frames[0].cameras
    assert all(frame.points is not None and len(frame.cameras) == 6 for frame in frames[1:])
    content = copy.deepcopy(contents["new"])
    put("data_list.0.images.CAM_FRONT.cam2img", [[120.0, 0, 79], [0, 120, 49], [0, 0, 1]])(content)
    infos = Infos(write_infos(tmp_path / "tiny" / "infos.pkl", content))
    with one_line_error(r"CAM_FRONT/.*the picture is 80x50, but its calibration has the optical axis at 79, 49"):
        infos.frame(infos.samples()[0])


def test_no_path_leads_out_of_the_dataroot(root: Path, contents: dict[str, Any]) -> None:
    content = copy.deepcopy(contents["old"])
    for row in content["infos"]:
        row["lidar_path"] = "/etc/../../secret/passwd"
        row["cams"]["CAM_FRONT"]["data_path"] = "..\\..\\windows\\a.jpg"
    (a, *_) = read_keyframes(content, root / "infos.pkl")
    assert a.sweeps[0].path == root / "samples/LIDAR_TOP/passwd"
    assert a.pictures["CAM_FRONT"].path == root / "samples/CAM_FRONT/a.jpg"


def test_without_annotations(root: Path, contents: dict[str, Any]) -> None:
    content = copy.deepcopy(contents["old"])
    for row in content["infos"]:
        for key in ("gt_boxes", "gt_names", "gt_velocity", "num_lidar_pts", "num_radar_pts", "valid_flag"):
            del row[key]
    infos = Infos(write_infos(root / "nuscenes_infos_test.pkl", content))
    assert [infos.frame(token).boxes for token in infos.samples()] == [None] * 3


def test_a_drive_ends_at_a_gap_another_log_and_a_first_sweep(root: Path, contents: dict[str, Any]) -> None:
    def drives(*changes: Change) -> list[int]:
        content = copy.deepcopy(contents["old"])
        for change in changes:
            change(content)
        infos = Infos(write_infos(root / "nuscenes_infos_val.pkl", content))
        return [len(infos.samples(selectors=[name])) for name in infos.scenes()]

    assert drives() == [3]
    times = [row["timestamp"] for row in contents["old"]["infos"]]
    assert drives(put("infos.2.timestamp", times[1] + 2_000_000)) == [2, 1]
    assert drives(put("infos.1.sweeps", [])) == [1, 2]
    name = f"samples/LIDAR_TOP/n008-2018__LIDAR_TOP__{times[2]}.pcd.bin"
    assert sorted(drives(put("infos.2.lidar_path", name))) == [1, 2]


def _places(content: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Every container and key in nested dicts and lists."""
    if not isinstance(content, dict | list) or depth > 6:
        return []
    pairs = list(content.items()) if isinstance(content, dict) else list(enumerate(content))
    return [(content, key) for key, _ in pairs] + [p for _, value in pairs for p in _places(value, depth + 1)]


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3),
    st.lists(st.floats(), max_size=9), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sampled_from([np.zeros((2, 7)), np.zeros(0), np.array(["car"]), np.full((3, 7), np.nan), 1e308, 10**400]),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_is_in_them_is_read_or_refused(contents: dict[str, Any], data: st.DataObject) -> None:
    content = copy.deepcopy(contents[data.draw(st.sampled_from(["old", "new"]))])
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(_places(content)))
        container[key] = data.draw(JUNK)
    try:
        read_keyframes(content, Path("infos.pkl"))
    except InputError as error:
        message = str(error)
        assert message.startswith("infos.pkl: ")
        assert "\n" not in message
