"""The journal of an unfinished replay: what it perceived so far, so that it can resume after a kill. numpy only.

The file is an SQLite database. Record 0 says what is replayed, record n what was perceived in frame n: JSON and
tensors, compressed, nothing that runs when it is read. A record that was being written when the replay was killed is
not in it. One whose checksum differs ends the journal; a database with damaged pages is begun anew.

Detections are kept to the last bit. Of the map is kept what the results are made of: the level of each cell, as the
fused map tells them apart, and on which side of one half it is.
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
# One process has the database to itself. Nothing waits for the disk: a record survives a kill, though not a power cut.
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
    """The journal of one replay. It first returns its records, frame by frame; then it takes new ones.

    with Journal(path, about) as journal:
        for frame in frames:
            recorded = journal.recall(frame)
            if recorded is None:
                journal.add(frame, runtime.step(frame))
        journal.finish()

    Args:
        path: of the file; it is made where it is not there.
        about: what is replayed, as JSON holds it; it must be what the journal was begun with.
        computed: what computes, by name. A journal that other software, or another machine, has begun is emptied:
            half a replay of each is a replay of neither.
        resume: whether to go on with what is in it; else it is emptied.

    Attributes:
        resumed: whether a frame is in it.
        fingerprints: of the frames that were recalled and added, by drive.
        discarded: what has computed the frames that it was emptied of, where that is why; else "".

    Raises:
        InputError: it is the journal of another replay, one that still runs (OccupiedError), or it cannot be written.
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
        old = json.loads(first) if first and self._read(1) else None  # without a frame it binds to nothing
        if old is not None and _differing(old["about"], self.about):
            self._opened.close()
            raise InputError(self._other(old["about"]))
        self.discarded = _differing(old["computed"], self.computed) if old else ""
        self.resumed = old is not None and self.resume and not self.discarded
        if not self.resumed:
            self._cut(0)
            self._write(0, json.dumps({"about": self.about, "computed": self.computed}).encode())
        return self

    def recall(self, frame: Frame) -> Recorded | None:
        """Return the record of the next frame; None for the first frame without a record, and all after it.

        Raises:
            InputError: the frame differs from the recorded one.
        """
        if not self._recalling:
            return None
        record = self._read(self.recalled + 1)
        if record is None:
            self._recalling = False
            self._cut(self.recalled + 1)
            return None
        arrays = load(record)
        known = json.loads(arrays.pop("known").tobytes())
        if known["sha256"] != self._fingerprint(frame):
            raise InputError(
                f"{self.path}: frame {self.recalled} of the drive is not the one that was replayed before; "
                "bring the old drive back to go on, or remove this file to begin anew"
            )
        self.recalled += 1
        return Recorded(unpack(arrays, known["prediction"]), known["weights"], known["seconds"])

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """Append what was perceived in a frame. The record survives a kill of the process, but not a power cut.

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
        """Delete the journal, because the results are written."""
        self._opened.close()
        self.path.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _fingerprint(self, frame: Frame) -> str:
        return self.fingerprints.setdefault(frame.scene, Fingerprint()).add(frame)

    def _open(self) -> bool:
        """Open the database; False where it is damaged."""
        try:
            database = sqlite3.connect(self.path, 0, isolation_level=None, check_same_thread=False)
            self._database = self._opened.enter_context(closing(database))
            self._database.executescript(_OPEN)
            sound = self._execute("PRAGMA quick_check") == "ok"
            return sound and self._execute("SELECT sql = ? FROM sqlite_master", _TABLE) == 1
        except sqlite3.OperationalError as error:  # the disk's and the folder's
            raise self._cannot_write(error) from None
        except (sqlite3.DatabaseError, UnicodeDecodeError):
            return False

    def _execute(self, statement: str, *values: Any) -> Any:
        """The first value that the statement returns; None where it returns none."""
        try:
            return (self._database.execute(statement, values).fetchone() or [None])[0]
        except sqlite3.OperationalError as error:
            raise self._cannot_write(error) from None

    def _read(self, number: int) -> bytes | None:
        """A record; None where there is none, or it is damaged."""
        try:
            return zlib.decompress(self._execute("SELECT CAST(content AS BLOB) FROM records WHERE number = ?", number))
        except (TypeError, zlib.error):
            return None

    def _write(self, number: int | None, record: bytes) -> None:
        """Insert a record; one without a number becomes the last."""
        # Runs alone are looked for: longer matches are rare in such numbers, and take thrice the time.
        compressor = zlib.compressobj(strategy=zlib.Z_RLE)
        content = compressor.compress(record) + compressor.flush()
        self._execute("INSERT INTO records VALUES (?, ?)", number, content)

    def _cut(self, number: int) -> None:
        self._execute("DELETE FROM records WHERE number >= ?", number)

    def _other(self, old: Mapping[str, Any]) -> str:
        return (
            f"{self.path}: is of an unfinished replay with {_differing(old, self.about)}; repeat that one to finish "
            "it, or remove this file to begin anew"
        )

    def _cannot_write(self, error: sqlite3.OperationalError) -> InputError:
        self._opened.close()
        if "locked" in str(error):
            return OccupiedError(f"{self.path}: another replay writes there; wait for it or choose another --out")
        reason = os.strerror(errno.ENOSPC) if "full" in str(error) else str(error)
        return InputError(f"{self.path}: cannot write ({reason}); make room or choose another --out")


def pack(prediction: Prediction) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a prediction, and the rest of it as JSON holds it."""
    arrays: dict[str, np.ndarray] = {}
    for name, result in prediction.results.items():
        arrays |= prefixed(name, TASKS[name].pack(result))
    return arrays, {"tasks": list(prediction.results), "not_finite": prediction.not_finite}


def unpack(arrays: Mapping[str, np.ndarray], rest: Mapping[str, Any]) -> Prediction:
    """The inverse of `pack`."""
    results = {name: TASKS[name].unpack(part_of(name, arrays)) for name in rest["tasks"]}
    return Prediction(results, rest["not_finite"])


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The names whose values differ, with both values; "" where all are equal."""
    new = json.loads(json.dumps(new))  # as the old ones were written
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {_short(old.get(name))} (now {_short(new.get(name))})" for name in names)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
