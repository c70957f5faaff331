"""Reads the files of a drive: LiDAR sweeps (.bin, and .pcd of the Point Cloud Library, version 0.7), images, JSON."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import lzf
import numpy as np

from perception.errors import InputError, report_damage
from perception.frame import JpegFile
from perception.io.stores import read_file

Stamp = tuple[str, int, int]  # path, size and time of change (ns) of a file, by which a changed one is recognised

MCU = 16  # pixels, side of JPEG's blocks with 4:2:0 chroma
_LONGEST_SEGMENT = 65_535 + 4  # bytes of a JPEG's first segment and the markers before it
_START_OF_FRAME = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # markers of JPEG
_DECODED = {  # reduction of both sides -> OpenCV's flag
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_HEADER = re.compile(rb"(?:.*\n)*?DATA[ \t]+(\w+)[ \t]*\r?\n")
_LONGEST_HEADER = 1 << 14  # bytes
_FARTHEST = 1_000_000  # us between a point and its sweep


def read_cloud(path: Path, timestamp: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Points (N, 5) as of `read_points`, and their times (N,) us where the file has them: a .pcd or .pcd.bin.

    Raises:
        FileNotFoundError: there is no such file; callers treat it as a missing sensor.
    """
    if path.suffix != ".pcd":
        return read_points(path), None
    points, times = read_pcd(path)
    return points, None if times is None else times_near(times, timestamp, path)


def read_points(path: Path) -> np.ndarray:
    """(N, 5) float32 x y z (m, sensor frame), intensity (0-255), ring from a nuScenes .pcd.bin file.

    Raises:
        FileNotFoundError: there is no such file; callers treat it as a missing sensor.
    """
    return read_floats(path, 5)


def read_floats(path: Path, columns: int) -> np.ndarray:
    """(N, columns) finite float32 from a file of nothing else.

    Raises:
        FileNotFoundError: there is no such file; callers treat it as a missing sensor.
    """
    content = read_file(path)
    if not content:
        raise report_damage(f"{path}: an empty sweep (0 bytes); copy the file again or delete it")
    if len(content) % (4 * columns):
        raise report_damage(
            f"{path}: {len(content)} bytes are no whole number of {4 * columns}-byte points (truncated, or of another "
            "data set?); copy the file again or delete it"
        )
    points = np.frombuffer(content, np.float32).reshape(-1, columns)
    if not np.isfinite(points).all():
        bad = ~np.isfinite(points).all(axis=1)
        raise report_damage(
            f"{path}: {bad.sum()} of {len(points)} points hold NaN or infinity, first point {bad.argmax()}; "
            "copy the file again or delete it"
        )
    return points


class ReadPicture(NamedTuple):
    image: np.ndarray  # (H, W, 3) uint8 RGB
    reduction: int  # factor by which the recorded sides were reduced: 1, 2, 4 or 8
    file: JpegFile | None  # None: no JPEG file, or reduced


def read_image(
    path: Path, least_width: int = 0, require: Callable[[tuple[int, int]], object] = lambda size: None
) -> ReadPicture:
    """The picture in an image file.

    Args:
        require: raises unless the width and height are right. It is called before the picture is decoded, because a
            damaged header may ask for gigabytes.
        least_width: pixels. A JPEG may be decoded at a smaller size that is at least as wide; 0: as recorded.

    Raises:
        FileNotFoundError: there is no such file; callers treat it as a missing sensor.
    """
    content = read_file(path)
    try:
        require(picture_size(content))
        reduction = reduction_to(content, least_width) if least_width else 1
        image = decode_image(content, reduction)
        return ReadPicture(image, reduction, jpeg_file(content, image) if reduction == 1 else None)
    except ValueError as error:
        raise report_damage(f"{path}: {error} ({len(content)} bytes); copy the file again or delete it") from None


