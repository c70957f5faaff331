"""Verify a bundle or a build package; a GPU is not needed. No torch, no onnx here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deploy.build_package import SUMS, SUMS_SIGNATURE
from deploy.bundle import CALIBRATION, ENGINES, SIGNATURE, Bundle
from deploy.canary import canary_graph, require_canary
from deploy.engines import open_engine
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.integrity import Content, read_verified, require_inside, require_nothing_else
from deploy.manifest import MANIFEST, Calibration, Manifest, TensorInfo
from deploy.onnx_file import read_graph
from deploy.targets import Target, find_target
from deploy.trust import Trust
from perception.errors import InputError
from perception.sensors.inputs import PILLARS


def verify(path: Path, trust: Trust | None = None) -> dict[str, str]:
    """Check the bundle or build package in folder `path`; returns what was checked and found.

    Args:
        trust: who must have signed it, and how old it may be. Engines need a signature too, unless the manifest permits
            unsigned ones. None checks neither signatures nor age. The release is not stored.

    Raises:
        InputError: manifest, signature, files, graph, golden frames or an engine are wrong; the first problem.
    """
    if (path / SUMS).is_file():
        return _verify_package(path, trust)
    return verify_bundle(Bundle.load(path, trust))


def verify_bundle(bundle: Bundle) -> dict[str, str]:
    """Check what `Bundle.load` does not: graphs, golden frames and engines. Returns and raises like `verify`."""
    path, manifest, origin = bundle.path, bundle.manifest, bundle.manifest.origin
    size = sum((path / name).stat().st_size for name in manifest.files)
    engines, *_ = [_verify_networks(part) for part in (bundle, *bundle.routes.values())]
    return {
        "manifest": f"schema {manifest.schema_version}, sha256 {manifest.sha256}",
        "release": f"{manifest.release}, "
        + (f"until {manifest.expires:%Y-%m-%d %H:%M} UTC" if manifest.expires else "without end"),
        "signature": _signature(bundle),
        "files": f"{len(manifest.files)} files, {size / 1e6:.1f} MB: hashes match, no other files",
        "graph": f"opset {manifest.opset}, {len(manifest.inputs)} inputs, {len(manifest.outputs)} outputs, "
        f"{sum(manifest.operators.values())} operators: as in the manifest",
        "golden frames": f"{origin.golden} and others: outputs of ONNX Runtime are within the tolerances",
        "engines": ", ".join(engines) or "none",
        **_canary(bundle),
        "unsigned engines": ", ".join(dict.fromkeys(permit.target for permit in manifest.builds))
        + (" may compile their own" if manifest.builds else "refused"),
        "routes": ", ".join((*manifest.routes, *(f"{route} with its own network" for route in manifest.apart))),
        "calibration": _calibration(bundle),
        "base": origin.base,
        "modules": ", ".join(f"{name} ({domain or 'domain not known'})" for name, domain in origin.modules.items())
        or "none",
        "trained on": "; ".join(origin.data) or "the checkpoint did not say",
        "license": origin.license or "not stated",
    }


def _verify_networks(bundle: Bundle) -> list[str]:
    """Check the graphs, the golden frames and the plans of one network; returns what is said of each plan."""
    for file in dict.fromkeys((bundle.onnx, bundle.cpu_onnx)):
        content = bundle.read(file.name)
        require_graph(content, bundle.manifest, bundle.manifest.operators if file == bundle.onnx else None)
        bundle.require_golden(OnnxRuntimeEngine(content.data, file), f"{file}: ONNX Runtime", file.name)
    return [_verify_plan(bundle, find_target(target)) for target in _targets(bundle.path)]


def _verify_plan(bundle: Bundle, target: Target) -> str:
    """Check a plan, and run the golden frames on it where this machine has its GPU and compiler; says what was done."""
    from deploy.engines.tensorrt import compiler_version, why_not_run_here

    plan = bundle.plan(target.name)
    signed = "signed" if (bundle.path / ENGINES / f"{target.name}.sig").is_file() else "not signed"
    reason = why_not_run_here(target)
    if reason is None:
        try:
            bundle.plan(target.name, compiler_version(target))
        except InputError as error:  # it is whole, but by another version
            reason = str(error)
    if reason is None:
        bundle.require_golden(open_engine(bundle, target.name), f"{plan.path}: {plan.record.compiler}")
    ran = "gives the golden frames" if reason is None else f"NOT RUN ({reason})"
    return f"{target.name} by {plan.record.compiler}, {signed}, {ran}"


def _canary(bundle: Bundle) -> dict[str, str]:
    """Check the operator that moves the state of a memory, also on this machine's GPU if it is that of an engine."""
    if all(part.manifest.state is None for part in (bundle, *bundle.routes.values())):
        return {}
    require_canary(OnnxRuntimeEngine(canary_graph(), "the canary").run, "ONNX Runtime")
    told = (f"{target} by {_run_canary(find_target(target))}" for target in _targets(bundle.path))
    return {"GridSample of the memory": ", ".join(("as in closed form in ONNX Runtime", *told))}


