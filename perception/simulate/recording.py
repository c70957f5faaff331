"""Records drives in several processes, each drive once: an interrupted run goes on with the drives that it has."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from perception.datasets.nuscenes.lidarseg import TABLE as LIDARSEG
from perception.datasets.nuscenes.occ3d import occ3d_file
from perception.errors import InputError
from perception.files import make_folder, write_atomically
from perception.simulate.drive import Drive, record
from perception.simulate.nuscenes_writer import Tables
from perception.stores import is_remote, mirror_of, origin_of, put_files, remove_folder
from perception.workers import open_pool

UNFINISHED = ".unfinished"  # folder below the dataroot with the tables of the drives that are recorded


def begin(drives: Sequence[Drive], out: Path) -> bool:
    """Prepare to record these drives below `out`; returns whether an earlier run has begun with the same drives.

    Else what it has recorded is not used.
    """
    folder = _finished(drives, out)
    if folder.exists():
        return True
    remove_folder(folder.parent)
    make_folder(folder)
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
    finished = _finished(drives, out).relative_to(out)
    files = [out / finished / f"{drive.name}.json" for drive in drives]
    found = {i: dict(json.loads(file.read_bytes())) for i, file in enumerate(files) if file.exists()}
    rest = [i for i in range(len(drives)) if i not in found]
    for i in found:
        run.progress(drives[i].samples)
    jobs = min(len(rest), run.jobs or os.cpu_count() or 1)
    if not rest or (jobs == 1 and run.ray is None):
        return [found.get(i) or _recorded(_Place(out, finished), drives[i], run.progress) for i in range(len(drives))]
    out = out.absolute()
    opened, call = (partial(_Place, out), _recorded) if run.ray is None else (partial(_shared, origin_of(out)), _put)
    with open_pool(partial(opened, finished), jobs, run.ray) as workers:
        for i, tables in workers.completed(call, [drives[i] for i in rest], lambda drive: drive.name):
            found[rest[i]] = tables
            run.progress(drives[rest[i]].samples)
    return [found[i] for i in range(len(drives))]


def end(out: Path) -> None:
    """Remove what was kept of single drives."""
    remove_folder(out / UNFINISHED)


class _Place(NamedTuple):
    """Where a process writes.

    Attributes:
        out: the dataroot.
        finished: folder below it with the tables of the drives that are recorded.
    """

    out: Path
    finished: Path


def _shared(out: Path, finished: Path) -> _Place:
    """The place on a machine of a cluster.

    Raises:
        InputError: it is not what `begin` has prepared.
    """
    if not is_remote(out) and not (out / finished).exists():
        raise InputError(
            f"{out}: is another folder on {socket.gethostname()}; give one on a disk that all machines share, or in an "
            "object store"
        )
    return _Place(mirror_of(out), finished)


def _put(place: _Place, drive: Drive) -> Tables:
    """As `_recorded`; the files of a drive for an object store are put there, its tables last, and removed here."""
    tables, out = _recorded(place, drive), place.out
    if origin_of(out) != out:
        rows = (row for name in ("sample_data", LIDARSEG) for row in tables.get(name, ()))
        names = [row["filename"] for row in rows]
        voxels = (occ3d_file(out, drive.name, row["token"]) for row in tables["sample"])
        names += [each.relative_to(out).as_posix() for each in voxels if each.exists()]
        put_files(out, names)
        own = (place.finished / f"{drive.name}.json").as_posix()
        put_files(out, [own])
        for name in (*names, own):
            (out / name).unlink()
    return tables


def _recorded(place: _Place, drive: Drive, progress: Callable[[int], None] = lambda keyframes: None) -> Tables:
    """The tables of a drive, after recording it."""
    tables = record(drive, place.out, partial(progress, 1))
    folder = make_folder(place.out / place.finished)
    write_atomically(folder / f"{drive.name}.json", json.dumps(tables).encode())
    return tables


def _finished(drives: Sequence[Drive], out: Path) -> Path:
    """The folder with the tables of recorded drives, named after all drives and the code that records them."""
    return out / UNFINISHED / _hash(drives)


def _hash(drives: Sequence[Drive]) -> str:
    """Of the drives and of the code that records them."""
    digest = hashlib.sha256(repr(drives).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
