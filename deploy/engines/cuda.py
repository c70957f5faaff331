"""The CUDA calls that running a plan needs, through NVIDIA's Python bindings (`cuda-bindings` of cuda-python).

Only the driver API is used, because its library comes with every GPU driver; see the "CUDA Driver API Reference
Manual". Drivers are backward compatible, so the bindings of CUDA 12 work on JetPack 6 (CUDA 12.6) and later. Objects
must be used in the thread that created them.
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
    """The driver bindings, after making the primary context of the first GPU current; TensorRT uses the same context.

    Raises:
        NoGpuError: there is no usable GPU.
        InputError: cuda-bindings is not installed.
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
            code, *context = getattr(driver, name)(0)  # flags: none; device: the first GPU
            if code:
                raise NoGpuError(f"no usable NVIDIA GPU on this machine ({name} gives {code.name})")
    except RuntimeError:  # the bindings did not find the driver's library
        raise NoGpuError("no NVIDIA GPU driver on this machine; run TensorRT plans where there is a GPU") from None
    driver.cuCtxSetCurrent(*context)
    return driver


def _call(name: str, *arguments: Any) -> Any:
    """Call a driver function and return its value, if any. RuntimeError if its result code is an error."""
    code, *values = getattr(_driver(), name)(*arguments)
    if code:
        raise RuntimeError(f"CUDA: {name} gives {code.name}")
    return values[0] if values else None


def compute_capability() -> int:
    """The compute capability of the first GPU, times ten: 87 for 8.7. Raises like `_driver`."""
    attributes = _driver().CUdevice_attribute
    major, minor = (
        _call("cuDeviceGetAttribute", getattr(attributes, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}"), 0)
        for part in ("MAJOR", "MINOR")
    )
    return int(10 * major + minor)


class Buffer:
    """An array in GPU memory and its copy in pinned host memory, initially zeros; both are freed with the object."""

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
    """A CUDA stream that does not synchronise with the default stream."""

    def __init__(self) -> None:
        self._stream = _call("cuStreamCreate", _driver().CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.handle = int(self._stream)
        weakref.finalize(self, _driver().cuStreamDestroy, self._stream)

    def upload(self, buffer: Buffer) -> None:
        """Enqueue the copy of the array from the host to the GPU."""
        _call("cuMemcpyHtoDAsync", buffer.address, buffer.pinned, buffer.size, self._stream)

    def download(self, buffer: Buffer) -> None:
        """Enqueue the copy of the array from the GPU to the host."""
        _call("cuMemcpyDtoHAsync", buffer.pinned, buffer.address, buffer.size, self._stream)

    def wait(self) -> None:
        """Wait until all enqueued work is done."""
        _call("cuStreamSynchronize", self._stream)

    def capture(self, enqueue: Callable[[], None]) -> Graph | None:
        """Capture the work that `enqueue` puts on this stream, without running it; None if it cannot be captured."""
        _call("cuStreamBeginCapture", self._stream, _driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            enqueue()
            enqueued = True
        except RuntimeError:  # a call that is not allowed during capture, such as an allocation
            enqueued = False
        code, graph = _driver().cuStreamEndCapture(self._stream)  # must be called after a failed capture, too
        return None if code or not enqueued else Graph(graph)

    def launch(self, graph: Graph) -> None:
        _call("cuGraphLaunch", graph.executable, self._stream)


class Graph:
    """A CUDA graph: GPU work captured on a stream, to be launched any number of times."""

    def __init__(self, captured: Any) -> None:
        self.executable = _call("cuGraphInstantiate", captured, 0)
        weakref.finalize(self, _driver().cuGraphExecDestroy, self.executable)
        _call("cuGraphDestroy", captured)
