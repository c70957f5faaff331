"""The part of CUDA that running a plan needs, through NVIDIA's own bindings (`cuda-bindings`, of cuda-python).

Only the driver API, whose library comes with every NVIDIA GPU: calls and constants are those of the "CUDA Driver API
Reference Manual". A driver runs what was made for an older CUDA, so the bindings of CUDA 12 serve JetPack 6 (CUDA 12.6)
and all that came after it. Everything here belongs to the thread that made it.

None of this has run on a GPU yet. Its refusals are tested where there is none, and its calls, through the real
bindings, with a stand-in for the driver.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from perception.errors import InputError


class NoGpuError(InputError):
    """This machine has no NVIDIA GPU, or no driver for it."""


@functools.cache
def _driver() -> Any:
    """The bindings, with the first GPU's primary context, which TensorRT uses too, current.

    Raises:
        NoGpuError: there is no GPU.
        InputError: the bindings are not installed.
    """
    try:
        driver = importlib.import_module("cuda.bindings.driver")
    except ImportError:
        raise InputError(
            "cuda-bindings is not installed here, and no TensorRT plan runs without it: "
            "pip install 'cuda-bindings>=12.8,<13'"
        ) from None
    try:
        for name in ("cuInit", "cuDevicePrimaryCtxRetain"):
            code, *context = getattr(driver, name)(0)  # no flags; the first GPU
            if code:
                raise NoGpuError(f"no usable NVIDIA GPU on this machine ({name} gives {code.name})")
    except RuntimeError:  # the bindings found no library
        raise NoGpuError("no NVIDIA GPU driver on this machine; run TensorRT plans where there is a GPU") from None
    driver.cuCtxSetCurrent(*context)
    return driver


def _call(name: str, *arguments: Any) -> Any:
    """Call a function of the driver; returns its value, if it has one, without the result code."""
    code, *values = getattr(_driver(), name)(*arguments)
    if code:
        raise RuntimeError(f"CUDA: {name} gives {code.name}")
    return values[0] if values else None


def compute_capability() -> int:
    """The compute capability of the first GPU; 87 is 8.7. Raises as `_driver`."""
    attributes = _driver().CUdevice_attribute
    major, minor = (
        _call("cuDeviceGetAttribute", getattr(attributes, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}"), 0)
        for part in ("MAJOR", "MINOR")
    )
    return int(10 * major + minor)


class Buffer:
    """Memory for an array on the GPU and, pinned so that the GPU copies by itself, on the host; freed with the object.

    Attributes:
        address: of the array on the GPU.
        host: the array on the host, zeros at first.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.size = math.prod(shape) * dtype.itemsize
        self.address = int(_call("cuMemAlloc", self.size))
        weakref.finalize(self, _driver().cuMemFree, self.address)
        self.pinned = int(_call("cuMemHostAlloc", self.size, 0))
        weakref.finalize(self, _driver().cuMemFreeHost, self.pinned)
        content = (ctypes.c_ubyte * self.size).from_address(self.pinned)
        self.host: np.ndarray = np.frombuffer(memoryview(content), dtype).reshape(shape)
        self.host[...] = 0


class Stream:
    """A queue of work on the GPU, which does not wait for the default stream."""

    def __init__(self) -> None:
        self._stream = _call("cuStreamCreate", _driver().CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.handle = int(self._stream)
        weakref.finalize(self, _driver().cuStreamDestroy, self._stream)

    def upload(self, buffer: Buffer) -> None:
        """Queue the copy of the host's array to the GPU."""
        _call("cuMemcpyHtoDAsync", buffer.address, buffer.pinned, buffer.size, self._stream)

    def download(self, buffer: Buffer) -> None:
        """Queue the copy of the GPU's array to the host."""
        _call("cuMemcpyDtoHAsync", buffer.pinned, buffer.address, buffer.size, self._stream)

    def wait(self) -> None:
        """Wait until all queued work is done."""
        _call("cuStreamSynchronize", self._stream)

    def record(self, queue: Callable[[], None]) -> Graph | None:
        """Record the work that `queue` puts on this stream, without running it; None if it cannot be recorded."""
        _call("cuStreamBeginCapture", self._stream, _driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            queue()
            queued = True
        except RuntimeError:  # it asked for what a recording forbids, such as memory
            queued = False
        code, graph = _driver().cuStreamEndCapture(self._stream)  # also ends one that has failed
        return None if code or not queued else Graph(graph)

    def launch(self, graph: Graph) -> None:
        """Queue all of a recorded graph at once."""
        _call("cuGraphLaunch", graph.executable, self._stream)


class Graph:
    """Work for the GPU that was recorded on a stream (a CUDA graph), to be launched any number of times."""

    def __init__(self, recorded: Any) -> None:
        self.executable = _call("cuGraphInstantiate", recorded, 0)
        weakref.finalize(self, _driver().cuGraphExecDestroy, self.executable)
        _call("cuGraphDestroy", recorded)
