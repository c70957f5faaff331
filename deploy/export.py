"""Export a checkpoint to a bundle."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from deploy.bundle import CALIBRATION, CPU_ONNX, MODULES, ONNX, STATISTICS, Bundle, write_bundle
from deploy.check import measure, open_to_measure
from deploy.engine import Engine, in_sequence
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import GoldenFrame, require_agreement, require_golden, synthetic_frame
from deploy.golden_file import drive_of, with_sensors
from deploy.manifest import (
    Calibration,
    Manifest,
    NetworkFacts,
    Origin,
    State,
    StatePair,
    TensorInfo,
    contract_of,
)
from deploy.onnx_export import OPSET, TorchEngine, find_frame_with_state, run, serialise, to_onnx
from deploy.precision.calibrate import Clip, Drives, with_state
from deploy.precision.convert import convert
from deploy.precision.measure import make_golden_frames, structure_sha256
from deploy.precision.quantise import Ranges
from deploy.recordings.drives import is_recording
from deploy.recordings.ros_types import AVAILABILITY, LABELS
from deploy.route import BankedModule, parse_conditions, route_name, steering_inputs
from deploy.signature import signer
from deploy.street import STREET, street_frames
from deploy.tolerances import Precision, Tolerances
from deploy.trust import Release
from perception.checkpoint import load_model, provenance
from perception.errors import InputError
from perception.frame import Arrays, Conditions
from perception.model import PerceptionModel
from perception.modules.files import read_records
from perception.modules.memories import limits_of, memories_of
from perception.modules.routing.fixed import SteeredRouter
from perception.sensors.inputs import InputSpec, prepare
from perception.session import follow
from perception.state import MOTION_INPUTS, Moment, states_of
from perception.tasks import TASKS
from perception.tasks.published import ScoreThresholds
from perception.tasks.task import Task

UNITS = {  # of inputs that no sensor gives
    "route": "weight of each module, in the order of `banked`; 1: it runs",
    "next_state": "fused features with the memory, the largest in each cell of the next frame's `state`",
    "current_from_previous": "moves points at rest from the reference frame of the frame before to this one's, m",
    "state_valid": "1; 0 to forget the state",
    "elapsed": "s since the frame before; 0 where state_valid is 0",
}


@dataclass(frozen=True)
class Network:
    """One network of a bundle."""

    graphs: dict[str, bytes]  # ONNX files by name
    golden: tuple[GoldenFrame, ...]
    modules: tuple[str, ...]  # in the network: folded, inline or banked
    ranges: Ranges  # INT8: measured ranges of the activations
    facts: NetworkFacts


def make_network(
    trained: PerceptionModel,
    routes: Sequence[Sequence[str]],
    golden: Mapping[str, dict[str, np.ndarray]],
    precision: Precision,
    recorded: Collection[Clip],
) -> Network:
    """Fold the modules that all routes use, switch the others by an input `route`, export, convert and compare.

    Args:
        golden: inputs of the golden frames by name, in order and without states (`GoldenFrame`); all routes are
            compared on one of them.
        recorded: inputs of frames to calibrate INT8 on.
    """
    folded = _FoldedModel(trained, routes, golden)
    model, example = folded.model, folded.example
    outputs, flops = run(model, example)
    graph, frames = to_onnx(model, example, list(outputs)), folded.run_golden()
    proofs, tolerances = make_golden_frames({ONNX: graph}, "fp32", frames, trained.tasks)
    engine = OnnxRuntimeEngine(serialise(graph))
    require_golden(proofs, in_sequence(engine), "ONNX Runtime", tolerances)
    folded.require_routes({"the folded network": TorchEngine(model), "ONNX Runtime": engine}, tolerances)
    converted = convert(graph, precision, folded.calibration_inputs(recorded, engine), trained.tasks)
    if precision != "fp32":
        proofs, tolerances = make_golden_frames(converted.graphs, precision, frames, trained.tasks)
    units = _units(trained.config.spec, trained.tasks, outputs)
    units |= {"conditions": f"1 if it is known to hold: {' '.join(folded.values)}"}
    facts = NetworkFacts(
        opset=OPSET,
        precision=precision,
        blocks=converted.blocks,
        tolerances=tolerances,
        inputs=_describe(example, units),
        outputs=_describe(outputs, units),
        routes=folded.names,
        folded=model.bank.folded,
        inline=tuple(name for name in model.bank.modules if name not in {each.name for each in folded.banked}),
        banked=folded.banked,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=flops,
        operators=dict(sorted(Counter(node.op_type for node in converted.graphs[ONNX].graph.node).items())),
        structure_sha256=structure_sha256(converted.graphs[ONNX]),
        state=_describe_state(trained, outputs),
    )
    graphs = {name: serialise(each) for name, each in converted.graphs.items()}
    modules = (*facts.folded, *facts.inline, *(each.name for each in facts.banked))
    return Network(graphs, proofs, modules, converted.ranges, facts)


class _FoldedModel:
    """A trained model folded for some routes, and what it must compute on each of them."""

    def __init__(self, trained: PerceptionModel, routes: Sequence[Sequence[str]], golden: Mapping[str, Arrays]) -> None:
        taxonomy, self.names = trained.config.taxonomy, tuple(route_name(route) for route in routes)
        self._routes = [parse_conditions(route, taxonomy) for route in routes]
        first = find_frame_with_state(trained, golden, self._routes[0])
        expected = [run(trained, first, each)[0] for each in self._routes]  # tells prompts the size of their input, too
        self.model, inputs = trained.deployed(*self._routes), [first, *golden.values()]
        if not self.model.no_states(1):  # no route has a memory
            inputs = [_without(frame, (*trained.no_states(1), *MOTION_INPUTS)) for frame in inputs]
            expected = [_without(each, states_of(each).values()) for each in expected]
        self.banked, conditional = _list_banked_modules(trained, self.model)
        self.values = taxonomy.condition_values if conditional else ()  # of the input `conditions`
        steering = steering_inputs(self._routes[0], first, self.banked, self.values)
        if self.banked:  # different weights, so that the golden frames depend on every module
            steering["route"] = np.linspace(0.5, 1, len(self.banked), dtype=np.float32)[None]
        self.example, *others = ({**frame, **steering} for frame in inputs)  # of the frame on which routes are compared
        self._golden, self._expected = dict(zip(golden, others, strict=True)), expected

    def run_golden(self) -> dict[str, tuple[Arrays, Arrays]]:
        run_torch = in_sequence(TorchEngine(self.model))
        return {name: (frame, run_torch(frame)) for name, frame in self._golden.items()}

    def require_routes(self, engines: Mapping[str, Engine], allowed: Tolerances) -> None:
        """Raise WrongEngine unless these engines compute on each route what the trained model does."""
        for name, route, expected in zip(self.names, self._routes, self._expected, strict=True):
            inputs = self._steer(self.example, route)
            for what, engine in engines.items():
                require_agreement(expected, engine.run(inputs), f"{what} on route {name}", allowed)

    def calibration_inputs(self, clips: Collection[Clip], engine: Engine) -> list[Mapping[str, np.ndarray]]:
        """The inputs of each clip's last frame on each route, with the state that an engine has there."""
        return [with_state([self._steer(each, r) for each in clip], engine) for clip in clips for r in self._routes]

    def _steer(self, inputs: Mapping[str, np.ndarray], route: Conditions) -> Arrays:
        return {**inputs, **steering_inputs(route, inputs, self.banked, self.values)}


