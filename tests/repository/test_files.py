"""Files and folders replaced whole, what is read ahead and written behind, and pauses of the garbage collector.

Folders are replaced with a real SIGKILL before every step, and the disk is told to keep them.
"""

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ROOT

from deploy.replay.prefetch import QUEUE_DEPTH, BackgroundWriter, prefetch
from perception import atomic
from perception.atomic import atomic_file, folder_written_whole, put_back, write_atomically, write_together
from perception.errors import InputError
from perception.garbage import without_collection

OLD, NEW = {"a": "old", "sub/b": "old", "only-old": "old"}, {"a": "new", "sub/b": "new"}

# Replaces the folder "bundle" again and again, each time in a process that kills itself before another step: one that
# Python reports to audit hooks (open, mkdir, rename, remove, rmtree, scandir, calls of C), or the swap itself.
KILLED = """
import os, signal, sys
from pathlib import Path
from perception import atomic

exchange, folder = atomic._exchange, Path("bundle")
if sys.argv[1] == "without":
    exchange = lambda a, b: False

def made(content):
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

def step(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def swap(a, b):
    step()
    done = exchange(a, b)
    step()
    return done

atomic._exchange = swap
for dying in range(1, 1000):
    made({old!r})
    child = os.fork()
    if child == 0:
        left = dying
        sys.addaudithook(step)
        with atomic.folder_written_whole(folder, "it") as fresh:
            for name, text in {new!r}.items():
                (fresh / name).parent.mkdir(exist_ok=True)
                (fresh / name).write_text(text)
        os._exit(0)
    killed = os.waitpid(child, 0)[1] != 0
    there = folder.exists()
    atomic.put_back(folder)
    print("killed" if killed else "lived", "there" if there else "missing",
          *sorted(f"{{f.relative_to(folder)}}={{f.read_text()}}" for f in folder.rglob("*") if f.is_file()), sep=",")
    if not killed:
        break
    atomic.shutil.rmtree(folder)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux kills and exchanges")
@pytest.mark.parametrize("swap", ["with", "without"])
def test_killed_at_any_step_a_folder_is_the_old_or_the_new_one(tmp_path: Path, swap: str) -> None:
    """With the exchange it is at its name at every step; without, `put_back` finds it."""
    code = KILLED.format(old=OLD, new=NEW)
    done = subprocess.run(
        [sys.executable, "-c", code, swap], cwd=tmp_path, check=False, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    old, new = (",".join(sorted(f"{name}={text}" for name, text in content.items())) for content in (OLD, NEW))
    outcomes = done.stdout.splitlines()
    contents = [outcome.split(",", 2)[2] for outcome in outcomes]
    assert outcomes[-1] == f"lived,there,{new}"
    assert set(contents) == {old, new}
    assert contents.count(new) > 1  # it was killed after the swap too
    missing = sum(outcome.split(",")[1] == "missing" for outcome in outcomes)
    assert (missing > 0) == (swap == "without")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is told to the disk, as the calls are made: with the last part of the path."""
    made: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, Path.rename, os.replace

    def synced(handle: int) -> None:
        made.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def renamed(self: Path, target: Path) -> Path:
        made.append(("rename", target.name))
        return rename(self, target)

    def replaced(a: Path, b: Path) -> None:
        made.append(("replace", b.name))
        replace(a, b)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(os, "replace", replaced)
    return made


@pytest.mark.parametrize("swap", ["with", "without"])
def test_a_folder_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, str]], swap: str
) -> None:
    exchange = atomic._exchange

    def swapped(a: Path, b: Path) -> bool:
        calls.append(("swap", b.name))
        return swap == "with" and exchange(a, b)

    monkeypatch.setattr(atomic, "_exchange", swapped)
    (tmp_path / "bundle").mkdir()
    with folder_written_whole(tmp_path / "bundle", "it") as fresh:
        (fresh / "sub").mkdir()
        (fresh / "sub" / "file").write_text("new")
    new = f".bundle.new-{os.getpid()}"
    assert {name for what, name in calls[:3] if what == "fsync"} == {"sub", "file", new}
    instead = [] if swap == "with" else [("rename", ".bundle.old"), ("rename", "bundle")]
    assert calls[3:] == [("swap", "bundle"), *instead, ("fsync", tmp_path.name)]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_files_are_on_the_disk_before_the_first_takes_its_place(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    fresh = [("fsync", f".{name}.{os.getpid()}") for name in "ab"]
    assert calls == [*fresh, ("replace", "a"), ("replace", "b"), ("fsync", tmp_path.name)]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}


def test_a_leftover_of_a_process_that_died_is_no_obstacle(tmp_path: Path) -> None:
    """In a container every run can have the same process number."""
    leftover = tmp_path / f".bundle.new-{os.getpid()}"
    leftover.mkdir()
    (leftover / "half").write_text("half")
    with folder_written_whole(tmp_path / "bundle", "it") as fresh:
        (fresh / "whole").write_text("whole")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["bundle", "bundle/whole"]


def test_the_old_folder_is_put_back_only_where_none_is(tmp_path: Path) -> None:
    put_back(tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
    (tmp_path / ".bundle.old").mkdir()
    put_back(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    (tmp_path / ".bundle.old").mkdir()
    put_back(tmp_path / "bundle")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", ".bundle.old"}


def test_a_file_that_cannot_take_its_place_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match=str(tmp_path / "file")):
        write_atomically(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5))
