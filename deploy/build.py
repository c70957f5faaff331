"""Compile a bundle for a target."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import onnxruntime
from rich.console import Console

from deploy.bundle import ONNX, Bundle, EngineRecord
from deploy.engines import open_engine
from deploy.engines.tensorrt import build_engine
from deploy.golden import require_agreement
from deploy.targets import Target, find_target


def build(path: Path, target_name: str, console: Console | None = None) -> EngineRecord:
    """Compile the network of the bundle in folder `path` for a target; the plan goes to its `engines` folder.

    ONNX Runtime compiles whenever it opens a network, so for `cpu` there is no plan to keep: the golden frame is
    run, and the record says how long it took to get ready.

    Raises:
        InputError: no bundle, an unknown target, no compiler for it here, or a graph that it refuses.
    """
    console = console or Console()
    target, bundle = find_target(target_name), Bundle.load(path)
    with console.status(f"Compiling for {target.device}"):
        record = _build_cpu(bundle, target) if target.compiler == "onnxruntime" else _build_plan(bundle, target)
    size = f"{record.plan_bytes / 1e6:.1f} MB" if record.plan_bytes else "no plan to keep"
    console.print(
        f"{target.name} ({target.device}): {record.compiler}, {record.layers} layers, {size}, {record.seconds:.2f} s"
    )
    return record


def _build_plan(bundle: Bundle, target: Target) -> EngineRecord:
    start = time.perf_counter()
    plan = build_engine(bundle.onnx.read_bytes(), target)
    record = EngineRecord(
        target=target.name,
        compiler=plan.compiler,
        layers=plan.layers,
        seconds=round(time.perf_counter() - start, 3),
        plan_bytes=len(plan.content),
        plan_sha256=hashlib.sha256(plan.content).hexdigest(),
        onnx_sha256=bundle.manifest.files[ONNX],
    )
    bundle.add_plan(plan.content, record)
    return record


def _build_cpu(bundle: Bundle, target: Target) -> EngineRecord:
    start = time.perf_counter()
    engine = open_engine(bundle, target.name)
    seconds = time.perf_counter() - start
    inputs, outputs = bundle.golden()
    manifest = bundle.manifest
    require_agreement(outputs, engine.run(inputs), manifest.tolerance, "ONNX Runtime", manifest.outliers)
    return EngineRecord(
        target=target.name,
        compiler=f"onnxruntime {onnxruntime.__version__}",
        layers=sum(manifest.operators.values()),
        seconds=round(seconds, 3),
        plan_bytes=0,
        plan_sha256="",
        onnx_sha256=manifest.files[bundle.cpu_onnx.name],
    )