def _without(arrays: Mapping[str, np.ndarray], names: Collection[str]) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if name not in names}


def _describe_state(trained: PerceptionModel, outputs: Mapping[str, np.ndarray]) -> State | None:
    limits, states = limits_of(trained.config.modules), states_of(outputs)
    if limits is None or not states:
        return None
    pairs = [
        StatePair(
            input=name,
            output=output,
            shape=outputs[output].shape,
            dtype=outputs[output].dtype.name,
            warp=trained.memory.states.get(name, "none"),
        )
        for name, output in states.items()
    ]
    spacings = [memory.spacing for memory in memories_of(*trained.config.modules)]
    spacing = max(least for least, _ in spacings), max(most for _, most in spacings)
    return State(pairs=tuple(pairs), spacing=spacing, seconds=limits.seconds, speed=limits.speed)


def _list_banked_modules(trained: PerceptionModel, model: PerceptionModel) -> tuple[tuple[BankedModule, ...], bool]:
    """The modules that the input `route` switches, with the facts they require, and whether conditions are an input."""
    if not isinstance(model.router, SteeredRouter):
        return (), False
    required = {name: sorted({*trained.bank.modules[name].when} - set(TASKS)) for name in model.router.steered}
    return tuple(
        BankedModule(name=name, asks=tuple(facts)) for name, facts in required.items()
    ), model.router.conditional


