"""Export a checkpoint to a bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from deploy.bundle import CALIBRATION, CPU_ONNX, MODULES, ONNX, Bundle, write_bundle
from deploy.golden import synthetic_frame
from deploy.golden_end_to_end import MEANING, meaning_content, with_sensors
from deploy.manifest import Calibration, Manifest, Origin
from deploy.network import Network, make_network
from deploy.onnx_export import OPSET
from deploy.precision.calibrate import Drives
from deploy.release import Release, default_permits
from deploy.route import parse_conditions, route_name
from deploy.signature import Signer, signer
from deploy.street import STREET, street_frames
from deploy.tolerances import Precision
from perception.config import Config
from perception.errors import InputError
from perception.frame import Frame
from perception.model import PerceptionModel
from perception.modules.files import read_records
from perception.sensors.inputs import InputSpec, prepare
from perception.training.checkpoint import load_model, provenance

# Where an exported network comes from: its checkpoint, base, modules and data.


def find_origin(
    model: PerceptionModel, checkpoint: Path, modules: Sequence[str], golden: str, license: str
) -> tuple[Origin, dict[str, bytes]]:
    """The record for the manifest, and the modules' files by their names in the bundle.

    Args:
        model: the checkpoint's model, with its modules at their slots.
        modules: names of the modules in the exported network. What each was trained on is read from RUN/modules, if it
            has a record for this base.
        golden: token of the golden frame.
        license: stated by the exporter.
    """
    base, records, source = model.bank.base_hash(), read_records(checkpoint), provenance(checkpoint)
    known = {name: record for name, record in records.items() if record.base == base}
    domains = {name: known[name].domain if name in known else "" for name in modules}
    with tempfile.TemporaryDirectory() as folder:
        for name, domain in domains.items():
            model.bank.save(name, Path(folder) / name, domain, known[name].metrics if name in known else None)
        files = {f"{MODULES}/{file.name}": file.read_bytes() for file in sorted(Path(folder).iterdir())}
    return Origin(
        checkpoint=source.weights, base=base, modules=domains, data=source.data, golden=golden, license=license
    ), files


# Export a checkpoint to a bundle.


def export(
    checkpoint: Path,
    out: Path,
    routes: Sequence[Sequence[str]] = ((),),
    console: Console | None = None,
    release: Release = Release(),  # noqa: B008 - it is frozen
    precision: Precision = "fp32",
    calibration: Drives | None = None,
    apart: bool = False,
) -> Bundle:
    """Export a checkpoint to a bundle in the folder `out`, and print a summary.

    Args:
        routes: sets of conditions that the bundle serves, such as (("rain", "night"), ("night",)). With a single
            route its modules are folded into the weights. With several, modules that differ between routes stay in the
            graph, and an input `route` switches them.
        console: receives progress and the table; standard output by default.
        release: number, expiry and licence for the manifest, and the key that signs it.
        precision: see `deploy.precision`.
        calibration: drives to calibrate INT8 on.
        apart: write one network per route instead of one for all, which is faster but takes more memory.

    Raises:
        InputError: there is no such checkpoint, condition or key, ONNX Runtime differs from torch, INT8 has no drives
            to calibrate on, or `out` cannot be written.
    """
    console = console or Console()
    _require_usable(precision, calibration)
    signing = None if release.sign is None else signer(release.sign)
    trained, config = load_model(checkpoint)
    for route in routes:
        parse_conditions(route, config.taxonomy)
    spec = InputSpec.of(config)
    calibration = replace(calibration, rig=spec.rig) if calibration else None
    frames = {"first": synthetic_frame(spec.grid.reference, spec.rig), **street_frames(spec)}
    export = _Export(
        checkpoint=checkpoint,
        trained=trained,
        config=config,
        golden={name: prepare(frame, spec) for name, frame in frames.items()},
        token=frames["first"].token,
        street=frames[STREET],
        release=release,
        signer=signing,
        precision=precision,
        calibration=calibration,
        recorded=calibration.inputs(spec) if calibration else {},
        console=console,
    )
    if not apart:
        return export.write(out, routes, {})
    with tempfile.TemporaryDirectory() as folder:
        others = {
            route_name(route): export.write(Path(folder) / route_name(route), [route], {}).path for route in routes[1:]
        }
        return export.write(out, routes[:1], others)


def _require_usable(precision: Precision, calibration: Drives | None) -> None:
    """Raise InputError for options that contradict each other, before the work begins."""
    if (precision == "int8") != (calibration is not None):
        raise InputError(
            f"{precision}: {'needs' if precision == 'int8' else 'does not use'} --calibrate, the drives that INT8 is "
            "calibrated on"
        )


@dataclass(frozen=True)
class _Export:
    """The export of a checkpoint to one bundle or, if each route has its own network, to several."""

    checkpoint: Path
    trained: PerceptionModel
    config: Config
    golden: Mapping[str, dict[str, np.ndarray]]  # inputs of the golden frames
    token: str  # of the first golden frame
    street: Frame  # the golden frame that is stored with its sensor data
    release: Release
    signer: Signer | None
    precision: Precision
    calibration: Drives | None
    recorded: Mapping[str, Mapping[str, np.ndarray]]  # inputs of the calibration frames
    console: Console

    def write(self, path: Path, routes: Sequence[Sequence[str]], others: Mapping[str, Path]) -> Bundle:
        """Write the bundle of one network for these routes, with the bundles of the other networks inside."""
        names = ", ".join(route_name(route) for route in routes)
        with self.console.status(f"Exporting to ONNX in {self.precision} for {names}"):
            network = make_network(self.trained, routes, self.golden, self.precision, self.recorded.values())
        source, more_files = find_origin(
            self.trained, self.checkpoint, network.modules, self.token, self.release.license
        )
        if self.calibration is not None:
            measured = Calibration(
                data=self.calibration.source.version, frames=tuple(self.recorded), ranges=dict(network.ranges)
            )
            more_files[CALIBRATION] = measured.model_dump_json(indent=2).encode()
        manifest = self._manifest(network, source, tuple(others))
        golden = [
            with_sensors(frame, self.street, manifest) if frame.name == STREET else frame for frame in network.golden
        ]
        more_files[MEANING] = meaning_content(manifest, golden)
        cpu_onnx = network.graphs.get(CPU_ONNX)
        bundle = write_bundle(path, network.graphs[ONNX], golden, manifest, more_files, self.signer, cpu_onnx, others)
        self.console.print(_table(bundle.manifest))
        return bundle

    def _manifest(self, network: Network, source: Origin, apart: tuple[str, ...]) -> Manifest:
        """The manifest without the hashes of the files."""
        config, release = self.config, self.release
        return Manifest(
            name=config.name,
            release=release.number,
            expires=release.expires,
            builds=() if release.signed_plans else default_permits(self.precision, OPSET),
            taxonomy=config.taxonomy,
            rig=config.rig,
            grid=config.grid,
            head_grid=config.grid.model_copy(update={"cell": config.grid.cell * config.model.trunk.stride}),
            lidar=config.model.lidar,
            camera=config.model.camera,
            tasks=config.tasks,
            modules=tuple(module.name for module in config.modules),
            origin=source,
            apart=apart,
            files={},
            **dict(network.facts),
        )


def _table(manifest: Manifest) -> Table:
    """The manifest as a table: size of the network, routes, modules, ONNX operators."""
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
        *(
            (f"tolerance of {task}'s scores", f"{each.score.each:g}, mean {each.score.mean:.2%}")
            for task, each in manifest.tolerances.ranked.items()
        ),
        *((f"in {block.precision}: {block.name}", f"error {block.error:.3f}") for block in manifest.blocks),
    ):
        table.add_row(what, value)
    return table
