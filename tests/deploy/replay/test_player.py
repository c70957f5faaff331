"""A replay that is killed goes on and ends with the same bytes; parts of a drive; memory on a long drive."""

import gc
import json
import multiprocessing
import random
import resource
import shutil
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import assert_equal, rewritten
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from judged import instead
from replays import FAULTS, FRAMES, VERSION, assert_same, begun, change, frames, record_of, replayed, small
from tiny import token, write_tiny
from vocabulary import MAP_CLASSES, NUSCENES, PRIOR, SENSORS

from deploy.replay.faults import Fault, inject
from deploy.replay.journal import JOURNAL, Journal
from deploy.replay.player import Player
from deploy.replay.run import replay
from deploy.replay.selection import Selection
from deploy.replay.settings import Settings, Source
from deploy.replay.sources.counts import Counts
from deploy.replay.undecoded import Known
from deploy.runtime import Runtime
from perception.errors import InputError
from perception.frame import Frame, Prediction
from perception.grid import BevGrid
from perception.tasks.detection.tracking import TrackWriter
from perception.tasks.map.codec import pack_map, unpack_map
from perception.tasks.map.iou import predicted_cells
from perception.tasks.map.memory import MapMemory


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataroot with a drive of FRAMES keyframes at 2 Hz."""
    root = tmp_path_factory.mktemp("drive") / "tiny"
    write_tiny(root, FRAMES)
    return root


@pytest.fixture(scope="module")
def undisturbed(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(drive, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def faultless(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(drive, tmp_path_factory.mktemp("faultless"), faults=[])


def whole(drive: Path, out: Path, **options: Any) -> Path:
    summary = replayed(drive, out, **options)
    assert (summary["frames"], summary["resumed_at_frame"]) == (FRAMES, 0)
    assert not (out / JOURNAL).exists()
    return out


@pytest.fixture(scope="module")
def stopped(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The journal of a replay that could not read the last frame."""
    out = tmp_path_factory.mktemp("stopped")
    last = max((drive / "samples" / "LIDAR_TOP").iterdir())
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    with pytest.raises(InputError, match=last.name):
        replayed(drive, out)
    last.write_bytes(content)
    assert not (out / "results.json").exists()
    return (out / JOURNAL).read_bytes()


def test_two_replays_give_the_same_bytes(drive: Path, undisturbed: Path, tmp_path: Path) -> None:
    replayed(drive, tmp_path)
    assert_same(tmp_path, undisturbed)


