"""Files and folders replaced whole, what is read ahead and written behind, and pauses of the garbage collector."""

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import killed
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killed import NEW, OLD

from deploy.replay.schedule import QUEUE_DEPTH, BackgroundWriter, prefetch
from perception.errors import InputError
from perception.io import files
from perception.io.files import (
    atomic_file,
    atomic_folder,
    pause_collector,
    restore_folder,
    write_atomically,
    write_together,
)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux kills and exchanges")
@pytest.mark.parametrize("swap", ["with", "without"])
def test_killed_at_any_step_a_folder_is_the_old_or_the_new_one(tmp_path: Path, swap: str) -> None:
    """With the exchange it is at its name at every step; without, `restore_folder` finds it."""
    done = subprocess.run(
        [sys.executable, killed.__file__, tmp_path / "bundle", swap], capture_output=True, text=True, check=True
    )
    end, missing, found = json.loads(done.stdout)
    assert (end, found[0], found[-1]) == (0, OLD, NEW)
    assert all(each in (OLD, NEW) for each in found)
    assert found.count(NEW) > 1  # it was killed after the swap too
    assert (missing > 0) == (swap == "without")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is told to the disk, as the calls are made: with the last part of the path."""
    made: list[tuple[str, str]] = []

    def spy(owner: Any, name: str, place: Callable[..., str]) -> None:
        real = getattr(owner, name)

        def spied(*given: Any) -> Any:
            made.append((name, place(*given)))
            return real(*given)

        monkeypatch.setattr(owner, name, spied)

    spy(os, "fsync", lambda handle: os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
    spy(Path, "rename", lambda _, target: target.name)
    spy(os, "replace", lambda _, target: target.name)
    return made


@pytest.mark.parametrize("swap", ["with", "without"])
def test_a_folder_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, str]], swap: str
) -> None:
    exchange = files._exchange

    def swapped(a: Path, b: Path) -> bool:
        calls.append(("swap", b.name))
        return swap == "with" and exchange(a, b)

    monkeypatch.setattr(files, "_exchange", swapped)
    (tmp_path / "bundle").mkdir()
    with atomic_folder(tmp_path / "bundle", "it") as fresh:
        (fresh / "sub").mkdir()
        (fresh / "sub" / "file").write_text("new")
    new = f".bundle.new-{os.getpid()}"
    assert {name for what, name in calls[:3] if what == "fsync"} == {"sub", "file", new}
    instead = [] if swap == "with" else [("rename", ".bundle.old"), ("rename", "bundle")]
    assert calls[3:] == [("swap", "bundle"), *instead, ("fsync", tmp_path.name)]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_files_are_on_the_disk_before_the_first_takes_its_place(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    write_together({tmp_path / "a": b"0", tmp_path / "b": b"2"})
    fresh = [("fsync", f".{name}.{os.getpid()}") for name in "ab"]
    assert calls == [*fresh, ("replace", "a"), ("replace", "b"), ("fsync", tmp_path.name)]
    write_atomically(tmp_path / "a", b"1")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}


def test_leftovers_of_a_process_that_died(tmp_path: Path) -> None:
    """Its unfinished folder is no obstacle; the old folder is put back only where none is."""
    restore_folder(tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
    for there in ({"bundle"}, {"bundle", ".bundle.old"}):
        (tmp_path / ".bundle.old").mkdir()
        restore_folder(tmp_path / "bundle")
        assert {path.name for path in tmp_path.iterdir()} == there
    leftover = tmp_path / f".bundle.new-{os.getpid()}"  # in a container every run can have the same process number
    leftover.mkdir()
    (leftover / "half").write_text("half")
    with atomic_folder(tmp_path / "bundle", "it") as fresh:
        (fresh / "whole").write_text("whole")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["bundle", "bundle/whole"]


@pytest.mark.parametrize("swap", ["with", "without"])
def test_a_folder_is_replaced_where_a_link_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: str) -> None:
    """As `current -> bundle-5` does; also where there is no such folder yet, and after a kill that left none."""
    if swap == "without":
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    link, folder = tmp_path / "current", tmp_path / "all" / "bundle-5"
    link.symlink_to(Path("all") / "bundle-5")
    for content in ("old", "new"):
        with atomic_folder(link, "it") as fresh:
            (fresh / "file").write_text(content)
        assert link.is_symlink()
        assert (folder / "file").read_text() == content
        assert [path.name for path in folder.parent.iterdir()] == ["bundle-5"]
    folder.rename(folder.with_name(".bundle-5.old"))
    restore_folder(link)
    assert (link / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "current"]


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
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"file": b"".join(pieces)}


def another_error(file: BinaryIO) -> None:
    raise OSError(2, "No such file", "another")  # not taken for one of this file


def interrupted(file: BinaryIO) -> None:
    file.write(b"new" * 100_000)
    raise KeyboardInterrupt


FULL = r"file: cannot write the list \(No space left on device\); choose another folder$"


@pytest.mark.parametrize(
    ("size", "write", "error", "says"),
    [
        ("free", another_error, OSError, "another"),
        ("free", interrupted, KeyboardInterrupt, None),
        ("full", lambda file: file.write(b"n"), InputError, FULL),
        ("full", lambda file: file.write(b"n" * 1_000_000), InputError, FULL),
    ],
)
def test_what_fails_while_a_file_is_written_is_raised_and_leaves_the_old_one(
    tmp_path: Path, size: str, write: Callable[[BinaryIO], object], error: type[BaseException], says: str | None
) -> None:
    """Also where the disk is full at once or at the end."""
    (tmp_path / "file").write_bytes(b"old")
    if size == "full":
        (tmp_path / ".file.tmp").symlink_to("/dev/full")
    with pytest.raises(error, match=says), atomic_file(tmp_path / "file", "the list") as file:
        write(file)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_a_file_that_cannot_take_its_place_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot write it \(No such file or directory\)"):
        atomic_file(tmp_path / "no" / "file", "it").__enter__()
    write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match=str(tmp_path / "file")):
        write_atomically(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


# ----- read ahead, written behind -----


class Torn(Exception):
    """What goes wrong."""


def items(number: int, fails: int | None, made: list[int]) -> Iterator[int]:
    for i in range(number):
        if i == fails:
            raise Torn(i)
        made.append(i)
        yield i


def drained(coming: Iterator[int]) -> list[object]:
    """What comes, and the text of the exception after it."""
    taken: list[object] = []
    try:
        for item in coming:
            taken.append(item)
    except Torn as error:
        taken.append(str(error))
    return taken


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
    coming.close()
    assert made == list(range(1 + QUEUE_DEPTH))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def called(number: int, call: Callable[[int], None], asked: list[int], failing: bool = False) -> None:
    """Ask for so many calls; then the caller fails."""
    with BackgroundWriter() as behind:
        for i in range(number):
            asked.append(i)
            behind.call(call, i)
        if failing:
            raise Torn("the caller")


@given(number=st.integers(0, 12), fails=st.none() | st.integers(0, 11))
def test_calls_are_made_in_order_until_one_fails(number: int, fails: int | None) -> None:
    done, asked = list[int](), list[int]()

    def call(i: int) -> None:
        if i == fails:
            raise Torn(i)
        done.append(i)

    if fails is None or fails >= number:
        called(number, call, asked)
        assert done == list(range(number))
        return
    with pytest.raises(Torn, match=str(fails)):
        called(number, call, asked)
    assert done == list(range(fails))
    assert len(asked) <= fails + 2 + QUEUE_DEPTH


def test_the_caller_waits_and_what_was_asked_for_is_done_when_he_fails() -> None:
    may, done, asked = threading.Semaphore(0), list[int](), list[int]()

    def call(i: int) -> None:
        may.acquire()
        done.append(i)

    def caller() -> None:
        with pytest.raises(Torn):
            called(10, call, asked, failing=True)

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
        with suppress(ValueError), pause_collector():
            with pause_collector():
                assert not gc.isenabled()
            made = [[number] for number in range(50_000)]
            del made
            assert [each["collections"] for each in gc.get_stats()] == before
            raise ValueError("damaged")
        assert gc.isenabled() is collecting
    finally:
        gc.enable()