@settings(max_examples=10, deadline=None)
def test_a_file_is_what_was_written_last(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("file")
    for content in contents:
        write_atomically(folder / "file", content)
        assert (folder / "file").read_bytes() == content
    assert [path.name for path in folder.iterdir()] == ["file"]


@given(st.lists(st.binary(max_size=20_000), max_size=5))
@settings(max_examples=20, deadline=None)
def test_a_file_written_piece_by_piece_is_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "file").write_bytes(b"old")
    (folder / ".file.tmp").write_bytes(b"left behind" * 10_000)
    with atomic_file(folder / "file", "it") as file:
        for piece in pieces:
            file.write(piece)
            assert (folder / "file").read_bytes() == b"old"
    assert (folder / "file").read_bytes() == b"".join(pieces)
    assert [path.name for path in folder.iterdir()] == ["file"]


@pytest.mark.parametrize("failure", [ValueError(), OSError(2, "No such file", "another"), KeyboardInterrupt()])
def test_what_fails_while_a_file_is_written_is_raised_and_leaves_the_old_one(
    tmp_path: Path, failure: BaseException
) -> None:
    """An OSError of something else is not taken for one of this file."""

    def write() -> None:
        with atomic_file(tmp_path / "file", "it") as file:
            file.write(b"new" * 100_000)
            raise failure

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(type(failure)) as raised:
        write()
    assert raised.value is failure
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_disk_that_is_full_at_once_or_at_the_end_is_one_line(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / ".file.tmp").symlink_to("/dev/full")
    full = r"file: cannot write the list \(No space left on device\); choose another folder$"
    with pytest.raises(InputError, match=full), atomic_file(tmp_path / "file", "the list") as file:
        file.write(b"n" * size)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write it \(No such file or directory\)"):
        atomic_file(tmp_path / "no" / "file", "it").__enter__()


# ----- read ahead, written behind -----


class Torn(Exception):
    """What goes wrong."""


def items(number: int, fails: int | None, made: list[int]) -> Iterator[int]:
    for i in range(number):
        if i == fails:
            raise Torn(i)
        made.append(i)
        yield i


def drained(coming: Iterator[int]) -> tuple[list[int], str | None]:
    """What comes, and the exception after it."""
    taken = []
    try:
        for item in coming:
            taken.append(item)
    except Torn as error:
        return taken, str(error)
    return taken, None


@given(number=st.integers(0, 12), fails=st.none() | st.integers(0, 12))
def test_items_come_in_order_and_an_exception_in_its_place(number: int, fails: int | None) -> None:
    made, expected = list[int](), list[int]()
    assert drained(prefetch(items(number, fails, made))) == drained(items(number, fails, expected))
    assert made == expected


def test_no_more_than_a_few_are_made_ahead_and_none_once_the_caller_stops() -> None:
    made: list[int] = []
    coming = prefetch(items(100, None, made))
    assert next(coming) == 0
    time.sleep(0.05)
    assert made == list(range(1 + QUEUE_DEPTH))
    coming.close()  # type: ignore[attr-defined]
    assert made == list(range(1 + QUEUE_DEPTH))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@given(number=st.integers(0, 12), fails=st.none() | st.integers(0, 11))
def test_calls_are_made_in_order_until_one_fails(number: int, fails: int | None) -> None:
    done, asked = list[int](), list[int]()

    def call(i: int) -> None:
        if i == fails:
            raise Torn(i)
        done.append(i)

    def all_calls() -> None:
        with BackgroundWriter() as behind:
            for i in range(number):
                asked.append(i)
                behind.call(call, i)

    if fails is None or fails >= number:
        all_calls()
        assert done == list(range(number))
        return
    with pytest.raises(Torn, match=str(fails)):
        all_calls()
    assert done == list(range(fails))
    assert len(asked) <= fails + 2 + QUEUE_DEPTH


def test_the_caller_waits_and_what_was_asked_for_is_done_when_he_fails() -> None:
    may, done, asked = threading.Semaphore(0), list[int](), list[int]()

    def call(i: int) -> None:
        may.acquire()
        done.append(i)

    def all_calls() -> None:
        with BackgroundWriter() as behind:
            for i in range(10):
                asked.append(i)
                behind.call(call, i)
            raise Torn

    def caller() -> None:
        with pytest.raises(Torn):
            all_calls()

    thread = threading.Thread(target=caller)
    thread.start()
    time.sleep(0.05)
    assert asked == list(range(1 + QUEUE_DEPTH))
    may.release(10)
    thread.join()
    assert done == asked == list(range(10))


# ----- pauses of the garbage collector -----


@pytest.mark.parametrize("collecting", [True, False])
def test_the_collector_is_as_before_and_does_not_search_in_the_block(collecting: bool) -> None:
    try:
        gc.enable() if collecting else gc.disable()
        gc.collect()
        before = [each["collections"] for each in gc.get_stats()]
        with suppress(ValueError), without_collection():
            with without_collection():
                assert not gc.isenabled()
            made = [[number] for number in range(50_000)]
            del made
            assert [each["collections"] for each in gc.get_stats()] == before
            raise ValueError("damaged")
        assert gc.isenabled() is collecting
    finally:
        gc.enable()
