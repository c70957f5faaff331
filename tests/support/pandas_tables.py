"""Writes tables as pandas did before 1.3, opcode by opcode, since newer ones write them otherwise."""

import gzip
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MANAGER, FRAME = "pandas.core.internals.managers BlockManager", "pandas.core.frame DataFrame"
INDEX = "pandas.core.indexes.base"


def plain(value: Any) -> bytes:
    """The opcodes of plain data and arrays, without header, memo and end."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 3)
    pickler.fast = True
    pickler.dump(value)
    return stream.getvalue()[2:-1]


def name(of: str) -> bytes:
    return b"c" + of.replace(" ", "\n").encode() + b"\n"


def a_dict(**entries: bytes) -> bytes:
    return b"}(" + b"".join(plain(key) + value for key, value in entries.items()) + b"u"


def a_tuple(*entries: bytes) -> bytes:
    return b"(" + b"".join(entries) + b"t"


def a_list(*entries: bytes) -> bytes:
    return b"](" + b"".join(entries) + b"e"


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + a_tuple(*arguments) + b"R"


def build_object(kind: str, state: bytes) -> bytes:
    return name(kind) + b")\x81" + state + b"b"


def index(names: Sequence[str]) -> bytes:
    return call(f"{INDEX} _new_Index", name(f"{INDEX} Index"), a_dict(data=plain(np.array(names, object)), name=b"N"))


def rows(count: int) -> bytes:
    entries = {"name": b"N", "start": plain(0), "stop": plain(count), "step": plain(1)}
    return call(f"{INDEX} _new_Index", name("pandas.core.indexes.range RangeIndex"), a_dict(**entries))


def pickle_table(manager: bytes) -> bytes:
    """A pickle of the table with this state of its blocks."""
    state = a_dict(_data=build_object(MANAGER, manager), _typ=plain("dataframe"), _metadata=plain([]))
    return b"\x80\x03" + build_object(FRAME, state) + b"."


def blocks(columns: Mapping[str, np.ndarray]) -> list[tuple[bytes, bytes, Sequence[str]]]:
    """Values and places of the columns of each type, and their names."""
    kinds: dict[np.dtype, list[int]] = {}
    for place, column in enumerate(columns.values()):
        kinds.setdefault(column.dtype, []).append(place)
    names, found = list(columns), []
    for places in kinds.values():
        values = np.stack([columns[names[place]] for place in places])
        where = (
            plain(np.array(places, np.int64))
            if len(places) > 1
            else call("builtins slice", plain(places[0]), plain(places[0] + 1), plain(1))
        )
        found.append((plain(values), where, [names[place] for place in places]))
    return found


def table(columns: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of a table."""
    found = blocks(columns)
    axes = a_list(index(list(columns)), rows(len(next(iter(columns.values())))))
    described = a_list(*(a_dict(values=values, mgr_locs=where) for values, where, _ in found))
    extra = a_dict(**{"0.14.1": a_dict(axes=axes, blocks=described)})
    values, items = a_list(*(each[0] for each in found)), a_list(*(index(names) for _, _, names in found))
    return pickle_table(a_tuple(axes, values, items, extra))


def write_table(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(table(columns), 1))