def _units(spec: InputSpec, tasks: Mapping[str, Task[Any]], outputs: Iterable[str]) -> dict[str, str]:
    """Unit and meaning of inputs and outputs, by name."""
    units = {name: array.unit for sensor in spec.sensors.values() for name, array in sensor.inputs.items()}
    units |= {f"{name}/{output.name}": output.unit for name, task in tasks.items() for output in task.outputs}
    for name, output in states_of(outputs).items():
        units[name] = f"{output} of the frame before; any finite numbers where state_valid is 0"
        units[output] = f"`{name}` of the next frame"
    return units | UNITS


def _describe(arrays: Mapping[str, np.ndarray], units: Mapping[str, str]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(name=name, shape=array.shape, dtype=array.dtype.name, unit=units[name])
        for name, array in arrays.items()
    )


def find_origin(
    model: PerceptionModel, checkpoint: Path, modules: Sequence[str], golden: str, license: str
) -> tuple[Origin, dict[str, bytes]]:
    """The record for the manifest, and the modules' files by their names in the bundle.

    What each of the exported modules was trained on is read from RUN/modules, if it has a record for this base.
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
        release: number, expiry and licence for the manifest, and the key that signs it.
        calibration: drives of the training, whose statistics the bundle carries; INT8 is calibrated on them.
        apart: write one network per route instead of one for all, which is faster but takes more memory.
    """
    exporter = _Exporter(checkpoint, routes, console or Console(), release, precision, calibration)
    if not apart:
        return exporter.write(out, routes, {})
    with tempfile.TemporaryDirectory() as folder:
        others = {}
        for route in routes[1:]:
            others[route_name(route)] = exporter.write(Path(folder) / route_name(route), [route], {}).path
        return exporter.write(out, routes[:1], others)


