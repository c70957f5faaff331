"""ONNX Runtime: the engine that runs on any CPU, and computes only the pillars that a frame has."""

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
        name: names the content in messages.
        fused: with ONNX Runtime's optimisations; otherwise node by node, as the graph says.

    Raises:
        InputError: ONNX Runtime refuses the file.
    """

    def __init__(self, onnx: Path | bytes, name: object = "the graph", fused: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        if not fused:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3  # errors; warnings tell of optimisations it left out
        # It would keep a plan of its memory for every number of pillars that it ever sees.
        options.enable_mem_pattern = False
        # A thread that waits for work sleeps: it would keep a core from whoever reads and writes beside the network.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content, name = (onnx, name) if isinstance(onnx, bytes) else (onnx.read_bytes(), onnx)
        try:
            self._session = onnxruntime.InferenceSession(
                content, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base class
            raise InputError(f"{name}: ONNX Runtime refuses it: {' '.join(str(error).split())}") from None
        self._session._model_bytes = None  # else it keeps the file's content for as long as it lives
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, for inputs by name with the shapes and types of the manifest."""
        try:
            values = self._session.run(self._outputs, without_padding(inputs))
        except Exception as error:  # as above
            raise InputError(f"ONNX Runtime cannot run the network: {' '.join(str(error).split())}") from None
        return dict(zip(self._outputs, values, strict=True))
