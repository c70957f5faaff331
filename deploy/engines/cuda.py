"""The little of CUDA that running a plan takes, through the driver library that every NVIDIA GPU comes with.

Calls and constants are those of NVIDIA's "CUDA Driver API Reference Manual".
"""

from __future__ import annotations

import ctypes
import functools
import sys

import numpy as np

from perception.errors import InputError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@functools.cache
def _driver() -> ctypes.CDLL:
    """The driver library, initialised, with the first GPU's primary context current."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        raise InputError("no NVIDIA GPU driver on this machine; run TensorRT plans where there is a GPU") from None
    context = ctypes.c_void_p()
    for name, *arguments in (
        ("cuInit", 0),
        ("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0),
        ("cuCtxSetCurrent", context),
    ):
        if code := getattr(driver, name)(*arguments):
            raise InputError(f"no usable NVIDIA GPU on this machine ({name} gives error {code})")
    return driver


def _call(name: str, *arguments: object) -> None:
    if code := getattr(_driver(), name)(*arguments):
        raise RuntimeError(f"CUDA: {name} gives error {code}")


def compute_capability() -> int:
    """Of the first GPU; 87 is 8.7. InputError where there is none."""
    values = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        _call("cuDeviceGetAttribute", ctypes.byref(value), attribute, 0)
        values.append(value.value)
    return 10 * values[0] + values[1]


class Buffer:
    """Memory on the GPU, freed with the object."""

    def __init__(self, size: int) -> None:
        pointer = ctypes.c_uint64()
        _call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        self.address = pointer.value

    def __del__(self) -> None:
        if hasattr(self, "address"):
            _driver().cuMemFree_v2(ctypes.c_uint64(self.address))


class Stream:
    """A queue of work on the GPU."""

    def __init__(self) -> None:
        handle = ctypes.c_void_p()
        _call("cuStreamCreate", ctypes.byref(handle), 1)  # 1: does not wait for the default stream
        self.handle = handle.value or 0

    def upload(self, buffer: Buffer, array: np.ndarray) -> None:
        """Queue a copy of a contiguous array to the GPU."""
        _call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(buffer.address), *_host(array), ctypes.c_void_p(self.handle))

    def download(self, array: np.ndarray, buffer: Buffer) -> None:
        """Queue a copy from the GPU into a contiguous array."""
        pointer, size = _host(array)
        _call("cuMemcpyDtoHAsync_v2", pointer, ctypes.c_uint64(buffer.address), size, ctypes.c_void_p(self.handle))

    def wait(self) -> None:
        """Until all that was queued is done."""
        _call("cuStreamSynchronize", ctypes.c_void_p(self.handle))


def _host(array: np.ndarray) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    return ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
