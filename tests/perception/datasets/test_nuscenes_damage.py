"""Damaged dataroots of nuScenes are told in one line that says what is wrong and where; tables and submissions are read
in blocks as the standard library reads them whole; what is computed from tables once is as if computed anew."""

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from annotated_tiny import VERSION, write_annotated
from commands import one_line_error
from damage import Damage, cut, delete, in_json, in_npz, number, put, replace, without, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import SPEC
from vocabulary import CAMERAS, NUSCENES, RIG

from deploy.recordings.drives import DatasetDrive
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes import recordings, tables
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.sources import JoinedTables
from perception.errors import InputError
from perception.io.cache import cached_arrays
from perception.tasks.detection.submission import read_samples

LIDAR, SWEEP, FRONT = "samples/LIDAR_TOP/*", "sweeps/LIDAR_TOP/*", "samples/CAM_FRONT/*"
SEGMENTED, VOXELS = "lidarseg/*/*", "gts/*/*/*"


def table(name: str) -> str:
    return f"{VERSION}/{name}.json"


DAMAGE: list[tuple[str, Damage, str]] = [  # of the first of these files
    (LIDAR, cut(9999), r"samples/LIDAR_TOP/\d+\.pcd\.bin: 9999 bytes are no whole number"),
    (LIDAR, cut(0), r"samples/LIDAR_TOP/\d+\.pcd\.bin: an empty sweep \(0 bytes\)"),
    (LIDAR, number(12, np.nan), "1 of 500 points hold NaN.*first point 2;"),
    (SWEEP, number(3, np.inf), "1 of 500 points hold NaN or infinity"),
    (FRONT, cut(-99), "a truncated JPEG"),
    (FRONT, cut(0), r"CAM_FRONT/\d+\.jpg: not a picture that can be decoded \(0 bytes\)"),
    (table("ego_pose"), delete, "ego_pose.json: the table is missing"),
    (table("sample"), cut(200), "sample.json: not valid JSON"),
    (table("log"), write("{}"), "log.json: not a table"),
    (table("log"), write("[1]"), "log.json: a row is int"),
    (table("log"), replace(b"}", b"\xff}"), r"log.json: cannot read the table \(UnicodeDecodeError\)"),
    (table("scene"), in_json(without("0.log_token")), "scene.json: the field or token 'log_token' is missing"),
    (table("sample_data"), in_json(put("0.ego_pose_token", "gone")), "lacks 1 poses that .* such as gone"),
    (table("ego_pose"), in_json(put("0.rotation", ["a", "b"])), "ego_pose.json: a row has a wrong value"),
    (table("ego_pose"), in_json(put("0.translation.0", np.nan)), "1 poses are not finite or have no rotation, such as"),
    (table("ego_pose"), in_json(put("0.rotation", [0, 0, 0, 0])), "1 poses are not finite or have no rotation"),
    (table("sample_data"), replace(b'"width": 80', b'"width": 160'), "picture is 80x50, but its .* is for 160x50"),
    (table("splits"), write("[1, 2]"), "splits.json: not an object"),
    (SEGMENTED, delete, "cannot read the classes of points"),
    (SEGMENTED, cut(499), "499 points, the sweep 500"),
    (SEGMENTED, write(bytes([99] * 500)), "the class 99"),
    (table("category"), replace(b"index", b"x"), "'index' is missing"),
    (table("category"), replace(b"17", b"256"), "256 is no byte"),
    (table("lidarseg"), in_json(without("0.filename")), "'filename' is missing"),
    (VOXELS, write("PK"), "not Occ3D's"),
    (VOXELS, in_npz(without("mask_camera")), "mask_camera"),
    (VOXELS, in_npz(put("semantics", np.array([{}], object))), "not Occ3D's"),
    (VOXELS, in_npz(put("semantics", np.zeros((200, 200, 16)))), "expected uint8"),
    (VOXELS, in_npz(put("semantics", np.full((200, 200, 16), 18, np.uint8))), "class 18 is none"),
]


