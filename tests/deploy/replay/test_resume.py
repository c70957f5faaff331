"""A replay that broke off ends with the same bytes; of a drive in segments every frame is as in an undivided one."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from commands import one_line_error
from exported import QUIET, rewritten
from hypothesis import given
from hypothesis import strategies as st
from pages import page_data, timeless
from recordings import SPEC, STORAGES, TINY
from replays import VERSION, assert_same, replay_with_faults, small, unreadable
from rich.console import Console
from tiny import write_scenes, write_tiny

from deploy.log import write_log
from deploy.recordings import open_drives, payloads
from deploy.recordings.choice import FrameChoice, Segment, Selection
from deploy.replay.fleet import PART
from deploy.replay.folder import OccupiedError, occupy
from deploy.replay.player import Player
from deploy.replay.report import DriveRange
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from perception.errors import InputError

SCENES, KEYFRAMES = 3, 5
FAULTS = ["drop:lidar@0.5-1"]


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drives") / "tiny"
    write_scenes(root, SCENES, KEYFRAMES)
    return root


@pytest.fixture(scope="module")
def whole(drives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a replay without interruption."""
    out = tmp_path_factory.mktemp("whole")
    summary = replay_with_faults(drives, out, faults=FAULTS)
    assert (summary["frames"], summary["resumed_at_frame"]) == (SCENES * KEYFRAMES, 0)
    assert not (out / "scenes").exists()
    return out


@pytest.fixture(scope="module")
def stopped(drives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a replay that could not read the last frame of the last drive."""
    out = tmp_path_factory.mktemp("stopped")
    with unreadable(drives, -1) as name, pytest.raises(InputError, match=name):
        replay_with_faults(drives, out, faults=FAULTS)
    assert sorted(path.name for path in out.iterdir()) == ["scenes"]
    assert [(out / "scenes" / f"{i}" / PART).exists() for i in range(SCENES)] == [True, True, False]
    return out


def assert_all_same(out: Path, expected: Path) -> None:
    """Files, what replay.json says of the drives, and the report."""
    assert_same(out, expected)
    records = [json.loads((each / "replay.json").read_text()) for each in (out, expected)]
    assert records[0]["drives"] == records[1]["drives"]
    assert len(records[0]["drives"]) == SCENES
    assert timeless(out) == timeless(expected)
    assert not (out / "scenes").exists()


def test_finished_drives_are_not_read_again(drives: Path, whole: Path, stopped: Path, tmp_path: Path) -> None:
    out = Path(copytree(stopped, tmp_path / "out"))
    files = sorted((drives / "samples" / "CAM_FRONT").iterdir())[: (SCENES - 1) * KEYFRAMES]
    contents = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    try:
        assert replay_with_faults(drives, out, faults=FAULTS)["resumed_at_frame"] == (SCENES - 1) * KEYFRAMES
    finally:
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
    assert_all_same(out, whole)


class Stopped(Exception):
    pass


def test_a_drive_under_way_is_replayed_again(
    drives: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second drive the replay ends, as by Ctrl-C."""
    left = iter(range(KEYFRAMES + 2))

    def advance(*_: Any) -> None:
        if next(left, None) is None:
            raise Stopped

    monkeypatch.setattr("deploy.replay.run._Progress.advance", advance)
    with pytest.raises(Stopped):
        replay_with_faults(drives, tmp_path, faults=FAULTS)
    monkeypatch.undo()
    assert replay_with_faults(drives, tmp_path, faults=FAULTS)["resumed_at_frame"] == KEYFRAMES
    assert_all_same(tmp_path, whole)


def test_of_another_replay_they_are_refused_in_one_line(drives: Path, stopped: Path, tmp_path: Path) -> None:
    out, bundle = Path(copytree(stopped, tmp_path / "out")), Path(copytree(small(), tmp_path / "bundle"))
    moved = Path(copytree(drives, tmp_path / "moved"))
    others: dict[str, tuple[Path, dict[str, Any]]] = {
        "bundle": (drives, {"bundle": rewritten(bundle, name="other")}),
        "drive": (moved, {}),
        "scenes": (drives, {"scenes": ["scene-0001"]}),
        "faults": (drives, {"faults": []}),
        "selection": (drives, {"selection": Selection(every=2)}),
    }
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    for what, (root, options) in others.items():
        with one_line_error(rf"is of an unfinished replay with {what} .* remove the folder scenes to restart"):
            replay_with_faults(root, out, **({"faults": FAULTS} | options))
        assert {file: file.read_bytes() for file in before} == before


def test_a_scene_that_was_added_before_is_not_taken_for_another(drives: Path, stopped: Path, tmp_path: Path) -> None:
    """All scenes are replayed, and the first one is another now."""
    out, root = Path(copytree(stopped, tmp_path / "out")), drives
    table = root / VERSION / "scene.json"
    content = table.read_text()
    table.write_text(content.replace("scene-0001", "scene-0000"))
    try:
        with one_line_error("is of an unfinished replay with scene scene-0001 .now scene-0000"):
            replay_with_faults(root, out, faults=FAULTS)
    finally:
        table.write_text(content)


def changed(part: Path) -> None:
    found = json.loads(part.read_text())
    assert {"numpy", "source", "compiler", "processor"} <= found["computed"].keys()
    found["computed"]["processor"] = "another"
    part.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (changed, "scene-0001: restarting, because it was replayed with processor another (now "),
        *((lambda part, content=content: part.write_text(content), "") for content in ("", "[]", '{"about": {}}')),
    ],
)
def test_what_another_machine_or_nobody_finished_is_replayed_again(
    drives: Path, whole: Path, stopped: Path, tmp_path: Path, damage: Callable[[Path], Any], says: str
) -> None:
    out, said = Path(copytree(stopped, tmp_path / "out")), io.StringIO()
    damage(out / "scenes" / "0" / PART)
    summary = replay_with_faults(drives, out, faults=FAULTS, console=Console(file=said, width=1000))
    assert summary["resumed_at_frame"] == (SCENES - 2) * KEYFRAMES
    assert says in said.getvalue()
    assert "resuming the interrupted replay" in said.getvalue()
    assert_all_same(out, whole)