class _Exporter:
    def __init__(
        self,
        checkpoint: Path,
        routes: Sequence[Sequence[str]],
        console: Console,
        release: Release,
        precision: Precision,
        calibration: Drives | None,
    ) -> None:
        if precision == "int8" and (calibration is None or is_recording(calibration.root)):
            raise InputError("int8: needs --calibrate with a dataroot, on whose keyframes INT8 is calibrated")
        self.checkpoint, self.console, self.release, self.precision = checkpoint, console, release, precision
        self.signer = None if release.sign is None else signer(release.sign)
        self.trained, self.config = load_model(checkpoint)
        for route in routes:
            parse_conditions(route, self.config.taxonomy)
        spec = self.config.spec
        self.calibration = replace(calibration, rig=spec.rig) if calibration else None
        self.statistics = None
        if calibration is not None:
            chosen = calibration.root, calibration.version, calibration.scenes
            opened = open_to_measure(*chosen, spec, calibration.topics, self.config.taxonomy)
            self.statistics = measure(opened, spec)
        self.frames = {"first": synthetic_frame(spec.grid.reference, spec.rig), **street_frames(spec)}  # golden ones
        self.moments = {name: Moment.of(replace(frame, scene=drive_of(name))) for name, frame in self.frames.items()}
        clip = [(self.moments[name], prepare(frame, spec)) for name, frame in self.frames.items()]
        self.golden = {name: inputs for name, (inputs, _) in zip(self.frames, follow(clip, spec.memory), strict=True)}
        # INT8: inputs of the calibration frames.
        self.recorded = self.calibration.inputs(spec) if self.calibration and precision == "int8" else {}

    def write(self, path: Path, routes: Sequence[Sequence[str]], others: Mapping[str, Path]) -> Bundle:
        """Write the bundle of one network for these routes, with the bundles of the other networks inside."""
        names = ", ".join(route_name(route) for route in routes)
        with self.console.status(f"Exporting to ONNX in {self.precision} for {names}"):
            network = make_network(self.trained, routes, self.golden, self.precision, self.recorded.values())
        source, more_files = find_origin(
            self.trained, self.checkpoint, network.modules, self.frames["first"].token, self.release.license
        )
        if self.statistics is not None:
            more_files[STATISTICS] = self.statistics.model_dump_json(indent=2).encode()
        if self.calibration is not None and self.recorded:
            measured = Calibration(
                data=self.calibration.source.version, frames=tuple(self.recorded), ranges=dict(network.ranges)
            )
            more_files[CALIBRATION] = measured.model_dump_json(indent=2).encode()
        manifest = self._manifest(network, source, tuple(others))
        golden = [
            with_sensors(frame, self.frames[STREET], manifest.heads) if frame.name == STREET else frame
            for frame in network.golden
        ]
        if manifest.state is not None:
            golden = [replace(frame, moment=self.moments[frame.name]) for frame in golden]
        more_files[ROS2_PARAMETERS] = parameters_content(manifest)
        cpu_onnx = network.graphs.get(CPU_ONNX)
        bundle = write_bundle(path, network.graphs[ONNX], golden, manifest, more_files, self.signer, cpu_onnx, others)
        self.console.print(_table(bundle.manifest))
        return bundle

    def _manifest(self, network: Network, source: Origin, apart: tuple[str, ...]) -> Manifest:
        config, release = self.config, self.release
        return Manifest(
            name=config.name,
            release=release.number,
            expires=release.expires,
            taxonomy=config.taxonomy,
            rig=config.rig,
            grid=config.grid,
            head_grid=config.grid.model_copy(update={"cell": config.grid.cell * config.model.trunk.stride}),
            sensors=config.model.sensors,
            tasks=config.tasks,
            modules=tuple(module.name for module in config.modules),
            origin=source,
            apart=apart,
            **dict(network.facts),
            **contract_of(
                config.spec,
                self.trained.tasks,
                [each.name for each in network.facts.inputs],
                config.taxonomy,
            ),
        )


def _table(manifest: Manifest) -> Table:
    table = Table(title=f"{manifest.name}: ONNX opset {manifest.opset}, {manifest.precision}", show_header=False)
    most_first = sorted(manifest.operators.items(), key=lambda item: (-item[1], item[0]))
    for what, value in (
        ("parameters", f"{manifest.parameters:,}"),
        ("GFLOP per frame", f"{manifest.flops / 1e9:.2f}"),
        *([("memory", f"of {manifest.state.seconds:g} s at most")] if manifest.state is not None else []),
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


ROS2_PARAMETERS = "ml_package.param.yaml"


def parameters_content(manifest: Manifest) -> bytes:
    """The parameters of the node in deploy/ros2 that depend on the classes of a bundle; lists are by label."""
    classes, thresholds = manifest.taxonomy.classes, [task.thresholds for task in manifest.heads.values()]
    scores = next(filter(None, thresholds), ScoreThresholds())
    parameters = {
        "class_labels": [LABELS[each.ros_class or "unknown"] for each in classes],
        "class_orientations": [AVAILABILITY[each.heading] for each in classes],
        "score_upper_bounds": [*scores.upper_bounds] or [1000.0],  # ROS has no empty lists of parameters
        "score_thresholds": scores.table(manifest.taxonomy).ravel().tolist(),
    }
    content = {"/**": {"ros__parameters": {"model_params": parameters}}}
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None).encode()