@pytest.mark.parametrize(("files", "damage", "says"), DAMAGE)
def test_damage_is_told_in_one_line(tmp_path: Path, files: str, damage: Damage, says: str) -> None:
    root = write_annotated(tmp_path / "tiny")
    with one_line_error(says, at=root):
        damage(min(root.glob(files)))
        source = NuScenesTables(root, VERSION)
        [sample, *_] = source.samples("train")
        source.frame(sample, Reads(sweeps=1))
        source.recording(sample).annotated("occupancy")


@pytest.mark.parametrize(("files", "damage", "says"), DAMAGE[:6])
def test_in_a_replay_a_damaged_file_is_missing_and_counted_once(tiny_root, files, damage, says):
    drive = DatasetDrive(NuScenesTables(tiny_root, VERSION), ["scene-0001"], SPEC)
    whole = list(drive.frames())
    assert drive.counts.summary()["damage"] == []
    damage(file := min(tiny_root.glob(files)))
    found, sensor = list(drive.frames()), file.parent.name
    summary, keyframe = drive.counts.summary(), file.parts[-3] == "samples"
    assert summary["missing"] == ({sensor: 1} if keyframe else {})
    [line] = summary["damage"]
    assert re.search(says, line)
    with pytest.raises(InputError, match=says):  # but not in a training
        drive.tables.frame(found[0].token, Reads(sweeps=1))
    for i, (frame, before) in enumerate(zip(found, whole, strict=True)):
        lost = keyframe and i == 0
        assert set(before.cameras) - set(frame.cameras) == ({sensor} & {*CAMERAS} if lost else set())
        assert (frame.points is None) == (lost and sensor == "LIDAR_TOP")


def test_between_keyframes_of_one_time_no_velocity_is_known(tiny_root: Path) -> None:
    """Nor backwards in time: the devkit's would be infinite, or of the wrong sign."""
    rows = json.loads((tiny_root / table("sample")).read_text())
    first = rows[0]["timestamp"]
    for wrong, known in ((first, [False, True, True]), (first - 1_000_000, [False, True, False])):
        in_json(put("1.timestamp", wrong))(tiny_root / table("sample"))
        boxes = [NuScenesTables(tiny_root, VERSION).recording(row["token"]).annotated("boxes") for row in rows]
        assert [bool(np.isfinite(each.velocities).all()) for each in boxes] == known
        assert not any(np.isinf(each.velocities).any() for each in boxes)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda at: at("nowhere"), "nowhere: no such folder; give the dataroot"),
        (lambda at: at(version="v1.0-mini"), "has no version v1.0-mini; it has v1.0-tiny$"),
        (lambda at: at().frame("1234"), "no frame 1234"),
        (lambda at: JoinedTables(at().dataroot.parent, VERSION, RIG, NUSCENES).frame("1234"), "no frame 1234"),
        (lambda at: at().samples("test"), "has no split test; known are train, val, all$"),
        (lambda at: at().samples("val"), "no scene of split val is here; it has scene-0001$"),
        (lambda at: at().samples(None, ["scene-9999"]), "scene-9999: no such scene in .*-tiny; it has scene-0001$"),
        (lambda at: at().samples(None, ["scene-0001:2-4"]), "scene-0001:2-4: scene-0001 has keyframes 0 to 2;"),
        (lambda at: at().samples(None, ["scene-0001:x"]), "scene-0001:x: not a selector"),
    ],
)
def test_what_is_not_there_is_told(recorded_root: Path, ask: Callable[[Any], object], says: str) -> None:
    with one_line_error(says):
        ask(lambda folder="", version=VERSION: NuScenesTables(recorded_root / folder, version))


# Tables and submissions in blocks. Texts have all that could be taken for the end of a row or a list.
texts = st.text(st.sampled_from('}],{[:" \\\n\u00e9\U0001f697a'), max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda own: st.lists(own, max_size=3) | st.dictionaries(texts, own, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, values, max_size=4)
separators = st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")])
written = st.builds(dict, indent=st.sampled_from([None, 0, 2]), separators=separators, ensure_ascii=st.booleans())
each_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@each_file
@given(content=st.lists(objects, max_size=12), form=written, block=st.integers(1, 60))
def test_rows_are_those_of_the_file(tmp_path, monkeypatch, content, form, block):
    monkeypatch.setattr(tables, "_BLOCK", block + 8)  # the first has the bracket
    (tmp_path / "log.json").write_text(" " + json.dumps(content, **form), encoding="utf-8")
    assert list(tables.rows(tmp_path, "log")) == content


small = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5) | st.lists(st.floats(0, 1), max_size=2)


