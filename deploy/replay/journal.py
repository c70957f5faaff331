"""What an unfinished replay has perceived so far, so that it goes on there after it was killed. numpy only.

The file is a sequence of records, each with its length and CRC-32 before it. The first says what is replayed, every
further one what was perceived in a frame: JSON and tensors, compressed, nothing that runs when it is read. A record
that was being written when the replay was killed, or that does not hold what was written, ends the journal.

Detections are kept to the last bit. Of the map is kept what the results are made of: the level of each cell, as the
fused map tells them apart, and on which side of one half it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from deploy.replay.fingerprint import Fingerprint
from perception.errors import InputError
from perception.frame import Boxes, Frame, Prediction
from perception.scene.scene import SceneFrame
from perception.tasks.map.memory import LEVELS, levels_of

JOURNAL = "replay.journal"
_BEFORE = struct.Struct("<QI")  # length in bytes and CRC-32 of a record
_NUMBERS = tuple(field.name for field in fields(Boxes) if field.name != "instances")  # detections have no instance
_HALF, _BELOW_HALF = np.float32(0.5), LEVELS + 2  # the level of what is below one half, but rounds to it


@dataclass(frozen=True)
class Recorded:
    """What was perceived in a frame before the replay was killed."""

    prediction: Prediction
    weights: Mapping[str, float]  # of the modules that the route switches
    seconds: Mapping[str, float]  # of each stage


class OccupiedError(InputError):
    """Another replay writes to the same folder."""


class Journal:
    """The journal of one replay. First it gives what is in it, frame by frame, then it takes what is new.

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

    def __enter__(self) -> Journal:
        try:
            self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            message = f"{self.path}: another replay writes there; wait for it or choose another --out"
            raise OccupiedError(message) from None
        except OSError as error:
            raise self._cannot_write(error) from None
        begun = {"about": self.about, "computed": self.computed}
        first, start = self._read() or b"", self._file.tell()
        self.resumed = bool(first) and self._read() is not None  # at least one frame is there
        if self.resumed:
            old = json.loads(first)
            if "computed" not in old:
                self.discarded = "an earlier version of this program"
            elif _differing(old["about"], self.about):
                self._file.close()
                raise InputError(self._other(old["about"]))
            else:
                self.discarded = _differing(old["computed"], self.computed)
            self.resumed = self.resume and not self.discarded
        if self.resumed:
            self._file.seek(start)
        else:
            self._cut(0)
            self._append(json.dumps(begun).encode())
        return self

    def recall(self, frame: Frame) -> Recorded | None:
        """What is in the journal of the next frame; None from the first one on that is not in it.

        Raises:
            InputError: it is another frame than before.
        """
        if not self._recalling:
            return None
        start, record = self._file.tell(), self._read()
        if record is None:
            self._recalling = False
            self._cut(start)
            return None
        record = zlib.decompress(record)
        length = int.from_bytes(record[:8], "little")
        known = json.loads(json.loads(record[8 : 8 + length])["__metadata__"]["frame"])
        if known["sha256"] != self._fingerprint(frame):
            raise InputError(
                f"{self.path}: frame {self.recalled} of the drive is not the one that was replayed before; "
                "bring the old drive back to go on, or remove this file to begin anew"
            )
        self.recalled += 1
        arrays = load(record)
        numbers = {name: arrays[name] for name in _NUMBERS}
        boxes = Boxes(**numbers, instances=np.full(len(numbers["centers"]), "", "U32"))
        map_probabilities = unpacked(arrays["map"]) if "map" in arrays else None
        prediction = Prediction(boxes, map_probabilities, known["recognised"], known["not_finite"])
        return Recorded(prediction, known["weights"], known["seconds"])

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """Append what was perceived in a frame. From here on it survives a kill, though not a power cut.

        Raises:
            InputError: the disk is full.
        """
        known = {
            "sha256": self._fingerprint(frame),
            "weights": {name: routed.weight for name, routed in seen.route.items()},
            "recognised": seen.prediction.recognised,
            "not_finite": seen.prediction.not_finite,
            "seconds": dict(seen.seconds),
        }
        arrays = {name: np.ascontiguousarray(getattr(seen.prediction.boxes, name)) for name in _NUMBERS}
        if seen.prediction.map_probabilities is not None:
            arrays["map"] = packed(seen.prediction.map_probabilities)
        # Runs alone are looked for: longer matches are rare in such numbers, and take thrice the time.
        compressor = zlib.compressobj(strategy=zlib.Z_RLE)
        self._append(compressor.compress(save(arrays, {"frame": json.dumps(known)})) + compressor.flush())

    def finish(self) -> None:
        """The results are written: the journal has done its duty."""
        self.path.unlink()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _fingerprint(self, frame: Frame) -> str:
        return self.fingerprints.setdefault(frame.scene, Fingerprint()).add(frame)

    def _read(self) -> bytes | None:
        """The next record; None where there is none, or it is torn or damaged."""
        before = self._file.read(_BEFORE.size)
        if len(before) < _BEFORE.size:
            return None
        length, checksum = _BEFORE.unpack(before)
        if length > os.fstat(self._file.fileno()).st_size - self._file.tell():
            return None
        record = self._file.read(length)
        return record if zlib.crc32(record) == checksum else None

    def _append(self, record: bytes) -> None:
        unwritten = memoryview(_BEFORE.pack(len(record), zlib.crc32(record)) + record)
        try:
            while unwritten:
                unwritten = unwritten[self._file.write(unwritten) :]
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cut(self, end: int) -> None:
        self._file.seek(end)
        self._file.truncate()

    def _other(self, old: Mapping[str, Any]) -> str:
        return (
            f"{self.path}: is of an unfinished replay with {_differing(old, self.about)}; repeat that one to finish "
            "it, or remove this file to begin anew"
        )

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"{self.path}: cannot write ({error.strerror}); make room or choose another --out")


def packed(probabilities: np.ndarray) -> np.ndarray:
    """(2, 6, rows, columns) uint8, which compress well, of map probabilities (6, rows, columns).

    They are the low and the high bytes of what each level changes by in both directions, plus 128: mostly little.
    """
    levels = levels_of(probabilities)
    levels[(levels == LEVELS // 2) & (probabilities < _HALF)] = _BELOW_HALF
    zero = np.uint16(0)
    changes = np.diff(np.diff(levels, axis=1, prepend=zero), axis=2, prepend=zero) + np.uint16(128)  # modulo 2^16
    return np.stack([changes & 255, changes >> 8]).astype(np.uint8)


def unpacked(changes: np.ndarray) -> np.ndarray:
    """(6, rows, columns) float32 probabilities with the levels, and on the sides of one half, of those packed."""
    low, high = changes.astype(np.uint16)
    levels = (low + 256 * high - np.uint16(128)).cumsum(axis=2, dtype=np.uint16).cumsum(axis=1, dtype=np.uint16)
    probabilities = levels / np.float32(LEVELS)
    probabilities[levels == _BELOW_HALF] = np.nextafter(_HALF, np.float32(0))
    probabilities[levels == LEVELS + 1] = np.nan
    return np.asarray(probabilities)


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What is other than it was, with both values; "" where all is the same."""
    new = json.loads(json.dumps(new))  # as the old ones were written
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {_short(old.get(name))} (now {_short(new.get(name))})" for name in names)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
