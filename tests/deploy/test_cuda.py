"""CUDA through NVIDIA's bindings: what is said where there is no GPU, and the calls that are made where there is one.

The bindings are real. The driver that they call is, on a machine without one, a stand-in in C that has the driver's
signatures, keeps "GPU memory" on the heap, and does copies when the stream is waited for, or when a graph of them is
launched: so what reaches a driver, and in what order, is tested, and nothing about a GPU is.
"""

import pytest
from driver_standin import run
from refits import no_gpu

USE = """
import ctypes
import gc
import numpy as np
from deploy.engines import cuda

def left():
    gc.collect()
    return ctypes.CDLL("libcuda.so.1").left_behind()

assert cuda.compute_capability() == 87
def use():
    stream = cuda.Stream()
    a, b = cuda.Buffer((2, 3), np.dtype("float32")), cuda.Buffer((5,), np.dtype("int64"))
    assert (a.host.shape, a.host.dtype, a.host.sum()) == ((2, 3), np.float32, 0)
    assert (b.host.shape, b.host.dtype, b.host.sum()) == ((5,), np.int64, 0)
    back = cuda.Buffer((2, 3), np.dtype("float32"))
    def queue():
        stream.upload(a)
        back_address, back.address = back.address, a.address  # what a network would have computed
        stream.download(back)
        back.address = back_address
    a.host[...] = 7
    queue()
    assert (back.host == 0).all()
    stream.wait()
    assert (back.host == 7).all()
    graph = stream.capture(queue)
    a.host[...] = np.arange(6).reshape(2, 3)
    stream.wait()
    assert (back.host == 7).all()  # recorded and not done
    for factor in (1, 2):
        a.host *= factor
        stream.launch(graph)
        stream.wait()
        np.testing.assert_array_equal(back.host, factor * np.arange(6).reshape(2, 3))
    def waits():
        queue()
        stream.wait()
    assert stream.capture(waits) is None
    queue()  # the stream goes on
    stream.wait()
    a.host[...] = 3
    assert left() > 0
use()
assert left() == 0
print("used")
"""


@no_gpu
def test_buffers_streams_and_graphs_reach_the_driver(driver: str) -> None:
    pytest.importorskip("cuda.bindings")
    done = run(USE, LD_LIBRARY_PATH=driver)
    assert done.stdout == "used\n", done.stderr


CAPABILITY = """
from deploy.engines import cuda
from perception.errors import InputError
try:
    print(cuda.compute_capability())
except InputError as error:
    print(type(error).__name__, error)
"""


@no_gpu
def test_no_gpu_is_one_line(driver: str) -> None:
    pytest.importorskip("cuda.bindings")
    said = "NoGpuError no NVIDIA GPU driver on this machine; run TensorRT plans where there is a GPU\n"
    assert run(CAPABILITY).stdout == said
    said = "NoGpuError no usable NVIDIA GPU on this machine (cuInit gives CUDA_ERROR_NO_DEVICE)\n"
    assert run(CAPABILITY, LD_LIBRARY_PATH=driver, NO_DEVICE="1").stdout == said


def test_no_bindings_is_one_line() -> None:
    said = "no TensorRT plan runs without it: pip install 'cuda-bindings>=12.8,<13'\n"
    without = run(f"import sys\nsys.modules['cuda'] = None\n{CAPABILITY}").stdout
    assert without == f"InputError cuda-bindings is not installed here, and {said}"