@each_file
@given(
    content=st.lists(st.dictionaries(st.text(max_size=3), small, max_size=2), max_size=30),
    number=st.sampled_from(["NaN", "Infinity"]),
    indent=st.sampled_from([None, 0, 2]),
)
def test_numbers_that_only_the_standard_library_reads(tmp_path, monkeypatch, content, number, indent):
    """Each row alone, also where a row lies in two reads."""
    monkeypatch.setattr(tables, "_CHUNK", 300)
    rows = [{"a": float(number)}, *content]
    (tmp_path / "log.json").write_text(json.dumps(rows, indent=indent))
    assert str([*tables.rows(tmp_path, "log")]) == str(rows)


@each_file
@given(content=st.lists(objects, min_size=1, max_size=6), block=st.integers(1, 60), data=st.data())
def test_a_damaged_table_gives_its_first_rows_and_one_line(tmp_path, monkeypatch, content, block, data):
    """Cut anywhere, at most the rows before the cut come, then the error."""
    monkeypatch.setattr(tables, "_BLOCK", block + 8)
    text = json.dumps(content)
    length = data.draw(st.integers(1, len(text) - 1))
    (tmp_path / "log.json").write_text(text[:length], encoding="utf-8")
    found = []
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'log.json'}: not valid JSON")):
        found.extend(tables.rows(tmp_path, "log"))
    assert found == content[: len(found)]
    assert len(json.dumps(found)) - 1 <= length


@each_file
@given(
    results=st.dictionaries(texts, st.lists(objects, max_size=3), max_size=5),
    more=st.dictionaries(texts.filter(lambda name: name != "results"), values, max_size=3),
    first=st.booleans(),
    form=written,
)
def test_samples_are_those_of_the_file(tmp_path, results, more, first, form):
    """Whatever else is in the file, before or behind the results."""
    content = {"results": results, **more} if first else {**more, "results": results}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content, **form), encoding="utf-8")
    assert list(read_samples(path, set(results))) == list(results.items())


@each_file
@given(results=st.dictionaries(texts, st.lists(objects, max_size=3), max_size=4), data=st.data())
def test_a_submission_that_was_cut_is_one_line(tmp_path: Path, results: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps({"results": results}, ensure_ascii=False).encode()
    path = tmp_path / "results.json"
    path.write_bytes(text[: data.draw(st.integers(0, len(text) - 1))])
    with pytest.raises(InputError, match="not a nuScenes submission"):
        list(read_samples(path, set(results)))


@pytest.mark.parametrize("between", ["},{", "} ,\n {"])
def test_a_table_is_not_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str) -> None:
    """However its rows are separated."""
    monkeypatch.setattr(tables, "_BLOCK", 1 << 17)
    monkeypatch.setattr(tables, "_CHUNK", 1 << 21)
    path, count = tmp_path / "log.json", 75_000
    path.write_text("[{" + between.join(['"name": "a row of some length"'] * count) + "}]")
    peaks, found = [], iter(tables.rows(tmp_path, "log"))
    for read in (lambda: next(found), lambda: json.loads(path.read_bytes())[0]):
        tracemalloc.start()
        assert read() == {"name": "a row of some length"}
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert sum(1 for _ in found) == count - 1
    assert peaks[0] < peaks[1] / 2


FILES = {"t": ["/data/t.json", 4, 1]}


def counted() -> Mock:
    """Computes arrays, and counts how often."""
    return Mock(side_effect=lambda: {"a": np.arange(6.0).reshape(2, 3), "b": np.array([b"x", b"yz"])})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for arrays of any size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("perception.io.cache.LEAST", 0)
    return tmp_path / "cache" / "perception"


