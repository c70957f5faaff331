"""A replay: which frames, when, how fast, in how much memory, what it leaves in its folder, and its file of keys."""

import gc
import hashlib
import io
import json
import math
import platform
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import yaml
from commands import one_line_error, refuses, succeeds
from exported import QUIET, bundle
from hypothesis import given
from hypothesis import strategies as st
from junitparser import Error, JUnitXml
from pages import page_data
from recordings import SPEC, TINY, assert_equal_frames
from replays import VERSION, assert_same, frames, gates, replay_with_faults, small, unreadable
from repository import ROOT
from rich.console import Console
from tiny import token, write_tiny
from vocabulary import MAP_CLASSES, SENSORS

from deploy.integrity import SUMS
from deploy.log import write_log
from deploy.recordings import assembler, payloads
from deploy.recordings.choice import FrameChoice, Selection
from deploy.recordings.counts import Counts
from deploy.recordings.drives import open_drives
from deploy.recordings.topics import default_topics
from deploy.replay import schedule
from deploy.replay.latency import STAGES, Latency
from deploy.replay.player import Player
from deploy.replay.provenance import PROVENANCE, ReplayProvenance
from deploy.replay.report import DriveRange
from deploy.replay.run import replay
from deploy.replay.schedule import RealTime
from deploy.replay.settings import ReplayFile, Settings, Source
from deploy.replay.verdict import judge
from deploy.replay.writers import sensors_hash
from deploy.runtime import Runtime
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Frame

FRAMES, FOUR = 24, Selection(end=2.0)
EASY, LIMIT = gates({"metric": "dropped", "at_most": 1000}), gates({"metric": "latency", "at_most": 1e6})


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataroot with a drive of FRAMES keyframes at 2 Hz."""
    root = tmp_path_factory.mktemp("drive") / "tiny"
    write_tiny(root, FRAMES)
    return root


@pytest.fixture(scope="module")
def undisturbed(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a replay with FAULTS."""
    out = tmp_path_factory.mktemp("undisturbed")
    summary = replay_with_faults(drive, out)
    assert (summary["frames"], summary["resumed_at_frame"]) == (FRAMES, 0)
    return out


