"""Pickles are read without running anything: hostile ones leave no trace, and what is not whole is refused."""

import collections
import contextlib
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import one_line_error
from hypothesis import given, settings
from hypothesis import strategies as st
from pickles import DEEP, Hostile, assert_refused, system

from deploy.precision.calibrate import Drives
from perception.config import find_config, load_config
from perception.datasets.sources import open_source
from perception.errors import InputError
from perception.io.unpickle import read_plain

PLAIN = {
    "numbers": [0, 255, 256, 65535, 65536, -1, 2**31, -(2**40), 1.5, float("inf"), True, None],
    "text": ["", "a", "ü" * 300, "\ud800"],
    "bytes": [b"", b"\xff" * 300],
    "tuples": [(), (1,), (1, 2), (1, (2,), 3), (1, 2, 3, 4)],
    "empty": [[], {}],
    "ordered": collections.OrderedDict(b=1, a=2),
}
ARRAYS = {
    "matrix": np.arange(6.0).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "strided": np.arange(12.0).reshape(3, 4)[:, ::2],
    "no boxes": np.zeros((0, 7)),
    "no names": np.array([], "<U1"),
    "names": np.array(["car", "traffic_cone"]),
    "flags": np.array([True, False]),
    "other bytes first": np.arange(3, dtype=">f4"),
    "text of other bytes first": np.array(["car"], ">U3"),
    "number": np.array(3.5),
}
SCALARS = {"f": np.float32(3.5), "b": np.bool_(True), "i": np.int64(-5), "t": np.str_("car")}


def read(content: bytes, folder: Path) -> Any:
    path = folder / "nuscenes_infos_val.pkl"
    path.write_bytes(content)
    return read_plain(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_data_and_arrays_are_those_of_pythons_unpickler(tmp_path: Path, protocol: int) -> None:
    same = [1]
    content = pickle.dumps({"plain": PLAIN, "arrays": ARRAYS, "scalars": SCALARS, "a": same, "b": same}, protocol)
    ours = read(content, tmp_path)
    assert ours["plain"] == PLAIN
    assert ours["a"] is ours["b"]
    for name, array in ARRAYS.items():
        assert type(ours["arrays"][name]) is np.ndarray
        assert ours["arrays"][name].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
        assert not ours["arrays"][name].flags.writeable
        np.testing.assert_array_equal(ours["arrays"][name], array)
    assert ours["scalars"] == {name: value.item() for name, value in SCALARS.items()}
    assert {type(value) for value in ours["scalars"].values()} == {float, bool, int, str}


def test_the_other_numpy_names_its_modules_otherwise(tmp_path: Path) -> None:
    """Written by the numpy at hand, then under the names of numpy 2 or 1, which differ in nothing else."""
    content = pickle.dumps(ARRAYS["names"], 2)
    ours, theirs = (b"numpy._core.", b"numpy.core.") if np.__version__ >= "2" else (b"numpy.core.", b"numpy._core.")
    assert ours in content
    np.testing.assert_array_equal(read(content.replace(ours, theirs), tmp_path), ARRAYS["names"])


def array(kind: type, state: Any = None) -> bytes:
    """numpy's own call for an array, with this state in place of an array's."""
    function: Any = np.zeros(1).__reduce__()[0]
    return pickle.dumps(Hostile(function, (kind, (0,), b"b"), *([] if state is None else [state])))


def shaped(shape: Any, content: Any, dtype: Any = "f8") -> bytes:
    """An array with this shape and these bytes."""
    return array(np.ndarray, (1, shape, np.dtype(dtype), False, content))


def kind(name: str, *state: Any) -> Hostile:
    """A type of numpy's with this state."""
    return Hostile(np.dtype, (name, False, True), (3, *state, -1, -1, 0))


def changed(value: Any, old: bytes, new: bytes, protocol: int = 2) -> bytes:
    content = pickle.dumps(value, protocol)
    assert old in content
    return content.replace(old, new)


F8 = np.dtype("f8")
REPLACED = b"\x80\x02cnumpy\ndtype\nq\x000cposix\nsystem\nq\x00h\x00K\x01\x85R."  # a place in the memo
HOSTILE: list[tuple[Callable[[], bytes], str]] = [
    (lambda: pickle.dumps({"infos": system()}, 2), "contains 'posix.system'"),
    (lambda: pickle.dumps(np.array([system()], object)), "contains|of type 'O8'"),
    (lambda: b"\x80\x04\x8c\x01\n\x8c\x01a\x93.", r"contains '\\n.a'"),
    # Types.
    (lambda: changed(np.arange(4.0), b"f8", b"O8"), "type 'O8'"),
    (lambda: pickle.dumps(kind("f8", "<", None, ("a",), {"a": (F8, 0)})), "has fields"),
    (lambda: pickle.dumps(kind("f8", "<", None, None, {"a": (F8, 0)})), "has fields"),
    (lambda: pickle.dumps(kind("f8", "|", (F8, (9,)), None, None)), "has fields"),
    (lambda: changed(np.arange(2.0), b"f8", b"f\x00"), "numbers and text"),
    # Arrays.
    (lambda: array(np.matrix), "contains 'numpy.*matrix'"),
    (lambda: array(np.ndarray, (1, (0,))), "damaged"),
    (lambda: shaped((2,), [1, 2]), "without type or content"),
    (lambda: shaped((-2, -1), b"a" * 16), "shape"),
    (lambda: shaped((2**64, 2), b"a" * 8), "8 bytes: truncated"),
    (lambda: changed(np.array(["ab"]), b"a\0\0\0", b"a\0\xff\0", 4), "text is none"),
    (lambda: pickle.dumps(np.arange(2), 2)[:-1] + b"X\x01\x00\x00\x00aK\x01s.", "damaged"),
    # States, calls and the memo.
    (lambda: b"\x80\x02}}b.", "gives a state to what has none"),
    (lambda: b"\x80\x02])R.", "damaged"),
    (lambda: b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "unknown encoding"),
    (lambda: REPLACED, "'posix.system'"),
    # Sizes, and what takes for ever.
    (lambda: b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"a.", "truncated"),
    (lambda: b"\x80\x04\x8e" + b"\xff" * 8 + b".", "truncated"),
    (lambda: b"\x80\x04" + DEEP + b"q\x00h\x00\x93.", "damaged"),  # to print
    (lambda: b"\x80\x02" + DEEP + b"q\x00cnumpy\ndtype\nh\x00\x85R.", "type a tuple"),
    (lambda: pickle.dumps(system(), 0), "no pickle of protocol 2 to 5"),
    (lambda: b"\x80\x02(N.", "ends too early"),
]
HOSTILE += [
    (partial(bytes.fromhex, code.hex()), says)
    for code, says in (
        (b"\x80\x04(iposix\nsystem\n.", "contains 'posix.system'"),  # INST
        (b"\x80\x04(cposix\nsystem\no.", "contains 'posix.system'"),  # OBJ
        (b"\x80\x04cnumpy\nndarray\n)\x81.", "damaged"),  # NEWOBJ
        (b"\x80\x04cnumpy\nndarray\n)}\x92.", "damaged"),  # NEWOBJ_EX
        *((b"\x80\x04" + code + bytes(3) + b".", "damaged") for code in (b"\x82\x01", b"\x83\x01\0", b"\x84\x01\0")),
        (b"\x80\x04Pa\n.", "damaged"),  # PERSID
        (b"\x80\x05\x97.", "damaged"),  # NEXT_BUFFER
    )
]


@pytest.mark.parametrize(("make", "says"), HOSTILE)
def test_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes], says: str) -> None:
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    assert_refused(read, make(), tmp_path, says)


