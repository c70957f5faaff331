"""What runs an exported network: ONNX Runtime on a CPU, TensorRT on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from deploy.bundle import ONNX, Bundle
from deploy.targets import find_target


class Engine(Protocol):
    """A network ready to run."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, for inputs by name with the shapes and types of the bundle's manifest."""


def open_engine(bundle: Bundle, target: str = "cpu") -> Engine:
    """The engine that runs `bundle` on `target`.

    A plan that was compiled from another bundle's network (`deploy.build.refit`) is given this one's weights.

    Raises:
        InputError: an unknown target, a plan that is missing, stale or of another version of the compiler, or no such
            hardware here.
    """
    if find_target(target).compiler == "onnxruntime":
        from deploy.engines.onnxruntime import OnnxRuntimeEngine

        network = bundle.read(bundle.cpu_onnx.name)
        return OnnxRuntimeEngine(network.data, network.path)
    from deploy.engines.tensorrt import installed
    from deploy.engines.tensorrt_plan import TensorRtEngine

    plan = bundle.plan(target, installed(find_target(target)))
    return TensorRtEngine(plan, find_target(target), bundle.read(ONNX) if plan.record.refitted else None)
