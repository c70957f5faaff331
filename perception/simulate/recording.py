"""Records drives in several processes, each drive once: an interrupted run goes on with the drives that it has."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from perception.atomic import made, write_atomically
from perception.pools import open_pool
from perception.simulate.drive import Drive, record
from perception.simulate.nuscenes_writer import Tables

UNFINISHED = ".unfinished"  # folder below the dataroot with the tables of the drives that are recorded
_ABOUT = "drives.sha256"


def begin(drives: Sequence[Drive], out: Path) -> bool:
    """Prepare to record these drives below `out`; returns whether an earlier run has begun with the same drives.

    Else what it has recorded is not used.
    """
    folder, about = out / UNFINISHED, _hash(drives)
    if folder.exists() and (folder / _ABOUT).exists() and (folder / _ABOUT).read_text() == about:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    write_atomically(made(folder) / _ABOUT, about.encode())
    return False


class Run(NamedTuple):
    """How drives are recorded.

    Attributes:
        jobs: processes that record a drive each; None: one for each processor.
        progress: is called with the number of keyframes that are recorded since the last call.
        ray: address of a Ray cluster, whose processes record instead.
    """

    jobs: int | None = None
    progress: Callable[[int], None] = lambda keyframes: None
    ray: str | None = None


def record_all(drives: Sequence[Drive], out: Path, run: Run) -> list[Tables]:
    """The tables of the drives, in their order, and the files of their sensors below `out`.

    Raises:
        InputError: processes die of the same drive again and again.
    """
    jobs = min(len(drives), run.jobs or os.cpu_count() or 1)
    if jobs == 1 and run.ray is None:
        return [_recorded(out, drive, partial(run.progress, 1)) for drive in drives]
    found: dict[int, Tables] = {}
    with open_pool(partial(Path, out.absolute()), jobs, run.ray) as workers:
        for i, tables in workers.completed(_recorded, drives, lambda drive: drive.name):
            found[i] = tables
            run.progress(drives[i].samples)
    return [found[i] for i in range(len(drives))]


def end(out: Path) -> None:
    """Remove what was kept of single drives."""
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)


def _recorded(out: Path, drive: Drive, progress: Callable[[], None] = lambda: None) -> Tables:
    """The tables of a drive, which is recorded unless it was before."""
    file = out / UNFINISHED / f"{drive.name}.json"
    if file.exists():
        return dict(json.loads(file.read_bytes()))
    tables = record(drive, out, progress)
    write_atomically(file, json.dumps(tables).encode())
    return tables


def _hash(drives: Sequence[Drive]) -> str:
    """Of the drives and of the code that records them."""
    digest = hashlib.sha256(repr(drives).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
