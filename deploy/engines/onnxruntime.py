"""The ONNX Runtime engine: runs on any CPU, and computes only the pillars that a frame has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from perception.errors import InputError
from perception.sensors.inputs import without_padding


class OnnxRuntimeEngine:
    """A network on the CPU, from an ONNX file or its content.

    Args:
        name: how messages refer to the graph, if `onnx` is its content.
        optimise: whether ONNX Runtime may rewrite the graph; otherwise it runs node by node.

    Raises:
        InputError: ONNX Runtime cannot load the graph.
    """

    def __init__(self, onnx: Path | bytes, name: object = "the graph", optimise: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3  # errors only; warnings are about optimisations that were not applied
        # The memory pattern cache would grow with every new number of pillars.
        options.enable_mem_pattern = False
        # Idle threads sleep, since spinning would take cores from the threads that read and write files.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content, name = (onnx, name) if isinstance(onnx, bytes) else (onnx.read_bytes(), onnx)
        try:
            self._session = onnxruntime.InferenceSession(
                content, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base class
            raise InputError(f"{name}: ONNX Runtime refuses it: {' '.join(str(error).split())}") from None
        self._session._model_bytes = None  # otherwise the session keeps the file's content in memory
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, for inputs by name with the shapes and types of the manifest."""
        try:
            values = self._session.run(self._outputs, without_padding(inputs))
        except Exception as error:  # as above
            raise InputError(f"ONNX Runtime cannot run the network: {' '.join(str(error).split())}") from None
        return dict(zip(self._outputs, values, strict=True))