def test_latencies_and_viewers_files_are_of_one_run(drives: Path, whole: Path, tmp_path: Path) -> None:
    """So the drives that are finished are replayed again; for latencies two frames of each of two, at their pace."""
    paced = {"latency": True, "selection": Selection(end=1.0), "scenes": ["scene-0001", "scene-0002"]}
    for name, last, own in (("paced", KEYFRAMES + 1, paced), ("viewed", -1, {"viewers": ["foxglove"]})):
        out, options = tmp_path / name, {"faults": FAULTS, **own}
        with unreadable(drives, last), pytest.raises(InputError):
            replay_with_faults(drives, out, **options)
        assert (out / "scenes" / "0" / PART).exists()
        assert not (out / "results.mcap").exists()
        assert replay_with_faults(drives, out, **options)["resumed_at_frame"] == 0
    assert json.loads((tmp_path / "paced" / "latency.json").read_text())["frames"] == 4
    assert_all_same(out, whole)
    assert (out / "results.mcap").exists()


def test_two_replays_do_not_write_one_folder(drives: Path, whole: Path, tmp_path: Path) -> None:
    """And the second one leaves no error there."""
    for _ in range(2):
        with occupy(tmp_path), pytest.raises(OccupiedError, match="another replay writes there; wait for it"):
            replay_with_faults(drives, tmp_path, faults=FAULTS)
    assert list(tmp_path.iterdir()) == []
    replay_with_faults(drives, tmp_path, faults=FAULTS)
    assert_all_same(tmp_path, whole)


