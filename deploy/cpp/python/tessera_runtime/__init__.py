"""Runs a bundle by libtessera.so, the C++ runtime, through its C interface.

with Runtime("bundle") as runtime:
    arrays = runtime.step(frame, ["rain", "night"])
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint8, c_void_p
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

LIBRARY = "TESSERA_LIBRARY"  # environment variable: path of libtessera.so, if it is not beside this file
_DTYPES = (np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_)  # as in tessera_type
_KINDS = ("boxes", "raster", "labels", "value")  # as in tessera_kind


class _Options(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("bundle", c_char_p), ("target", c_char_p), ("plugin", c_char_p),
        ("keys", POINTER(c_char_p)), ("key_count", c_size_t), ("state", c_char_p), ("allow_older", c_int),
        ("threads", c_int),
    ]  # fmt: skip


class _Camera(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("name", c_char_p), ("rgb", c_void_p), ("height", c_int32), ("width", c_int32),
        ("intrinsics", c_double * 9), ("ego_from_camera", c_double * 16), ("global_from_ego", c_double * 16),
    ]  # fmt: skip


class _Input(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("name", c_char_p), ("data", c_void_p), ("bytes", c_size_t)]


class _Frame(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("scene", c_char_p), ("timestamp", c_int64), ("global_from_reference", c_double * 16),
        ("global_from_ego", c_double * 16), ("points", c_void_p), ("sweep_of_point", c_void_p),
        ("point_count", c_size_t), ("cameras", POINTER(_Camera)), ("camera_count", c_size_t),
        ("conditions", POINTER(c_char_p)), ("condition_count", c_size_t), ("inputs", POINTER(_Input)),
        ("input_count", c_size_t),
    ]  # fmt: skip


class _Array(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("data", c_void_p), ("type", c_int), ("rank", c_int32), ("shape", c_int64 * 8)
    ]  # fmt: skip


class _Area(ctypes.Structure):
    _fields_ = [
        ("x", c_double * 2), ("y", c_double * 2), ("z", c_double * 2), ("cell", c_double), ("height", c_double)
    ]  # fmt: skip


class _Description(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("name", c_char_p), ("release", c_int64), ("reference", c_char_p), ("sweeps", c_int32),
        ("oldest", c_double), ("spacing", c_double * 2), ("seconds", c_double), ("speed", c_double),
        *((name, POINTER(c_char_p)) for name in ("cameras", "condition_values", "condition_kinds")),
        ("result_count", c_size_t),
    ]  # fmt: skip


class _Result(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("name", c_char_p), ("kind", c_int), ("unit", c_char_p), ("scale", c_double),
        ("names", POINTER(c_char_p)), ("area", _Area),
    ]  # fmt: skip


class _Times(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("preprocess", c_double), ("engine", c_double), ("postprocess", c_double)]


class _Grid(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("rows", c_int32), ("columns", c_int32), ("cell", c_double), ("x", c_double * 2),
        ("y", c_double * 2), ("z", c_double * 2), ("most", c_int32), ("points", c_int32), ("fullest", c_int32),
    ]  # fmt: skip


class Failure(Exception):
    """A call failed; the message says what, where, and what to do."""


class WrongEngine(Failure):
    """The engine does not compute the exported network."""


class Lost(Failure):
    """The GPU is lost to this process; restart it."""


class Runtime:
    """A bundle that is open in the C++ runtime.

    Args:
        keys: PEM files of public keys, one of which must have signed it; with keys, `state` is the folder that keeps
            the highest release that ran.
        plugin: shared object with the engine of the target.
        threads: of ONNX Runtime; 0: one for each core.

    Raises:
        Failure: the bundle is refused.
    """

    def __init__(
        self,
        bundle: os.PathLike[str] | str,
        target: str = "cpu",
        keys: Sequence[os.PathLike[str]] = (),
        state: os.PathLike[str] | str | None = None,
        allow_older: bool = False,
        plugin: str | None = None,
        threads: int = 0,
    ) -> None:
        _load_onnxruntime()
        self._library, self._handle = load(), c_void_p()
        options = _sized(_Options)
        options.bundle, options.target = os.fsencode(bundle), target.encode()
        options.plugin = plugin and os.fsencode(plugin)
        options.state = None if state is None else os.fsencode(state)
        options.keys, options.key_count = _strings(map(str, keys)), len(keys)
        options.allow_older, options.threads = allow_older, threads
        self._require(self._library.tessera_open(ctypes.byref(options), ctypes.byref(self._handle)))

    def describe(self) -> dict[str, Any]:
        """Return the fields of tessera_description, and `results`: for each result the fields of tessera_result."""
        found, results = _sized(_Description), list[dict[str, Any]]()
        self._require(self._library.tessera_describe(self._handle, ctypes.byref(found)))
        for index in range(found.result_count):
            result = _sized(_Result)
            self._require(self._library.tessera_describe_result(self._handle, index, ctypes.byref(result)))
            results.append({**_fields(result), "kind": _KINDS[result.kind]})
        return {**_fields(found), "results": results}

    def step(
        self, frame: Any, conditions: Sequence[str] = (), inputs: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Results, inputs and outputs of a `perception.frame.Frame` by the names of `tessera_get`, until the next step.

        Args:
            conditions: what is known to hold.
            inputs: those of kinds of sensors that the library does not know; None: none of these is there.
        """
        given, kept = _frame(frame, conditions, inputs)
        self._require(self._library.tessera_step(self._handle, ctypes.byref(given)))
        del kept  # lived as long as the call
        return self.arrays()

    def arrays(self) -> dict[str, np.ndarray]:
        """Those of the latest step."""
        found, index = {}, 0
        while name := self._library.tessera_name(self._handle, index):
            found[name.decode()] = self.get(name.decode())
            index += 1
        return found

    def get(self, name: str) -> np.ndarray:
        """An array of the latest step; Failure if there is none of this name."""
        array = _sized(_Array)
        self._require(self._library.tessera_get(self._handle, name.encode(), ctypes.byref(array)))
        shape, dtype = tuple(array.shape[: array.rank]), np.dtype(_DTYPES[array.type])
        size = int(np.prod(shape)) * dtype.itemsize
        memory: Any = (c_uint8 * size).from_address(array.data) if size else b""
        return np.frombuffer(memory, dtype).reshape(shape)

    def weight(self, module: str) -> float:
        """That a module had in the latest step."""
        weight = c_float()
        self._require(self._library.tessera_weight(self._handle, module.encode(), ctypes.byref(weight)))
        return weight.value

    def seconds(self) -> dict[str, float]:
        """Of the stages of the latest step."""
        times = _sized(_Times)
        self._require(self._library.tessera_seconds(self._handle, ctypes.byref(times)))
        return {name: getattr(times, name) for name in ("preprocess", "engine", "postprocess")}

    def check(self) -> None:
        """Runs the next golden frame. WrongEngine if the engine no longer gives its outputs."""
        self._require(self._library.tessera_check(self._handle))

    def restart(self) -> None:
        """Begins with an empty memory at the next frame."""
        self._require(self._library.tessera_restart(self._handle))

    def close(self) -> None:
        self._library.tessera_close(self._handle)
        self._handle = c_void_p()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require(self, status: int) -> None:
        if status:
            message = self._library.tessera_message(self._handle).decode(errors="replace")
            raise {2: WrongEngine, 5: Lost}.get(status, Failure)(message or f"status {status}")