@pytest.fixture(scope="module")
def judged(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the first four frames, without faults."""
    out = tmp_path_factory.mktemp("judged") / "out"
    assert replay_with_faults(drive, out, gates=EASY, selection=FOUR, faults=[])["verdict"]["passed"]
    return out


def test_a_part_of_a_drive(drive: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Its detections are those of the whole drive; faults keep their times."""
    assert replay_with_faults(drive, tmp_path, selection=Selection(6.2, 10.0, 3))["frames"] == 3
    whole, part = (json.loads((out / "results.json").read_text())["results"] for out in (undisturbed, tmp_path))
    assert part == {token("sample", i): whole[token("sample", i)] for i in (13, 16, 19)}


class GivenDrive:
    """A drive of so many frames that `frame` gives, one by one."""

    tables = None

    def __init__(self, number: int, seconds: float, frame: Callable[[int], Frame]) -> None:
        self.number, self.seconds, self.frame, self.counts = number, seconds, frame, Counts(SENSORS)

    def __len__(self) -> int:
        return self.number

    def frames(self, choice: FrameChoice) -> Iterator[Frame]:
        for i in range(self.number):
            frame = self.frame(i)
            self.counts.add_frame(frame)
            yield frame


def test_the_number_of_frames_is_expected() -> None:
    for chosen, number in (((1.0,), FRAMES - 2), ((0.0, 3.0), 6), ((0.0, math.inf, 10), 3), ((6.2, 10.0, 3), 3)):
        assert Selection(*chosen).expected(FRAMES, 0.5 * (FRAMES - 1)) == number


@pytest.mark.slow("200 frames under tracemalloc, once the first 100 have filled what is bounded")
def test_memory_does_not_grow_with_the_drive(drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays of a frame, its token and latencies, is less than a tenth of its points and of its map."""
    monkeypatch.setattr("deploy.replay.report.EVENLY", 2)  # their number does not depend on the drive
    frame, runtime, memory = replace(frames(drive)[0], cameras={}), Runtime(small()), []
    latencies: list[Latency] = []
    monkeypatch.setattr("deploy.replay.totals.Latency", lambda: latencies.append(Latency()) or latencies[0])
    cells = runtime.bundle.manifest.head_grid.build().cells
    size = frame.points.nbytes + len(MAP_CLASSES) * cells * np.dtype(np.float32).itemsize

    def taken(i: int) -> Frame:
        if i == 50:
            tracemalloc.start()
        if i in (100, 200):
            while len(latencies[0]) < i:  # frames that are on their way take memory too
                time.sleep(0.01)
            gc.collect()
            memory.append(tracemalloc.get_traced_memory()[0])
        if i == 200:
            tracemalloc.stop()
        return replace(frame, token=str(i), timestamp=500_000 * i, points=frame.points + np.float32(0))

    Player(runtime).play(GivenDrive(201, 100.0, taken), tmp_path, DriveRange(0, 201, 201))
    assert 0 < memory[1] - memory[0] < 100 * size / 10, (memory, size)


def empty(token: str, timestamp: int, scene: str = "") -> Frame:
    return Frame(token, timestamp, "ego", np.eye(4), np.eye(4), None, {}, scene=scene)


selections = st.builds(
    lambda start, length, every: Selection(start, start + length, every),
    st.sampled_from([0.0, 0.5, 1.25, 7.0]),
    st.sampled_from([0.5, 2.0, 3.75, math.inf]),
    st.integers(1, 4),
)


@given(selections, st.lists(st.lists(st.integers(0, 10_000_000), min_size=1), min_size=1, max_size=3))
def test_selection(selection: Selection, drives: list[list[int]]) -> None:
    """Against a loop over each drive, at any rate of frames."""
    every = [[empty(f"{i}-{k}", t, str(i)) for k, t in enumerate(sorted(each))] for i, each in enumerate(drives)]
    expected = []
    for each in every:
        inside = [f for f in each if selection.start <= (f.timestamp - each[0].timestamp) * 1e-6 < selection.end]
        expected += inside[:: selection.every]
    found = []
    for each in every:
        choice = FrameChoice(selection)
        found += [frame for frame in each if choice(frame.scene, frame.timestamp)]
        assert choice.over == (1e-6 * (each[-1].timestamp - each[0].timestamp) >= selection.end)
    assert [frame.token for frame in found] == [frame.token for frame in expected]


def test_pictures_of_frames_that_are_left_out_are_not_read(tmp_path: Path) -> None:
    """Damaged ones change nothing, unless a fault needs earlier frames."""
    write_tiny(tmp_path / "drive", 8)
    selection, pictures = Selection(1.0, 3.5, 2), sorted((tmp_path / "drive" / "samples" / "CAM_FRONT").iterdir())
    replay_with_faults(tmp_path / "drive", tmp_path / "whole", selection=selection, faults=[])
    for i, picture in enumerate(pictures):
        if i not in (2, 4, 6):
            picture.write_bytes(b"damaged")
    replay_with_faults(tmp_path / "drive", tmp_path / "damaged", selection=selection, faults=[])
    assert_same(tmp_path / "whole", tmp_path / "damaged")
    replay_with_faults(tmp_path / "drive", tmp_path / "late", selection=selection, faults=["delay:cameras,seconds=1"])
    without, late = (json.loads((tmp_path / name / "sources.json").read_text())[0] for name in ("damaged", "late"))
    assert [each["frames"] for each in (without, late)] == [3, 3]  # of `late`, too, only those that are replayed
    assert sum(late["missing"].values()) <= 3 * len(late["missing"])
    assert without["damage"] == []
    assert pictures[0].name in late["damage"][0]


def test_of_frames_that_are_left_out_nothing_is_decoded(
    drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither pictures nor joined sweeps of a recording; those of the others are those of the whole drive."""
    path, decoded, joined = tmp_path / "drive_sqlite3", list[bytes](), list[int]()
    write_log(drive, f"{TINY}:0-12", path, "sqlite3", VERSION, 3)
    (whole,) = open_drives(path, None, (), SPEC, None)
    every, selection = list(whole.frames()), Selection(1.0, 4.5, 3)
    decode, join = payloads.decode_image, assembler.join_lidars
    monkeypatch.setattr(payloads, "decode_image", lambda content: decoded.append(content) or decode(content))
    monkeypatch.setattr(assembler, "join_lidars", lambda *given: joined.append(given[1]) or join(*given))
    (part,) = open_drives(path, None, (), SPEC, None)
    found = list(part.frames(FrameChoice(selection)))
    assert [frame.token for frame in found] == [every[i].token for i in (2, 5, 8)]
    for frame, number in zip(found, (2, 5, 8), strict=True):
        assert_equal_frames(frame, every[number])
    assert joined == [frame.timestamp for frame in found]
    assert sorted(decoded) == sorted(camera.jpeg for frame in found for camera in frame.cameras.values())
    assert part.counts.frames == 3


@pytest.mark.parametrize(("fault", "earlier"), [("drop:lidar@0-3", False), ("freeze:cameras@1-4", True)])
def test_a_fault_that_shows_earlier_frames_has_them_decoded(
    drive: Path, tmp_path: Path, fault: str, earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The windows of all count from the start of the drive, which no frame shows that is replayed."""
    path, joined, join = tmp_path / "drive.mcap", list[int](), assembler.join_lidars
    write_log(drive, f"{TINY}:0-8", path, "file", VERSION, 1)
    whole, part = (tmp_path / name for name in ("whole", "part"))
    for out, selection in ((whole, Selection()), (part, Selection(2.0, 4.0))):
        monkeypatch.setattr(assembler, "join_lidars", lambda *given: joined.append(given[1]) or join(*given))
        joined.clear()
        replay(Source(path), small(), out, Settings(faults=[fault], selection=selection), console=QUIET)
    assert len(joined) == (8 if earlier else 4)
    lines = [json.loads(line)["sensors"] for line in (whole / "statistics.jsonl").read_text().splitlines()]
    assert [json.loads(line)["sensors"] for line in (part / "statistics.jsonl").read_text().splitlines()] == lines[4:]


def test_an_impossible_selection_is_refused() -> None:
    for wrong in ((-1.0, 2.0, 1), (2.0, 2.0, 1), (math.nan, 2.0, 1), (0.0, math.nan, 1), (0, 1, 0)):
        with pytest.raises(InputError, match=r"start|every"):
            Selection(*wrong)


class Clock:
    """A clock that goes on only while someone sleeps."""

    seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames come when they were taken; a jump of the clock is not waited for. It says how late a frame was."""
    now, came = Clock(), []
    monkeypatch.setattr(schedule, "time", now)
    clock = RealTime()
    for i, ms in enumerate(accumulate([0, 100, 100, 3_600_000, 100, -7_200_000, 100])):
        clock.wait_for(empty(str(i), 1000 * ms, "a"))
        came.append(now.monotonic() - 1000.0)
    assert came == pytest.approx([0, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4])
    assert clock.behind == pytest.approx(0, abs=1e-6)
    clock = RealTime()
    clock.wait_for(empty("0", 0))
    now.sleep(0.2)
    clock.wait_for(empty("1", 10_000))
    assert clock.behind == pytest.approx(0.19)


def test_the_same_results_at_the_drives_pace(drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.replay.verdict.LEAST_FRAMES", 3)
    replay_with_faults(drive, tmp_path / "fast", selection=Selection(end=1.5), faults=[])
    start = time.monotonic()
    options = {"selection": Selection(end=1.5), "gates": LIMIT, "real_time": True, "faults": []}
    assert replay_with_faults(drive, tmp_path / "paced", **options)["verdict"]["passed"]
    assert time.monotonic() - start >= 1.0  # three frames
    assert_same(tmp_path / "paced", tmp_path / "fast")
    latency = json.loads((tmp_path / "paced" / "latency.json").read_text())
    assert (latency["frames"], latency["period"]) == (3, 500.0)
    page = page_data(tmp_path / "paced" / "report.html")
    assert latency["deadline_misses"] == sum(sum(m) > 500 for m in page["milliseconds"])
    assert page["verdict"] == json.loads((tmp_path / "paced" / "verdict.json").read_text())
    assert latency["behind"] >= 0


def test_latency_percentiles_and_deadlines() -> None:
    """Of two drives at 10 Hz; the pause between them is no period."""
    latency, totals = Latency(), [0.05, 0.101, 0.0999, 0.3, 0.1001, 0.02]
    for i, total in enumerate(totals):
        frame = empty(str(i), 100_000 * i + (0 if i < 3 else 60_000_000), "a" if i < 3 else "b")
        latency.add(frame, dict.fromkeys(STAGES, 0.0) | {"engine": total})
    summary = latency.summary()
    assert (summary["frames"], summary["period"], summary["deadline_misses"]) == (6, 100.0, 3)
    latency = Latency()
    for i in range(101):
        seconds = dict.fromkeys(STAGES, 0.0) | {"read": i / 1e3, "memory": (100 - i) / 1e3}
        latency.add(empty("s", 0, str(i)), seconds)
    assert latency.summary()["deadline_misses"] is None  # no drive has two frames
    stages = latency.summary()["stages"]
    assert stages["read"] == {"p50": 50, "p95": 95, "p99": 99, "mean": 50, "max": 100}
    assert (stages["memory"]["p95"], stages["total"]["p99"]) == (95, 100)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("way", ["the same", "a link", "inside", "linked files"])
def test_a_baseline_that_a_replay_would_change_is_refused(drive: Path, judged: Path, tmp_path: Path, way: str) -> None:
    folder, link, links = Path(copytree(judged, tmp_path / "baseline")), tmp_path / "link", tmp_path / "links"
    before = contents(folder)
    link.symlink_to(folder)
    links.mkdir()
    for name in before:
        (links / name).symlink_to(folder / name)
    out = {"a link": link, "inside": folder / "new" / "out"}.get(way, folder)
    with pytest.raises(InputError, match=r"(folder of the baseline itself|is a link to .*, which the replay replaces)"):
        replay_with_faults(
            drive, out, baseline=links if way == "linked files" else folder, faults=["drop:all"], selection=FOUR
        )
    assert contents(folder) == before


def test_a_later_replay_leaves_nothing_of_an_earlier_verdict(drive: Path, judged: Path, tmp_path: Path) -> None:
    """And replay.json says what was replayed."""
    out, faults = Path(copytree(judged, tmp_path / "out")), ("drop:CAM_FRONT@0.5-1.0",)
    for name in ("tracking_metrics.json", "results.mcap", "notes.txt"):
        (out / name).write_text("of before")
    summary = replay_with_faults(drive, out, faults=[*faults], selection=FOUR, scenes=["scene-0001"])
    left = {"verdict.json", "junit.xml", "tracking_metrics.json", "results.mcap"} & contents(out).keys()
    assert (left, (out / "notes.txt").read_text()) == (set(), "of before")
    assert page_data(out / "report.html")["verdict"] is None
    found = ReplayProvenance.load(out)
    assert summary["provenance"] == str(out / PROVENANCE)
    assert found.bundle.sums_sha256 == hashlib.sha256((small() / SUMS).read_bytes()).hexdigest()
    assert (found.engine.target, found.engine.compiler.split()[0]) == ("cpu", "onnxruntime")
    assert (found.software["numpy"], found.software["python"]) == (np.__version__, platform.python_version())
    assert (found.path, found.version, found.scenes) == ("tiny", VERSION, ("scene-0001",))
    assert (found.faults, found.conditions) == (faults, None)
    assert (found.selection.start, found.selection.end, found.selection.every) == (0, 2, 1)
    assert (found.frames, found.resumed_at_frame) == (4, 0)
    assert [(each.name, each.frames) for each in found.drives] == [("scene-0001", 4)]
    shown = page_data(out / "report.html")["bundle"]
    assert shown["faults"] == faults[0]
    assert np.__version__ in shown["software"]


def test_a_replay_that_breaks_off_leaves_an_error_and_no_old_pass(drive: Path, judged: Path, tmp_path: Path) -> None:
    """One that cannot begin leaves the old results."""

    def broken() -> str:
        """The message of the error that is all there is in the file."""
        (suite,) = JUnitXml.fromfile(str(out / "junit.xml"))
        ((error,),) = (case.result for case in suite)
        assert isinstance(error, Error)
        assert (suite.tests, suite.failures, suite.errors) == (1, 0, 1)
        return str(error.message)

    out = Path(copytree(judged, tmp_path / "out"))
    with pytest.raises(InputError, match="not a bundle"):
        replay_with_faults(drive, out, bundle=tmp_path, gates=EASY)
    assert "not a bundle" in broken()
    assert not (out / "verdict.json").exists()
    assert (out / "results.json").read_bytes() == (judged / "results.json").read_bytes()
    with unreadable(drive, 3), pytest.raises(InputError) as stopped:
        replay_with_faults(drive, out, gates=EASY, selection=FOUR, faults=[])
    assert broken() == str(stopped.value)
    assert {file.name for file in out.iterdir()} == {"junit.xml", "scenes"}
    assert replay_with_faults(drive, out, gates=EASY, selection=FOUR, faults=[])["resumed_at_frame"] == 0
    assert (out / "results.json").read_bytes() == (judged / "results.json").read_bytes()
    assert JUnitXml.fromfile(str(out / "junit.xml")).errors == 0


def test_a_fault_that_no_frame_had_is_told_and_fails(drive: Path, tmp_path: Path) -> None:
    """The drive takes 12 s; a fault of all sensors is there if it is one of any."""
    out, said, late = tmp_path / "out", io.StringIO(), "drop:lidar@100-200"
    options: dict[str, Any] = {"selection": FOUR, "faults": [late, "drop:all@0-1"]}
    replay_with_faults(drive, out, console=Console(file=said, width=1000), **options)
    assert late in said.getvalue()
    assert "drop:all" not in said.getvalue()
    verdict = replay_with_faults(drive, out, gates=EASY, **options)["verdict"]
    assert not verdict["passed"]
    assert [case["name"] for case in verdict["cases"] if not case["passed"]] == [f"fault {late}"]
    assert judge(out, gates=EASY).as_dict() == verdict


@pytest.mark.parametrize("damaged", [True, False])
def test_a_replay_without_any_data_of_the_network_is_no_success(tmp_path: Path, damaged: bool) -> None:
    """The pictures are there, which this network does not read. One sweep that is there is enough."""
    write_tiny(tmp_path / "tiny", 4)
    first, *others = sorted((tmp_path / "tiny" / "samples" / "LIDAR_TOP").iterdir())
    for file in others:
        file.write_bytes(b"x") if damaged else file.unlink()
    replay_with_faults(tmp_path / "tiny", tmp_path / "one", faults=[])
    first.write_bytes(b"x") if damaged else first.unlink()
    with one_line_error("LIDAR_TOP"):
        replay_with_faults(tmp_path / "tiny", tmp_path / "out", faults=[])
    assert (tmp_path / "out" / "report.html").exists()
    with one_line_error("LIDAR_TOP"):
        replay_with_faults(tmp_path / "tiny", tmp_path / "judged", faults=[], gates=EASY)
    assert not (tmp_path / "judged" / "verdict.json").exists()


@pytest.mark.slow("the first test that needs the bundle exports it")
@pytest.mark.parametrize("sensor", ["LIDAR_TOP", "CAM_BACK"])
def test_a_replay_in_which_a_sensor_never_came_is_no_success(tmp_path: Path, sensor: str) -> None:
    """The network has others, and may drive without it; but who wants to see that says so."""
    write_tiny(tmp_path / "tiny", 3)
    recording, topics = tmp_path / "a.mcap", tmp_path / "topics.yaml"
    options: dict[str, Any] = {"bundle": bundle().path, "faults": []}
    replay_with_faults(tmp_path / "tiny", tmp_path / "all", **options)
    for file in (tmp_path / "tiny" / "samples" / sensor).iterdir():
        file.unlink()
    with one_line_error(at=sensor):
        replay_with_faults(tmp_path / "tiny", tmp_path / "out", **options)
    assert (tmp_path / "out" / "report.html").exists()
    for part in ("@0-0.5", ""):
        faults = [f"drop:{sensor}{part}"]
        with one_line_error(at=sensor) if part else nullcontext():
            replay_with_faults(tmp_path / "tiny", tmp_path / f"without{part}", **{**options, "faults": faults})
    write_log(tmp_path / "tiny", "scene-0001", recording)
    given = default_topics(SENSORS)
    topics.write_text(yaml.safe_dump(given))
    replayed = ("replay", recording, "--bundle", bundle().path, "--topics", topics, "--out")
    assert sensor in refuses(*replayed, tmp_path / "typed")
    topics.write_text(
        yaml.safe_dump({kind: {n: t for n, t in ts.items() if n != sensor} for kind, ts in given.items()})
    )
    succeeds(*replayed, tmp_path / "left out")


def test_files_of_other_origin_are_not_removed(drive: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with one_line_error(at=f"{tmp_path / 'report.html'}: is of no replay, and a replay would remove it"):
        replay_with_faults(drive, tmp_path, selection=FOUR)
    assert contents(tmp_path) == {"report.html": b"mine"}


def test_the_hash_of_a_drive_is_its_sensors_whatever_network_reads_them(tmp_path: Path) -> None:
    def sensors(root: Path, reference: Any = "ego", sweeps: int = 1) -> list[bytes]:
        tables = NuScenesTables(root, VERSION)
        return [sensors_hash(tables.frame(sample, Reads(reference, sweeps))) for sample in tables.samples()]

    roots = tmp_path / "drive", tmp_path / "other"
    for root in roots:
        write_tiny(root, 4)
    first = sensors(roots[0])
    for root, *options in ((roots[0], "lidar"), (roots[0], "ego", 3), (roots[0], "lidar", 2), (roots[1],)):
        assert sensors(root, *options) == first
    for channel, at in (("LIDAR_TOP", 12), ("CAM_BACK", None)):  # an intensity; another picture
        file, *_, last = sorted((roots[1] / "samples" / channel).iterdir())
        before = file.read_bytes()
        changed = before[: at or 0] + np.float32(77).tobytes() + before[(at or 0) + 4 :]
        file.write_bytes(last.read_bytes() if at is None else changed)
        assert sensors(roots[1]) != first
        file.write_bytes(before)
    assert sensors(roots[1]) == first


def test_the_page_has_all_keys_with_their_defaults() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "replay.md").read_text(), re.MULTILINE | re.DOTALL)
    content = yaml.safe_load(blocks[0])
    assert content.keys() == ReplayFile.model_fields.keys()
    assert ReplayFile.model_validate(content) == ReplayFile()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("strat: 1", "strat: is not a known key"),
        ("start: soon", "start: input should be a valid number"),
        ("every: 1.5", "every: input should be a valid integer"),
        ("conditions: rain", "conditions: input should be a valid tuple"),
    ],
)
def test_a_wrong_key_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "replay.yaml").write_text(text)
    with one_line_error(says):
        ReplayFile.load(tmp_path / "replay.yaml")


