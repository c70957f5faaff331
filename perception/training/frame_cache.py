"""Decoded frames: in memory, or in files that all processes of a training, and later trainings, memory-map.

FOLDER/frames-CODE-READS/KEY.frame    checksum (8 bytes), then safetensors: the arrays of the frame, the rest as JSON

CODE is a hash of the code that makes frames, READS of what is read, KEY of the keyframe and of the path, size and time
of change of every file that it is read from. So an entry is never out of date. Those of other code are removed.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from safetensors.numpy import save

from perception.datasets.keyframes import Keyframes, Reads
from perception.errors import InputError
from perception.frame import PER_POINT, Boxes, Camera, Conditions, Frame, Reading, Scan
from perception.io.files import write_atomically

_SOURCES = Path(__file__).parents[1]  # of the code that makes frames, but for these folders and with these files
_APART = ("bev", "commands", "evaluation", "modules", "page", "scene", "simulate", "tasks", "training")
_OF_FRAMES = ("training/frame_cache.py",)
_LEAST_FREE = 0.05  # of the disk, which the cache leaves free
_ENOUGH_FREE = 4 << 30  # bytes, which are enough on any disk
_PLAIN = ("token", "timestamp", "reference", "scene", "location")  # of Frame
_POSES = ("global_from_reference", "global_from_ego")  # of Frame
_CAMERA = ("image", "intrinsics", "ego_from_camera", "global_from_ego")  # arrays of Camera
_BOXES = tuple(field.name for field in fields(Boxes) if field.name != "instances")  # arrays of numbers of Boxes
# safetensors' names
_TYPES = {f"{kind.upper()}{8 * n}": f"<{kind}{n}" for kind in "fiu" for n in (1, 2, 4, 8)} | {"BOOL": "?"}


class FramesInMemory:
    """Keeps the first decoded frames that fit; with random access no eviction policy gains anything.

    Args:
        size: bytes of all that stay.
    """

    def __init__(self, tables: Keyframes, reads: Reads, size: int) -> None:
        self._tables, self._reads, self._free = tables, reads, size
        self._frames: dict[str, Frame] = {}

    def frame(self, token: str) -> Frame:
        """The frame of a keyframe."""
        if token in self._frames:
            return self._frames[token]
        frame = self._tables.frame(token, self._reads)
        size = sum(camera.image.nbytes for camera in frame.cameras.values())
        size += 0 if frame.points is None else frame.points.nbytes
        size += sum(array.nbytes for scan in frame.scans.values() for array in scan.arrays.values())
        if size <= self._free:
            self._free -= size
            self._frames[token] = frame
        return frame


class FrameCache:
    """The frames of a data set, from a folder where they are stored when they are read for the first time.

    A folder that cannot be written is only read, and nothing is stored on a disk that is nearly full.
    """

    def __init__(self, folder: Path, tables: Keyframes, reads: Reads) -> None:
        self._tables, self._reads = tables, reads
        code = _hash([code_version(_SOURCES), np.__version__, cv2.__version__])[:16]
        about = {
            "data": [type(tables).__qualname__, tables.version],
            "rig": tables.rig.model_dump(mode="json"),
            "taxonomy": tables.taxonomy.model_dump(mode="json"),
            **reads._asdict(),
        }
        self.folder = folder / f"frames-{code}-{_hash(about)[:16]}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove_others(folder, code)
        except OSError as error:
            raise InputError(f"data.cache: cannot make {self.folder} ({error.strerror}); name another folder") from None

    def frame(self, token: str) -> Frame:
        """The frame of a keyframe; arrays of a stored one are read-only."""
        files = self._tables.recording(token, self._reads).stamps()
        path = self.folder / f"{_hash([token, files])[:32]}.frame"
        stored = _read_frame(path)
        if stored is not None:
            return stored
        frame = self._tables.frame(token, self._reads)
        self._store(path, frame)
        return frame

    def _store(self, path: Path, frame: Frame) -> None:
        content = _pack(frame)
        with suppress(InputError, OSError):  # a full disk, or the folder was deleted; the frame is there
            disk = shutil.disk_usage(self.folder)
            if disk.free - len(content) >= min(_LEAST_FREE * disk.total, _ENOUGH_FREE):
                write_atomically(path, content)


def _remove_others(folder: Path, code: str) -> None:
    """Remove the frames of other code, as far as possible; a training that still maps some keeps these."""
    for other in folder.glob("-".join(("frames", *2 * ("[0-9a-f]" * 16,)))):
        if other.name.split("-")[1] != code:
            with suppress(OSError):
                for path in other.glob("*.frame*"):  # and what a killed process left of one
                    path.unlink(missing_ok=True)
                other.rmdir()


@cache
def code_version(folder: Path) -> str:
    """A hash of all Python files below a folder that make frames."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(tuple(f"{each}/" for each in _APART)) or name in _OF_FRAMES:
            digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _checksum(content: np.ndarray) -> bytes:
    """8 bytes: the sum of the content (N,) uint8 as 64-bit words, which takes a fraction of the time of any CRC."""
    words = len(content) // 8 * 8
    total = int(np.add.reduce(content[:words].view("<u8"), dtype=np.uint64))
    return ((total + int.from_bytes(content[words:].tobytes(), "little")) % 2**64).to_bytes(8, "little")


