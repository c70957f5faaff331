"""A checkpoint becomes a bundle: modules folded into the weights, one ONNX graph, proved against torch.

The graph keeps to the ONNX standard domain and static shapes, so that ONNX Runtime and TensorRT take it as it is.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deploy.bundle import CPU_ONNX, ONNX, Bundle, write_bundle
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import require_agreement, synthetic_frame
from deploy.manifest import Manifest, Precision, TensorInfo
from deploy.norms import fold_norms
from deploy.origin import origin
from deploy.precision.frames import Drives
from deploy.precision.lower import OUTLIERS, lower, tolerance
from deploy.route import Banked, steering
from deploy.signature import signer
from perception.config import Config, Grid
from perception.data.inputs import InputSpec, prepare
from perception.errors import InputError
from perception.frame import ATTRIBUTES, CAMERAS, CLASSES, CONDITION_VALUES, CONDITIONS, MAP_CLASSES, Conditions, Frame
from perception.model import PerceptionModel
from perception.modules.routing.steered import SteeredRouter
from perception.modules.spec import TASKS
from perception.training.checkpoint import load_model

OPSET = 18  # TensorRT 10 reads 9-20, TensorRT 11 9-25
TOLERANCE = 1e-4  # FP32, between engines

UNITS = {
    "pillar_points": "x y z m, intensity 0-255, dt s; reference frame, grouped by pillar, zeros as padding",
    "pillar_counts": "points in the pillar; 0: padding",
    "pillar_cells": "row * columns + column on the pillar grid; rows * columns: padding",
    "route": "weight of each module, in the order of `banked`; 1: it runs",
    "conditions": "1 for each that is known to hold, in the order clear rain fog day night boston singapore",
    "images": "RGB 0-255, in the order of `cameras`; zeros where missing",
    "image_from_reference": "pixels of the network's picture per m; zeros where missing",
    "boxes": "x y z w l h m, sin and cos of yaw times any factor, vx vy m/s; reference frame",
    "scores": "probability, descending",
    "labels": "index in `classes`",
    "attributes": "index in `attributes`",
    "map": "probability, in the order of `map_classes`, on `map_grid`",
}


def export(
    checkpoint: Path,
    out: Path,
    routes: Sequence[Sequence[str]] = ((),),
    golden: Frame | None = None,
    console: Console | None = None,
    sign: Path | None = None,
    license: str = "",
    precision: Precision = "fp32",
    calibration: Drives | None = None,
) -> Bundle:
    """Write the bundle of a checkpoint to the folder `out`, and print what it is.

    Args:
        routes: what can be known of the drives to come, such as (("rain", "boston"), ("boston",)). The modules for
            one route are folded into the weights. With several, those that differ between them stay in the graph,
            and a `route` input switches them.
        golden: the frame that proves engines later; None takes a synthetic one. It becomes part of the bundle,
            and with it the licence of its recording.
        console: where progress and the table go; standard output by default.
        sign: private key (PEM, `deploy.signature`) that signs the bundle.
        license: of the network, its modules and the golden frame: an SPDX identifier or a text.
        precision: of the graph, see `deploy.precision`.
        calibration: drives to measure the ranges of activations on, for INT8.

    Raises:
        InputError: no such checkpoint, condition or key, ONNX Runtime differs from torch, INT8 without drives to
            calibrate on, or `out` cannot be written.
    """
    console, signed = console or Console(), None if sign is None else signer(sign)
    if (precision == "int8") != (calibration is not None):
        raise InputError(
            f"{precision}: {'needs' if precision == 'int8' else 'has no use for'} --calibrate, the drives "
            "that INT8 measures the range of activations on"
        )
    known = [parse_conditions(route) for route in routes]
    trained, config = load_model(checkpoint)
    spec = InputSpec.of(config)
    recorded = calibration.inputs(spec) if calibration else []
    golden = golden or synthetic_frame(spec.grid.reference)
    frame = prepare(golden, spec)
    expected = [_run(trained, frame, each)[0] for each in known]  # it also shows prompts the size of their input
    model = trained.folded(*known).eval()
    banked, conditional = _banked(trained, model)
    steered = [frame | steering(each, frame, banked, conditional) for each in known]
    inputs = steered[0]
    if banked:  # weights of which no two are the same, so that the golden frame sees every module
        inputs = inputs | {"route": np.linspace(0.5, 1, len(banked), dtype=np.float32)[None]}
    outputs, flops = _run(model, inputs)
    with console.status("Exporting to ONNX"):
        graph = to_onnx(model, inputs, list(outputs))
    engine = OnnxRuntimeEngine(_bytes(graph))
    require_agreement(outputs, engine.run(inputs), TOLERANCE, "ONNX Runtime")
    for on_route, alone, route in zip(steered, expected, routes, strict=True):
        require_agreement(alone, _run(model, on_route)[0], TOLERANCE, f"the folded network on route {_named(route)}")
        require_agreement(alone, engine.run(on_route), TOLERANCE, f"ONNX Runtime on route {_named(route)}")
    with console.status(f"Lowering to {precision}"):
        frames = [each | steering(route, each, banked, conditional) for each in recorded for route in known]
        lowered = lower(graph, precision, frames)
        contents = {name: _bytes(each) for name, each in lowered.graphs.items()}
        found = [OnnxRuntimeEngine(content).run(inputs) for content in contents.values()]
        allowed = TOLERANCE if precision == "fp32" else tolerance(outputs, found, precision)
    graph = lowered.graphs[ONNX]
    inline = tuple(name for name in model.bank.modules if name not in {each.name for each in banked})
    on_board = (*model.bank.folded, *inline, *(each.name for each in banked))
    source, modules = origin(trained, checkpoint, on_board, golden.token, license)
    describe = functools.partial(
        Manifest,
        name=config.name,
        opset=OPSET,
        precision=precision,
        blocks=lowered.blocks,
        tolerance=allowed,
        outliers=OUTLIERS[precision],
        classes=CLASSES,
        attributes=ATTRIBUTES,
        map_classes=MAP_CLASSES if config.model.map else (),
        cameras=CAMERAS,
        grid=config.grid,
        map_grid=_map_grid(config),
        lidar=config.model.lidar,
        camera=config.model.camera,
        inputs=_describe(inputs),
        outputs=_describe(outputs),
        modules=tuple(module.name for module in config.modules),
        routes=tuple(_named(route) for route in routes),
        folded=model.bank.folded,
        inline=inline,
        banked=banked,
        origin=source,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=flops,
        operators=dict(sorted(Counter(node.op_type for node in graph.graph.node).items())),
    )
    bundle = write_bundle(out, contents[ONNX], (inputs, outputs), describe, modules, signed, contents.get(CPU_ONNX))
    console.print(_table(bundle.manifest))
    return bundle


def parse_conditions(values: Sequence[str]) -> Conditions:
    """Conditions of values such as ("rain", "boston"); InputError on an unknown or a contradictory one."""
    chosen: dict[str, str] = {}
    for value in values:
        kind = next((kind for kind, known in CONDITIONS.items() if value in known), None)
        if kind is None:
            raise InputError(f"{value}: unknown condition; choose from {', '.join(CONDITION_VALUES)}")
        if chosen.setdefault(kind, value) != value:
            raise InputError(f"{value}: contradicts {chosen[kind]}; give one {kind}")
    return Conditions(**chosen)


def _banked(trained: PerceptionModel, model: PerceptionModel) -> tuple[tuple[Banked, ...], bool]:
    """The modules that the graph's `route` input steers, with what they ask for, and whether it takes conditions."""
    if not isinstance(model.router, SteeredRouter):
        return (), False
    asks = {name: sorted({*trained.bank.modules[name].when} - set(TASKS)) for name in model.router.steered}
    return tuple(Banked(name=name, asks=tuple(facts)) for name, facts in asks.items()), model.router.conditional


