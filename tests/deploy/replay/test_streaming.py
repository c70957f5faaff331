"""Streaming scores: an object is as far off as it drives meanwhile; without latency nothing changes."""

import json
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import one_line_error
from exported import QUIET, remembering
from hypothesis import given
from hypothesis import strategies as st
from recordings import STORAGES, TINY
from replays import VERSION, assert_same, record, replay_with_faults, unreadable
from tiny import token, write_tiny
from vocabulary import NUSCENES

from deploy.log import write_log
from deploy.recordings.choice import Selection
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source, parse_streaming
from deploy.replay.streaming import SCORES, STREAMED, Schedule, StreamWriter, measure_streaming
from deploy.replay.writers import StatisticsWriter
from perception.errors import InputError
from perception.frame import Boxes, Frame, Prediction
from perception.tasks.detection.devkit import RESULTS
from perception.tasks.detection.submission import SubmissionWriter
from perception.tasks.detection.task import DetectionTask


def brute_force(frames: list[tuple[int, int]], time: int) -> int | None:
    """The latest frame of which the output has come out at a time, by the definition."""
    latest, free, taken = None, 0, -1
    while True:
        arrived = [i for i, (arrival, _) in enumerate(frames) if arrival <= free and i > taken]
        later = [i for i, (arrival, _) in enumerate(frames) if arrival > free]
        if not arrived and not later:
            return latest
        taken = arrived[-1] if arrived else later[0]
        free = max(free, frames[taken][0]) + frames[taken][1]
        if free > time:
            return latest
        latest = taken


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 12)), min_size=1, max_size=12))
def test_the_newest_frame_is_next_and_the_latest_output_counts(steps: list[tuple[int, int]]) -> None:
    """Frames come after so many us and take so many."""
    times = np.cumsum([step for step, _ in steps]).tolist()
    frames = [(time, duration) for time, (_, duration) in zip(times, steps, strict=True)]
    schedule = Schedule[int]()
    for i, (time, duration) in enumerate(frames):
        schedule.add(time, duration, i)
        assert schedule.latest(time) == brute_force(frames[: i + 1], time)


SPEED, RATE, LAST = 3.9, 10, 30  # m/s of the car; Hz; the last frame
THRESHOLDS = (0.5, 1.0, 2.0, 4.0)  # m, of nuScenes' AP


def frame_at(i: int) -> tuple[Frame, Boxes]:
    """Frame i of a turning vehicle, and the car that drives past it, in the vehicle's reference."""
    seconds = i / RATE
    yaw, pose = 0.3 * seconds, np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    pose[:2, 3] = 2.0 * seconds, 5.0
    car = Boxes.from_yaws(
        np.array([[SPEED * seconds, 10.0, 1.0]]), np.array([[1.9, 4.6, 1.7]]), np.zeros(1), np.array([[SPEED, 0.0]]),
        np.array([NUSCENES.label("car")]), np.array([0]), np.array([0.9]),
    )  # fmt: skip
    truth = {"boxes": car, "bicycle_racks": []}
    frame = Frame(f"t{i}", 1_000_000 + 100_000 * i, "ego", pose, pose, None, {}, scene="scene-0001", truth=truth)
    return frame, car.transformed(np.linalg.inv(pose))


def score(out: Path, latency: float | None) -> dict[str, Any]:
    """Scores of a perfect detector, at three keyframes one second apart; None: it takes 200 ms, by measurement."""
    settings = Settings(streaming="measured", latency=True) if latency is None else Settings(streaming=latency)
    taxonomy, sensors = NUSCENES, ("lidar",)
    manifest: Any = SimpleNamespace(sensors=sensors, taxonomy=taxonomy)
    task: Any = SimpleNamespace(metric=lambda *_: DetectionTask.metric(taxonomy), taxonomy=taxonomy, grid=None)
    with ExitStack() as files:
        at_once = files.enter_context(SubmissionWriter.open(out / RESULTS, sensors, taxonomy))
        statistics = StatisticsWriter(
            files.enter_context((out / "statistics.jsonl").open("wb")), sensors, {"detection": task}
        )
        stream = StreamWriter.open(files, out, manifest, settings)
        assert stream is not None
        for i in range(LAST + 1):
            frame, boxes = frame_at(i)
            prediction = Prediction({"detection": boxes})
            seen: Any = SimpleNamespace(seconds={"read": 0.05, "engine": 0.15}, prediction=prediction)
            stream.add(frame, seen)
            if i and i % RATE == 0:
                at_once.add(frame, boxes)
                statistics.add(frame, prediction)
                stream.write(frame)
    record(out)
    return measure_streaming(out, settings)


