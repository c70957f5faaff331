"""A replay that was killed goes on from its journal and ends with the same bytes, whatever befell the journal."""

import json
import multiprocessing
import random
import resource
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import replays
from exported import assert_equal, rewritten
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pages import timeless
from recordings import sent, write_raw_mcap
from replays import FAULTS, FRAMES, VERSION, begun, change, frames, instead, record_of, replayed, small, unreadable
from tiny import write_tiny
from vocabulary import CAMERAS, PRIOR, SENSORS

from deploy.replay.faults import Fault, inject
from deploy.replay.journal import JOURNAL, Journal
from deploy.replay.player import Each, Player, Watcher
from deploy.replay.report import Share
from deploy.replay.run import replay
from deploy.replay.selection import Selection
from deploy.replay.settings import Settings, Source
from deploy.replay.sources import encoded, open_drives
from deploy.runtime import Runtime
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Frame
from perception.grid import BevGrid
from perception.scene.health.monitor import HealthMonitor
from perception.scene.scene import SceneFrame
from perception.tasks.map.codec import pack_map, unpack_map
from perception.tasks.map.iou import predicted_cells
from perception.tasks.map.memory import MapMemory

TOPIC = "/cam_front/image_rect_compressed"


class Stopped(Exception):
    pass


class StopsAfter(Watcher):
    """Ends a replay after so many frames, as if it had been killed."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def counted(self, frames: Iterator[Each], expected: int) -> Iterator[Each]:
        for number, each in enumerate(frames):
            if number == self.frames:
                raise Stopped
            yield each


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataroot with a drive of FRAMES keyframes at 2 Hz."""
    root = tmp_path_factory.mktemp("drive") / "tiny"
    write_tiny(root, FRAMES)
    return root


