"""Reads point clouds in PCD files, the format of the Point Cloud Library (version 0.7). numpy only."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from perception.errors import InputError, damaged
from perception.stores import read_file

_HEADER = re.compile(rb"(?:.*\n)*?DATA[ \t]+(\w+)[ \t]*\r?\n")
_LONGEST_HEADER = 1 << 14  # bytes
_FARTHEST = 1_000_000  # us between a point and its sweep


def read_pcd(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Points (N, 5) float32 x y z (m, sensor frame), intensity, ring (0 without one), and their times.

    Points with a coordinate that is NaN are left out: by the format they are beams without a return.

    Returns:
        The points, and the field `timestamp` (N,) in whatever unit it is; None without that field.

    Raises:
        FileNotFoundError: there is no such file; callers treat it as a missing sensor.
        InputError: the file is no PCD file, is truncated or has no x, y, z or intensity.
    """
    content = read_file(path)
    try:
        table = _table(content)
        points = np.column_stack([table[name] for name in ("x", "y", "z", "intensity")]).astype(np.float32)
    except (ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise damaged(f"{path}: not a point cloud ({reason}); copy the file again or delete it") from None
    names = table.dtype.names or ()
    points = np.column_stack([points, table["ring"] if "ring" in names else np.zeros(len(points))]).astype(np.float32)
    there = ~np.isnan(points[:, :3]).any(axis=1)
    if not np.isfinite(points[there]).all():
        raise damaged(f"{path}: a point holds NaN or infinity; copy the file again or delete it")
    return points[there], table["timestamp"][there] if "timestamp" in names else None


def times_near(times: np.ndarray, timestamp: int, path: Path) -> np.ndarray:
    """(N,) int64 us of times (N,) since 1970, in s, ms, us or ns: whichever puts all of them near their sweep's, us.

    Raises:
        InputError: none does.
    """
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
    columns, table, start = _lzf(body[8 : 8 + packed], whole), np.empty(count, dtype), 0
    for name in dtype.names or ():  # one field after the other
        part = np.frombuffer(
            columns, dtype[name].base, count * (dtype[name].itemsize // dtype[name].base.itemsize), start
        )
        table[name] = part.reshape(table[name].shape)
        start += count * dtype[name].itemsize
    return table


def _lzf(packed: bytes, size: int) -> bytes:
    """Decompress LZF (Lehmann's liblzf, lzf_d.c): runs of literals, and copies of what was written before."""
    out, at = bytearray(), 0
    while at < len(packed):
        control = packed[at]
        at += 1
        if control < 32:
            out += packed[at : at + control + 1]
            at += control + 1
            continue
        length, back = control >> 5, (control & 31) << 8
        if length == 7:
            length += packed[at]
            at += 1
        start = len(out) - back - packed[at] - 1
        at += 1
        if start < 0:
            raise ValueError("its compressed points are damaged")
        length += 2
        if start + length <= len(out):
            out += out[start : start + length]
        else:  # it copies what it writes
            piece = bytes(out[start:])
            out += (piece * (length // len(piece) + 1))[:length]
    if len(out) != size:
        raise ValueError("its compressed points are damaged")
    return bytes(out)