def test_arrays_are_computed_once_for_what_they_depend_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = counted()
    for about in ({"x": 1}, {"x": 1}, {"x": 2}, {"x": 1, "y": 0}, {"x": 2}):
        found = cached_arrays("numbers", FILES, about, compute)
        for name, each in counted()().items():
            np.testing.assert_array_equal(found[name], each)
            assert found[name].dtype == each.dtype
            assert not found[name].flags.writeable
    assert compute.call_count == 3
    assert isinstance(cached_arrays("numbers", FILES, {"x": 1}, compute)["a"], np.memmap)
    other, mine = cached_arrays("numbers", {"t": ["/other/t.json", 4, 1]}, {}, compute), cache / "numbers-of mine"
    mine.mkdir()
    assert len(list(cache.glob("numbers-*"))) == 5
    for changed in (["/data/t.json", 4, 2], ["/data/t.json", 5, 2]):
        cached_arrays("numbers", {"t": changed}, {"x": 1}, compute)
        assert len(list(cache.glob("numbers-*"))) == 3  # it, that of the other files, and mine
    monkeypatch.setattr("perception.io.cache.FORMAT", 2)
    cached_arrays("numbers", {"t": changed}, {"x": 1}, compute)
    assert len(list(cache.glob("numbers-*"))) == 3
    assert mine.exists()
    np.testing.assert_array_equal(other["a"], found["a"])
    monkeypatch.setattr("perception.io.cache.LEAST", 6 * 8 + 2 * 2 + 1)
    cached_arrays("small", FILES, {}, compute)
    assert not list(cache.glob("small*"))


@pytest.mark.parametrize(
    ("file", "damage"),
    [("a.npy", cut(140)), ("b.npy", delete), ("b.npy", write("?")), *(("arrays.json", write(each)) for each in "{3")],
)
def test_damaged_arrays_are_computed_anew(cache: Path, file: str, damage: Damage) -> None:
    compute = counted()
    cached_arrays("numbers", FILES, {}, compute)
    [folder] = cache.iterdir()
    damage(folder / file)
    for calls in (2, 2):
        np.testing.assert_array_equal(cached_arrays("numbers", FILES, {}, compute)["a"], np.arange(6.0).reshape(2, 3))
        assert compute.call_count == calls


def test_without_a_cache_that_can_be_written(cache: Path) -> None:
    cache.parent.write_text("a file, where a folder should be")
    compute = counted()
    for calls in (1, 2):
        assert len(cached_arrays("numbers", FILES, {}, compute)) == 2
        assert compute.call_count == calls


def test_stored_tables_are_read_anew_if_changed_or_for_another_rig_or_other_classes(tiny_root, cache, monkeypatch):
    first = NuScenesTables(tiny_root, VERSION)
    samples = first.samples()
    whole = [first.frame(sample, Reads(sweeps=2, cameras=False)) for sample in samples]
    assert len(list(cache.iterdir())) == 2
    with monkeypatch.context() as patch:
        for module in (tables, recordings):
            patch.setattr(module, "_read", None)  # not called again
        second = NuScenesTables(tiny_root, VERSION)
        assert {**second.recordings} == {**first.recordings}
        assert second.recordings.sweep_files() == first.recordings.sweep_files()
        for sample, before in zip(samples, whole, strict=True):
            frame = second.frame(sample, Reads(sweeps=2, cameras=False))
            assert (frame.timestamp, frame.scene) == (before.timestamp, before.scene)
            for name in ("global_from_ego", "points"):
                np.testing.assert_array_equal(getattr(frame, name), getattr(before, name))
            for name, value in vars(before.boxes).items():
                np.testing.assert_array_equal(getattr(frame.boxes, name), value)
    path, (sample, *_), (frame, *_) = tiny_root / table("ego_pose"), samples, whole
    rows = json.loads(text := path.read_text())
    for row in rows:
        row["translation"][2] += 4.0
    path.write_text(json.dumps(rows))
    raised = NuScenesTables(tiny_root, VERSION).frame(sample, Reads(cameras=False))
    np.testing.assert_allclose(raised.global_from_ego[:3, 3], frame.global_from_ego[:3, 3] + [0, 0, 4])
    path.write_text(text)
    one = RIG.model_copy(update={"cameras": RIG.cameras[:1]})
    assert len(NuScenesTables(tiny_root, VERSION, one).recordings[sample]) == 2
    fewer = NUSCENES.model_copy(update={"classes": NUSCENES.classes[1:]})
    of_fewer = NuScenesTables(tiny_root, VERSION, RIG, fewer).frame(sample, Reads(cameras=False))
    assert len(of_fewer.boxes) < len(frame.boxes)
