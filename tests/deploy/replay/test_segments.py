"""Long drives that are cut into segments: every frame once, with the results of the undivided replay."""

import json
import math
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from commands import one_line_error
from exported import QUIET
from hypothesis import given
from hypothesis import strategies as st
from pages import page_data, timeless
from recordings import SPEC, STORAGES, TINY
from replays import VERSION, assert_same, replay_with_faults, small, unreadable
from tiny import write_tiny

from deploy.log import write_log
from deploy.recordings import open_drives, payloads
from deploy.recordings.choice import FrameChoice, Segment, Selection
from deploy.replay.fleet import PART
from deploy.replay.player import Player
from deploy.replay.report import DriveRange
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from perception.errors import InputError

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