def test_a_far_place_in_the_memo_and_deep_nesting_cost_no_memory_and_change_nothing(tmp_path: Path) -> None:
    tracemalloc.start()
    assert read(b"\x80\x02]r\xff\xff\xff\xff.", tmp_path) == []
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    deep = read(b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", tmp_path)
    assert [len(deep), len(deep[0])] == [1, 1]
    swapped = read(pickle.dumps([kind("f8", ">", None, None, None), np.arange(3.0)]), tmp_path)[1]
    assert (np.dtype("f8").isnative, swapped.tolist()) == (True, [0, 1, 2])


def test_data_sets_and_calibration_read_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary, infos = tmp_path / "canary", tmp_path / "nuscenes_infos_val.pkl"
    monkeypatch.setenv("CANARY", str(canary))
    infos.write_bytes(pickle.dumps({"infos": system()}, 2))
    spec = load_config(find_config("tiny")).spec
    for read_infos in (lambda: open_source(infos, None), lambda: Drives(infos).inputs(spec)):
        with one_line_error(r"contains 'posix\.system'"):
            read_infos()
    assert not canary.exists()


WHOLE = pickle.dumps({"a": [1.5, {"b": (1, "c")}], "d": ARRAYS, "e": SCALARS, "f": PLAIN}, 4)


@pytest.mark.parametrize("protocol", [2, 5])
def test_every_truncation_is_refused(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps({"a": [1.5, {"b": (1, "c")}], "d": ARRAYS["names"], "e": SCALARS["f"]}, protocol)
    for length in range(len(content)):
        with pytest.raises(InputError, match="nothing in it was run"):
            read(content[:length], tmp_path)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_changed_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):  # anything else fails the test
        read(bytes(content), tmp_path_factory.getbasetemp())


PIECES = (
    *(bytes([code]) for code in range(256)),
    b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"X\x02\x00\x00\x00f8",
    b"cnumpy.core.multiarray\nscalar\n", b"K\x00\x85", b"\x8c\x01a", b"h\x00", b"q\x00",
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_opcodes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    with contextlib.suppress(InputError):
        read(b"\x80\x04" + b"".join(pieces) + b".", tmp_path_factory.getbasetemp())


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "infos.pkl"
    with path.open("wb") as file:
        file.truncate((1 << 32) + 1)
    with one_line_error(r"infos\.pkl: not read: it has 4096 MiB"):
        read_plain(path)
