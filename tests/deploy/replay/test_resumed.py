"""A replay that goes on restores what it has from its journal alone: no picture or sweep of these frames is read."""

import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from exported import QUIET
from pages import timeless
from recordings import sent, write_raw_mcap
from replays import SAME, VERSION, small
from tiny import write_tiny
from vocabulary import CAMERAS, SENSORS

from deploy.replay.faults import Fault, inject
from deploy.replay.journal import JOURNAL, Journal
from deploy.replay.player import Each, Player, Watcher
from deploy.replay.report import Share
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.replay.sources import encoded, open_drives
from deploy.runtime import Runtime
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Frame
from perception.scene.health.monitor import HealthMonitor

FRAMES = 40


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
    root = tmp_path_factory.mktemp("drive") / "tiny"
    write_tiny(root, FRAMES)
    return root


@pytest.fixture(scope="module")
def recording(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a picture of the first frames that cannot be decoded, so that its frame has that of another time or none."""
    log = sent(drive, VERSION, "scene-0001", 1)
    pictures = [i for i, each in enumerate(log) if each.topic == "/cam_front/image_rect_compressed"]
    assert len(pictures) == FRAMES
    broken = log[pictures[2]]
    log[pictures[2]] = broken._replace(
        data=broken.data[: len(broken.data) // 2] + bytes(len(broken.data) - len(broken.data) // 2)
    )
    return write_raw_mcap(tmp_path_factory.mktemp("recording") / "drive.mcap", log)


def player(path: Path, out: Path, watcher: Watcher | None = None, share: Share | None = None) -> Player:
    runtime, recorded = Runtime(small()), path.suffix == ".mcap"
    source = Source(path, None if recorded else VERSION)
    drives = open_drives(path, source.version, (), runtime.bundle.spec, None)
    return Player(runtime, source, drives, out, Settings(), watcher, share)


def stop(path: Path, out: Path, frames: int) -> None:
    with pytest.raises(Stopped):
        player(path, out, StopsAfter(frames)).run()


def assert_same(out: Path, expected: Path) -> None:
    for name in SAME:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    records = [json.loads((each / "replay.json").read_text()) for each in (out, expected)]
    assert records[0]["drives"] == records[1]["drives"]
    found, data = timeless(out), timeless(expected)
    assert found["frames"]
    assert found == data


@pytest.fixture(scope="module")
def undisturbed(drive: Path, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Of a drive the folder of its replay."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for path in (drive, recording):
        player(path, folder / path.name).run()
    return lambda path: folder / path.name


def test_no_sensor_is_read_again(drive: Path, undisturbed: Callable[[Path], Path], tmp_path: Path) -> None:
    stop(drive, tmp_path, FRAMES - 4)
    used = {
        file: file.read_bytes() for folder in (drive / "samples").iterdir() for file in sorted(folder.iterdir())[:-6]
    }
    assert len(used) >= 7 * (FRAMES - 6)
    for file in used:
        file.unlink()  # else a sensor that is missing
    try:
        concluded = player(drive, tmp_path).run()
    finally:
        for file, content in used.items():
            file.write_bytes(content)
    assert concluded.collected.recalled == FRAMES - 4
    assert_same(tmp_path, undisturbed(drive))


def test_no_picture_of_a_recording_is_decoded_again(
    recording: Path, undisturbed: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for one that could not be decoded, whose reason is counted."""
    decoded, decode = [], encoded.decode_image
    monkeypatch.setattr(encoded, "decode_image", lambda content: decoded.append(1) or decode(content))
    stop(recording, tmp_path, FRAMES - 4)
    assert len(decoded) >= len(CAMERAS) * (FRAMES - 4)
    decoded.clear()
    player(recording, tmp_path).run()
    assert len(decoded) == len(CAMERAS) * 4 + 1
    assert_same(tmp_path, undisturbed(recording))
    (counts,) = json.loads((tmp_path / "sources.json").read_text())
    assert counts["reasons"] == {"/cam_front/image_rect_compressed": {"a picture that cannot be decoded": 1}}


def test_frames_are_read_again_if_what_they_are_drawn_from_is_damaged(
    drive: Path, undisturbed: Callable[[Path], Path], tmp_path: Path
) -> None:
    stop(drive, tmp_path, FRAMES - 4)
    with closing(sqlite3.connect(tmp_path / JOURNAL)) as journal, journal:
        assert journal.execute("UPDATE records SET content = x'00' WHERE number < -1").rowcount > 0
    assert player(drive, tmp_path).run().collected.recalled == FRAMES - 4
    assert_same(tmp_path, undisturbed(drive))


@pytest.mark.parametrize("kind", ["drive", "recording"])
def test_stopped_again_and_again_it_ends_with_the_same(
    kind: str, undisturbed: Callable[[Path], Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(kind)
    for frames in sorted(random.Random(3).sample(range(FRAMES), 8)):
        stop(path, tmp_path, frames)
    player(path, tmp_path).run()
    assert_same(tmp_path, undisturbed(path))


@pytest.mark.parametrize(
    ("share", "recalled"), [(Share(0, FRAMES), 9), (Share(0, 2 * FRAMES), 0), (Share(7, FRAMES), 0)]
)
def test_a_drive_with_another_place_in_a_replay_restarts(
    drive: Path, tmp_path: Path, share: Share, recalled: int
) -> None:
    """The report shows other frames of it, whose pictures the journal lacks."""
    for given, watcher in ((Share(0, FRAMES), StopsAfter(9)), (share, Watcher())):
        each = player(drive, tmp_path, watcher, given)
        with pytest.raises(Stopped) if watcher.__class__ is StopsAfter else nullcontext():
            each.run_part(lambda part: None)
    assert each.collected.recalled == recalled


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


@pytest.mark.parametrize("faults", [["noise:cameras"], ["freeze:lidar@5-9", "drop:CAM_BACK@6-12"]])
def test_with_faults_frames_are_read_again(drive: Path, tmp_path: Path, faults: list[str]) -> None:
    """They are put into the data, which is to be there."""
    settings, source = Settings(faults=tuple(faults)), Source(drive, VERSION)
    replay(source, small(), tmp_path / "whole", settings, console=QUIET)
    runtime = Runtime(small())
    drives = open_drives(drive, VERSION, (), runtime.bundle.spec, None)
    with pytest.raises(Stopped):
        Player(runtime, source, drives, tmp_path / "out", settings, StopsAfter(FRAMES // 2)).run()
    replay(source, small(), tmp_path / "out", settings, console=QUIET)
    assert_same(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize(
    ("table", "field", "value"), [("ego_pose", "translation", [3.0, 2.0, 1.0]), ("scene", "description", "Rain")]
)
def test_a_drive_that_changed_is_refused(drive: Path, tmp_path: Path, table: str, field: str, value: Any) -> None:
    stop(drive, tmp_path, 5)
    path = drive / VERSION / f"{table}.json"
    content = path.read_bytes()
    rows = json.loads(content)
    path.write_text(json.dumps([{**row, field: value} for row in rows]))
    try:
        with pytest.raises(InputError, match="frame 0 of the drive differs from the one that was replayed before"):
            player(drive, tmp_path).run()
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    "fault", ["", "miscalibration:CAM_FRONT,degrees=4", "freeze:cameras@1-9", "points:lidar,share=0.9@2-9"]
)
def test_health_goes_on_from_its_state(sim_root: Path, fault: str) -> None:
    """After any frame, by way of JSON, it is as without the interruption."""
    tables = NuScenesTables(sim_root, "v1.0-sim")
    given: list[Frame] = [tables.frame(each, annotations=False) for each in tables.samples(selectors=["scene-0002"])]
    given = list(inject(given, [Fault.parse(fault, SENSORS)] if fault else []))
    whole, parts = HealthMonitor(SENSORS), HealthMonitor(SENSORS)
    fits = set()
    for frame in given:
        known, arrays = parts.state()
        fits |= arrays.keys()
        parts = HealthMonitor(SENSORS)
        parts.restore(json.loads(json.dumps(known)), arrays)
        assert parts.update(frame) == whole.update(frame)
        assert parts.loads == whole.loads
    assert len(fits) >= 3 or fault.startswith("points")
