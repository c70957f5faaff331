"""Replays in several processes: the same bytes as by one, whatever is killed meanwhile."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from commands import one_line_error
from exported import QUIET
from hypothesis import given
from hypothesis import strategies as st
from pages import timeless
from replays import SAME, assert_same, small, unreadable
from tiny import write_scenes

from deploy.recordings.choice import Selection
from deploy.replay.fleet import Fleet
from deploy.replay.gates import Gates
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from perception.errors import InputError
from perception.io.files import FrameFile, join_frame_files

SCENES, KEYFRAMES, VERSION = 5, 24, "v1.0-tiny"
FAULTS = ("drop:lidar@2-4", "freeze:lidar@5-7", "hidden:car@1-9")
AGREEMENT = {"metric": "agreement", "of": "detections", "at_least": 0.9}
GATES = {"gates": [{"metric": "mAP", "at_least": 0.5}, AGREEMENT, {"metric": "dropped", "at_most": 0}]}


def children(process: int) -> list[int]:
    """Processes that this one started to work for it."""
    try:
        found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return [int(each) for each in found if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]
    except OSError:
        return []  # it ended meanwhile


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def kill_one(driver: BaseProcess, rng: random.Random) -> str:
    """Kill a driver, or one of its workers if it has any; which, or "" if it was done before."""
    workers = children(driver.pid or 0)
    chosen = rng.choice(["driver", "worker"]) if workers else "driver"
    try:
        os.kill(rng.choice(workers) if chosen == "worker" else driver.pid or 0, signal.SIGKILL)
    except ProcessLookupError:
        return ""
    if chosen == "driver":
        driver.join()
        ends = time.monotonic() + 60
        while any(map(is_alive, workers)):  # they end by themselves
            assert time.monotonic() < ends, "a worker goes on without its driver"
            time.sleep(0.01)
        return "" if driver.exitcode == 0 else "driver"
    return chosen


def kill_often(start: Callable[[], BaseProcess], kills: int, rng: random.Random, longest: float) -> Counter[str]:
    """Kill so many processes of a run, which is started again after each death of its driver; who was killed.

    Args:
        longest: s between two kills.
    """
    found: Counter[str] = Counter()
    while found.total() < kills:
        driver = start()
        while driver.is_alive():
            driver.join(rng.uniform(0, longest))
            if driver.is_alive() and found.total() < kills and (which := kill_one(driver, rng)):
                found[which] += 1
    return found


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drives") / "tiny"
    write_scenes(root, SCENES, KEYFRAMES)
    return root


def replayed(drives: Path, out: Path, jobs: int, **options: Any) -> dict[str, Any]:
    given = {name: options.pop(name) for name in ("baseline", "gates") if name in options}
    source = Source(drives, VERSION, options.pop("scenes", ()))
    return replay(source, small(), out, Settings(**({"faults": FAULTS} | options)), console=QUIET, jobs=jobs, **given)


@pytest.fixture(scope="module")
def expected(drives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replay by one process."""
    out = tmp_path_factory.mktemp("expected")
    replayed(drives, out, 0)
    return out


def test_files_and_verdict_are_those_of_one_process(drives: Path, expected: Path, tmp_path: Path) -> None:
    gates = Gates.model_validate(GATES)
    summaries = [replayed(drives, tmp_path / f"{jobs}", jobs, baseline=expected, gates=gates) for jobs in (0, 1, 2)]
    one, *others = (tmp_path / name for name in "012")
    assert_same(one, expected)
    verdict, record = (one / "verdict.json").read_bytes(), json.loads((one / "replay.json").read_text())
    shown = timeless(one)
    assert {case["outcome"] for case in json.loads(verdict)["cases"]} == {"pass", "fail"}
    assert shown["frames"]
    for out, summary in zip(others, summaries[1:], strict=True):
        assert (summary["frames"], summary["resumed_at_frame"]) == (SCENES * KEYFRAMES, 0)
        assert_same(out, expected)
        assert {each.name for each in out.iterdir()} == {each.name for each in one.iterdir()}
        assert (out / "verdict.json").read_bytes() == verdict
        assert timeless(out) == shown
        assert json.loads((out / "replay.json").read_text())["drives"] == record["drives"]
        assert len(json.loads((out / "latency.json").read_text())["stages"]) > 5