def group(
    points: np.ndarray,
    grid: Any,
    pillars: np.ndarray,
    counts: np.ndarray,
    cells: np.ndarray,
    overflow: str = "fullest",
    cells_of_points: np.ndarray | None = None,
) -> int:
    """As `perception.sensors.lidar.pillars.group`, in every bit."""
    (rows, columns), points = grid.shape, np.ascontiguousarray(points, np.float32)
    rules = _sized(_Grid)
    rules.rows, rules.columns, rules.cell = rows, columns, grid.cell
    rules.x[:], rules.y[:], rules.z[:] = grid.x, grid.y, grid.z
    (rules.most, rules.points), rules.fullest = pillars.shape[:2], overflow == "fullest"
    found, of_points = c_int32(), None if cells_of_points is None else cells_of_points.ctypes
    _require_array("points", points, np.float32, len(points), 5)
    _require_array("pillars", pillars, np.float32, rules.most, rules.points, 5)
    for name, array in (("counts", counts), ("cells", cells)):
        _require_array(name, array, np.int32, rules.most)
    if cells_of_points is not None:
        _require_array("cells_of_points", cells_of_points, np.int32, len(points))
    arrays = pillars.ctypes, counts.ctypes, cells.ctypes, of_points
    if load().tessera_group(ctypes.byref(rules), points.ctypes, c_size_t(len(points)), *arrays, ctypes.byref(found)):
        raise Failure(load().tessera_message(None).decode())
    return found.value


def fill_picture(recorded: np.ndarray, picture: np.ndarray, steps: int) -> None:
    """Writes the network's picture (height, width, 3) of a recorded one.

    By `fit_width` and `warp` of `perception.sensors.camera.picture`, in every bit.
    """
    recorded = np.ascontiguousarray(recorded)
    for name, array in (("recorded", recorded), ("picture", picture)):
        _require_array(name, array, np.uint8, *array.shape[:2], 3)
    if load().tessera_picture(recorded.ctypes, *recorded.shape[:2], picture.ctypes, *picture.shape[:2], steps):
        raise Failure(load().tessera_message(None).decode())


