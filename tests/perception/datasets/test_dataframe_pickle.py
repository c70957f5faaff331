"""Tables of pandas are read as pandas reads them, without running anything."""

from __future__ import annotations

import contextlib
import gzip
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas_tables import a_dict, a_list, a_tuple, call, index, name, plain, rows, table, whole, write_table
from pickles import DEEP

from perception.datasets.dataframe_pickle import read_table
from perception.errors import InputError

COLUMNS = {
    "x": np.array([1.5, -2.0, 0.25]),
    "label": np.array(["Car", "Cones", "Bicycle"], object),
    "d": np.array([0, 1, 0]),
    "y": np.array([4.0, 5.0, 6.0]),
    "still": np.array([True, False, True]),
    "age": np.array(["Adult", np.nan, None], object),
}
KINDS = {"x": "f", "label": "O", "d": "iu", "y": "f"}


def read(content: bytes, folder: Path) -> dict[str, np.ndarray]:
    path = folder / "00.pkl.gz"
    path.write_bytes(gzip.compress(content, 1))
    return read_table(path, KINDS)


def test_columns_are_those_of_pandas(tmp_path: Path) -> None:
    write_table(tmp_path / "00.pkl.gz", COLUMNS)
    ours, theirs = read_table(tmp_path / "00.pkl.gz", KINDS), pandas.read_pickle(tmp_path / "00.pkl.gz")
    assert list(theirs) == list(COLUMNS)
    for column in KINDS:
        np.testing.assert_array_equal(ours[column], COLUMNS[column])
        np.testing.assert_array_equal(ours[column], theirs[column].to_numpy())
        assert not ours[column].flags.writeable


def test_a_table_without_rows(tmp_path: Path) -> None:
    empty = read(table({column: values[:0] for column, values in COLUMNS.items()}), tmp_path)
    assert {len(values) for values in empty.values()} == {0}


def test_tables_of_recorded_drives_are_those_of_pandas(pandaset_root: Path) -> None:
    for path, kinds in (
        ("annotations/cuboids/07.pkl.gz", {"uuid": "O", "yaw": "f", "cuboids.sensor_id": "iu", "stationary": "b"}),
        ("annotations/semseg/07.pkl.gz", {"class": "iu"}),
        ("lidar/07.pkl.gz", {"x": "f", "i": "f", "t": "f", "d": "iu"}),
    ):
        theirs = pandas.read_pickle(pandaset_root / "002" / path)
        for column, values in read_table(pandaset_root / "002" / path, kinds).items():
            np.testing.assert_array_equal(values, theirs[column].to_numpy())


def with_blocks(*blocks: bytes, names: bytes | None = None) -> bytes:
    axes = a_list(names or index(["x", "y"]), rows(1))
    extra = a_dict(**{"0.14.1": a_dict(axes=axes, blocks=a_list(*blocks))})
    return whole(a_tuple(axes, a_list(), a_list(), extra))


X, SYSTEM = plain(np.zeros((1, 1))), call("posix system", plain("touch canary"))
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a call": (lambda: whole(SYSTEM), "asks for 'posix.system'"),
    "a call among the objects of an array": (
        lambda: table(COLUMNS).replace(plain("Cones"), SYSTEM), "asks for 'posix.system'",
    ),
    "an object in an array": (lambda: table(COLUMNS).replace(plain("Cones"), plain([1])), "more than text and numbers"),
    "an object of another class": (
        lambda: b"\x80\x03" + name("collections OrderedDict") + b")\x81.", "an object that no table needs",
    ),
    "a table that is made from something": (
        lambda: b"\x80\x03" + name("pandas.core.frame DataFrame") + plain((1,)) + b"\x81.", "that no table needs",
    ),
    "another table of pandas": (lambda: b"\x80\x03" + name("pandas.core.series Series") + b".", "asks for 'pandas.co"),
    "a table of a newer pandas": (lambda: pandas.DataFrame(COLUMNS).to_pickle, "asks for"),
    "no table": (lambda: b"\x80\x03" + plain({"x": 1}) + b".", "this is no table"),
    "a table without a state": (lambda: b"\x80\x03" + name("pandas.core.frame DataFrame") + b")\x81.", "damaged"),
    "a table whose columns are a dict": (
        lambda: b"\x80\x03" + name("pandas.core.frame DataFrame") + b")\x81" + a_dict(_data=b"}") + b"b.", "no table",
    ),
    "places that nest for ever": (
        lambda: with_blocks(a_dict(values=X, mgr_locs=DEEP)), "a block of its columns is none",
    ),
    "a place that is text": (lambda: with_blocks(a_dict(values=X, mgr_locs=call("builtins slice", plain("a")))), "dam"),
    "places of no column": (lambda: with_blocks(a_dict(values=X, mgr_locs=plain(np.array([7])))), "damaged"),
    "one block again and again": (
        lambda: with_blocks(*[a_dict(values=X, mgr_locs=plain(np.array([0])))] * 99), "two values, or none",
    ),
    "a column too few": (lambda: with_blocks(a_dict(values=X, mgr_locs=plain(np.array([0])))), "not all there"),
    "columns of unequal lengths": (
        lambda: with_blocks(*(a_dict(values=plain(np.zeros((1, n))), mgr_locs=plain(np.array([n]))) for n in (0, 1))),
        "unequal lengths",
    ),
    "columns without names": (lambda: with_blocks(names=plain(np.arange(2))), "no names"),
    "fewer objects than the shape says": (
        lambda: table(COLUMNS).replace(plain((2, 3)) , plain((2, 4)), 1), "truncated|as many of them|damaged",
    ),
    "no column x": (lambda: table({"y": np.zeros(1)}), "has no column 'x'; it has y"),
    "text in a column of numbers": (lambda: table(COLUMNS | {"x": COLUMNS["label"]}), "'x' holds something else"),
    "numbers in a column of text": (lambda: table(COLUMNS | {"label": COLUMNS["age"]}), "something else than text"),
    "NaN": (lambda: table(COLUMNS | {"x": np.array([1, np.nan, 2])}), "column 'x' holds NaN or infinity"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    content = HOSTILE[case][0]()
    if callable(content):
        content(tmp_path / "written.pkl")
        content = (tmp_path / "written.pkl").read_bytes()
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        read(content, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (1 << 20) + 100 * len(content)
    assert not (tmp_path / "canary").exists()
    assert re.search(HOSTILE[case][1], str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_damaged_files(tmp_path: Path) -> None:
    path, content = tmp_path / "00.pkl.gz", gzip.compress(table(COLUMNS))
    for damaged, message in (
        (content[:-20], "truncated"),
        (b"", "truncated"),
        (table(COLUMNS), "not gzip, or damaged"),
        (content[:30] + b"\xff\xff" + content[32:], "not gzip, or damaged"),
        (gzip.compress(bytes((1 << 28) + 1), 1), "more than 256 MiB"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=message) as caught:
            read_table(path, KINDS)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_table(path, KINDS)
    path.mkdir()
    with pytest.raises(InputError, match="cannot read the file"):
        read_table(path, KINDS)


@settings(max_examples=400)
@given(data=st.data())
def test_a_changed_byte_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(table(COLUMNS))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        columns = read(bytes(content), tmp_path_factory.getbasetemp())
        assert columns.keys() == KINDS.keys()
        assert len({len(column) for column in columns.values()}) == 1
