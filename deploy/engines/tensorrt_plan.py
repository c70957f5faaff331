"""Run a TensorRT plan on a GPU.

See NVIDIA's documentation: "Performing Inference", "CUDA Graphs" and "Refitting an Engine". The code uses the API that
`tensorrt` and `tensorrt_rtx` share. It has not run on a GPU yet: it is tested with stand-ins for TensorRT and the
driver, and by tests/deploy/test_gpu.py where there is a GPU. `Runtime` runs the golden frames first, which shows
whether a plan computes the network, refitted or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploy.engines import cuda
from deploy.engines.tensorrt import import_compiler, make_logger
from deploy.integrity import Content
from deploy.targets import Target
from perception.errors import InputError


class TensorRtEngine:
    """A plan on this machine's first GPU. It must be used in the thread that opened it.

    The constructor allocates all inputs and outputs, on the GPU and in pinned host memory, and captures the work of a
    frame, with its copies to and from the GPU, in a CUDA graph that every run launches. NVIDIA requires one run before
    the capture, in which TensorRT does its deferred initialisation.

    Attributes:
        graph: None if the work cannot be captured, because it allocates memory or waits for the GPU midway
            (data-dependent shapes, branches, plans of tensorrt_rtx 1.1); then every run enqueues it again.

    Args:
        weights: an ONNX graph whose weights replace those of the plan; it must have the same structure
            (`deploy.precision.measure`) as the graph that the plan was compiled from. None keeps the plan's weights.

    Raises:
        InputError: there is no GPU or TensorRT, or the plan is for another version or GPU or does not take the weights.
    """

    def __init__(self, plan: Content, target: Target, weights: Content | None = None) -> None:
        trt = import_compiler(target)
        self._stream = cuda.Stream()
        self._log = make_logger(trt)
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
            if is_input and -1 in shape:  # plans by trtexec keep the dimension dynamic; the profile has its size
                shape = tuple(self._engine.get_tensor_profile_shape(name, 0)[2])
                self._context.set_input_shape(name, shape)
            buffer = cuda.Buffer(shape, dtype)
            self._context.set_tensor_address(name, buffer.address)
            (self._inputs if is_input else self._outputs)[name] = buffer
        self._enqueue()
        self._stream.wait()
        # tensorrt_rtx can tell whether its work can be captured; with tensorrt the capture itself fails if not.
        capturable = getattr(self._context, "is_stream_capturable", lambda handle: True)
        self.graph = self._stream.capture(self._enqueue) if capturable(self._stream.handle) else None

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
            self._enqueue()
        else:
            self._stream.launch(self.graph)
        self._stream.wait()
        return {name: buffer.host.copy() for name, buffer in self._outputs.items()}

    def _enqueue(self) -> None:
        """Enqueue the work of one frame on the stream."""
        for buffer in self._inputs.values():
            self._stream.upload(buffer)
        if not self._context.execute_async_v3(self._stream.handle):
            raise RuntimeError("TensorRT could not run the plan")
        for buffer in self._outputs.values():
            self._stream.download(buffer)

    def _refit(self, trt: Any, plan: Content, weights: Content) -> None:
        """Replace the engine's weights by those of the same names in an ONNX graph, before its first run."""
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
