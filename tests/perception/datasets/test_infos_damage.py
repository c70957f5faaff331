"""Infos that do not hold what they should, or are apart from what they name: a line that says what and where."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infos import new_infos, old_infos, opened_tiny, write_infos
from refusals import one_line_error
from tiny import write_tiny

from perception.errors import InputError
from perception.mmdet3d.infos import Infos
from perception.mmdet3d.layouts import read_keyframes
from perception.sources import open_source
from perception.unpickle import read_plain


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "tiny"
    write_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def old(root: Path) -> Any:
    return _plain(old_infos(opened_tiny(root)), root)


@pytest.fixture(scope="module")
def new(root: Path) -> Any:
    return _plain(new_infos(old_infos(opened_tiny(root), old_boxes=False)), root)


def _plain(content: Any, root: Path) -> Any:
    """As it comes out of a file."""
    return read_plain(write_infos(root / "infos.pkl", content))


def _put(place: str, value: Any) -> Callable[[Any], None]:
    """Replace the value at a place such as data_list.0.token, or remove it."""

    def change(content: Any) -> None:
        *path, last = (int(key) if key.isdigit() else key for key in place.split("."))
        for key in path:
            content = content[key]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return change


SKEWED = [[1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]]
NEW: dict[str, tuple[str, Any, str]] = {
    "of another data set": ("metainfo.dataset", "kitti", "metainfo.dataset is kitti; only infos"),
    "no list": ("data_list", {"a": 1}, "data_list is no list"),
    "no keyframe": ("data_list", [], "data_list has no keyframe"),
    "neither layout": ("metainfo", None, "neither data_list and metainfo nor infos and metadata"),
    "a keyframe is missing its token": ("data_list.1.token", None, r"list\[1\] has no token"),
    "a keyframe is a number": ("data_list.2", 7, r"data_list\[2\] is no dict"),
    "no poses": ("data_list.1.ego2global", None, r"data_list\[1\] has no ego2global"),
    "no picture's place": (
        "data_list.0.images.CAM_BACK.lidar2cam", None, r"data_list\[0\].images.CAM_BACK has no lidar2cam",
    ),
    "a matrix of another shape": (
        "data_list.0.images.CAM_BACK.cam2img", [[1.0]], r"data_list\[0\].images.CAM_BACK.cam2img is not 3 x 3 numbers",
    ),
    "a rotation that is none": (
        "data_list.0.ego2global", SKEWED, r"data_list\[0\].ego2global is no rotation and translation",
    ),
    "NaN in a pose": ("data_list.0.ego2global.0.3", np.nan, r"data_list\[0\].ego2global holds NaN, infinity"),
    "text in a box": ("data_list.0.instances.0.bbox_3d.2", "a", "bbox_3d is not 7 numbers"),
    "a box without a size": (
        "data_list.0.instances.1.bbox_3d.4", 0.0, r"data_list\[0\].instances\[1\].bbox_3d has a size that is not posit",
    ),
    "a class that is none": ("data_list.0.instances.0.bbox_label_3d", 12, "is 12, which is no category"),
    "points of another number of values": ("data_list.2.lidar_points.num_pts_feats", 4, "num_pts_feats is not 5"),
    "a time in other units": ("data_list.0.timestamp", 1.5e15, r"data_list\[0\].timestamp is no time .* in seconds"),
}  # fmt: skip
OLD: dict[str, tuple[str, Any, str]] = {
    "no keyframe of the old": ("infos", [], "infos has no keyframe"),
    "a time in other units of the old": (
        "infos.0.timestamp", 1500000000, r"infos\[0\].timestamp is no time .* in microseconds",
    ),
    "fewer names than boxes": ("infos.0.gt_names", np.array(["car"]), r"infos\[0\].gt_boxes is not 1 x 7 numbers"),
    "names that are numbers": ("infos.0.gt_names", np.zeros(3), "gt_names is no list of names"),
    "a quaternion that is none": (
        "infos.1.ego2global_rotation", [1.0, 1.0, 0.0, 0.0],
        r"infos\[1\].ego2global_rotation is no rotation: the quaternion's length is not 1",
    ),
    "a sweep without a place": (
        "infos.1.sweeps.0.sensor2ego_translation", None, r"infos\[1\].sweeps\[0\] has no sensor2ego_translation",
    ),
    "a file without a name": ("infos.1.lidar_path", "a/..", r"infos\[1\].lidar_path names no file"),
}  # fmt: skip
DAMAGED = {
    name: (layout, _put(place, value), message)
    for layout, table in {"new": NEW, "old": OLD}.items()
    for name, (place, value, message) in table.items()
} | {
    "a keyframe twice": (
        "new", lambda content: content["data_list"].append(content["data_list"][0]), "data_list has 1 keyframes twice",
    )
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_told_in_one_line(root: Path, old: Any, new: Any, name: str) -> None:
    layout, damage, message = DAMAGED[name]
    content = copy.deepcopy({"old": old, "new": new}[layout])
    path = write_infos(root / "nuscenes_infos_val.pkl", content)
    assert len(Infos(path).samples()) == 3
    damage(content)
    write_infos(path, content)
    with one_line_error(message, at=f"{path}: "):
        Infos(path)


def test_infos_away_from_their_files(tmp_path: Path, new: Any) -> None:
    path = write_infos(tmp_path / "nuscenes_infos_val.pkl", new)
    with pytest.raises(
        InputError, match=r"none of the 21 files .* such as .*samples/LIDAR_TOP/.*; put it into the data"
    ):
        Infos(path)


def test_a_file_that_is_absent_is_a_missing_sensor(tmp_path: Path, new: Any) -> None:
    write_tiny(tmp_path / "tiny")
    infos = Infos(write_infos(tmp_path / "tiny" / "infos.pkl", new))
    tokens = infos.samples()
    for name in ("LIDAR_TOP", "CAM_BACK"):
        next(iter(sorted((tmp_path / "tiny" / "samples" / name).iterdir()))).unlink()
    frames = [infos.frame(token, sweeps=1) for token in tokens]
    assert frames[0].points is None
    assert "CAM_BACK" not in frames[0].cameras
    assert all(frame.points is not None and len(frame.cameras) == 6 for frame in frames[1:])
    with pytest.raises(InputError, match=r"infos.pkl: no keyframe 1234"):
        infos.frame("1234")


def test_no_path_leads_out_of_the_dataroot(root: Path, old: Any) -> None:
    content = copy.deepcopy(old)
    for row in content["infos"]:
        row["lidar_path"] = "/etc/../../secret/passwd"
        row["cams"]["CAM_FRONT"]["data_path"] = "..\\..\\windows\\a.jpg"
    (a, *_) = read_keyframes(content, root, 1 << 20)
    assert a.lidar.file == "samples/LIDAR_TOP/passwd"
    assert a.cameras["CAM_FRONT"].file == "samples/CAM_FRONT/a.jpg"


def test_pictures_of_another_size_do_not_fit(tmp_path: Path, new: Any) -> None:
    write_tiny(tmp_path / "tiny")
    content = copy.deepcopy(new)
    for row in content["data_list"]:
        row["images"]["CAM_FRONT"]["cam2img"] = [[120.0, 0, 79], [0, 120, 49], [0, 0, 1]]
    infos = Infos(write_infos(tmp_path / "tiny" / "infos.pkl", content))
    with pytest.raises(
        InputError, match=r"CAM_FRONT/.*the picture is 80x50, but infos.pkl has its optical axis at 79, 49"
    ):
        infos.frame(infos.samples()[0])


@pytest.mark.parametrize("layout", ["old", "new"])
def test_boxes_whose_convention_nothing_tells(root: Path, old: Any, new: Any, layout: str) -> None:
    content = copy.deepcopy({"old": old, "new": new}[layout])
    for row in content.get("infos", ()):
        row["gt_names"] = np.array(["pedestrian"] * len(row["gt_names"]))
    for row in content.get("data_list", ()):
        for instance in row["instances"]:
            instance["bbox_label_3d"] = 7
    path = write_infos(root / "nuscenes_infos_val.pkl", content)
    with pytest.raises(InputError, match=r"written as before mmdet3d 1.0 is seen from vehicles, and none is annotated"):
        Infos(path)


def test_without_annotations(root: Path, old: Any) -> None:
    content = copy.deepcopy(old)
    for row in content["infos"]:
        for key in ("gt_boxes", "gt_names", "gt_velocity", "num_lidar_pts", "num_radar_pts", "valid_flag"):
            del row[key]
    infos = Infos(write_infos(root / "nuscenes_infos_test.pkl", content))
    assert [infos.frame(token).boxes for token in infos.samples()] == [None] * 3


def test_a_drive_ends_at_a_gap_another_log_and_a_first_sweep(root: Path, old: Any) -> None:
    def drives(*changes: Callable[[Any], None]) -> list[int]:
        content = copy.deepcopy(old)
        for change in changes:
            change(content)
        infos = Infos(write_infos(root / "nuscenes_infos_val.pkl", content))
        return [len(infos.samples(selectors=[name])) for name in infos.scenes()]

    assert drives() == [3]
    late = old["infos"][1]["timestamp"] + 2_000_000
    assert drives(_put("infos.2.timestamp", late)) == [2, 1]
    assert drives(_put("infos.1.sweeps", [])) == [1, 2]
    name = f"samples/LIDAR_TOP/n008-2018__LIDAR_TOP__{old['infos'][2]['timestamp']}.pcd.bin"
    assert sorted(drives(_put("infos.2.lidar_path", name))) == [1, 2]


def test_options_that_infos_do_not_have(root: Path, new: Any) -> None:
    path = write_infos(root / "nuscenes_infos_val.pkl", new)
    with pytest.raises(InputError, match=r"nuscenes_infos_val.pkl: infos have no --version"):
        open_source(path, "v1.0-mini")
    infos = open_source(path, None)
    with pytest.raises(InputError, match="has no split val; leave out --split"):
        infos.samples("val")
    with pytest.raises(InputError, match=r"scene-0001: no such scene in .*; it has drive-0001"):
        infos.samples(selectors=["scene-0001"])
    with pytest.raises(InputError, match=r"absent.pkl: cannot read the file"):
        open_source(root / "absent.pkl", None)


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
def test_whatever_is_in_them_is_read_or_refused(old: Any, new: Any, data: st.DataObject) -> None:
    content = copy.deepcopy(data.draw(st.sampled_from([old, new])))
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(_places(content)))
        container[key] = data.draw(JUNK)
    try:
        read_keyframes(content, Path("infos.pkl"), 1 << 30)
    except InputError as error:
        message = str(error)
        assert message.startswith("infos.pkl: ")
        assert "\n" not in message


def test_lists_that_keyframes_share_do_not_fill_memory(new: Any) -> None:
    content = copy.deepcopy(new)
    instances = content["data_list"][0]["instances"] * 1000
    content["data_list"] = [
        content["data_list"][0] | {"token": f"t{i}", "instances": instances} for i in range(100_000)
    ]
    with pytest.raises(InputError, match="data_list has keyframes that share their lists"):
        read_keyframes(content, Path("infos.pkl"), 1 << 20)