def _pack(frame: Frame) -> bytes:
    arrays = {name: getattr(frame, name) for name in _POSES}
    arrays |= {name: getattr(frame, name) for name in PER_POINT if getattr(frame, name) is not None}
    for name, camera in frame.cameras.items():
        arrays |= {f"cameras/{name}/{part}": getattr(camera, part) for part in _CAMERA}
    for name, scan in frame.scans.items():
        arrays |= {f"scans/{name}/{part}": array for part, array in scan.arrays.items()}
    boxes: Boxes | None = frame.truth.get("boxes")
    if boxes is not None:
        arrays |= {f"boxes/{name}": getattr(boxes, name) for name in _BOXES}
    rest = {
        **{name: getattr(frame, name) for name in _PLAIN},
        "cameras": {name: camera.timestamp for name, camera in frame.cameras.items()},
        "scans": {name: [scan.kind, scan.timestamp, [*scan.arrays]] for name, scan in frame.scans.items()},
        "conditions": dict(frame.conditions),
        "position": frame.position,
        "signals": {name: list(readings) for name, readings in frame.signals.items()},
        "instances": None if boxes is None else [boxes.instances.dtype.str, boxes.instances.tolist()],
    }
    content = save({name: np.ascontiguousarray(each) for name, each in arrays.items()}, {"frame": json.dumps(rest)})
    return _checksum(np.frombuffer(content, np.uint8)) + content


def _read_frame(path: Path) -> Frame | None:
    """The frame in a file, memory-mapped; None if it is absent or damaged."""
    try:
        with path.open("rb") as file:
            content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        if content[:8].tobytes() != _checksum(content[8:]):
            return None
        start = 16 + int.from_bytes(content[8:16].tobytes(), "little")
        header = json.loads(content[16:start].tobytes())
        return _unpack(json.loads(header.pop("__metadata__")["frame"]), _arrays(header, content[start:]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _arrays(header: Mapping[str, Any], data: np.ndarray) -> dict[str, np.ndarray]:
    """Views of the data (N,) uint8 by the header of safetensors."""
    found = {}
    for name, each in header.items():
        first, last = each["data_offsets"]
        found[name] = data[first:last].view(_TYPES[each["dtype"]]).reshape(each["shape"])
    return found


def _unpack(rest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Frame:
    truth = {}
    if rest["instances"] is not None:
        kind, names = rest["instances"]
        truth["boxes"] = Boxes(**{name: arrays[f"boxes/{name}"] for name in _BOXES}, instances=np.array(names, kind))

    def camera(name: str, timestamp: int) -> Camera:
        parts: dict[str, Any] = {part: arrays[f"cameras/{name}/{part}"] for part in _CAMERA}
        return Camera(**parts, timestamp=timestamp)

    scans = {
        name: Scan(kind, timestamp, {part: arrays[f"scans/{name}/{part}"] for part in parts})
        for name, (kind, timestamp, parts) in rest["scans"].items()
    }
    same: dict[str, Any] = {name: rest[name] for name in _PLAIN}
    same |= {name: arrays.get(name) for name in (*_POSES, *PER_POINT)}
    return Frame(
        cameras={name: camera(name, timestamp) for name, timestamp in rest["cameras"].items()},
        conditions=Conditions(**rest["conditions"]),
        scans=scans,
        truth=truth,
        position=None if rest["position"] is None else tuple(rest["position"]),
        signals={name: [Reading(*each) for each in readings] for name, readings in rest["signals"].items()},
        **same,
    )