def decode_image(content: bytes, reduction: int = 1) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a JPEG or PNG, as recorded or with both sides divided by `reduction`, rounded up.

    JPEG blocks are reduced in their discrete cosine transform, so fewer pixels are computed. A new pixel stands for
    a square of recorded ones: the centre u of a recorded pixel is at (u + 0.5) / reduction - 0.5.
    """
    # OpenCV returns a truncated JPEG without an error, with the missing part grey.
    if content.startswith(b"\xff\xd8") and b"\xff\xd9" not in content[-64:]:
        raise ValueError("a truncated JPEG")
    image = None
    if content:
        # The calibration refers to the stored pixels, so the EXIF orientation is ignored.
        flags = _DECODED[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if image is None:
        raise ValueError("not a picture that can be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def jpeg_file(content: bytes, image: np.ndarray) -> JpegFile | None:
    """The file of an image if every program shows it as this image: a JPEG without an orientation for viewers."""
    try:
        recorded = content.startswith(b"\xff\xd8") and jpeg_size(content) == image.shape[1::-1]
    except ValueError:
        return None
    return JpegFile(content, image) if recorded and b"Exif\0\0" not in content[:_LONGEST_SEGMENT] else None


def picture_size(content: bytes) -> tuple[int, int]:
    """Width and height in the header of a JPEG or PNG."""
    if content.startswith(b"\xff\xd8"):
        return jpeg_size(content)
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) < 24:
        raise ValueError("not a picture that can be decoded")
    width, height = struct.unpack_from(">II", content, 16)
    return width, height


def jpeg_size(content: bytes) -> tuple[int, int]:
    """Width and height in the frame header of a JPEG (ITU-T T.81, B.2.2)."""
    position = 2
    while position + 9 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", content, position + 5)
            return width, height
        # Fill bytes are single; every segment before the frame header has a length.
        position += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", content, position + 2)[0]
    raise ValueError("a JPEG with a damaged header")


def reduction_to(content: bytes, least_width: int) -> int:
    """The largest reduction of a JPEG to at least this width; 1 for other pictures.

    It divides the whole number by which the picture is wider, so that further averaging by whole numbers, as in
    `perception.sensors.camera.picture.warp`, averages the same recorded pixels as without.
    """
    if not content.startswith(b"\xff\xd8"):
        return 1
    times = max(jpeg_size(content)[0] // least_width, 1)
    return max(each for each in _DECODED if times % each == 0)


def stamp(path: Path) -> Stamp:
    """The stamp of a file; its size and time are -1 for a missing one."""
    try:
        status = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), status.st_size, status.st_mtime_ns


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_file(path))
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON file ({' '.join(str(error).split())})") from None


def read_pcd(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Points (N, 5) float32 x y z (m, sensor frame), intensity, ring (0 without one), and their times.

    Points with a coordinate that is NaN are left out: by the format they are beams without a return.

    Returns:
        The points, and the field `timestamp` (N,) in whatever unit it is; None without that field.

    Raises:
        FileNotFoundError: there is no such file; callers treat it as a missing sensor.
    """
    content = read_file(path)
    try:
        table = _table(content)
        points = np.column_stack([table[name] for name in ("x", "y", "z", "intensity")]).astype(np.float32)
    except (ValueError, KeyError, IndexError, TypeError, ArithmeticError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise report_damage(f"{path}: not a point cloud ({reason}); copy the file again or delete it") from None
    names = table.dtype.names or ()
    points = np.column_stack([points, table["ring"] if "ring" in names else np.zeros(len(points))]).astype(np.float32)
    there = ~np.isnan(points[:, :3]).any(axis=1)
    if not np.isfinite(points[there]).all():
        raise report_damage(f"{path}: a point holds NaN or infinity; copy the file again or delete it")
    return points[there], table["timestamp"][there] if "timestamp" in names else None


def times_near(times: np.ndarray, timestamp: int, path: Path) -> np.ndarray:
    """(N,) int64 us of times (N,) since 1970, in s, ms, us or ns: whichever puts all of them near their sweep's, us."""
    for unit in (1e6, 1e3, 1.0, 1e-3):  # us
        found = times.astype(np.float64) * unit
        if (np.abs(found - timestamp) <= _FARTHEST).all():
            return np.asarray(np.rint(found).astype(np.int64))
    raise InputError(
        f"{path}: `timestamp` is not near the sweep's {1e-6 * timestamp:.6f} s since 1970 in any of s, ms, us and ns; "
        "correct the file, or the sweep's time in the tables"
    )


def _table(content: bytes) -> np.ndarray:
    """(N,) structured array of the fields; ValueError for what is no PCD file."""
    header = _HEADER.match(content[:_LONGEST_HEADER])
    if header is None:
        raise ValueError("it has no header that ends with DATA")
    lines = [line.split() for line in header[0].decode("ascii", "replace").splitlines()]
    fields = {line[0]: line[1:] for line in lines if line and not line[0].startswith("#")}
    sizes = zip(fields["FIELDS"], fields["TYPE"], fields["SIZE"], fields.get("COUNT", ["1"] * 99), strict=False)
    kinds = {"F": "<f", "I": "<i", "U": "<u"}
    dtype = np.dtype([(name, f"{kinds[kind]}{size}", (int(n),) if n != "1" else ()) for name, kind, size, n in sizes])
    count, body = int(fields["POINTS"][0]), content[header.end() :]
    encoding = header[1].decode()
    if not count:
        return np.empty(0, dtype)
    if encoding == "ascii":
        raise ValueError("it is in ascii; binary and binary_compressed are read")
    if encoding == "binary":
        if len(body) < count * dtype.itemsize:
            raise ValueError(f"{len(body)} bytes for {count} points of {dtype.itemsize} (truncated?)")
        return np.frombuffer(body, dtype, count)
    if encoding != "binary_compressed":
        raise ValueError(f"unknown encoding {encoding}")
    packed, whole = (int(n) for n in np.frombuffer(body, "<u4", 2))
    if len(body) < 8 + packed or whole < count * dtype.itemsize:
        raise ValueError(f"{len(body)} bytes for {count} points (truncated?)")
    columns, table, start = lzf.decompress(body[8 : 8 + packed], whole), np.empty(count, dtype), 0
    if columns is None or len(columns) != whole:
        raise ValueError("its compressed points are damaged")
    for name in dtype.names or ():  # one field after the other
        part = np.frombuffer(
            columns, dtype[name].base, count * (dtype[name].itemsize // dtype[name].base.itemsize), start
        )
        table[name] = part.reshape(table[name].shape)
        start += count * dtype[name].itemsize
    return table