def test_parts_of_a_scene_are_one_drive(drives: Path, whole: Path, tmp_path: Path) -> None:
    """Its tracks go on; and no name of a scene is a way out of the folder."""
    parts = ["scene-0001:0-2", "scene-0001:2-5", "scene-0002", "scene-0003"]
    replay_with_faults(drives, tmp_path / "parts", scenes=parts, faults=FAULTS)
    assert_all_same(tmp_path / "parts", whole)
    table = Path(copytree(drives, tmp_path / "drives")) / VERSION / "scene.json"
    table.write_text(table.read_text().replace("scene-0001", "../../../escaped"))
    out = tmp_path / "in" / "a" / "folder"
    replay(Source(tmp_path / "drives", VERSION, ["../../../escaped"]), small(), out, console=QUIET)
    assert (out / "results.json").exists()
    assert not list(tmp_path.rglob("escaped*"))


FRAMES, LENGTH = 32, 6.0  # keyframes at 2 Hz, and s
SEGMENTS = {"scene-0001@0s": 12, "scene-0001@6s": 12, "scene-0001@12s": 8}
DROP = ["drop:lidar@2-4"]


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drive") / "tiny"
    write_tiny(root, FRAMES)
    return root


@pytest.fixture(scope="module")
def undivided(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a replay without segments."""
    out = tmp_path_factory.mktemp("whole")
    replay_with_faults(drive, out, faults=DROP)
    return out


@pytest.fixture(scope="module")
def cut(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a replay in segments."""
    out = tmp_path_factory.mktemp("cut")
    assert replay_with_faults(drive, out, segment=LENGTH, faults=DROP)["frames"] == FRAMES
    return out


def read(out: Path, name: str) -> Any:
    return json.loads((out / name).read_text())


def assert_cut(out: Path, whole: Path) -> None:
    """Every frame once, with what the network says of it, and what a verdict needs."""
    for name in ("results.json", "statistics.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert read(out, "tracks.json")["results"].keys() == read(whole, "tracks.json")["results"].keys()


@pytest.mark.parametrize("faults", [DROP, ["delay:lidar,seconds=1.2@2-8", "freeze:lidar@10-16"]])
def test_frames_and_detections_are_those_of_the_undivided_replay(
    drive: Path, undivided: Path, cut: Path, tmp_path: Path, faults: list[str]
) -> None:
    whole, out = undivided, cut
    if faults != DROP:  # these need earlier frames than those of the warm-up
        whole, out = tmp_path / "whole", tmp_path / "out"
        replay_with_faults(drive, whole, faults=faults)
        replay_with_faults(drive, out, faults=faults, segment=LENGTH)
    assert_cut(out, whole)
    assert {each["name"]: each["frames"] for each in read(out, "replay.json")["drives"]} == SEGMENTS
    assert read(out, "replay.json")["segment"] == {"seconds": 6.0, "warm_up": 10.0}
    assert [each["frames"] for each in read(out, "sources.json")] == [*SEGMENTS.values()]
    page = page_data(out / "report.html")
    assert [name for _, name in page["scenes"]] == [*SEGMENTS]
    assert page["bundle"]["selection"].endswith("every 1, in segments of 6 s after a warm-up of 10 s")


def places(tracks: Any) -> set[tuple[float, ...]]:
    return {tuple(box["translation"]) for box in tracks}


def test_a_segment_is_warm_and_has_ids_of_its_own(drive: Path, undivided: Path, cut: Path, tmp_path: Path) -> None:
    """In its first frames it follows most of the objects that are followed without a seam; cold it would not."""
    expected, warm = (list(read(out, "tracks.json")["results"].values()) for out in (undivided, cut))
    runtime = Runtime(small())
    [scene] = open_drives(drive, VERSION, (), runtime.bundle.spec, None)
    Player(runtime, Settings(faults=DROP)).play(scene, tmp_path, DriveRange(24, 8, 32), Segment(2, 12.0, 18.0, 0.0))
    cold = list(read(tmp_path, "tracks.json")["results"].values())
    for i in (24, 25):
        there = places(expected[i])
        assert len(places(warm[i]) & there) > len(there) / 2
        assert len(places(warm[i]) & there) > len(places(cold[i - 24]) & there)
    ids = [{int(box["tracking_id"]) for each in warm[12 * n : 12 * n + 12] for box in each} for n in range(3)]
    assert all(1 + n * 10**6 <= track < (n + 1) * 10**6 for n, each in enumerate(ids) for track in each)
    assert all(ids)


def test_the_same_command_goes_on_with_segments_that_are_finished(drive: Path, cut: Path, tmp_path: Path) -> None:
    """Of the last one alone, frames of the warm-up and its own are read: those before may be gone."""
    root = Path(copytree(drive, tmp_path / drive.name))
    out = tmp_path / "out"
    with unreadable(root, -1) as name, pytest.raises(InputError, match=name):
        replay_with_faults(root, out, segment=LENGTH, faults=DROP)
    assert [(out / "scenes" / f"{i}" / PART).exists() for i in range(3)] == [True, True, False]
    with one_line_error("is of an unfinished replay with segment"):
        replay_with_faults(root, out, segment=7.0, faults=DROP)
    for picture in sorted((root / "samples" / "CAM_FRONT").iterdir())[: 2 * (12 - 10)]:
        picture.write_bytes(b"damaged")
    assert replay_with_faults(root, out, segment=LENGTH, faults=DROP)["resumed_at_frame"] == 24
    assert_same(out, cut)
    assert timeless(out) == timeless(cut)


def test_a_recording_is_cut_and_no_picture_of_other_frames_is_decoded(
    drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, decoded = tmp_path / STORAGES["file"], list[bytes]()
    write_log(drive, f"{TINY}:0-20", path, "file", VERSION, 2)
    for name, length in (("whole", None), ("cut", 4.0)):
        settings = Settings(segment=length)
        assert replay(Source(path), small(), tmp_path / name, settings, console=QUIET)["frames"] == 20
    assert_cut(tmp_path / "cut", tmp_path / "whole")
    [recording] = open_drives(path, None, (), SPEC, None)
    decode = payloads.decode_image
    monkeypatch.setattr(payloads, "decode_image", lambda content: decoded.append(content) or decode(content))
    frames = [*recording.frames(FrameChoice(Selection(), Segment(1, 6.0, 8.0, 1.0)))]
    assert len(frames) == 2 + 4
    assert len(decoded) == sum(len(frame.cameras) for frame in frames)
    assert recording.counts.frames == 4


selections = st.builds(
    lambda start, length, every: Selection(start, start + length, every),
    st.sampled_from([0.0, 0.5, 7.0]),
    st.sampled_from([2.0, 3.75, math.inf]),
    st.integers(1, 3),
)


@given(selections, st.lists(st.integers(0, 20_000_000), min_size=1, max_size=60), st.sampled_from([0.5, 2.0, 7.5]))
def test_every_selected_frame_is_in_one_segment(selection: Selection, times: list[int], length: float) -> None:
    """By a clock that is set back, too; those of the warm-up are among the selected ones."""

    def chosen(segment: Segment | None) -> list[int]:
        choice, found = FrameChoice(selection) if segment is None else FrameChoice(selection, segment), list[int]()
        for i, time in enumerate(times):
            if choice("", time):
                assert segment is not None or not choice.warming
                if choice.warming:
                    warm.add(i)
                else:
                    found.append(i)
        return found

    warm = set[int]()
    whole = chosen(None)
    parts = selection.segments(1e-6 * float(np.ptp(times)), length)
    assert [i for part in parts for i in chosen(part)] == whole
    assert warm <= set(whole)


def test_a_length_of_no_time_is_refused() -> None:
    for length in (0.0, -1.0, math.inf, math.nan):
        with one_line_error("--segment .*: give the seconds of a segment, such as 60"):
            Settings(segment=length)
