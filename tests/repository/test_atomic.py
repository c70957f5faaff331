"""Files and folders are replaced whole: with a real SIGKILL before every step, and with the disk told to keep them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ROOT

from perception import atomic
from perception.atomic import atomic_file, folder_written_whole, put_back, write_atomically, write_together
from perception.errors import InputError

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


@pytest.mark.parametrize("swap", ["with", "without"])
def test_a_folder_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    """The order of fsync and rename, as the calls were made."""
    calls: list[tuple[str, str]] = []
    fsync, exchange, rename = os.fsync, atomic._exchange, Path.rename

    def recorded(handle: int) -> None:
        calls.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def swapped(a: Path, b: Path) -> bool:
        calls.append(("swap", b.name))
        return swap == "with" and exchange(a, b)

    def renamed(self: Path, target: Path) -> Path:
        calls.append(("rename", target.name))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(atomic, "_exchange", swapped)
    monkeypatch.setattr(Path, "rename", renamed)
    (tmp_path / "bundle").mkdir()
    with folder_written_whole(tmp_path / "bundle", "it") as fresh:
        (fresh / "sub").mkdir()
        (fresh / "sub" / "file").write_text("new")
    new = f".bundle.new-{os.getpid()}"
    assert {name for what, name in calls[:3] if what == "fsync"} == {"sub", "file", new}
    instead = [] if swap == "with" else [("rename", ".bundle.old"), ("rename", "bundle")]
    assert calls[3:] == [("swap", "bundle"), *instead, ("fsync", tmp_path.name)]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_files_are_on_the_disk_before_the_first_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def recorded(handle: int) -> None:
        calls.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def replaced(a: Path, b: Path) -> None:
        calls.append(("replace", b.name))
        replace(a, b)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "replace", replaced)
    write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    process = os.getpid()
    assert calls == [
        ("fsync", f".a.{process}"), ("fsync", f".b.{process}"), ("replace", "a"), ("replace", "b"),
        ("fsync", tmp_path.name),
    ]  # fmt: skip
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
