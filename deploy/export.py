"""A checkpoint becomes a bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deploy.bundle import CALIBRATION, CPU_ONNX, ONNX, Bundle, write_bundle
from deploy.golden import synthetic_frame
from deploy.manifest import Calibration, Manifest
from deploy.network import make_network
from deploy.origin import origin
from deploy.permit import permits
from deploy.precision.frames import Drives
from deploy.release import Release
from deploy.route import named, parse_conditions
from deploy.signature import signer
from deploy.street import street_frames
from deploy.tolerances import Precision
from perception.config import Config, Grid
from perception.errors import InputError
from perception.frame import ATTRIBUTES, CAMERAS, CLASSES, CONDITION_VALUES, MAP_CLASSES, Frame
from perception.sensors.inputs import InputSpec, prepare
from perception.training.checkpoint import load_model


def export(
    checkpoint: Path,
    out: Path,
    routes: Sequence[Sequence[str]] = ((),),
    golden: Frame | None = None,
    console: Console | None = None,
    release: Release = Release(),  # noqa: B008 - it cannot be changed
    precision: Precision = "fp32",
    calibration: Drives | None = None,
    apart: bool = False,
) -> Bundle:
    """Write the bundle of a checkpoint to the folder `out`, and print what it is.

    Args:
        routes: what can be known of the drives to come, such as (("rain", "boston"), ("boston",)). The modules for
            one route are folded into the weights. With several, those that differ between them stay in the graph,
            and a `route` input switches them.
        golden: the first of the frames that prove engines later; None takes a synthetic one. It becomes part of the
            bundle, and with it the licence of its recording.
        console: where progress and the table go; standard output by default.
        release: what the manifest states of this bundle among others, and who signs it.
        precision: of the graph, see `deploy.precision`.
        calibration: drives to measure the ranges of activations on, for INT8.
        apart: a network for each route instead of one for all: its modules cost no time, but memory.

    Raises:
        InputError: no such checkpoint, condition or key, ONNX Runtime differs from torch, INT8 without drives to
            calibrate on, or `out` cannot be written.
    """
    console, signed = console or Console(), None if release.sign is None else signer(release.sign)
    if (precision == "int8") != (calibration is not None):
        raise InputError(
            f"{precision}: {'needs' if precision == 'int8' else 'has no use for'} --calibrate, the drives "
            "that INT8 measures the range of activations on"
        )
    for route in routes:
        parse_conditions(route)  # before the work begins
    trained, config = load_model(checkpoint)
    spec = InputSpec.of(config)
    recorded = calibration.inputs(spec) if calibration else {}
    first = golden or synthetic_frame(spec.grid.reference)
    proofs = {name: prepare(frame, spec) for name, frame in {"first": first, **street_frames(spec)}.items()}

    def write(path: Path, served: Sequence[Sequence[str]], others: Mapping[str, Path]) -> Bundle:
        names = ", ".join(named(route) for route in served)
        with console.status(f"Exporting to ONNX in {precision} for {names}"):
            network = make_network(trained, served, proofs, precision, recorded.values())
        source, more = origin(trained, checkpoint, network.modules, first.token, release.license)

        def describe(files: dict[str, str]) -> Manifest:
            return Manifest(
                name=config.name,
                release=release.number,
                expires=release.expires,
                builds=() if release.signed_plans else permits(precision, network.described["opset"]),
                classes=CLASSES,
                attributes=ATTRIBUTES,
                map_classes=MAP_CLASSES if config.model.map else (),
                cameras=CAMERAS,
                conditions=CONDITION_VALUES,
                grid=config.grid,
                map_grid=_map_grid(config),
                lidar=config.model.lidar,
                camera=config.model.camera,
                suppression=config.model.suppression,
                modules=tuple(module.name for module in config.modules),
                origin=source,
                apart=tuple(others),
                files=files,
                **network.described,
            )

        if calibration is not None:
            measured = Calibration(data=calibration.source.version, frames=tuple(recorded), ranges=dict(network.ranges))
            more[CALIBRATION] = measured.model_dump_json(indent=2).encode()
        cpu_onnx = network.graphs.get(CPU_ONNX)
        bundle = write_bundle(path, network.graphs[ONNX], network.golden, describe, more, signed, cpu_onnx, others)
        console.print(_table(bundle.manifest))
        return bundle

    if not apart:
        return write(out, routes, {})
    with tempfile.TemporaryDirectory() as folder:
        others = {named(route): write(Path(folder) / named(route), [route], {}).path for route in routes[1:]}
        return write(out, routes[:1], others)


def _map_grid(config: Config) -> Grid | None:
    return (
        config.grid.model_copy(update={"cell": config.grid.cell * config.model.trunk.stride})
        if config.model.map
        else None
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
        (
            "engines give scores",
            f"within {manifest.tolerances.score.each:g}, in the mean {manifest.tolerances.score.mean:.2%}",
        ),
        *((f"in {block.precision}: {block.name}", f"error {block.error:.3f}") for block in manifest.blocks),
    ):
        table.add_row(what, value)
    return table