@pytest.mark.parametrize(
    ("latency", "ages"),
    [
        (0.0, [0.0] * 3),
        (0.1, [0.1] * 3),
        (0.15, [0.3, 0.2, 0.2]),  # begun: the frames of 0, 0.1 at 0.15, 0.3, 0.4 at 0.45, 0.6, 0.7 at 0.75, ...
        (0.2, [0.2] * 3),
        (0.5, [0.5] * 3),
        (0.7, [1.0, 1.3, 0.9]),
        (1.0, [1.0] * 3),
    ],
)
def test_an_object_is_off_by_its_speed_times_the_age_of_the_output(
    tmp_path: Path, latency: float, ages: list[float]
) -> None:
    found = score(tmp_path, latency)
    places = [boxes[0]["translation"] for boxes in json.loads((tmp_path / STREAMED).read_text())["results"].values()]
    expected = [[SPEED * (k - age), 10.0, 1.0] for k, age in zip((1, 2, 3), ages, strict=True)]
    np.testing.assert_allclose(places, expected, atol=1e-9)
    at_once, streaming = (
        [found[name]["label_aps"]["car"][str(t)] for t in THRESHOLDS] for name in ("at_once", "streaming")
    )
    assert at_once == pytest.approx([1.0] * 4)
    if len({*ages}) == 1:
        assert streaming == pytest.approx([float(SPEED * ages[0] < threshold) for threshold in THRESHOLDS])
    if latency == 0:
        assert found["at_once"] == found["streaming"]
        assert (tmp_path / STREAMED).read_bytes() == (tmp_path / RESULTS).read_bytes()
    assert json.loads((tmp_path / SCORES).read_text()) == json.loads(json.dumps(found))


def test_before_the_first_output_there_is_none(tmp_path: Path) -> None:
    found = score(tmp_path, 3.5)
    assert [*json.loads((tmp_path / STREAMED).read_text())["results"].values()] == [[]] * 3
    assert (found["at_once"]["mAP_present"], found["streaming"]["mAP_present"]) == (pytest.approx(1.0), 0.0)


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five keyframes at 2 Hz, and a frame between each two."""
    root = tmp_path_factory.mktemp("drive") / "tiny"
    write_tiny(root, 5, between=True)
    return root


@pytest.fixture(scope="module")
def plain(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a replay without streaming scores."""
    out = tmp_path_factory.mktemp("plain")
    replayed(drive, out)
    return out


def replayed(drive: Path, out: Path, **options: Any) -> dict[str, Any]:
    return replay_with_faults(drive, out, bundle=remembering().path, faults=[], **options)


def read(out: Path, name: str) -> Any:
    return json.loads((out / name).read_text())["results"]


@pytest.mark.slow("the first test that needs the bundle exports it")
def test_a_replay_writes_both_scores_and_the_others_stay(drive: Path, plain: Path, tmp_path: Path) -> None:
    """Without latency they are equal; with that of a period it is what the frame between has shown."""
    for latency in (0.0, 0.25):
        out = tmp_path / str(latency)
        summary = replayed(drive, out, streaming=latency)
        assert_same(out, plain)
        found = json.loads(Path(summary["streaming"]).read_text())
        assert (found["latency"], found["at_once"] == found["streaming"]) == (latency, latency == 0)
    assert (tmp_path / "0.0" / STREAMED).read_bytes() == (plain / RESULTS).read_bytes()
    late, at_once = read(tmp_path / "0.25", STREAMED), read(plain, RESULTS)
    assert [*late] == [*at_once]
    assert late[token("sample", 0)] == []
    assert all(late[token("sample", i)] != at_once[token("sample", i)] for i in range(1, 5))
    slow = tmp_path / "0.5"
    replayed(drive, slow, streaming=0.5)  # now every frame but those of keyframes is dropped
    for i in range(1, 5):
        boxes = [{**box, "sample_token": token("sample", i)} for box in at_once[token("sample", i - 1)]]
        assert read(slow, STREAMED)[token("sample", i)] == boxes
    replayed(drive, slow)
    assert not (slow / STREAMED).exists()
    assert not (slow / SCORES).exists()


@pytest.mark.slow("three replays, as the bytes must be those without an interruption")
def test_an_interrupted_replay_ends_with_the_same(drive: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"streaming": 0.25, "segment": 1.0}
    replayed(drive, tmp_path / "whole", **options)
    out = tmp_path / "out"
    with unreadable(drive, -1) as name, pytest.raises(InputError, match=name):
        replayed(drive, out, **options)
    with one_line_error("is of an unfinished replay with streaming 0.25"):
        replayed(drive, out, segment=1.0)
    assert replayed(drive, out, **options)["resumed_at_frame"] > 0
    assert_same(out, tmp_path / "whole")
    for name in (STREAMED, SCORES):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_measured_latencies_are_those_of_each_frame(drive: Path, tmp_path: Path) -> None:
    """All stages of it."""
    (tmp_path / "given").mkdir()
    (tmp_path / "measured").mkdir()
    given, measured = (score(tmp_path / name, latency) for name, latency in (("given", 0.2), ("measured", None)))
    assert (measured["streaming"], measured["latency"]) == (given["streaming"], "measured")
    replayed(drive, tmp_path / "replay", streaming="measured", latency=True, selection=Selection(end=1.0))
    assert [*read(tmp_path / "replay", STREAMED)] == [token("sample", i) for i in range(2)]


def test_what_cannot_be_measured_is_refused(drive: Path, tmp_path: Path) -> None:
    assert (parse_streaming(""), parse_streaming("measured"), parse_streaming("200")) == (None, "measured", 0.2)
    for text, why in (("soon", "give milliseconds, such as 200"), ("nan", "up to 10000"), ("-1", "up to 10000")):
        with one_line_error(why):
            Settings(streaming=parse_streaming(text))
    with one_line_error("needs --latency"):
        Settings(streaming="measured")
    path = tmp_path / STORAGES["file"]
    write_log(drive, f"{TINY}:0-2", path, "file", VERSION, 0)
    with one_line_error("a recording has no annotations"):
        replay(Source(path), remembering().path, tmp_path / "out", Settings(streaming=0.1), console=QUIET)
