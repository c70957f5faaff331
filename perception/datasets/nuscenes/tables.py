"""Reads the JSON tables of a nuScenes dataroot row by row.

v1.0-trainval has 2.6 million rows of sample_data and of ego_pose, and 1.2 million annotations.
"""

from __future__ import annotations

import io
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import orjson

from perception.datasets.files import Stamp, stamp
from perception.errors import InputError
from perception.io.cache import cached_arrays
from perception.io.files import pause_collector
from perception.taxonomy import Taxonomy

_BLOCK = 1 << 20  # bytes of rows that are parsed at once
_MOST_BLOCKS = 16  # without the end of a row
_CHUNK = 1 << 24  # characters per read; much longer than any row
_OPENING, _BETWEEN_ROWS = re.compile(rb"\s*\["), re.compile(r"[\s,]*")


def versions(dataroot: Path) -> list[str]:
    return sorted(path.parent.name for path in dataroot.glob("*/sample_data.json"))


def only_version(dataroot: Path) -> str:
    """The version of a dataroot with a single one."""
    found = versions(dataroot)
    if not found:
        raise InputError(
            f"{dataroot}: not a nuScenes dataroot: it has no folder such as v1.0-mini/ with sample_data.json"
        )
    if len(found) > 1:
        raise InputError(f"{dataroot}: holds {', '.join(found)}; say which with --version")
    return found[0]


def version_folder(dataroot: Path, version: str) -> Path:
    """The folder of the tables."""
    folder = dataroot / version
    if folder.is_dir():
        return folder
    if not dataroot.is_dir():
        raise InputError(f"{dataroot}: no such folder; give the dataroot that holds {version}/ and samples/")
    if found := versions(dataroot):
        raise InputError(f"{dataroot}: has no version {version}; it has {', '.join(found)}")
    raise InputError(f"{dataroot}: not a nuScenes dataroot: it has no folder {version}/ with sample_data.json")


def rows(folder: Path, table: str) -> Iterator[dict[str, Any]]:
    """The rows of one table, streamed so that memory does not grow with the table."""
    path = folder / f"{table}.json"
    try:
        with path.open("rb") as file:
            yield from _rows(file, path)
    except FileNotFoundError:
        raise InputError(f"{path}: the table is missing; complete {folder.name}/ from the dataset") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the table ({error.__class__.__name__})") from None