def _bytes(graph: onnx.ModelProto) -> bytes:
    content: bytes = graph.SerializeToString(deterministic=True)
    return content


def _named(route: Sequence[str]) -> str:
    return "+".join(route) or "base"


class _Graph(nn.Module):
    """`PerceptionModel.predict` with tensors in a row instead of a dict, which is what an ONNX graph has."""

    def __init__(self, model: PerceptionModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, list(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = dict(zip(self.names, tensors, strict=True))
        if "images" in inputs:
            # TensorRT takes uint8 into a Cast and into nothing else, so that must be the first node.
            inputs["images"] = inputs["images"].float()
        _steer(self.model, inputs)
        return tuple(self.model.predict(inputs).values())


def _steer(model: PerceptionModel, inputs: dict[str, Tensor]) -> None:
    """Take the inputs that steer modules out of `inputs`, and obey."""
    weights, z = inputs.pop("route", None), inputs.pop("conditions", None)
    if isinstance(model.router, SteeredRouter):
        model.router.steer(torch.ones(1, 0) if weights is None else weights, z)


def to_onnx(model: PerceptionModel, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> onnx.ModelProto:
    """The graph of `model.predict` for inputs of these shapes; the same checkpoint gives the same bytes.

    Raises:
        InputError: the graph would need an operator outside the ONNX standard domain.
    """
    tensors = tuple(torch.from_numpy(array) for array in inputs.values())
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints progress marks
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Graph(model, list(inputs)).eval(),
            tensors,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            optimize=True,
            verbose=False,
        )
    assert program is not None  # only None when it writes a file itself
    graph: onnx.ModelProto = program.model_proto
    foreign = sorted(
        {f"{n.domain}::{n.op_type}" for n in graph.graph.node if n.domain} | {f.name for f in graph.functions}
    )
    if foreign:
        raise InputError(f"the graph needs operators outside the ONNX standard: {', '.join(foreign)}")
    # The exporter notes the Python source of every node: paths of this machine, and a third of the file.
    for item in (graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        del item.metadata_props[:]
    del graph.metadata_props[:]
    fold_norms(graph.graph)
    graph.producer_name, graph.producer_version = "tessera", ""
    return graph


def _run(
    model: PerceptionModel, inputs: dict[str, np.ndarray], conditions: Conditions | None = None
) -> tuple[dict[str, np.ndarray], int]:
    """Torch's outputs for the golden inputs, and the floating-point operations that they took."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        _steer(model, tensors)
        outputs = model.predict(tensors, () if conditions is None else [conditions])
    return {name: value.numpy() for name, value in outputs.items()}, counter.get_total_flops()


def _map_grid(config: Config) -> Grid | None:
    return (
        config.grid.model_copy(update={"cell": config.grid.cell * config.model.trunk.stride})
        if config.model.map
        else None
    )


def _describe(arrays: dict[str, np.ndarray]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(name=name, shape=array.shape, dtype=array.dtype.name, unit=UNITS[name])
        for name, array in arrays.items()
    )


def _table(manifest: Manifest) -> Table:
    """Size of the network, and how many of each ONNX operator it has."""
    table = Table(title=f"{manifest.name}: ONNX opset {manifest.opset}, {manifest.precision}", show_header=False)
    most_first = sorted(manifest.operators.items(), key=lambda item: (-item[1], item[0]))
    for what, value in (
        ("parameters", f"{manifest.parameters:,}"),
        ("GFLOP per frame", f"{manifest.flops / 1e9:.2f}"),
        ("routes", ", ".join(manifest.routes)),
        ("modules folded", ", ".join(manifest.folded) or "none"),
        ("modules inline", ", ".join(manifest.inline) or "none"),
        ("modules banked", ", ".join(module.name for module in manifest.banked) or "none"),
        ("trained on", "; ".join(manifest.origin.data) or "the checkpoint does not say"),
        ("license", manifest.origin.license or "not stated"),
        (f"{sum(manifest.operators.values())} operators", ", ".join(f"{name} {n}" for name, n in most_first)),
        ("ONNX Runtime", f"equals torch within {manifest.tolerance:g}"),
        *((f"in {block.precision}: {block.name}", f"error {block.error:.3f}") for block in manifest.blocks),
    ):
        table.add_row(what, value)
    return table
