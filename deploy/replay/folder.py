"""The files in the folder of a replay: at the start, at the end, and after a failure."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.replay.outcome import junit
from deploy.replay.provenance import PROVENANCE
from deploy.replay.results import LATENCY, REPORT, SOURCES, STATISTICS, VIEWER
from perception.errors import InputError
from perception.io.files import make_folder, write_atomically
from perception.tasks import TASKS

VERDICT, JUNIT = "verdict.json", "junit.xml"
SCENES = "scenes"  # folder of the drives, until all are finished
VERDICT_FILES = (VERDICT, JUNIT)


def final_files() -> tuple[str, ...]:
    """The files of a finished replay; an unfinished one has none of them."""
    common = (*VERDICT_FILES, PROVENANCE, STATISTICS, SOURCES, LATENCY, REPORT, VIEWER)
    scores = [name for task in TASKS.values() for name in task.metric.files]
    return *common, *scores, *_files_of_tasks()


def _files_of_tasks() -> list[str]:
    return [name for task in TASKS.values() for name in task.files.values()]


def remove(folder: Path, names: Sequence[str]) -> None:
    """Remove these files if they exist; InputError if one cannot be removed."""
    for name in names:
        try:
            (folder / name).unlink(missing_ok=True)
        except NotADirectoryError:
            return  # there is no such folder
        except OSError as error:
            remedy = "remove it, or choose another --out"
            raise InputError(f"{folder / name}: cannot remove ({error.strerror}); {remedy}") from None


def require_own_folder(out: Path, baseline: Path | None) -> None:
    """Raise InputError if replaying into `out` would remove files of other origin, or change the baseline, also
    through links."""
    require_own_files(out, (PROVENANCE, SCENES), "replay")
    if baseline is None:
        return
    there, here = baseline.resolve(), out.resolve()
    remedy = "choose another --out"
    if here == there or there in here.parents:
        raise InputError(f"{out}: is the folder of the baseline itself, or in it; {remedy}")
    for name in (*_files_of_tasks(), STATISTICS, LATENCY, PROVENANCE):
        if (there / name).resolve() == (here / name).resolve():
            raise InputError(f"{baseline / name}: is a link to {here / name}, which the replay replaces; {remedy}")


def require_own_files(out: Path, marks: Sequence[str], what: str) -> None:
    """Raise InputError if `out` has files that `what` would remove, and none of the marks by which it may have them."""
    if any((out / name).exists() for name in marks):
        return
    for name in final_files():
        if name not in VERDICT_FILES and (out / name).exists():
            raise InputError(f"{out / name}: is of no {what}, and a {what} would remove it; choose another --out")


class OccupiedError(InputError):
    """Another replay or drive writes to the same folder."""


@contextmanager
def occupy(folder: Path) -> Iterator[None]:
    """Let no other replay or drive write to a folder meanwhile; OccupiedError if one does."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        what = "another replay or drive writes there"
        raise OccupiedError(f"{folder}: {what}; wait for it or choose another --out") from None
    except OSError:
        pass  # some network disks have no locks
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def error_if_unjudged(folder: Path, judged: bool) -> Iterator[None]:
    """Remove an earlier verdict, and run a block that replays and, if `judged`, writes a new one.

    If the block fails, an <error> is written to junit.xml, so that a CI system does not take a missing verdict for a
    pass.
    """
    remove(folder, VERDICT_FILES)
    try:
        yield
    except OccupiedError:
        raise  # the folder belongs to another replay
    except BaseException as error:
        if judged:
            _write_error(folder, error)
        raise


def _write_error(folder: Path, error: BaseException) -> None:
    message = str(error) or "the replay was interrupted"
    text = "".join(each if each.isprintable() else " " for each in message)  # XML does not allow control characters
    with suppress(InputError):  # the original exception is raised anyway
        content = junit([("replay", "replay", "error", type(error).__name__, text)])
        write_atomically(make_folder(folder) / JUNIT, content)
