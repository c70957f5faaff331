"""The journal of an unfinished replay: what was perceived so far, so that it can resume after a kill. numpy only.

The file is an SQLite database. Record 0 describes the replay, record n has what was perceived in frame n and written of
it, as compressed JSON and tensors, without executable content. Record -1 has the state of the sensors' health after the
last frame, and record -1 - n what frame n is drawn from, if it may stay in the report. A record that was being written
at the kill is not in it. A record with a wrong checksum ends the journal; a database with damaged pages is recreated.

Detections are stored exactly. The map is stored as far as the results depend on it: the level of each cell that the
fused map distinguishes, and whether its probability is above one half.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import threading
import zlib
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from deploy.replay.fingerprint import FrameHashes, frame_hashes, without_sensors
from deploy.replay.record import (
    MonitorState,
    Recorded,
    Written,
    packed,
    packed_drawing,
    packed_monitor,
    unpacked_drawing,
    unpacked_monitor,
)
from deploy.replay.undecoded import SensorSizes, UndecodedFrame
from perception.errors import InputError
from perception.frame import Frame
from perception.scene.scene import SceneFrame

JOURNAL = "replay.journal"
_MONITOR = -1  # number of the record of the sensors' health
_TABLE = "CREATE TABLE records (number INTEGER PRIMARY KEY, content BLOB)"
# The process has exclusive access. Writes do not wait for the disk: records survive a kill, but not a power failure.
_OPEN = f"""
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = OFF;
    {_TABLE.replace("TABLE", "TABLE IF NOT EXISTS")};
"""


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
        frames: number of recalled and added ones, by drive.
        discarded: which software or machine differed, if frames were discarded for that; otherwise "".

    Raises:
        InputError: it is the journal of another replay or of a running one (OccupiedError), or cannot be written.
    """

    def __init__(
        self, path: Path, about: Mapping[str, Any], computed: Mapping[str, Any] | None = None, resume: bool = True
    ) -> None:
        self.path, self.about, self.computed, self.resume = path, about, computed or {}, resume
        self.recalled = 0  # frames so far
        self.frames: Counter[str] = Counter()
        self.discarded = ""
        self._recalling = True
        self._named = 0  # frames that `sizes` has given
        self._given = deque[Recorded]()  # their records, which `recall` takes
        self._lock = threading.Lock()  # Python from 3.12 on lets threads share a statement
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
            self._execute("DELETE FROM records")
            self._write(0, json.dumps({"about": self.about, "computed": self.computed}).encode())
        return self

    @cached_property
    def _known(self) -> tuple[int, MonitorState | None]:
        """Number of frames when it was opened, and the state of the health monitor after the last one.

        None: the state is of another frame, or a record is damaged.
        """
        record = self._read(_MONITOR)
        if record is None:
            return 0, None
        number, state = unpacked_monitor(record)
        last = self._execute("SELECT MAX(number) FROM records")
        whole = number == last and all(self._read(i) is not None for i in range(last + 1))
        drawings = sum(self._read(_MONITOR - i) is not None for i in range(1, last + 1))
        whole &= drawings == self._execute("SELECT COUNT(*) FROM records WHERE number < ?", _MONITOR)
        return (last, state) if whole else (0, None)

    @property
    def monitor(self) -> MonitorState | None:
        """State of the health monitor after the last of the frames that `sizes` gives."""
        return self._known[1]

    def sizes(self, token: str) -> SensorSizes | None:
        """What a frame has, if it is the next one in the journal and its sensors need not be read to restore it.

        Such a frame is to be recalled, as an `UndecodedFrame`. First called before a frame is added.
        """
        record = self._read(self._named + 1) if self._named < self._known[0] else None
        recorded = None if record is None else Recorded.load(record)
        if recorded is None or recorded.token != token:
            return None
        self._named += 1
        self._given.append(recorded)
        drawing = self._read(_MONITOR - self._named)
        if drawing is None or recorded.sizes is None:
            return recorded.sizes
        return replace(recorded.sizes, drawing=unpacked_drawing(drawing))

    def recall(self, frame: Frame) -> Recorded | None:
        """Return the record of the next frame; None for the first frame without a record and all later ones.

        Raises:
            InputError: the frame differs from the recorded one.
        """
        if not self._recalling:
            return None
        if isinstance(frame, UndecodedFrame):
            recorded = self._given.popleft()
        elif (record := self._read(self.recalled + 1)) is not None:
            recorded = Recorded.load(record)
        else:
            self._recalling = False
            self._delete_from(self.recalled + 1)
            return None
        if not _is_of(frame, recorded.hashes):
            raise InputError(
                f"{self.path}: frame {self.recalled} of the drive differs from the one that was replayed before; "
                "restore the old drive to resume, or remove this file to restart"
            )
        self.recalled += 1
        self.frames[frame.scene] += 1
        return recorded

    def add(self, frame: Frame, seen: SceneFrame, written: Written | None = None) -> None:
        """Append what was perceived in a frame. The record survives a kill of the process, but not a power failure.

        Args:
            written: of the frame; without it, the frame is to be read again.

        Raises:
            InputError: the disk is full.
        """
        sizes = None if written is None else SensorSizes.of(frame)
        record = packed(seen, frame_hashes(frame), sizes, written)
        self.frames[frame.scene] += 1
        self._execute("BEGIN")
        self._write(None, record)
        if written is not None:
            number = self._execute("SELECT MAX(number) FROM records")
            self._write(_MONITOR, packed_monitor(number, written.monitor), level=0)
            if written.drawing is not None:
                self._write(_MONITOR - number, packed_drawing(written.drawing), level=0)
        self._execute("COMMIT")

    def finish(self) -> None:
        """Delete the journal, after the results were written."""
        self._opened.close()
        self.path.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        self._opened.close()

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
            with self._lock:
                return (self._database.execute(statement, values).fetchone() or [None])[0]
        except sqlite3.OperationalError as error:
            raise self._cannot_write(error) from None

    def _read(self, number: int) -> bytes | None:
        """Read a record; None if there is none, or it is damaged."""
        try:
            return zlib.decompress(self._execute("SELECT CAST(content AS BLOB) FROM records WHERE number = ?", number))
        except (TypeError, zlib.error):
            return None

    def _write(self, number: int | None, record: bytes, level: int = 6) -> None:
        """Insert a record, in place of one with the same number; without a number it is appended.

        Args:
            level: of zlib's compression; 0: with a checksum only.
        """
        # Only run lengths are compressed: longer matches are rare in this data, and take three times as long.
        compressor = zlib.compressobj(level, strategy=zlib.Z_RLE)
        content = compressor.compress(record) + compressor.flush()
        self._execute("INSERT OR REPLACE INTO records VALUES (?, ?)", number, content)

    def _delete_from(self, number: int) -> None:
        self._execute("DELETE FROM records WHERE number >= ? OR number <= ?", number, _MONITOR - number)

    def _cannot_write(self, error: sqlite3.OperationalError) -> InputError:
        self._opened.close()
        if "locked" in str(error):
            return OccupiedError(f"{self.path}: another replay writes there; wait for it or choose another --out")
        reason = os.strerror(errno.ENOSPC) if "full" in str(error) else str(error)
        return InputError(f"{self.path}: cannot write ({reason}); make room or choose another --out")


def _is_of(frame: Frame, hashes: FrameHashes) -> bool:
    """Whether a frame is the one with these hashes."""
    if isinstance(frame, UndecodedFrame):
        return without_sensors(frame) == hashes.rest
    return frame_hashes(frame).data == hashes.data


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