@pytest.mark.slow("two replays by the command")
def test_each_key_has_its_effect(tmp_path: Path) -> None:
    write_tiny(tmp_path / "drives", 8)
    config, out = tmp_path / "replay.yaml", tmp_path / "out"
    (tmp_path / "evidence.yaml").write_text("sources: [{source: tags}]\n")
    given = ("replay", tmp_path / "drives", "--bundle", small(), "--config", config, "--out", out)
    config.write_text(
        "conditions: [rain]\nevidence: evidence.yaml\nstart: 1.0\nend: 3.0\nevery: 2\nreal_time: true\nviewer: true\n"
    )
    succeeds(*given)
    used = json.loads((out / "replay.json").read_text())
    assert (used["conditions"], used["evidence"], used["real_time"]) == (["rain"], ["tags"], True)
    assert used["selection"] == {"start": 1.0, "end": 3.0, "every": 2}
    assert used["frames"] == 2, used
    assert (out / "results.mcap").exists()
    for text, says in (
        ("start: 2\nend: 1\n", "start 2, end 1: give seconds with 0 <= start < end"),
        ("conditions: [hail]\n", "hail: unknown condition"),
        ("allow_older: true\n", "without a key"),
        ("state: state\n", "without a key"),
        ("keys: [public.pem]\n", str(tmp_path / "public.pem")),
        ("ray: 127.0.0.1:1\nviewer: true\n", "viewer: this needs a single process"),
    ):
        config.write_text(text)
        assert says in refuses(*given)
