"""Verify and sign a bundle, a plan or a build package; a GPU is not needed. No torch, no onnx here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from deploy.build_package import SCRIPT
from deploy.bundle import CALIBRATION, ENGINES, Bundle
from deploy.engines import open_engine
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.integrity import SUMS, SUMS_SIGNATURE, Content, parse_sums, read_verified, require_nothing_else
from deploy.manifest import MANIFEST, Calibration, TensorInfo
from deploy.targets import Target, find_target
from deploy.trust import Trust
from perception.errors import InputError
from perception.io.files import write_atomically
from perception.sensors.inputs import PILLARS


def verify(path: Path, trust: Trust | None = None) -> dict[str, str]:
    """Check the bundle or build package in folder `path`; returns what was checked and found.

    Without `trust` neither signatures nor age are checked. The release is not stored.
    """
    if (path / SCRIPT).is_file():
        return _verify_package(path, trust)
    return verify_bundle(Bundle.load(path, trust))


def verify_bundle(bundle: Bundle) -> dict[str, str]:
    """Check what `Bundle.load` does not: graphs, golden frames and engines. Returns and raises like `verify`."""
    path, manifest, origin = bundle.path, bundle.manifest, bundle.manifest.origin
    size = sum((path / name).stat().st_size for name in bundle.files)
    engines, *_ = [_verify_networks(part) for part in (bundle, *bundle.routes.values())]
    return {
        "manifest": f"schema {manifest.schema_version}",
        "release": f"{manifest.release}, "
        + (f"until {manifest.expires:%Y-%m-%d %H:%M} UTC" if manifest.expires else "without end"),
        "signature": f"by the key {bundle.signer}" if bundle.signer else _describe_unchecked(path / SUMS_SIGNATURE),
        "files": f"{len(bundle.files)} files, {size / 1e6:.1f} MB: hashes match, no other files",
        "graph": f"{len(manifest.inputs)} inputs, {len(manifest.outputs)} outputs: as in the manifest",
        "golden frames": f"{origin.golden} and others: outputs of ONNX Runtime are within the tolerances",
        "engines": ", ".join(engines) or "none",
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
        engine = OnnxRuntimeEngine(bundle.read(file.name).data, file)
        for what, found, described in (
            ("inputs", engine.inputs, bundle.manifest.inputs),
            ("outputs", engine.outputs, bundle.manifest.outputs),
        ):
            _require_described(f"{file}: {what}", found, described)
        bundle.require_golden(engine, f"{file}: ONNX Runtime", file.name)
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


def _require_described(what: str, found: Mapping[str, str], described: Collection[TensorInfo]) -> None:
    """Raise InputError unless a graph has the manifest's tensors; the number of pillars is dynamic."""
    shapes = {each.name: (1, "pillars", *each.shape[2:]) if each.name in PILLARS else each.shape for each in described}
    wanted = {each.name: f"{each.dtype} {shapes[each.name]}" for each in described}
    for name in {**wanted, **found}:
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"{what}: {name} is {found.get(name, 'not there')}, the manifest says "
                f"{wanted.get(name, 'that there is none')}; export the bundle again"
            )


def _verify_package(path: Path, trust: Trust | None) -> dict[str, str]:
    """Check a build package, including its script, without running it."""
    sums = Content(path / SUMS, (path / SUMS).read_bytes())
    signed = trust.require_signed(sums.path, sums.data) if trust is not None else ""
    digests = parse_sums(sums)
    free = [name.removesuffix(MANIFEST) + ENGINES for name in digests if name.endswith(f"/{MANIFEST}")]
    require_nothing_else(path, {SUMS, SUMS_SIGNATURE, "build.log", *digests}, free)
    for name, digest in digests.items():
        read_verified(path / name, digest, "copy the package again")
    signature = f"by {signed}" if signed else _describe_unchecked(path / SUMS_SIGNATURE)
    return {"package": f"{len(digests)} files as in {SUMS}, signature: {signature}"} | verify(path / "bundle", trust)


def _targets(path: Path) -> list[str]:
    return sorted({file.stem for file in (path / ENGINES).glob("*.*") if file.suffix in (".plan", ".json", ".sig")})


def _calibration(bundle: Bundle) -> str:
    if CALIBRATION not in bundle.files:
        return "none"
    measured = Calibration.model_validate_json(bundle.read(CALIBRATION).data)
    return f"{len(measured.ranges)} ranges on {len(measured.frames)} keyframes of {measured.data}"


def _describe_unchecked(signature: Path) -> str:
    return "not checked, no --key was given" if signature.exists() else "none"


def sign(path: Path, key: Path, target: str | None = None) -> dict[str, str]:
    """Verify the bundle in folder `path`, then sign it or its plans for `target`; returns the file and the key's id.

    Verification shows that everything fits together, not that the bundle is the one that you exported. Therefore a plan
    is signed only if this key has signed the bundle.
    """
    from deploy.signature import signer  # to verify without a key needs no cryptography

    of_key = signer(key)
    bundle = Bundle.load(path)
    verify_bundle(bundle)
    if target is None:
        write_atomically(path / SUMS_SIGNATURE, of_key.sign(bundle.sums.data))
        return {"signed": str(bundle.sums.path), "key": of_key.id}
    if find_target(target).compiler == "onnxruntime":
        raise InputError(f"{target}: has no plan to sign; its network is the bundle's own")
    bundle.require_signed_by(of_key)
    for part in (bundle, *bundle.routes.values()):
        plan = part.plan(target)
        write_atomically(plan.path.with_suffix(".sig"), of_key.sign(plan.record_data))
    return {"signed": str(path / ENGINES / f"{target}.json"), "key": of_key.id}