def _rows(file: BinaryIO, path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table, parsed block by block; row by row from a block on that is not made of whole rows alone."""
    rest = file.read(_BLOCK)
    opening = _OPENING.match(rest)
    if opening is None:
        raise InputError(f"{path}: not a table: a JSON list of objects is expected; copy it again")
    position, rest = opening.end(), rest[opening.end() :]  # position: of `rest` in the file
    while True:
        more = file.read(_BLOCK)
        end = rest.rfind(b"},") + 1 if more else len(rest)
        if end or not more:
            block = _block(rest[:end] + b"]" if more else rest)
            if block is None:
                break
            yield from block
            if not more:
                return
            position, rest = position + end + 1, rest[end + 1 :]
        elif len(rest) > _MOST_BLOCKS * _BLOCK:
            break  # rows that end otherwise, which would all be held
        rest += more
    file.seek(position)
    yield from _single_rows(io.TextIOWrapper(file, "utf-8"), path)


def _block(content: bytes) -> list[dict[str, Any]] | None:
    """The rows in a block that ends with ]; None if it has anything else."""
    try:
        with pause_collector():
            found = orjson.loads(b"[" + content)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, list) and all(isinstance(row, dict) for row in found) else None


def _single_rows(file: TextIO, path: Path) -> Iterator[dict[str, Any]]:
    """The rows from the place of the file on, each parsed alone."""
    decoder = json.JSONDecoder()
    text, position = file.read(_CHUNK), 0
    while True:
        position = _BETWEEN_ROWS.match(text, position).end()  # type: ignore[union-attr]
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            if text[position : position + 1] == "]":
                return
            more = file.read(_CHUNK) if len(text) - position < _CHUNK else ""
            if not more:
                start = " ".join(text[position : position + 40].split()) or "the end of the file"
                raise InputError(f"{path}: not valid JSON ({error.msg.lower()} at {start!r}); copy it again") from None
            text, position = text[position:] + more, 0
            continue
        if not isinstance(row, dict):
            raise InputError(f"{path}: a row is {type(row).__name__}, not an object; copy it again")
        yield row


@contextmanager
def report_links(folder: Path, table: str) -> Iterator[None]:
    """Report a missing field or an unknown token, raised as KeyError, as an InputError about this table."""
    try:
        yield
    except KeyError as error:
        raise InputError(
            f"{folder / table}.json: the field or token {error.args[0]!r} is missing; copy the tables again"
        ) from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / table}.json: a row has a wrong value ({error}); copy it again") from None


def stamps(folder: Path, tables: Iterable[str]) -> dict[str, Stamp]:
    """The stamp of each table; raises as `rows`."""
    found = {table: stamp((folder / f"{table}.json").resolve()) for table in tables}
    for table, (_, size, _) in found.items():
        if size < 0:
            next(rows(folder, table))  # raises
    return found


@dataclass(frozen=True)
class Annotations:
    """The boxes of all categories, as columns in the global frame."""

    centers: np.ndarray  # (N, 3) m
    sizes: np.ndarray  # (N, 3) m: width, length, height
    quaternions: np.ndarray  # (N, 4) w x y z
    velocities: np.ndarray  # (N, 3) m/s; NaN where unknown
    labels: np.ndarray  # (N,) index of the class; -1 for none of the detection classes
    attributes: np.ndarray  # (N,) index of the attribute; -1 for none
    num_points: np.ndarray  # (N,) LiDAR + radar points
    instances: np.ndarray  # (N,) row of instance_tokens
    instance_tokens: np.ndarray  # (I,) str
    samples: np.ndarray  # (S,) str, tokens
    starts: np.ndarray  # (S + 1,) place in `order` of each sample's first row
    order: np.ndarray  # (N,) rows by sample, and of a sample in the order of the table

    @staticmethod
    def read(folder: Path, timestamps: Mapping[str, int], taxonomy: Taxonomy) -> Annotations:
        """The annotations in a folder of tables; timestamps: sample token -> us, for velocities."""
        tables = stamps(folder, ("sample", "category", "attribute", "instance", "sample_annotation"))
        about = taxonomy.model_dump(mode="json")
        return Annotations(**cached_arrays("annotations", tables, about, lambda: _read(folder, timestamps, taxonomy)))

    @cached_property
    def _place(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.samples.tolist())}

    def rows(self, sample: str) -> np.ndarray:
        """Rows of the boxes of a sample, in the order of the table."""
        i = self._place.get(sample)
        return self.order[:0] if i is None else self.order[self.starts[i] : self.starts[i + 1]]


def _read(folder: Path, timestamps: Mapping[str, int], taxonomy: Taxonomy) -> dict[str, np.ndarray]:
    """The fields of `Annotations`."""
    instance_tokens, labels_of = _instances(folder, taxonomy)
    with report_links(folder, "attribute"):
        attribute_of = {
            row["token"]: taxonomy.attributes.index(row["name"])
            for row in rows(folder, "attribute")
            if row["name"] in taxonomy.attributes
        }
    instance_row = {token: i for i, token in enumerate(instance_tokens.tolist())}
    place = {token: i for i, token in enumerate(timestamps)}
    row_of: dict[str, int] = {}
    links: list[tuple[str, str]] = []
    real, whole = array("d"), array("q")
    with report_links(folder, "sample_annotation"):
        for row in rows(folder, "sample_annotation"):
            row_of[row["token"]] = len(row_of)
            links.append((row["prev"], row["next"]))
            real.extend((*row["translation"], *row["size"], *row["rotation"]))
            attribute = next((attribute_of[t] for t in row["attribute_tokens"] if t in attribute_of), -1)
            points = row["num_lidar_pts"] + row["num_radar_pts"]
            whole.extend((place[row["sample_token"]], attribute, points, instance_row[row["instance_token"]]))
        linked_rows = np.array([(row_of[a] if a else -1, row_of[b] if b else -1) for a, b in links], np.int64).reshape(
            -1, 2
        )
    floats = np.frombuffer(real, np.float64).reshape(-1, 10)
    integers = np.frombuffer(whole, np.int64).reshape(-1, 4)
    times = np.array([*timestamps.values()], np.int64)[integers[:, 0]]
    return {
        "centers": floats[:, :3],
        "sizes": floats[:, 3:6],
        "quaternions": floats[:, 6:],
        "velocities": _velocities(floats[:, :3], times, linked_rows),
        "labels": labels_of[integers[:, 3]],
        "attributes": integers[:, 1],
        "num_points": integers[:, 2],
        "instances": integers[:, 3],
        "instance_tokens": instance_tokens,
        "samples": np.array([*timestamps], np.str_),
        "starts": np.concatenate([[0], np.bincount(integers[:, 0], minlength=len(timestamps)).cumsum()]),
        "order": np.argsort(integers[:, 0], kind="stable"),
    }


def _instances(folder: Path, taxonomy: Taxonomy) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (I,) of all instances, and their labels (I,); -1 for those of none of the classes."""
    label = taxonomy.labels_of_categories()
    with report_links(folder, "category"):
        labels = {row["token"]: label.get(row["name"], -1) for row in rows(folder, "category")}
    with report_links(folder, "instance"):
        instances = [(row["token"], labels[row["category_token"]]) for row in rows(folder, "instance")]
    return np.array([token for token, _ in instances], np.str_), np.array([label for _, label in instances], np.int64)


def _velocities(centers: np.ndarray, timestamps: np.ndarray, links: np.ndarray) -> np.ndarray:
    """(N, 3) m/s between the previous and the next annotation of the instance, as NuScenes.box_velocity.

    The annotation itself replaces a missing one. NaN if both are missing, or if they are more than 1.5 s apart (3 s
    with both). NaN also between keyframes whose times do not grow.
    """
    current = np.arange(len(centers))
    first = np.where(links[:, 0] >= 0, links[:, 0], current)
    last = np.where(links[:, 1] >= 0, links[:, 1], current)
    seconds = 1e-6 * timestamps
    elapsed = seconds[last] - seconds[first]
    allowed = np.where((links >= 0).all(axis=1), 3.0, 1.5)
    known = (elapsed > 0) & (elapsed <= allowed)
    return (centers[last] - centers[first]) / np.where(known, elapsed, np.nan)[:, None]
