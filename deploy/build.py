"""Compile a bundle for a target."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime
from rich.console import Console

from deploy.bundle import ONNX, Bundle, EngineRecord
from deploy.engines import open_engine
from deploy.engines.tensorrt import build_engine
from deploy.golden import require_agreement
from deploy.targets import Target, find_target
from perception.errors import InputError

if TYPE_CHECKING:
    from deploy.signature import Sign


def build(path: Path, target_name: str, console: Console | None = None, sign: Path | None = None) -> EngineRecord:
    """Compile the network of the bundle in folder `path` for a target; the plan goes to its `engines` folder.

    ONNX Runtime compiles whenever it opens a network, so for `cpu` there is no plan to keep: the golden frame is
    run, and the record says how long it took to get ready.

    Args:
        sign: private key (PEM, `deploy.signature`) that signs the plan's record.

    Raises:
        InputError: no bundle or key, an unknown target, no compiler for it here, or a graph that it refuses.
    """
    console = console or Console()
    target, bundle = find_target(target_name), Bundle.load(path)
    signed = None
    if sign is not None:
        if target.compiler == "onnxruntime":
            raise InputError(f"--sign: there is no plan for {target.name} to sign; its network is the bundle's own")
        from deploy.signature import signer

        signed = signer(sign)
    with console.status(f"Compiling for {target.device}"):
        record = _build_cpu(bundle, target) if target.compiler == "onnxruntime" else _build_plan(bundle, target, signed)
    size = f"{record.plan_bytes / 1e6:.1f} MB" if record.plan_bytes else "no plan to keep"
    console.print(
        f"{target.name} ({target.device}): {record.compiler}, {record.layers} layers, {size}, {record.seconds:.2f} s"
    )
    return record


def _build_plan(bundle: Bundle, target: Target, sign: Sign | None) -> EngineRecord:
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
    bundle.add_plan(plan.content, record, sign)
    return record


def _build_cpu(bundle: Bundle, target: Target) -> EngineRecord:
    start = time.perf_counter()
    engine = open_engine(bundle, target.name)
    seconds = time.perf_counter() - start
    inputs, outputs = bundle.golden()
    require_agreement(outputs, engine.run(inputs), bundle.manifest.tolerance, "ONNX Runtime")
    return EngineRecord(
        target=target.name,
        compiler=f"onnxruntime {onnxruntime.__version__}",
        layers=sum(bundle.manifest.operators.values()),
        seconds=round(seconds, 3),
        plan_bytes=0,
        plan_sha256="",
        onnx_sha256=bundle.manifest.files[ONNX],
    )