@pytest.mark.parametrize(("faults", "expected"), [(FAULTS, "undisturbed"), ([], "faultless")])
def test_killed_at_10_random_moments_it_ends_with_the_same_bytes(
    drive: Path, stopped: bytes, tmp_path: Path, faults: list[str], expected: str, request: pytest.FixtureRequest
) -> None:
    """A third of them before another frame is in the journal, the others once it has grown by up to a tenth.

    With faults all frames are read again, without them only those that the journal lacks.
    """
    undisturbed: Path = request.getfixturevalue(expected)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deploy.replay.run", "deploy.engines.onnxruntime"])
    rng, kills, journal = random.Random(0), 0, tmp_path / JOURNAL
    stale = [tmp_path / name for name in ("verdict.json", "junit.xml", "latency.json", "report.html")]
    for file in stale:
        file.write_text("of before")
    step, sizes = len(stopped) // 10, set()
    while kills < 10:
        moment = size(journal) + max(0, rng.randrange(-step // 2, step))
        given = (Source(drive, VERSION), small(), tmp_path, Settings(faults=faults))
        process = context.Process(target=replay, args=given)
        process.start()
        while process.is_alive() and size(journal) < moment:
            time.sleep(0.001)
        process.join(rng.uniform(0, 0.02))
        process.kill()
        process.join()
        kills += process.exitcode != 0  # one that was done before the kill was not killed
        sizes.add(size(journal))
        old = [file for file in stale if file.exists() and file.read_bytes() == b"of before"]
        assert size(journal) < 10_000 or not old
    assert len(sizes) > 5
    replayed(drive, tmp_path, faults=faults)
    assert_same(tmp_path, undisturbed)
    assert not (tmp_path / JOURNAL).exists()


def size(journal: Path) -> int:
    """Of the database and its write-ahead log."""
    return sum(file.stat().st_size for file in (journal, write_ahead(journal)) if file.exists())


def write_ahead(journal: Path) -> Path:
    return journal.with_name(f"{journal.name}-wal")


@pytest.mark.parametrize(
    ("damage", "resumed"), [("none", FRAMES - 1), ("flipped", 60), ("lost", 60), ("torn", 0), ("garbage", 0)]
)
def test_a_damaged_journal_is_used_up_to_the_damage(
    drive: Path, undisturbed: Path, stopped: bytes, tmp_path: Path, damage: str, resumed: int
) -> None:
    """Up to a record that is damaged or lost; not at all where the database is."""
    content, path = bytearray(stopped), tmp_path / JOURNAL
    if damage == "torn":
        del content[len(content) // 2 :]
    elif damage == "garbage":
        content[: len(content) // 2] = b"\xff" * (len(content) // 2)
    path.write_bytes(content)
    if damage == "flipped":
        record = bytearray(record_of(path, 61))  # of frame 60: record 0 is no frame's
        record[len(record) // 2] ^= 1
        change(path, "UPDATE records SET content = ? WHERE number = 61", bytes(record))
    elif damage == "lost":
        change(path, "DELETE FROM records WHERE number = 61")
    assert replayed(drive, tmp_path)["resumed_at_frame"] == resumed
    assert_same(tmp_path, undisturbed)
    latency = json.loads((tmp_path / "latency.json").read_text())
    assert latency["frames"] == FRAMES
    assert latency["stages"]["engine"]["p50"] > 0


@pytest.fixture(scope="module")
def killed(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, list[int], list[Prediction]]:
    """A journal of six frames as a kill leaves it: database, write-ahead log, where in that each record ends."""
    path, ends = tmp_path_factory.mktemp("killed") / JOURNAL, []
    runtime, seen = Runtime(small()), []
    with Journal(path, {}) as journal:
        ends.append(write_ahead(path).stat().st_size)
        for frame in first_frames(drive)[:6]:
            seen.append(runtime.step(frame))
            journal.add(frame, seen[-1])
            ends.append(write_ahead(path).stat().st_size)
        whole = path.read_bytes(), write_ahead(path).read_bytes()
    return *whole, ends, [each.prediction for each in seen]


Killed = tuple[bytes, bytes, list[int], list[Prediction]]


def without_map(prediction: Prediction) -> Prediction:
    return replace(prediction, results={k: v for k, v in prediction.results.items() if k != "map"})


def assert_a_beginning(path: Path, drive: Path, killed: Killed) -> int:
    """What is recalled are the first frames, as they were perceived; frames are added behind them. Their number."""
    given, expected = first_frames(drive), killed[3]
    with Journal(path, {}) as journal:
        recalled = [journal.recall(frame) for frame in given]
        whole = journal.recalled
        assert journal.resumed == (whole > 0)
        for i, (found, prediction) in enumerate(zip(recalled, expected, strict=False)):
            assert (found is not None) == (i < whole)
            if found is not None:
                assert_equal(*(without_map(each) for each in (found.prediction, prediction)))
        journal.add(given[whole], Runtime(small()).step(given[whole]))
    with Journal(path, {}) as journal:
        assert [journal.recall(frame) is not None for frame in given] == [i <= whole for i in range(7)]
    return whole


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_anywhere_it_holds_the_frames_that_are_whole(
    drive: Path, killed: Killed, tmp_path: Path, data: st.DataObject
) -> None:
    database, log, ends, _ = killed
    cut = data.draw(st.integers(0, ends[-1]) | st.sampled_from(ends))
    (tmp_path / JOURNAL).write_bytes(database)
    write_ahead(tmp_path / JOURNAL).write_bytes(log[:cut])
    assert assert_a_beginning(tmp_path / JOURNAL, drive, killed) == max(sum(end <= cut for end in ends) - 1, 0)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_anywhere_it_gives_the_first_frames_or_none(
    drive: Path, killed: Killed, tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(killed[0])
    write_ahead(path).write_bytes(killed[1])
    with Journal(path, {}):
        pass  # SQLite moves what is in the log to the database
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 4200))
    kind = data.draw(st.sampled_from(["byte", "cut", "zeros"]))
    if kind == "cut":
        del content[at:]
    else:
        length = 1 if kind == "byte" else min(512, len(content) - at)
        content[at : at + length] = bytes(length) if kind == "zeros" else [data.draw(st.integers(0, 255))]
    path.write_bytes(content)
    try:
        assert_a_beginning(path, drive, killed)
    except InputError:
        if at not in (18, *range(44, 48)):  # the header says read-only, or another version of SQLite
            raise


def test_the_log_of_a_journal_that_was_removed_is_not_used(drive: Path, killed: Killed, tmp_path: Path) -> None:
    write_ahead(tmp_path / JOURNAL).write_bytes(killed[1])
    assert assert_a_beginning(tmp_path / JOURNAL, drive, killed) == 0


@pytest.mark.parametrize(("limit", "reason"), [("pages", "No space left on device"), ("file", "disk I/O error")])
def test_a_full_disk_is_one_line(drive: Path, killed: Killed, tmp_path: Path, limit: str, reason: str) -> None:
    """SQLite or the operating system lets the database grow no more; what is in it stays."""
    path, (soft, hard) = tmp_path / JOURNAL, resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_bytes(killed[0])
    write_ahead(path).write_bytes(killed[1])
    *earlier, last = first_frames(drive)
    seen = Runtime(small()).step(last)
    with Journal(path, {}) as journal:
        assert all(journal.recall(frame) is not None for frame in earlier)
        if limit == "pages":
            journal._database.execute("PRAGMA max_page_count = 2")
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(killed[1]), hard))
        with pytest.raises(InputError) as refused:
            journal.add(last, seen)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(refused.value) == f"{path}: cannot write ({reason}); make room or choose another --out"
    assert assert_a_beginning(path, drive, killed) == 6


@cache
def first_frames(drive: Path) -> list[Frame]:
    return list(inject(frames(drive)[:7], [Fault.parse(text, SENSORS) for text in FAULTS]))


def test_a_recalled_frame_gives_the_same_scene(drive: Path, tmp_path: Path) -> None:
    given, path = first_frames(drive), tmp_path / JOURNAL
    runtime, live = Runtime(small()), []
    with Journal(path, {}) as journal:
        for frame in given:
            assert journal.recall(frame) is None
            live.append(runtime.step(frame))
            journal.add(frame, live[-1])
    scene = Runtime(small()).scene
    with Journal(path, {}) as journal:
        for frame, expected in zip(given, live, strict=True):
            recorded = journal.recall(frame)
            assert recorded is not None
            scene.observe(frame)
            found = scene.update(frame, recorded.prediction, recorded.weights)
            assert recorded.seconds == expected.seconds
            assert_equal(*(instead(each.prediction, map=None) for each in (found, expected)))
            assert (found.route, found.beliefs, found.health) == (expected.route, expected.beliefs, expected.health)
            np.testing.assert_array_equal(found.states["map"], expected.states["map"])
            tracks, others = found.states["detection"], expected.states["detection"]
            np.testing.assert_array_equal(tracks.ids, others.ids)
            np.testing.assert_array_equal(tracks.boxes.centers, others.boxes.centers)
    assert {routed.weight for seen in live for routed in seen.route.values()} == {1.0}  # it rains


@given(
    probabilities=arrays(
        np.float32,
        st.tuples(st.just(6), st.integers(1, 9), st.integers(1, 9)),
        elements=st.floats(0, 1, width=32)
        | st.floats(1023 / 2048, 1025 / 2048, width=32)
        | st.sampled_from([np.nan, np.inf, -np.inf, -1, 2, np.nextafter(np.float32(0.5), np.float32(0))]),
    )
)
def test_of_a_map_it_keeps_what_the_results_are_made_of(probabilities: np.ndarray) -> None:
    """The ground that is covered, and what the fused map takes in; NaN is still none."""
    kept = unpack_map(pack_map(probabilities))
    assert kept.dtype == np.float32
    np.testing.assert_array_equal(predicted_cells(kept), predicted_cells(probabilities))
    memories = [MapMemory(BevGrid(x=(0, 9), y=(0, 9), cell=1, reference="ego"), PRIOR) for _ in range(2)]
    for memory, each in zip(memories, (kept, probabilities), strict=True):
        whole = np.full((6, 9, 9), np.nan, np.float32)
        whole[:, : each.shape[1], : each.shape[2]] = each
        memory.update(whole, np.eye(4))
    np.testing.assert_array_equal(*(memory.around(np.eye(4)) for memory in memories))


def test_of_another_replay_it_is_refused_in_one_line(drive: Path, stopped: bytes, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_bytes(stopped)
    moved = tmp_path / "moved"
    shutil.copytree(drive, moved)
    shutil.copytree(small(), tmp_path / "bundle")
    others: dict[str, tuple[Path, dict[str, Any]]] = {
        "bundle": (drive, {"bundle": rewritten(tmp_path / "bundle", name="other")}),
        "drive": (moved, {}),
        "scenes": (drive, {"scenes": ["scene-0001"]}),
        "faults": (drive, {"faults": []}),
        "selection": (drive, {"selection": Selection(every=2)}),
    }
    for what, (root, options) in others.items():
        with pytest.raises(InputError) as refused:
            replayed(root, tmp_path / "out", **options)
        message = str(refused.value)
        assert f"of an unfinished replay with {what} " in message
        assert "\n" not in message
        assert "remove this file" in message
        assert (tmp_path / "out" / JOURNAL).read_bytes() == stopped


def test_frames_that_changed_are_refused(drive: Path, stopped: bytes, tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(stopped)
    known = begun(path)
    frame, second, *_ = first_frames(drive)
    front = frame.cameras["CAM_FRONT"]
    changed = [
        second,
        replace(frame, timestamp=frame.timestamp + 1),
        replace(frame, points=frame.points[1:]),
        replace(frame, cameras={**frame.cameras, "CAM_FRONT": replace(front, image=255 - front.image)}),
        replace(frame, cameras={**frame.cameras, "CAM_FRONT": replace(front, intrinsics=2 * front.intrinsics)}),
        replace(frame, cameras={}),
    ]
    for other in changed:
        with Journal(path, **known) as journal, pytest.raises(InputError, match="frame 0 of the drive differs"):
            journal.recall(other)
    assert path.read_bytes() == stopped


def test_two_replays_do_not_write_one_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / JOURNAL, {}), pytest.raises(InputError, match="another replay writes there"):
        Journal(tmp_path / JOURNAL, {}).__enter__()


def test_a_journal_without_a_frame_binds_to_nothing(tmp_path: Path) -> None:
    for about in ({"bundle": "a"}, {"bundle": "b"}):
        with Journal(tmp_path / JOURNAL, about) as journal:
            assert not journal.resumed


def test_tracks_are_those_of_the_scene(drive: Path, undisturbed: Path, tmp_path: Path) -> None:
    runtime = Runtime(small())
    with TrackWriter.open(tmp_path / "tracks.json", runtime.bundle.manifest.sensors, NUSCENES) as writer:
        for frame in inject(frames(drive), [Fault.parse(text, SENSORS) for text in FAULTS]):
            writer.add(frame.token, runtime.step(frame).states["detection"])
    assert (tmp_path / "tracks.json").read_bytes() == (undisturbed / "tracks.json").read_bytes()


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(start=1.0), range(2, FRAMES)),
        (Selection(end=3.0), range(6)),
        (Selection(every=50), range(0, FRAMES, 50)),
        (Selection(6.2, 10.0, 3), range(13, 20, 3)),
    ],
)
def test_a_part_of_a_drive(
    drive: Path, undisturbed: Path, tmp_path: Path, selection: Selection, expected: Sequence[int]
) -> None:
    """Its detections are those of the whole drive; faults keep their times."""
    assert replayed(drive, tmp_path, selection=selection)["frames"] == len(expected)
    whole, part = (json.loads((out / "results.json").read_text())["results"] for out in (undisturbed, tmp_path))
    assert part == {token("sample", i): whole[token("sample", i)] for i in expected}
    assert selection.expected(FRAMES, 0.5 * (FRAMES - 1)) == len(expected)


