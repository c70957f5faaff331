"""Inference engines for exported networks: ONNX Runtime on a CPU, TensorRT on a GPU."""

from __future__ import annotations

from deploy.bundle import ONNX, Bundle
from deploy.engine import Engine
from deploy.targets import WITH_DLA, find_target


def open_engine(bundle: Bundle, target: str = "cpu", threads: int = 0) -> Engine:
    """Open the engine that runs `bundle` on `target`; ONNX Runtime has a thread for each core if `threads` is 0.

    A plan compiled from another bundle's network (`deploy.build.refit`) is loaded with this bundle's weights.
    """
    if find_target(target).compiler == "onnxruntime":
        from deploy.engines.onnxruntime import OnnxRuntimeEngine

        network = bundle.read(bundle.cpu_onnx.name)
        return OnnxRuntimeEngine(network.data, network.path, threads=threads)
    from deploy.engines.tensorrt import TensorRtEngine, compiler_version

    plan = bundle.plan(target, compiler_version(find_target(target)))
    weights = bundle.read(ONNX) if plan.record.refitted else None
    return TensorRtEngine(plan, find_target(target), weights, plan.record.compiler.endswith(WITH_DLA))
