"""Compile a bundle for a target, or write a build package with which the target compiles it."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime
from rich.console import Console

from deploy.build_package import BuildPackage, write_package
from deploy.bundle import ONNX, Bundle, EngineRecord
from deploy.engines import open_engine
from deploy.engines.tensorrt import TensorRtEngine, build_engine, compiler_version, compiles_here, why_not_run_here
from deploy.integrity import Content
from deploy.targets import Target, find_target
from perception.errors import InputError

if TYPE_CHECKING:
    from deploy.signature import Signer


def build(
    path: Path,
    target_name: str,
    console: Console | None = None,
    dla: bool = False,
    out: Path | None = None,
    sign: Path | None = None,
    refittable: bool = False,
) -> EngineRecord | BuildPackage:
    """Compile the networks of the bundle in folder `path` for a target; the plans are stored in its `engines` folder.

    ONNX Runtime compiles whenever it opens a network, so `cpu` has no plan: the golden frames are run, and the record
    has the time that opening took. TensorRT compiles on the GPU that will run the plan; if that is another machine, a
    build package is written instead. A plan that can run here must give the golden frames before it is stored.

    Args:
        dla: run the layers that the target's DLA supports on it.
        out: folder of the build package; `<bundle>-<target>` beside the bundle by default.
        sign: private key that signs the plan's record, or the package; it must have signed the bundle.
        refittable: compile a plan whose weights a later bundle can replace (`refit`).

    Returns:
        The record of the first route's plan, or the package.
    """
    console, target, bundle = console or Console(), find_target(target_name), Bundle.load(path)
    target.versions_for(dla)  # raises if the target has no DLA
    target.require_opset(bundle.manifest.opset)
    if refittable:
        _require_refittable(bundle, target, dla)
    here = compiles_here(target)
    _require_used(target, out if here else None, sign)
    if dla and bundle.manifest.precision == "fp32":
        console.print("A DLA runs fp16 and int8 only: all layers of this fp32 bundle will stay on the GPU.")
    signer = _signer(sign, bundle)
    if not here:
        folder = out or path.resolve().with_name(f"{path.resolve().name}-{target.name}")
        package = write_package(bundle, target, folder, dla, refittable, signer)
        console.print(
            f"{target.name}: TensorRT compiles on the {target.device} itself. Copy {package.package} there and run "
            f"build.sh ({target.compiler} {package.versions})"
        )
        return package
    parts = (bundle, *bundle.routes.values())
    reason = None if target.compiler == "onnxruntime" else why_not_run_here(target)
    with console.status(f"Compiling for {target.device}"):
        if target.compiler == "onnxruntime":
            records = [_build_cpu(part, target) for part in parts]
        else:
            records = [_build_plan(part, target, dla, refittable, signer, runs=reason is None) for part in parts]
    for part, record in zip(parts, records, strict=True):
        console.print(_describe(target, part, record, reason))
    return records[0]


def _describe(target: Target, bundle: Bundle, record: EngineRecord, reason: str | None) -> str:
    size = f"{record.plan_bytes / 1e6:.1f} MB" if record.plan_bytes else "no plan to keep"
    ran = "gives the golden frames" if reason is None else f"golden frames NOT RUN ({reason})"
    return (
        f"{target.name} ({target.device}) for {', '.join(bundle.manifest.routes)}: {record.compiler}, "
        f"{record.layers} layers, {size}, {record.seconds:.2f} s, {ran}"
    )


def _require_used(target: Target, out: Path | None, sign: Path | None) -> None:
    if out is not None:
        raise InputError(
            f"{target.name}: compiles here, into the bundle; --out is for targets that compile on the device"
        )
    if sign is not None and target.compiler == "onnxruntime":
        raise InputError(f"--sign: there is no plan for {target.name} to sign; its network is the bundle's own")


def refit(
    path: Path, old: Path, target_name: str, console: Console | None = None, sign: Path | None = None
) -> EngineRecord:
    """Copy the plan of the bundle in folder `old` to the one in `path`, which has other weights, without compiling.

    The plan's bytes stay the same. Its new record makes the engine load this bundle's weights whenever it opens the
    plan. `old` has a `refittable` plan by this machine's compiler, for a network of the same structure
    (`deploy.precision.measure`); the private key `sign` must have signed the bundle.
    """
    target, bundle, source = find_target(target_name), Bundle.load(path), Bundle.load(old)
    if target.compiler == "onnxruntime":
        raise InputError(f"{target.name}: has no plan to refit; ONNX Runtime runs any bundle without one")
    if bundle.routes.keys() != source.routes.keys():
        raise InputError(f"{path}: has networks for other routes than {old}; build it anew, without --refit-from")
    signer = _signer(sign, bundle)
    record = _refit(bundle, source, target, signer)
    for route, part in bundle.routes.items():
        _refit(part, source.routes[route], target, signer)
    (console or Console()).print(
        f"{target.name} ({target.device}): the plan of {old}, to run with the weights of {path}; nothing was compiled"
    )
    return record


def _refit(bundle: Bundle, source: Bundle, target: Target, signer: Signer | None) -> EngineRecord:
    plan = source.plan(target.name, compiler_version(target))
    if not plan.record.refittable:
        raise InputError(
            f"{plan.path}: was not compiled to be refitted; run `perception build {source.root} --target {target.name} "
            "--refit`"
        )
    if bundle.manifest.structure_sha256 != source.manifest.structure_sha256:
        raise InputError(f"{bundle.onnx}: has another structure than {source.onnx}, so it needs a plan of its own")
    record = plan.record.model_copy(update={"weights_sha256": bundle.files[ONNX]})
    bundle.add_plan(plan.data, record, signer)
    return record


def _require_refittable(bundle: Bundle, target: Target, dla: bool) -> None:
    reason = None
    if target.compiler == "onnxruntime":
        reason = "ONNX Runtime runs any bundle without a plan"
    elif dla:
        reason = "layers on a DLA cannot be refitted"
    elif bundle.manifest.precision == "int8":
        reason = "the scales of int8 follow its weights and are compiled into the plan"
    if reason is not None:
        raise InputError(f"{target.name}: {reason}; leave out --refit")


def _signer(key: Path | None, bundle: Bundle) -> Signer | None:
    """The signer with this key, if given. InputError if the key did not sign the bundle."""
    if key is None:
        return None
    from deploy.signature import signer  # a build without a key needs no cryptography

    of_key = signer(key)
    bundle.require_signed_by(of_key)
    return of_key


def _build_plan(
    bundle: Bundle, target: Target, dla: bool, refittable: bool, signer: Signer | None, runs: bool
) -> EngineRecord:
    start = time.perf_counter()
    plan = build_engine(bundle.read(ONNX).data, target, dla, refittable, bundle.manifest.input_shapes)
    record = EngineRecord(
        target=target.name,
        compiler=plan.compiler,
        layers=plan.layers,
        seconds=round(time.perf_counter() - start, 3),
        plan_bytes=len(plan.content),
        plan_sha256=hashlib.sha256(plan.content).hexdigest(),
        refittable=refittable,
        onnx_sha256=bundle.files[ONNX],
        weights_sha256=bundle.files[ONNX],
    )
    if runs:
        name = f"{bundle.onnx}: {plan.compiler}"
        engine = TensorRtEngine(Content(bundle.onnx, plan.content), target, dla=dla)
        bundle.require_golden(engine, name)
    bundle.add_plan(plan.content, record, signer)
    return record


def _build_cpu(bundle: Bundle, target: Target) -> EngineRecord:
    start = time.perf_counter()
    engine = open_engine(bundle, target.name)
    seconds = time.perf_counter() - start
    bundle.require_golden(engine, "ONNX Runtime", bundle.cpu_onnx.name)
    return EngineRecord(
        target=target.name,
        compiler=f"onnxruntime {onnxruntime.__version__}",
        layers=sum(bundle.manifest.operators.values()),
        seconds=round(seconds, 3),
        plan_bytes=0,
        plan_sha256="",
        refittable=False,
        onnx_sha256=bundle.files[bundle.cpu_onnx.name],
        weights_sha256=bundle.files[bundle.cpu_onnx.name],
    )
