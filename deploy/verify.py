"""Is a bundle what it says it is? All that can be told without the vehicle; needs onnx, but no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import onnx
from rich.table import Table

from deploy.bundle import CALIBRATION, ENGINES, SIGNATURE, Bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.manifest import Calibration, Manifest, TensorInfo
from perception.data.inputs import PILLARS
from perception.errors import InputError


def verify(path: Path, key: Path | None = None) -> dict[str, str]:
    """Check everything in the bundle in folder `path`; returns what was checked, and what was found.

    Args:
        key: the public key (PEM) that must have signed it, engines included; None does not look at signatures.

    Raises:
        InputError: what is wrong first: manifest, signature, files, graph, golden frame or an engine.
    """
    bundle = Bundle.load(path, key)
    manifest, origin = bundle.manifest, bundle.manifest.origin
    size = sum((path / name).stat().st_size for name in manifest.files)
    require_graph(bundle.onnx, manifest, manifest.operators)
    if bundle.cpu_onnx != bundle.onnx:
        require_graph(bundle.cpu_onnx, manifest)
    for graph in dict.fromkeys((bundle.onnx, bundle.cpu_onnx)):
        bundle.require_golden(OnnxRuntimeEngine(graph).run, f"{graph}: ONNX Runtime", graph.name)
    for part in bundle.routes.values():
        verify(part.path, key)
    engines = {target: bundle.engine_record(target).compiler for target in _targets(path) if bundle.plan(target)}
    return {
        "manifest": f"schema {manifest.schema_version}, sha256 {manifest.sha256}",
        "signature": _signature(path, key),
        "files": f"{len(manifest.files)} files, {size / 1e6:.1f} MB: as recorded, and no others",
        "graph": f"opset {manifest.opset}, {len(manifest.inputs)} inputs, {len(manifest.outputs)} outputs, "
        f"{sum(manifest.operators.values())} operators: as in the manifest",
        "golden frames": f"{origin.golden} and others: ONNX Runtime gives the recorded outputs within the tolerances",
        "engines": ", ".join(f"{target} by {compiler}" for target, compiler in engines.items()) or "none",
        "routes": ", ".join((*manifest.routes, *(f"{route} with its own network" for route in manifest.apart))),
        "calibration": _calibration(path),
        "base": origin.base,
        "modules": ", ".join(f"{name} ({domain or 'domain not known'})" for name, domain in origin.modules.items())
        or "none",
        "trained on": "; ".join(origin.data) or "the checkpoint did not say",
        "license": origin.license or "not stated",
    }


def require_graph(file: Path, manifest: Manifest, operators: dict[str, int] | None = None) -> None:
    """Raise InputError unless the ONNX file is the network that the manifest describes.

    Args:
        operators: how many of each it must have; None: that is not told of this file.
    """
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception:  # protobuf's DecodeError, whose package comes without types
        raise InputError(f"{file}: not an ONNX file; export the bundle again") from None
    graph = model.graph
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
        raise InputError(f"{file}: keeps weights in another file, which nothing vouches for; export the bundle again")
    counted = dict(Counter(node.op_type for node in graph.node))
    opsets = {each.domain or "ONNX": each.version for each in model.opset_import}
    for what, found, described in (
        ("opset", opsets, {"ONNX": manifest.opset}),
        ("inputs", _tensors(graph.input), _described(manifest.inputs)),
        ("outputs", _tensors(graph.output), _described(manifest.outputs)),
        ("operators", counted, counted if operators is None else operators),
    ):
        for name in {**described, **found}:
            if found.get(name) != described.get(name):
                raise InputError(
                    f"{file}: {what}: {name} is {found.get(name, 'not there')}, "
                    f"the manifest says {described.get(name, 'that there is none')}; export the bundle again"
                )


def _tensors(values: Iterable[onnx.ValueInfoProto]) -> dict[str, str]:
    """Type and shape of a graph's inputs or outputs by name; of a dimension without a fixed size its name."""
    tensors = {value.name: value.type.tensor_type for value in values}
    dtypes = {name: onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name for name, tensor in tensors.items()}
    return {
        name: f"{dtypes[name]} {tuple(d.dim_param or d.dim_value for d in t.shape.dim)}" for name, t in tensors.items()
    }


def _described(tensors: Iterable[TensorInfo]) -> dict[str, str]:
    shapes = {t.name: (1, "pillars", *t.shape[2:]) if t.name in PILLARS else t.shape for t in tensors}
    return {tensor.name: f"{tensor.dtype} {shapes[tensor.name]}" for tensor in tensors}


def _targets(path: Path) -> list[str]:
    """Of which something is in the folder of the engines."""
    return sorted({file.stem for file in (path / ENGINES).glob("*.*") if file.suffix in (".plan", ".json", ".sig")})


def _calibration(path: Path) -> str:
    file = path / CALIBRATION
    if not file.exists():
        return "none"
    measured = Calibration.model_validate_json(file.read_bytes())
    return f"{len(measured.ranges)} ranges on {len(measured.frames)} keyframes of {measured.data}"


def _signature(path: Path, key: Path | None) -> str:
    if key is not None:
        return f"by {key}"
    return "not checked, no --key was given" if (path / SIGNATURE).exists() else "none"


def table(path: Path, verified: dict[str, str]) -> Table:
    """For a console."""
    shown = Table(title=f"{path} is whole", show_header=False)
    for what, found in verified.items():
        shown.add_row(what, found)
    return shown