@pytest.mark.parametrize(("jobs", "whom"), [(0, {"driver"}), (2, {"driver", "worker"})])
def test_whatever_is_killed_the_bytes_are_the_same(
    drives: Path, expected: Path, tmp_path: Path, jobs: int, whom: set[str]
) -> None:
    """A worker, whose drive another one replays; the driver, which is started again; at random moments."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deploy.replay.run", "deploy.engines.onnxruntime"])

    def start() -> BaseProcess:
        given = (Source(drives, VERSION), small(), tmp_path, Settings(faults=FAULTS))
        driver = context.Process(target=replay, args=given, kwargs={"jobs": jobs})
        driver.start()
        return driver

    rng = random.Random(1)
    found = kill_often(start, 3 * len(whom), rng, longest=3)
    while found.keys() != whom:  # on a slow machine, a driver may die before it has workers
        found += kill_often(start, 1, rng, longest=20)
    replayed(drives, tmp_path, jobs)
    assert_same(tmp_path, expected)
    assert not (tmp_path / "scenes").exists()


def test_finished_drives_are_not_replayed_again(drives: Path, expected: Path, tmp_path: Path) -> None:
    """The last drive's last picture cannot be used, so that the others are finished; then nothing else is read."""
    files = sorted((drives / "samples" / "LIDAR_TOP").iterdir())
    contents = [file.read_bytes() for file in files]
    with unreadable(drives, -1) as name, one_line_error(name):
        replayed(drives, tmp_path, 1)
    assert not any((tmp_path / name).exists() for name in SAME)
    for file in files[: (SCENES - 2) * KEYFRAMES]:  # the last drive has sweeps of the one before
        file.write_bytes(b"damaged")
    try:
        assert replayed(drives, tmp_path, 2)["resumed_at_frame"] == (SCENES - 1) * KEYFRAMES
    finally:
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
    assert_same(tmp_path, expected)


def test_a_drive_that_is_on_another_machine_is_named(
    drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fleet, "_replay_in_pool", lambda *_: [])  # as where its workers see another disk
    with one_line_error("0: the results of this drive are on another machine"):
        replayed(drives, tmp_path, 1)


def test_drives_of_another_replay_are_refused(drives: Path, tmp_path: Path) -> None:
    with unreadable(drives, -1), pytest.raises(InputError):
        replayed(drives, tmp_path, 1)
    with one_line_error(r"0.part\.json: is of an unfinished replay with faults .* remove the folder"):
        replayed(drives, tmp_path, 1, faults=())


def test_a_drive_without_selected_frames_is_empty(drives: Path, tmp_path: Path) -> None:
    for name, jobs in (("one", 0), ("two", 2)):
        replayed(drives, tmp_path / name, jobs, selection=Selection(start=11.0), scenes=("scene-0002", "scene-0004"))
    assert_same(tmp_path / "two", tmp_path / "one")
    with one_line_error("start 12: .* start earlier"):
        replayed(drives, tmp_path / "none", 2, selection=Selection(start=12.0))
    assert not (tmp_path / "none" / "scenes").exists()


def test_what_needs_one_process_is_refused(drives: Path, tmp_path: Path) -> None:
    for options, reason in (
        ({"real_time": True}, "--jobs and real_time"),
        ({"viewer": True}, "--jobs and viewer"),
    ):
        with one_line_error(reason):
            replayed(drives, tmp_path, 2, **options)


NAMES = st.text(st.characters(codec="utf-8"), max_size=4)
PARTS = st.lists(st.lists(st.tuples(NAMES, st.lists(st.floats(allow_nan=False, allow_infinity=False) | NAMES))))


@given(parts=PARTS.filter(len), head=NAMES)
def test_joined_files_are_those_of_one_writer(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[tuple[str, Any]]], head: str
) -> None:
    folder = tmp_path_factory.mktemp("joined")
    paths = [folder / f"{i}.json" for i in range(len(parts))]
    for i, (path, entries) in enumerate(zip(paths, parts, strict=True)):
        write(path, head, {f"{i} {j} {name}": entry for j, (name, entry) in enumerate(entries)})
    every = {f"{i} {j} {name}": e for i, entries in enumerate(parts) for j, (name, e) in enumerate(entries)}
    write(folder / "one.json", head, every)
    join_frame_files(paths, folder / "joined.json", "the results")
    assert (folder / "joined.json").read_bytes() == (folder / "one.json").read_bytes()
    assert json.loads((folder / "joined.json").read_text()) == {"head": head, "entries": every}


def write(path: Path, head: str, entries: dict[str, Any]) -> None:
    with FrameFile.open(path, "the results", {"head": head}, "entries") as file:
        for name, entry in entries.items():
            file.add(name, entry)


def test_a_part_that_is_not_whole_is_not_joined(tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    write(a, "same", {"a": [1]})
    for content in (b"", a.read_bytes()[:-1], a.read_bytes().replace(b"same", b"else")):
        b.write_bytes(content)
        with one_line_error("b.json: is (not whole|of another network)"):
            join_frame_files([a, b], tmp_path / "c.json", "the results")
        assert not (tmp_path / "c.json").exists()
