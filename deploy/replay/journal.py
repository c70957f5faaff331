"""The journal of an unfinished replay: what was perceived so far, so that it can resume after a kill. numpy only.

The file is an SQLite database. Record 0 describes the replay, record n has what was perceived in frame n, as compressed
JSON and tensors, without executable content. A record that was being written at the kill is not in it. A record with a
wrong checksum ends the journal; a database with damaged pages is recreated.

Detections are stored exactly. The map is stored as far as the results depend on it: the level of each cell that the
fused map distinguishes, and whether its probability is above one half.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import zlib
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from deploy.replay.fingerprint import Fingerprint
from perception.errors import InputError
from perception.frame import Frame, Prediction
from perception.scene.scene import SceneFrame
from perception.tasks import TASKS
from perception.tasks.task import part_of, prefixed

JOURNAL = "replay.journal"
_TABLE = "CREATE TABLE records (number INTEGER PRIMARY KEY, content BLOB)"
# The process has exclusive access. Writes do not wait for the disk: records survive a kill, but not a power failure.
_OPEN = f"""
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = OFF;
    {_TABLE.replace("TABLE", "TABLE IF NOT EXISTS")};
"""


@dataclass(frozen=True)
class Recorded:
    """What was perceived in a frame before the replay was killed."""

    prediction: Prediction
    weights: Mapping[str, float]  # of the modules that the route switches
    seconds: Mapping[str, float]  # of each stage


class OccupiedError(InputError):
    """Another replay writes to the same folder."""


class Journal:
    """The journal of one replay. It first returns its records, frame by frame, and then takes new ones.

    with Journal(path, about) as journal:
        for frame in frames:
            recorded = journal.recall(frame)
            if recorded is None:
                journal.add(frame, runtime.step(frame))
        journal.finish()

    Args:
        path: the file; it is created if it does not exist.
        about: describes the replay, as JSON; it must equal that of an existing journal.
        computed: software and machine. If they differ from those of an existing journal, its frames are discarded, so
            that the results of a replay are never mixed.
        resume: whether to use the frames of an existing journal; otherwise they are discarded.

    Attributes:
        resumed: whether it has frames of an earlier run.
        fingerprints: hashes of the recalled and added frames, by drive.
        discarded: which software or machine differed, if frames were discarded for that; otherwise "".

    Raises:
        InputError: it is the journal of another replay or of a running one (OccupiedError), or cannot be written.
    """

    def __init__(
        self, path: Path, about: Mapping[str, Any], computed: Mapping[str, Any] | None = None, resume: bool = True
    ) -> None:
        self.path, self.about, self.computed, self.resume = path, about, computed or {}, resume
        self.recalled = 0  # frames so far
        self.fingerprints: dict[str, Fingerprint] = {}
        self.discarded = ""
        self._recalling = True
        self._opened = ExitStack()

    def __enter__(self) -> Journal:
        if not self._open():
            self._opened.close()
            self.path.unlink()
            self._open()
        first = self._read(0)
        old = json.loads(first) if first and self._read(1) else None  # a journal without a frame is replaced
        if old is not None:
            try:
                require_same(self.path, old["about"], self.about)
            except InputError:
                self._opened.close()
                raise
        self.discarded = _differences(old["computed"], self.computed) if old else ""
        self.resumed = old is not None and self.resume and not self.discarded
        if not self.resumed:
            self._delete_from(0)
            self._write(0, json.dumps({"about": self.about, "computed": self.computed}).encode())
        return self

    def recall(self, frame: Frame) -> Recorded | None:
        """Return the record of the next frame; None for the first frame without a record and all later ones.

        Raises:
            InputError: the frame differs from the recorded one.
        """
        if not self._recalling:
            return None
        record = self._read(self.recalled + 1)
        if record is None:
            self._recalling = False
            self._delete_from(self.recalled + 1)
            return None
        arrays = load(record)
        known = json.loads(arrays.pop("known").tobytes())
        if known["sha256"] != self._fingerprint(frame):
            raise InputError(
                f"{self.path}: frame {self.recalled} of the drive differs from the one that was replayed before; "
                "restore the old drive to resume, or remove this file to restart"
            )
        self.recalled += 1
        return Recorded(unpack(arrays, known["prediction"]), known["weights"], known["seconds"])

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """Append what was perceived in a frame. The record survives a kill of the process, but not a power failure.

        Raises:
            InputError: the disk is full.
        """
        arrays, prediction = pack(seen.prediction)
        known = {
            "sha256": self._fingerprint(frame),
            "weights": {name: routed.weight for name, routed in seen.route.items()},
            "prediction": prediction,
            "seconds": dict(seen.seconds),
        }
        self._write(None, save(arrays | {"known": np.frombuffer(json.dumps(known).encode(), np.uint8)}))

    def finish(self) -> None:
        """Delete the journal, after the results were written."""
        self._opened.close()
        self.path.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _fingerprint(self, frame: Frame) -> str:
        return self.fingerprints.setdefault(frame.scene, Fingerprint()).add(frame)

    def _open(self) -> bool:
        """Open the database; returns False if it is damaged."""
        try:
            database = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
            self._database = self._opened.enter_context(closing(database))
            self._database.executescript(_OPEN)
            sound = self._execute("PRAGMA quick_check") == "ok"
            return sound and self._execute("SELECT sql = ? FROM sqlite_master", _TABLE) == 1
        except sqlite3.OperationalError as error:  # of the disk or the folder
            raise self._cannot_write(error) from None
        except (sqlite3.DatabaseError, UnicodeDecodeError):
            return False

    def _execute(self, statement: str, *values: Any) -> Any:
        """Execute a statement and return its first value, or None."""
        try:
            return (self._database.execute(statement, values).fetchone() or [None])[0]
        except sqlite3.OperationalError as error:
            raise self._cannot_write(error) from None

    def _read(self, number: int) -> bytes | None:
        """Read a record; None if there is none, or it is damaged."""
        try:
            return zlib.decompress(self._execute("SELECT CAST(content AS BLOB) FROM records WHERE number = ?", number))
        except (TypeError, zlib.error):
            return None

    def _write(self, number: int | None, record: bytes) -> None:
        """Insert a record; without a number it is appended."""
        # Only run lengths are compressed: longer matches are rare in this data, and take three times as long.
        compressor = zlib.compressobj(strategy=zlib.Z_RLE)
        content = compressor.compress(record) + compressor.flush()
        self._execute("INSERT INTO records VALUES (?, ?)", number, content)

    def _delete_from(self, number: int) -> None:
        self._execute("DELETE FROM records WHERE number >= ?", number)

    def _cannot_write(self, error: sqlite3.OperationalError) -> InputError:
        self._opened.close()
        if "locked" in str(error):
            return OccupiedError(f"{self.path}: another replay writes there; wait for it or choose another --out")
        reason = os.strerror(errno.ENOSPC) if "full" in str(error) else str(error)
        return InputError(f"{self.path}: cannot write ({reason}); make room or choose another --out")


def pack(prediction: Prediction) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a prediction, and its other content as JSON values."""
    arrays: dict[str, np.ndarray] = {}
    for name, result in prediction.results.items():
        arrays |= prefixed(name, TASKS[name].pack(result))
    return arrays, {"tasks": list(prediction.results), "not_finite": prediction.not_finite}


def unpack(arrays: Mapping[str, np.ndarray], rest: Mapping[str, Any]) -> Prediction:
    """The inverse of `pack`."""
    results = {name: TASKS[name].unpack(part_of(name, arrays)) for name in rest["tasks"]}
    return Prediction(results, rest["not_finite"])


def require_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise InputError if what is in a file is of a replay that differs from the new one."""
    if differing := _differences(old, new):
        raise InputError(
            f"{path}: is of an unfinished replay with {differing}; repeat that one to finish it, or remove this file "
            "to restart"
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The names whose values differ, with both values; "" if all are equal."""
    new = json.loads(json.dumps(new))  # like the old ones, which were read from JSON
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {_short(old.get(name))} (now {_short(new.get(name))})" for name in names)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
