"""Pickles are read without running anything: hostile ones leave no trace, and what is not whole is refused."""

from __future__ import annotations

import collections
import contextlib
import copyreg
import io
import os
import pickle
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.precision.frames import Drives
from perception.cli import main
from perception.config import find_config, load_config
from perception.errors import InputError
from perception.mmdet3d.unpickle import read_plain
from perception.sensors.inputs import InputSpec

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
        assert ours["arrays"][name].dtype == array.dtype
        np.testing.assert_array_equal(ours["arrays"][name], array)
    assert ours["scalars"] == {name: value.item() for name, value in SCALARS.items()}
    assert {type(value) for value in ours["scalars"].values()} == {float, bool, int, str}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_the_other_numpy_names_its_modules_otherwise(tmp_path: Path, protocol: int) -> None:
    """Written by the numpy at hand, then under the names of numpy 2 or 1, which differ in nothing else."""
    content = pickle.dumps(ARRAYS["names"], protocol)
    ours, theirs = (b"numpy._core.", b"numpy.core.") if np.__version__ >= "2" else (b"numpy.core.", b"numpy._core.")
    renamed = content
    for name in (b"multiarray", b"numeric"):
        old, new = ours + name, theirs + name
        if protocol >= 4:
            renamed = renamed.replace(bytes([len(old)]) + old, bytes([len(new)]) + new)
        else:
            renamed = renamed.replace(old, new)
    assert renamed != content
    if protocol >= 4:  # each name changes the frame's length by a byte
        start = renamed.index(b"\x95") + 1
        length = struct.unpack("<Q", renamed[start : start + 8])[0] + len(renamed) - len(content)
        renamed = renamed[:start] + struct.pack("<Q", length) + renamed[start + 8 :]
    np.testing.assert_array_equal(read(renamed, tmp_path), ARRAYS["names"])