def test_a_replay_in_real_time_takes_as_long_as_the_drive(drive: Path, undisturbed: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    replayed(drive, tmp_path, selection=Selection(end=2.0), real_time=True)
    assert time.monotonic() - start >= 1.5  # four frames


class LongDrive:
    """A drive of one frame again and again, which sees by how much memory grows between its frames 100 and 200."""

    tables, seconds, grown = None, 100.0, 0
    player: Player  # that replays it

    def __init__(self, frame: Frame) -> None:
        self.frame, self.counts = frame, Counts(SENSORS)

    def __len__(self) -> int:
        return 201

    def frames(self, known: Known) -> Iterator[Frame]:
        for i in range(len(self)):
            if i == 50:
                tracemalloc.start()
            if i in (100, 200):
                while len(self.player.collected.latency) < i:  # frames that are on their way take memory too
                    time.sleep(0.01)
                gc.collect()
                self.grown = tracemalloc.get_traced_memory()[0] - self.grown
            if i == 200:
                tracemalloc.stop()
            self.counts.add_frame(self.frame)
            points = self.frame.points + np.float32(0)
            yield replace(self.frame, token=str(i), timestamp=500_000 * i, points=points)


def test_memory_does_not_grow_with_the_drive(drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays of a frame, its token and latencies, is less than a tenth of its points and of its map."""
    monkeypatch.setattr("deploy.replay.report.SPREAD", 2)  # their number does not depend on the drive
    frame, runtime = replace(first_frames(drive)[0], cameras={}), Runtime(small())
    assert frame.points is not None
    cells = runtime.bundle.manifest.head_grid.build().cells
    size = frame.points.nbytes + len(MAP_CLASSES) * cells * np.dtype(np.float32).itemsize
    long = LongDrive(frame)
    long.player = Player(runtime, Source(drive), [long], tmp_path)
    long.player.run()
    assert 0 < long.grown < 100 * size / 10, (long.grown, size)