@pytest.fixture(scope="module")
def recording(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a picture of the first frames that cannot be decoded, so that its frame has that of another time or none."""
    log = sent(drive, VERSION, "scene-0001", 1)
    number = [i for i, each in enumerate(log) if each.topic == TOPIC][2]
    content = log[number].data
    log[number] = log[number]._replace(data=content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    return write_raw_mcap(tmp_path_factory.mktemp("recording") / "drive.mcap", log)


def player(path: Path, out: Path, watcher: Watcher | None = None, share: Share | None = None, **options: Any) -> Player:
    runtime = Runtime(small())
    source = Source(path, None if path.suffix == ".mcap" else VERSION)
    drives = open_drives(path, source.version, (), runtime.bundle.spec, None)
    return Player(runtime, source, drives, out, Settings(**options), watcher, share)


def stop(path: Path, out: Path, frames: int, **options: Any) -> None:
    with pytest.raises(Stopped):
        player(path, out, StopsAfter(frames), **options).run()


def assert_same(out: Path, expected: Path) -> None:
    """Files, what replay.json says of the drives, and the report."""
    replays.assert_same(out, expected)
    records = [json.loads((each / "replay.json").read_text()) for each in (out, expected)]
    assert records[0]["drives"] == records[1]["drives"]
    found = timeless(out)
    assert found["frames"]
    assert found == timeless(expected)
    assert not (out / JOURNAL).exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a replay without interruption: of a drive and its faults."""

    @cache
    def of(path: Path, *faults: str) -> Path:
        out = tmp_path_factory.mktemp("undisturbed")
        player(path, out, faults=faults).run()
        return out

    return of


@pytest.fixture(scope="module")
def stopped(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The journal of a replay with FAULTS that could not read the last frame."""
    out = tmp_path_factory.mktemp("stopped")
    with unreadable(drive, -1) as name, pytest.raises(InputError, match=name):
        replayed(drive, out)
    assert not (out / "results.json").exists()
    return (out / JOURNAL).read_bytes()


@pytest.mark.slow("starts and kills ten processes")
@pytest.mark.parametrize("faults", [FAULTS, []], ids=["faults", "faultless"])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    drive: Path, undisturbed: Any, stopped: bytes, tmp_path: Path, faults: list[str]
) -> None:
    """A third of them before another frame is in the journal, the others once it has grown by up to a fifth.

    With faults all frames are read again, without them only those that the journal lacks.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deploy.replay.run", "deploy.engines.onnxruntime"])
    rng, kills, journal = random.Random(0), 0, tmp_path / JOURNAL
    step, sizes = len(stopped) // 5, set()
    while kills < 5:
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
    assert len(sizes) > 2
    replayed(drive, tmp_path, faults=faults)
    assert_same(tmp_path, undisturbed(drive, *faults))


def size(journal: Path) -> int:
    """Of the database and its write-ahead log."""
    return sum(file.stat().st_size for file in (journal, write_ahead(journal)) if file.exists())


def write_ahead(journal: Path) -> Path:
    return journal.with_name(f"{journal.name}-wal")


@pytest.mark.parametrize(
    ("damage", "resumed"), [("none", FRAMES - 1), ("flipped", 20), ("lost", 20), ("torn", 0), ("garbage", 0)]
)
def test_a_damaged_journal_is_used_up_to_the_damage(
    drive: Path, undisturbed: Any, stopped: bytes, tmp_path: Path, damage: str, resumed: int
) -> None:
    """Up to a record that is damaged or lost; not at all where the database is."""
    content, path = bytearray(stopped), tmp_path / JOURNAL
    if damage == "torn":
        del content[len(content) // 2 :]
    elif damage == "garbage":
        content[: len(content) // 2] = b"\xff" * (len(content) // 2)
    path.write_bytes(content)
    if damage == "flipped":
        record = bytearray(record_of(path, 21))  # of frame 20: record 0 is no frame's
        record[len(record) // 2] ^= 1
        change(path, "UPDATE records SET content = ? WHERE number = 21", bytes(record))
    elif damage == "lost":
        change(path, "DELETE FROM records WHERE number = 21")
    assert replayed(drive, tmp_path)["resumed_at_frame"] == resumed
    assert_same(tmp_path, undisturbed(drive, *FAULTS))
    latency = json.loads((tmp_path / "latency.json").read_text())
    assert latency["frames"] == FRAMES
    assert latency["stages"]["engine"]["p50"] > 0


class Killed(NamedTuple):
    """The journal of six frames as a kill leaves it, and the first seven frames as they were seen."""

    database: bytes
    log: bytes  # written ahead
    ends: list[int]  # of each record in the log
    given: list[Frame]
    seen: list[SceneFrame]

    def write(self, folder: Path, cut: int | None = None) -> Path:
        (folder / JOURNAL).write_bytes(self.database)
        write_ahead(folder / JOURNAL).write_bytes(self.log[:cut])
        return folder / JOURNAL

    def assert_a_beginning(self, path: Path) -> int:
        """What is recalled are the first frames, as they were perceived; frames are added behind them. Their number."""
        with Journal(path, {}) as journal:
            recalled = [journal.recall(frame) for frame in self.given]
            whole = journal.recalled
            assert journal.resumed == (whole > 0)
            assert [found is not None for found in recalled] == [i < whole for i in range(7)]
            for found, seen in zip(recalled[:whole], self.seen, strict=False):
                assert found.seconds == seen.seconds
                assert found.weights == {name: routed.weight for name, routed in seen.route.items()} != {}
                assert_equal(*(instead(each.prediction, map=None) for each in (found, seen)))
            journal.add(self.given[whole], self.seen[whole])
        with Journal(path, {}) as journal:
            assert [journal.recall(frame) is not None for frame in self.given] == [i <= whole for i in range(7)]
        return whole


@pytest.fixture(scope="module")
def killed(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    path, ends, runtime = tmp_path_factory.mktemp("killed") / JOURNAL, [], Runtime(small())
    given = list(inject(frames(drive)[:7], [Fault.parse(text, SENSORS) for text in FAULTS]))
    seen = [runtime.step(frame) for frame in given]
    with Journal(path, {}) as journal:
        ends.append(write_ahead(path).stat().st_size)
        for frame, each in zip(given[:6], seen, strict=False):
            journal.add(frame, each)
            ends.append(write_ahead(path).stat().st_size)
        return Killed(path.read_bytes(), write_ahead(path).read_bytes(), ends, given, seen)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_anywhere_it_holds_the_frames_that_are_whole(killed: Killed, tmp_path: Path, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, killed.ends[-1]) | st.sampled_from(killed.ends))
    path = killed.write(tmp_path, cut)
    assert killed.assert_a_beginning(path) == max(sum(end <= cut for end in killed.ends) - 1, 0)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_anywhere_it_gives_first_frames_or_none(killed: Killed, tmp_path: Path, data: st.DataObject) -> None:
    path = killed.write(tmp_path)
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
        killed.assert_a_beginning(path)
    except InputError:
        if at not in (18, *range(44, 48)):  # the header says read-only, or another version of SQLite
            raise


@pytest.mark.parametrize(("limit", "reason"), [("pages", "No space left on device"), ("file", "disk I/O error")])
def test_a_full_disk_is_one_line(killed: Killed, tmp_path: Path, limit: str, reason: str) -> None:
    """SQLite or the operating system lets the database grow no more; what is in it stays."""
    path, (soft, hard) = killed.write(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path, {}) as journal:
        assert all(journal.recall(frame) is not None for frame in killed.given[:-1])
        if limit == "pages":
            journal._database.execute("PRAGMA max_page_count = 2")
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(killed.log), hard))
        with pytest.raises(InputError) as refused:
            journal.add(killed.given[-1], killed.seen[-1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(refused.value) == f"{path}: cannot write ({reason}); make room or choose another --out"
    assert killed.assert_a_beginning(path) == 6


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
    shutil.copytree(drive, tmp_path / "moved")
    shutil.copytree(small(), tmp_path / "bundle")
    others: dict[str, tuple[Path, dict[str, Any]]] = {
        "bundle": (drive, {"bundle": rewritten(tmp_path / "bundle", name="other")}),
        "drive": (tmp_path / "moved", {}),
        "scenes": (drive, {"scenes": ["scene-0001"]}),
        "faults": (drive, {"faults": []}),
        "selection": (drive, {"selection": Selection(every=2)}),
    }
    for what, (root, options) in others.items():
        with pytest.raises(InputError, match=rf"\A.*of an unfinished replay with {what} .*remove this file.*\Z"):
            replayed(root, tmp_path / "out", **options)
        assert (tmp_path / "out" / JOURNAL).read_bytes() == stopped


def test_frames_that_changed_are_refused(killed: Killed, stopped: bytes, tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(stopped)
    known = begun(path)
    frame, second, *_ = killed.given
    front = frame.cameras["CAM_FRONT"]
    changed = [
        second,
        replace(frame, timestamp=frame.timestamp + 1),
        frame.select_points(slice(1, None)),
        replace(frame, sweep_of_point=frame.sweep_of_point + 1),
        replace(frame, cameras={**frame.cameras, "CAM_FRONT": replace(front, image=255 - front.image)}),
        replace(frame, cameras={**frame.cameras, "CAM_FRONT": replace(front, intrinsics=2 * front.intrinsics)}),
        replace(frame, cameras={}),
    ]
    for other in changed:
        with Journal(path, **known) as journal, pytest.raises(InputError, match="frame 0 of the drive differs"):
            journal.recall(other)
    assert path.read_bytes() == stopped


def test_two_replays_do_not_write_one_journal(killed: Killed, tmp_path: Path) -> None:
    """One without a frame binds to nothing, and the log of one that was removed is not used."""
    for about in ({"bundle": "a"}, {"bundle": "b"}):
        with Journal(tmp_path / JOURNAL, about) as journal:
            assert not journal.resumed
            with pytest.raises(InputError, match="another replay writes there"):
                Journal(tmp_path / JOURNAL, about).__enter__()
    killed.write(tmp_path).unlink()
    assert killed.assert_a_beginning(tmp_path / JOURNAL) == 0


@pytest.mark.slow("replays a drive that stops, twice")
def test_no_sensor_is_read_again_unless_what_is_drawn_is_damaged(drive: Path, undisturbed: Any, tmp_path: Path) -> None:
    expected = undisturbed(drive)
    stop(drive, tmp_path, FRAMES - 4)
    journal = (tmp_path / JOURNAL).read_bytes()
    folders = (drive / "samples").iterdir()
    used = {file: file.read_bytes() for folder in folders for file in sorted(folder.iterdir())[:-6]}
    assert len(used) >= 7 * (FRAMES - 6)
    for file in used:
        file.unlink()  # else a sensor that is missing
    try:
        concluded = player(drive, tmp_path).run()
    finally:
        for file, content in used.items():
            file.write_bytes(content)
    assert concluded.collected.recalled == FRAMES - 4
    assert_same(tmp_path, expected)
    (tmp_path / JOURNAL).write_bytes(journal)
    assert change(tmp_path / JOURNAL, "UPDATE records SET content = x'00' WHERE number < -1") > 0
    assert player(drive, tmp_path).run().collected.recalled == FRAMES - 4
    assert_same(tmp_path, expected)


@pytest.mark.slow("records a drive and replays it in three parts")
def test_no_picture_of_a_recording_is_decoded_again(
    recording: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for one that could not be decoded, whose reason is counted."""
    decoded, decode, expected = [], encoded.decode_image, undisturbed(recording)
    monkeypatch.setattr(encoded, "decode_image", lambda content: decoded.append(1) or decode(content))
    for number in (FRAMES // 3, FRAMES - 4):
        stop(recording, tmp_path, number)
    assert len(decoded) >= len(CAMERAS) * (FRAMES - 4)
    decoded.clear()
    player(recording, tmp_path).run()
    assert len(decoded) == len(CAMERAS) * 4 + 1
    assert_same(tmp_path, expected)
    (counts,) = json.loads((tmp_path / "sources.json").read_text())
    assert counts["reasons"] == {TOPIC: {"a picture that cannot be decoded": 1}}


@pytest.mark.parametrize(
    ("share", "recalled"), [(Share(0, FRAMES), 9), (Share(0, 2 * FRAMES), 0), (Share(7, FRAMES), 0)]
)
def test_a_drive_at_another_place_restarts(drive: Path, tmp_path: Path, share: Share, recalled: int) -> None:
    """The report shows other frames of it, whose pictures the journal lacks."""
    with pytest.raises(Stopped):
        player(drive, tmp_path, StopsAfter(9), Share(0, FRAMES)).run_part(lambda part: None)
    again = player(drive, tmp_path, share=share)
    again.run_part(lambda part: None)
    assert again.collected.recalled == recalled


def test_threads_share_the_journal(tmp_path: Path) -> None:
    """One reads ahead while another restores frames. Python from 3.12 on gives both the same statement of SQLite."""
    records = {number: bytes([number]) * 50_000 for number in range(1, 9)}
    with Journal(tmp_path / JOURNAL, {}) as journal:
        for number, record in records.items():
            journal._write(number, record)

        def wrong(rounds: int) -> int:
            return sum(journal._read(number) != record for _ in range(rounds) for number, record in records.items())

        with ThreadPoolExecutor(2) as pool:
            assert sum(pool.map(wrong, [1500, 1500])) == 0


@pytest.mark.parametrize(
    ("table", "field", "value"), [("ego_pose", "translation", [3.0, 2.0, 1.0]), ("scene", "description", "Rain")]
)
def test_a_drive_that_changed_is_refused(drive: Path, tmp_path: Path, table: str, field: str, value: Any) -> None:
    stop(drive, tmp_path, 5)
    path = drive / VERSION / f"{table}.json"
    content = path.read_bytes()
    path.write_text(json.dumps([{**row, field: value} for row in json.loads(content)]))
    try:
        with pytest.raises(InputError, match="frame 0 of the drive differs from the one that was replayed before"):
            player(drive, tmp_path).run()
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    "fault", ["", "miscalibration:CAM_FRONT,degrees=4", "freeze:cameras@1-9", "points:lidar,share=0.9@2-9"]
)
def test_health_goes_on_from_its_state(tables: NuScenesTables, fault: str) -> None:
    """After any frame, by way of JSON, it is as without the interruption."""
    given = [tables.frame(each, Reads(annotations=False)) for each in tables.samples(selectors=["scene-0002"])]
    whole, parts, fits = HealthMonitor(SENSORS), HealthMonitor(SENSORS), set()
    for frame in inject(given, [Fault.parse(fault, SENSORS)] if fault else []):
        known, arrays = parts.state()
        fits |= arrays.keys()
        parts = HealthMonitor(SENSORS)
        parts.restore(json.loads(json.dumps(known)), arrays)
        assert parts.update(frame) == whole.update(frame)
        assert parts.loads == whole.loads
    assert len(fits) >= 3 or fault.startswith("points")