def _run_canary(target: Target) -> str:
    """Compile the canary for a target and run it on this machine's GPU; returns the compiler, or why it was not run."""
    from deploy.engines.tensorrt import TensorRtEngine, build_engine, why_not_run_here

    reason = why_not_run_here(target)
    if reason is not None:
        return f"its compiler NOT RUN ({reason})"
    plan = build_engine(canary_graph(), target)
    engine = TensorRtEngine(Content(Path(f"the canary for {target.name}"), plan.content), target)
    require_canary(engine.run, f"{target.name}: {plan.compiler}")
    return plan.compiler


def require_graph(file: Content, manifest: Manifest, operators: dict[str, int] | None = None) -> None:
    """Raise InputError unless the ONNX file is the network that the manifest describes.

    Args:
        operators: expected number of nodes by operator; None: not checked.
    """
    graph = read_graph(file)
    for what, found, described in (
        ("opset", graph.opsets, {"ONNX": manifest.opset}),
        ("inputs", graph.inputs, _describe_tensors(manifest.inputs)),
        ("outputs", graph.outputs, _describe_tensors(manifest.outputs)),
        ("operators", graph.operators, graph.operators if operators is None else operators),
    ):
        for name in {**described, **found}:
            if found.get(name) != described.get(name):
                raise InputError(
                    f"{file.path}: {what}: {name} is {found.get(name, 'not there')}, "
                    f"the manifest says {described.get(name, 'that there is none')}; export the bundle again"
                )


def _verify_package(path: Path, trust: Trust | None) -> dict[str, str]:
    """Check a build package, including its script, without running it."""
    sums = (path / SUMS).read_bytes()
    signed = trust.require_signed(path / SUMS, sums) if trust is not None else ""
    digests = {}
    for line in sums.decode("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        require_inside(path, name)
        digests[name] = digest
    free = [name.removesuffix(MANIFEST) + ENGINES for name in digests if name.endswith(f"/{MANIFEST}")]
    require_nothing_else(path, {SUMS, SUMS_SIGNATURE, "build.log", *digests}, free)
    for name, digest in digests.items():
        read_verified(path / name, digest, "copy the package again")
    signature = f"by {signed}" if signed else _describe_unchecked(path / SUMS_SIGNATURE)
    return {"package": f"{len(digests)} files as in {SUMS}, signature: {signature}"} | verify(path / "bundle", trust)


def _describe_tensors(tensors: Iterable[TensorInfo]) -> dict[str, str]:
    shapes = {t.name: (1, "pillars", *t.shape[2:]) if t.name in PILLARS else t.shape for t in tensors}
    return {tensor.name: f"{tensor.dtype} {shapes[tensor.name]}" for tensor in tensors}


def _targets(path: Path) -> list[str]:
    """The targets that have a file in the folder of the engines."""
    return sorted({file.stem for file in (path / ENGINES).glob("*.*") if file.suffix in (".plan", ".json", ".sig")})


def _calibration(bundle: Bundle) -> str:
    if CALIBRATION not in bundle.manifest.files:
        return "none"
    measured = Calibration.model_validate_json(bundle.read(CALIBRATION).data)
    return f"{len(measured.ranges)} ranges on {len(measured.frames)} keyframes of {measured.data}"


def _signature(bundle: Bundle) -> str:
    if bundle.trust is None:
        return _describe_unchecked(bundle.path / SIGNATURE)
    return f"by the key {bundle.trust.require_signed(bundle.path / MANIFEST, bundle.manifest.to_hashed_json())}"


def _describe_unchecked(signature: Path) -> str:
    return "not checked, no --key was given" if signature.exists() else "none"
