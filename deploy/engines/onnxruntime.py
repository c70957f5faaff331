"""The ONNX Runtime engine: runs on any CPU, and computes only the pillars that a frame has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from deploy.engine import EngineState
from perception.errors import InputError
from perception.sensors.inputs import without_padding
from perception.state import NEXT, states_of


class OnnxRuntimeState:
    """States in two buffers each, of which each run reads one and writes the other."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._arrays = [{name: np.zeros(shape, np.float32) for name, shape in shapes.items()} for _ in range(2)]
        # Of the same memory, which ONNX Runtime does not copy on a CPU.
        self._values = [
            {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
            for arrays in self._arrays
        ]
        self._latest = 0

    def bind(self, binding: onnxruntime.IOBinding) -> None:
        """Make a run read the latest states, and write the next ones to the other buffers."""
        for name, value in self._values[self._latest].items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(NEXT + name, self._values[1 - self._latest][name])

    def swap(self) -> None:
        """Take the other buffers as the states: what the latest run wrote, or again what it read."""
        self._latest = 1 - self._latest

    def clear(self) -> None:
        for array in self._arrays[self._latest].values():
            array.fill(0)

    def read(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._arrays[self._latest].items()}


class OnnxRuntimeEngine:
    """A network on the CPU, from an ONNX file or its content, which messages call `name`.

    `inputs` and `outputs` have type and shape by name; a dynamic dimension is given by its name.

    Args:
        optimise: whether ONNX Runtime may rewrite the graph; otherwise it runs node by node.
        threads: that compute; 0: one for each core.
    """

    def __init__(self, onnx: Path | bytes, name: object = "the graph", optimise: bool = True, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3  # errors only; warnings are about optimisations that were not applied
        # The memory pattern cache would grow with every new number of pillars.
        options.enable_mem_pattern = False
        # Idle threads sleep, since spinning would take cores from the threads that read and write files.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Weights in another file, which no hash covers, are looked for where no file can be.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        content, name = (onnx, name) if isinstance(onnx, bytes) else (onnx.read_bytes(), onnx)
        try:
            self._session = onnxruntime.InferenceSession(
                content, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base class
            raise InputError(f"{name}: ONNX Runtime refuses it: {' '.join(str(error).split())}") from None
        self._session._model_bytes = None  # otherwise the session keeps the file's content in memory
        self.inputs = {each.name: _describe(each) for each in self._session.get_inputs()}
        self.outputs = {each.name: _describe(each) for each in self._session.get_outputs()}
        shapes = {each.name: tuple(each.shape) for each in self._session.get_inputs()}
        self._states = {name: shapes[name] for name in states_of(self.outputs) if name in shapes}

    def new_state(self) -> OnnxRuntimeState | None:
        return OnnxRuntimeState(self._states) if self._states else None

    def run(self, inputs: Mapping[str, np.ndarray], state: EngineState | None = None) -> dict[str, np.ndarray]:
        """Outputs by name, for inputs by name with the shapes and types of the manifest; see `deploy.engine.Engine`."""
        inputs = without_padding(inputs)
        try:
            if isinstance(state, OnnxRuntimeState):
                return self._run_with(inputs, state)
            return dict(zip(self.outputs, self._session.run([*self.outputs], inputs), strict=True))
        except Exception as error:  # as above
            raise InputError(f"ONNX Runtime cannot run the network: {' '.join(str(error).split())}") from None

    def _run_with(self, inputs: Mapping[str, np.ndarray], state: OnnxRuntimeState) -> dict[str, np.ndarray]:
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        state.bind(binding)
        outputs = [name for name in self.outputs if name.removeprefix(NEXT) not in self._states]
        for name in outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        state.swap()
        values = binding.get_outputs()[len(self._states) :]  # behind the states
        return {name: value.numpy() for name, value in zip(outputs, values, strict=True)}


def _describe(tensor: Any) -> str:
    """Type and shape of an input or output, such as float32 (1, 'pillars', 8, 5)."""
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    return f"{ {'float': 'float32', 'double': 'float64'}.get(kind, kind) } {tuple(tensor.shape)}"
