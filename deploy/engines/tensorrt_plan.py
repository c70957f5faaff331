"""TensorRT's runtime: runs a plan on a GPU.

Follows NVIDIA's documentation ("Performing Inference", "CUDA Graphs", "Refitting an Engine") and the API that
`tensorrt` and `tensorrt_rtx` share. None of this has run on a GPU yet: it is tested with stand-ins for TensorRT and the
driver, and by tests/test_gpu.py where there is a GPU. The golden frame that `Runtime` runs first tells whether a plan
computes the network, refitted or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploy.engines import cuda
from deploy.engines.tensorrt import compiler, listen
from deploy.integrity import Content
from deploy.targets import Target
from perception.errors import InputError


class TensorRtEngine:
    """A plan on this machine's first GPU, for the thread that opened it.

    Memory for every input and output is allocated here, once, on the GPU and pinned on the host. The work of a frame,
    with the copies to and from the GPU, is recorded once too, as a CUDA graph that every run launches. As NVIDIA
    requires, it is recorded after one run without it, in which TensorRT does its deferred initialisation.

    Attributes:
        graph: None if the work cannot be recorded, because it allocates memory or waits for the GPU midway (shapes that
            depend on data, branches, plans of tensorrt_rtx 1.1): then every run queues it anew.

    Args:
        weights: the ONNX graph whose weights the plan runs with, of the same structure (`deploy.structure`) as the one
            it was compiled from; None: with those that it was compiled with.

    Raises:
        InputError: no GPU, no TensorRT, a plan for another version or GPU, or one that does not take the weights.
    """

    def __init__(self, plan: Content, target: Target, weights: Content | None = None) -> None:
        trt = compiler(target)
        self._stream = cuda.Stream()
        self._log = listen(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan.data)
        if self._engine is None:
            raise InputError(f"{plan.path}: {trt.__name__} {trt.__version__} refuses it: {' '.join(self._log.errors)}")
        if weights is not None:
            self._refit(trt, plan, weights)
        self._context = self._engine.create_execution_context()
        self._inputs: dict[str, cuda.Buffer] = {}
        self._outputs: dict[str, cuda.Buffer] = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            shape = tuple(self._engine.get_tensor_shape(name))
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            if is_input and -1 in shape:  # trtexec leaves it open, and says in the profile what was compiled for
                shape = tuple(self._engine.get_tensor_profile_shape(name, 0)[2])
                self._context.set_input_shape(name, shape)
            buffer = cuda.Buffer(shape, dtype)
            self._context.set_tensor_address(name, buffer.address)
            (self._inputs if is_input else self._outputs)[name] = buffer
        self._queue()
        self._stream.wait()
        # tensorrt_rtx says beforehand whether its work can be recorded; with tensorrt, trying tells.
        capturable = getattr(self._context, "is_stream_capturable", lambda handle: True)
        self.graph = self._stream.record(self._queue) if capturable(self._stream.handle) else None

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, for inputs by name with the shapes and types of the manifest."""
        for name, buffer in self._inputs.items():
            expected, array = buffer.host, inputs.get(name)
            if array is None or (array.shape, array.dtype) != (expected.shape, expected.dtype):
                found = "is missing" if array is None else f"is {array.dtype} {array.shape}"
                raise InputError(
                    f"TensorRT cannot run the network: {name} {found}, the plan takes {expected.dtype} {expected.shape}"
                )
            expected[...] = array
        if self.graph is None:
            self._queue()
        else:
            self._stream.launch(self.graph)
        self._stream.wait()
        return {name: buffer.host.copy() for name, buffer in self._outputs.items()}

    def _queue(self) -> None:
        """Put the work of one frame on the stream."""
        for buffer in self._inputs.values():
            self._stream.upload(buffer)
        if not self._context.execute_async_v3(self._stream.handle):
            raise RuntimeError("TensorRT could not run the plan")
        for buffer in self._outputs.values():
            self._stream.download(buffer)

    def _refit(self, trt: Any, plan: Content, weights: Content) -> None:
        """Replace the engine's weights by those of an ONNX graph, by their names; before anything runs on it."""
        if not self._engine.refittable:
            raise InputError(
                f"{plan.path}: was not compiled to be refitted, so it cannot take the weights of {weights.path}"
            )
        refitter = trt.Refitter(self._engine, self._log)
        parser = trt.OnnxParserRefitter(refitter, self._log)
        done = parser.refit_from_bytes(weights.data)
        missing = refitter.get_missing_weights()
        if not done or missing or not refitter.refit_cuda_engine():
            reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            lacking = f"it lacks {', '.join(missing[:3])}" if missing else ""
            reason = " ".join(" ".join([lacking, *reasons, *self._log.errors]).split()) or "no reason given"
            raise InputError(
                f"{plan.path}: {trt.__name__} {trt.__version__} cannot give it the weights of {weights.path}: {reason}"
            )