def _require_array(name: str, array: np.ndarray, dtype: Any, *shape: int) -> None:
    """Raises Failure for an array of which the library would read or write other memory."""
    if (array.shape, array.dtype) != (shape, dtype) or not array.flags.c_contiguous:
        raise Failure(f"{name}: is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape} in one piece")


@cache
def load() -> ctypes.CDLL:
    """The library. OSError: it is not found, or another one that it needs."""
    beside = next(map(str, Path(__file__).parent.glob("libtessera.so*")), "libtessera.so.1")
    library = ctypes.CDLL(os.environ.get(LIBRARY) or beside)
    for name in ("name", "message", "version"):
        getattr(library, f"tessera_{name}").restype = c_char_p
    library.tessera_name.argtypes = [c_void_p, c_size_t]
    for name in ("message", "close", "check", "restart"):
        getattr(library, f"tessera_{name}").argtypes = [c_void_p]
    for name in ("step", "seconds", "describe"):
        getattr(library, f"tessera_{name}").argtypes = [c_void_p, c_void_p]
    library.tessera_describe_result.argtypes = [c_void_p, c_size_t, c_void_p]
    for name in ("get", "weight"):
        getattr(library, f"tessera_{name}").argtypes = [c_void_p, c_char_p, c_void_p]
    return library


@cache
def _load_onnxruntime() -> None:
    """The library opens ONNX Runtime by its name, which finds that of Python's package once it is loaded."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    onnxruntime = importlib.util.find_spec("onnxruntime")
    for folder in (onnxruntime and onnxruntime.submodule_search_locations) or ():
        for file in Path(folder, "capi").glob("libonnxruntime.so*"):
            ctypes.CDLL(str(file))


def _sized(kind: Any) -> Any:
    return kind(size=ctypes.sizeof(kind))


def _fields(struct: Any) -> dict[str, Any]:
    return {name: _value(getattr(struct, name)) for name, *_ in struct._fields_[1:]}


def _value(field: Any) -> Any:
    """A field of a struct, in Python's types."""
    if isinstance(field, bytes):
        return field.decode()
    if isinstance(field, _Area):
        return {name: _value(getattr(field, name)) for name, *_ in field._fields_}
    if isinstance(field, ctypes.Array):
        return tuple(field)
    if isinstance(field, POINTER(c_char_p)):
        return tuple(each.decode() for each in takewhile(bool, iter(field)))
    return field


def _strings(values: Iterable[str]) -> Any:
    every = [value.encode() for value in values]
    return (c_char_p * max(1, len(every)))(*every)


def _frame(
    frame: Any, conditions: Sequence[str], inputs: Mapping[str, np.ndarray] | None = None
) -> tuple[_Frame, list[Any]]:
    """The frame for a call, and what must live as long."""
    given, kept = _sized(_Frame), list[Any]()

    def address(name: str, array: np.ndarray, dtype: Any, *shape: int) -> int:
        if array.shape != shape:
            raise Failure(f"{name}: has the shape {array.shape}, not {shape}")
        kept.append(np.ascontiguousarray(array, dtype))
        return int(kept[-1].ctypes.data)

    given.scene, given.timestamp = frame.scene.encode(), frame.timestamp
    for name in ("global_from_reference", "global_from_ego"):
        getattr(given, name)[:] = np.asarray(getattr(frame, name), np.float64).ravel().tolist()
    if frame.points is not None:
        count = len(frame.points)
        given.points, given.point_count = address("points", frame.points, np.float32, count, 5), count
        given.sweep_of_point = address("sweep_of_point", frame.sweep_of_point, np.uint8, count)
    cameras = (_Camera * max(1, len(frame.cameras)))()
    for own, (name, camera) in zip(cameras, frame.cameras.items(), strict=False):
        own.size, own.name = ctypes.sizeof(_Camera), name.encode()
        own.height, own.width = size = camera.image.shape[:2]
        own.rgb = address(f"the picture of {name}", camera.image, np.uint8, *size, 3)
        for matrix in ("intrinsics", "ego_from_camera", "global_from_ego"):
            getattr(own, matrix)[:] = np.asarray(getattr(camera, matrix), np.float64).ravel().tolist()
    given.cameras, given.camera_count = cameras, len(frame.cameras)
    given.conditions, given.condition_count = _strings(conditions), len(conditions)
    further = (_Input * max(1, len(inputs or ())))()
    for one, (name, array) in zip(further, (inputs or {}).items(), strict=False):
        one.size, one.name, one.bytes = ctypes.sizeof(_Input), name.encode(), array.nbytes
        one.data = address(name, array, array.dtype, *array.shape)
    given.inputs, given.input_count = further, len(inputs or ())
    kept += [cameras, further]
    return given, kept