class Hostile:
    """Pickled, it calls what it is given."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Stateful:
    def __getstate__(self) -> dict[str, str]:
        return {"a": "b"}

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(os.environ["CANARY"]).touch()


class Constructed(str):
    def __new__(cls, text: str) -> Constructed:
        Path(os.environ.get("CANARY", os.devnull)).touch()
        return str.__new__(cls, text)

    def __getnewargs__(self) -> tuple[str]:
        return (str(self),)


def _touch() -> str:
    return f"touch {os.environ['CANARY']}"


def _array_of_objects() -> bytes:
    return pickle.dumps(np.array([Hostile(os.system, _touch())], object))


def _dtype_swapped() -> bytes:
    """An array of numbers whose type says that its bytes are pointers to objects."""
    return pickle.dumps(np.arange(4.0), 2).replace(b"X\x02\x00\x00\x00f8", b"X\x02\x00\x00\x00O8")


def _persistent() -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return "id" if value == "there" else None

    file = io.BytesIO()
    Pickler(file, 2).dump({"infos": "there"})
    return file.getvalue()


def _extension() -> bytes:
    copyreg.add_extension("posix", "system", 240)
    try:
        return pickle.dumps(Hostile(os.system, _touch()), 2)
    finally:
        copyreg.remove_extension("posix", "system", 240)


def _system() -> bytes:
    """`touch CANARY` as a pickled text."""
    command = _touch().encode()
    return b"X" + struct.pack("<I", len(command)) + command


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "REDUCE": (lambda: pickle.dumps({"infos": Hostile(os.system, _touch())}, 2), "asks for 'posix.system'"),
    "STACK_GLOBAL": (lambda: pickle.dumps(Hostile(os.system, _touch()), 4), "asks for 'posix.system'"),
    "nested": (lambda: pickle.dumps([[{"a": (Hostile(os.system, _touch()),)}]], 5), "asks for 'posix.system'"),
    "eval": (lambda: pickle.dumps(Hostile(eval, "1"), 2), "asks for '__builtin__.eval'"),
    "getattr": (lambda: b"\x80\x02cbuiltins\ngetattr\n.",
                "asks for 'builtins.getattr'"),
    "a name in a known module": (lambda: b"\x80\x02cnumpy\nload\n.", "asks for 'numpy.load'"),
    "a dotted name": (lambda: b"\x80\x04\x8c\x05numpy\x8c\x0fdtype.__class__\x93.", "numpy.dtype.__class__"),
    "names that are no text": (lambda: b"\x80\x04]]\x93.", "asks for names that are no text"),
    "__setstate__": (lambda: pickle.dumps(Stateful(), 2), "asks for 'test_unpickle.Stateful'|'copy_reg._recon"),
    "a class of its own": (lambda: pickle.dumps(Constructed("a"), 2), "asks for"),
    "NEWOBJ of a known name": (lambda: b"\x80\x02cnumpy\nndarray\n)\x81.", "asks for NEWOBJ"),
    "NEWOBJ_EX": (lambda: b"\x80\x04cnumpy\nndarray\n)}\x92.", "asks for NEWOBJ_EX"),
    "INST": (lambda: b"\x80\x02(" + _system() + b"iposix\nsystem\n.", "asks for INST"),
    "OBJ": (lambda: b"\x80\x02(cnumpy\ndtype\n" + _system() + b"o.", "asks for OBJ"),
    "EXT1": (_extension, "asks for EXT1"),
    "EXT4": (lambda: b"\x80\x02\x84\x01\x00\x00\x00.", "asks for EXT4"),
    "PERSID": (lambda: b"\x80\x02Pid\n.", "asks for PERSID"),
    "BINPERSID": (_persistent, "asks for BINPERSID"),
    "a buffer outside": (lambda: b"\x80\x05\x97.", "asks for NEXT_BUFFER"),
    "an array of objects": (_array_of_objects, "asks for|of type 'O8'"),
    "a type that became objects": (_dtype_swapped, "of type 'O8'"),
    "a type with fields": (
        lambda: pickle.dumps(np.zeros(2, [("a", "f8"), ("b", "O")]), 2), "of type 'V16'",
    ),
    "BUILD on a name": (lambda: b"\x80\x02cnumpy\ndtype\n}b.", "gives a state to what has none"),
    "BUILD on a dict": (lambda: b"\x80\x02}}b.", "gives a state to what has none"),
    "a call of a list": (lambda: b"\x80\x02])R.", "calls what is no name"),
    "a call of the class of arrays": (lambda: b"\x80\x02cnumpy\nndarray\n)R.", "damaged"),
    "an encoding to look up": (
        lambda: b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "unknown encoding",
    ),
    "APPEND to a name": (lambda: b"\x80\x02cnumpy\ndtype\nNa.", "a list should be on the stack"),
    "a memo place that was never filled": (lambda: b"\x80\x02h\x05.", "damaged or truncated"),
    "a memo place that the file replaces": (
        lambda: b"\x80\x02cnumpy\ndtype\nq\x000cposix\nsystem\nq\x00h\x00" + _system() + b"\x85R.", "'posix.system'",
    ),
    "a memo of gigabytes": (lambda: b"\x80\x02]r\xff\xff\xff\xff.", "memo place 4294967295"),
    "text of gigabytes": (lambda: b"\x80\x02X\xff\xff\xff\xffa.", "4294967295 bytes should follow.*truncated"),
    "bytes of exabytes": (lambda: b"\x80\x04\x8e" + b"\xff" * 8 + b".", "should follow.*truncated"),
    "an array of gigabytes": (
        lambda: pickle.dumps(np.zeros(3), 2).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"), "24 bytes: truncated",
    ),
    "nested keys, which take for ever to hash": (
        lambda: b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b"q\x000}h\x00Ns.", "a key of a dict is tuple",
    ),
    "numbers for keys, of which all could have one hash": (lambda: pickle.dumps({1: 2}), "a key of a dict is int"),
    "a name that prints for ever": (
        lambda: b"\x80\x04)" + b"q\x00h\x00\x86" * 60 + b"q\x00h\x00\x93.", "asks for names that are no text",
    ),
    "a type that prints for ever": (
        lambda: b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b"q\x000cnumpy\ndtype\nh\x00\x85R.", "of type a tuple",
    ),
    "an old protocol": (lambda: pickle.dumps(Hostile(os.system, _touch()), 0), "no pickle of protocol 2 to 5"),
    "no pickle": (lambda: b"PK\x03\x04 a zip file", "no pickle of protocol 2 to 5"),
    "nothing": (lambda: b"", "no pickle of protocol 2 to 5"),
    "two pickles": (lambda: pickle.dumps(1) + pickle.dumps(2), "ends too early"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    canary = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(canary))
    make, message = HOSTILE[name]
    content = make()
    canary.unlink(missing_ok=True)  # making it may have called what reading it must not
    with pytest.raises(InputError) as caught:
        read(content, tmp_path)
    assert not canary.exists()
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
    assert str(caught.value).startswith(str(tmp_path))


def test_pythons_unpickler_would_have_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary is one."""
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    for name in ("REDUCE", "STACK_GLOBAL", "nested", "__setstate__", "an array of objects"):
        content = HOSTILE[name][0]()
        (tmp_path / "canary").unlink(missing_ok=True)
        pickle.loads(content)
        assert (tmp_path / "canary").exists(), name


@pytest.mark.parametrize("command", ["train", "evaluate", "adapt"])
def test_a_command_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    canary, infos = tmp_path / "canary", tmp_path / "nuscenes_infos_val.pkl"
    monkeypatch.setenv("CANARY", str(canary))
    infos.write_bytes(HOSTILE["REDUCE"][0]())
    first = {"train": [find_config("tiny")], "evaluate": [tmp_path], "adapt": [tmp_path, "--add", "low_rank:a"]}
    arguments = [command, *first[command], "--data", infos, "--out", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", ["perception", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert not canary.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert "asks for 'posix.system'" in line
    assert list(tmp_path.iterdir()) == [infos]


def test_calibration_says_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    (tmp_path / "infos.pkl").write_bytes(HOSTILE["REDUCE"][0]())
    with pytest.raises(InputError, match=r"asks for 'posix\.system'"):
        Drives(tmp_path / "infos.pkl").inputs(InputSpec.of(load_config(find_config("tiny"))))
    assert not (tmp_path / "canary").exists()


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
    _read_or_refuse(bytes(content), tmp_path_factory.getbasetemp())


PIECES = (
    *(bytes([code]) for code in range(256)),
    b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"X\x02\x00\x00\x00f8",
    b"cnumpy.core.multiarray\nscalar\n", b"K\x00\x85", b"\x8c\x01a", b"h\x00", b"q\x00",
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_opcodes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    _read_or_refuse(b"\x80\x04" + b"".join(pieces) + b".", tmp_path_factory.getbasetemp())


def _read_or_refuse(content: bytes, folder: Path) -> None:
    """Anything else than an InputError would fail the test."""
    with contextlib.suppress(InputError):
        read(content, folder)
