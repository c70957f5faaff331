"""manifest.json: the description of a bundle. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field, ValidationError

from deploy import engine, golden
from deploy.integrity import Content
from deploy.route import BankedModule
from deploy.tolerances import Precision, Tolerances
from perception.errors import InputError
from perception.grid import Reference
from perception.io.section import Section, explain
from perception.parts import Grid
from perception.rig import Rig
from perception.scene import admission
from perception.sensors import SENSORS, SensorConfigs
from perception.sensors.camera.sensor import PictureRules
from perception.sensors.inputs import InputSpec, presence_inputs
from perception.sensors.lidar.sensor import PillarRules, SweepRules
from perception.state import MOTION_INPUTS, RIGID, Limits, states_of
from perception.tasks import TaskConfigs, counted_truth, point_places, tasks_of
from perception.tasks.outputs import Output
from perception.tasks.task import Task
from perception.taxonomy import Taxonomy


class AdmissionRules(Section):
    """Limits for the poses and calibrations of a frame; a sensor beyond them counts as missing."""

    rigid: float  # largest entry of R R^T - 1 of a rotation R
    upright: float  # least z of the vehicle's z axis
    far: float  # m or pixels, which no number of a matrix reaches
    narrowest: float  # focal length in sides of the picture
    largest: int  # pixels, side of a picture
    state_rigid: float  # as `rigid`, of the motion between two frames


class Preprocessing(Section):
    """From a frame to the engine's inputs."""

    reference: Reference  # frame of reference of points, boxes and grids
    sweeps: SweepRules | None = None
    pillars: PillarRules | None = None
    points: int  # places for single points of the keyframe; 0: no task reads them
    pictures: PictureRules | None = None
    # Input of a sensor of another kind, which a host makes -> each of its numbers where that is missing.
    scanners: dict[str, int] = Field(default={})
    admission: AdmissionRules

    @staticmethod
    def of(spec: InputSpec) -> Preprocessing:
        limits = AdmissionRules(
            rigid=admission.RIGID,
            upright=admission.UPRIGHT,
            far=admission.FAR,
            narrowest=admission.NARROWEST,
            largest=admission.LARGEST,
            state_rigid=RIGID,
        )
        sections, scanners = dict[str, Any](), dict[str, int]()
        for sensor in spec.sensors.values():
            sections |= (rules := sensor.rules())
            scanners |= {} if rules else {name: array.absent for name, array in sensor.inputs.items()}
        return Preprocessing(
            reference=spec.grid.reference, points=spec.points, scanners=scanners, admission=limits, **sections
        )


class Steering(Section):
    """From what is known to the inputs `route` and `conditions`."""

    # Fact -> input: it holds where a number of the input is not zero; otherwise no-FACT does.
    sensors: dict[str, str]
    values: tuple[str, ...]  # of the input `conditions`, in its order; empty for a network without it


class GoldenRules(Section):
    """How engines are compared on golden frames, beside the tolerances."""

    around: float = golden.AROUND  # m, where another detection may take the place of one
    state_step: int = engine.STEP  # rows and columns from one compared cell of a state to the next
    grey_levels: int = golden.GREY_LEVELS  # by which a pixel of a picture may differ
    rounded: float = golden.ROUNDED  # share of a picture's pixels that may differ more
    close: float = golden.CLOSE  # relative and absolute difference of other numbers


def contract_of(
    spec: InputSpec, tasks: Mapping[str, Task[Any]], inputs: Sequence[str], taxonomy: Taxonomy
) -> dict[str, Any]:
    """The sections of a network's manifest, by name."""
    sensors = {fact: name for fact, name in presence_inputs().items() if name in inputs}
    values = taxonomy.condition_values if "conditions" in inputs else ()
    return {
        "preprocessing": Preprocessing.of(spec),
        "steering": Steering(sensors=sensors, values=values),
        "results": {name: tuple(task.outputs) for name, task in tasks.items()},
        "golden": GoldenRules(),
    }


# A reader of schema N reads N - 1, too: what schema N adds has a default, and what it no longer needs stays allowed.
OLDEST, SCHEMA = 13, 14
MANIFEST = "manifest.json"


class TensorInfo(Section):
    """One input or output of the network."""

    name: str
    shape: tuple[int, ...]  # with the largest number of pillars; the graph takes fewer, too
    dtype: str  # numpy's name
    unit: str  # unit and meaning of the numbers


class Block(Section):
    """A block of an INT8 network, and its precision."""

    name: str
    layers: int  # number of convolutions
    error: float  # of the outputs with only this block in INT8, see deploy.precision.convert
    precision: Precision


class Calibration(Section):
    """calibration.json: the calibration frames of an INT8 network, and the measured ranges of its activations."""

    data: str  # version of the tables
    frames: tuple[str, ...]  # tokens of the keyframes
    ranges: dict[str, tuple[float, float]]  # tensor -> low and high, by deploy.precision.calibrate


class Origin(Section):
    """Where the network comes from, and under which terms it may be used."""

    checkpoint: str  # sha256 of the checkpoint's model.safetensors
    base: str  # fingerprint of the base that the modules are for, as `perception modules` prints it
    modules: dict[str, str]  # module in the network, with files modules/NAME.* -> what it was trained on, if known
    data: tuple[str, ...]  # what the checkpoint was trained on, an entry per training; empty: not known
    golden: str  # token of the first golden frame; synthetic-0 is from deploy.golden, all others were recorded
    license: str  # of network, modules and golden frame, stated by the exporter; empty: not stated


class StatePair(Section):
    """An output that is an input on the next frame of a drive."""

    input: str
    output: str
    shape: tuple[int, ...]
    dtype: str  # numpy's name
    # bev: its rows and columns are on the grid around the vehicle at that time, and the network moves it as that moves.
    warp: Literal["bev", "none"] = "bev"
    frame: Any = Field(default=None, exclude=True)  # of earlier bundles, whose states are all bev


class State(Section):
    """How the states of a network go from frame to frame: `perception.state` computes its other inputs."""

    pairs: tuple[StatePair, ...]
    spacing: tuple[float, float]  # s from frame to frame in its training
    seconds: float  # since the frame before, beyond which a state is worthless
    speed: float  # m/s of the vehicle since then, beyond which its pose is wrong, and the state is in the wrong place


class NetworkFacts(Section):
    """The part of the manifest that describes the network."""

    precision: Precision = "fp32"
    blocks: tuple[Block, ...] = ()  # of INT8
    opset: int
    tolerances: Tolerances  # of an engine's outputs for the golden frames
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    routes: tuple[str, ...]  # conditions that the network was exported for, such as rain+night; base: none
    folded: tuple[str, ...]  # modules that run on all routes and are part of the weights
    inline: tuple[str, ...]  # modules that run on all routes and stay in the graph
    banked: tuple[BankedModule, ...]  # modules that run on some routes, in the order of the input `route`
    parameters: int
    flops: int  # of one frame; a multiply-add counts as two
    operators: dict[str, int]  # ONNX operator -> number of nodes
    structure_sha256: str  # of model.onnx without its weights; plans can be refitted between networks with equal hashes
    state: State | None = None  # of a network with a memory

    @property
    def states(self) -> tuple[StatePair, ...]:
        return () if self.state is None else self.state.pairs


class Manifest(NetworkFacts):
    """The content of manifest.json."""

    schema_version: int = SCHEMA
    name: str  # of the configuration
    release: int = 0  # a vehicle that has run a higher one refuses this bundle (`deploy.trust`)
    expires: AwareDatetime | None = None  # from then on a vehicle that trusts keys refuses it
    taxonomy: Taxonomy
    rig: Rig  # the vehicle's sensors; its cameras are in the order of the input `images`
    grid: Grid
    head_grid: Grid  # of the cells that heads see
    sensors: SensorConfigs  # by kind
    tasks: TaskConfigs
    preprocessing: Preprocessing
    steering: Steering
    results: dict[str, tuple[Output, ...]] | None = None  # by task; None: a bundle of schema 13
    postprocessing: Any = Field(default=None, exclude=True)  # of schema 13, instead of `results`
    golden: GoldenRules
    modules: tuple[str, ...]  # of the checkpoint
    apart: tuple[str, ...] = ()  # other routes, each with its own bundle in routes/
    origin: Origin

    @cached_property
    def heads(self) -> dict[str, Task[Any]]:
        return tasks_of(self.tasks, self.head_grid.build(), self.taxonomy)

    @cached_property
    def spec(self) -> InputSpec:
        places, truth = point_places(self.tasks), counted_truth(self.tasks)
        memory = None if self.state is None else Limits(self.state.seconds, self.state.speed)
        return InputSpec(self.grid.build(), self.sensors, self.rig, places, truth, memory)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        return {tensor.name: tensor.shape for tensor in self.inputs}

    @property
    def condition_values(self) -> tuple[str, ...]:
        """The values of the input `conditions`, in its order; empty for a network without it."""
        return self.steering.values

    def facts(self, target: str) -> dict[str, str]:
        """Describe the bundle for pages, as heading -> text."""
        grid = self.grid
        return {
            "network": self.name,
            "sensors": " + ".join(self.sensors),
            "engine": target,
            "precision": self.precision,
            "routes": ", ".join(self.routes),
            "modules folded": ", ".join(self.folded) or "none",
            "modules on board": ", ".join(module.name for module in self.banked) or "none",
            "parameters": f"{self.parameters:,}",
            "GFLOP per frame": f"{self.flops / 1e9:.1f}",
            "ONNX": f"opset {self.opset}, {sum(self.operators.values())} nodes",
            "grid": f"{grid.x[0]:g} to {grid.x[1]:g} m, pillars of {grid.cell:g} m",
        }


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of the bundle in this folder, of which `Bundle.load` checks hash and signature."""
    file = bundle / MANIFEST
    try:
        return parse_manifest(Content(file, file.read_bytes()))
    except OSError:
        raise no_bundle(bundle, MANIFEST) from None


def no_bundle(path: Path, missing: str) -> InputError:
    """The error about a folder without this file."""
    return InputError(f"{path}: not a bundle (no {missing}); make one with `perception export`")


def parse_manifest(file: Content) -> Manifest:
    """Parse a manifest. InputError if it has a schema version that is not read, or is not of this version's network."""
    _require_schema(file.path, file.data)
    try:
        manifest = Manifest.model_validate_json(_with_sensors(file.data))
    except ValidationError as error:
        raise InputError(f"{file.path}: {explain(Manifest, error, 'the text')}; export the bundle again") from None
    _require_outputs(file.path, manifest)
    _require_state(file.path, manifest)
    _require_contract(file.path, manifest)
    return manifest


def _with_sensors(content: bytes) -> bytes:
    """A manifest with the kinds of sensors under `sensors`; those of older bundles are beside the rest."""
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        return content  # which is reported where it is parsed
    if not isinstance(parsed, dict) or "sensors" in parsed:
        return content
    sensors = {kind: parsed.pop(kind) for kind in SENSORS if kind in parsed}
    parsed["sensors"] = {kind: config for kind, config in sensors.items() if config is not None}
    return json.dumps(parsed).encode()


def _require_outputs(file: Path, manifest: Manifest) -> None:
    """Raise InputError unless the outputs are those of the tasks and the state; others would never be compared."""
    wanted = [f"{name}/{output.name}" for name, task in manifest.heads.items() for output in task.outputs]
    wanted += [pair.output for pair in manifest.states]
    found = [output.name for output in manifest.outputs]
    if found != wanted:
        raise InputError(
            f"{file}: outputs are {', '.join(found)}, those of its tasks {', '.join(wanted)}; export the bundle again"
        )


def _require_state(file: Path, manifest: Manifest) -> None:
    tensors = {each.name: (each.shape, each.dtype) for each in (*manifest.inputs, *manifest.outputs)}
    states = states_of(each.name for each in manifest.outputs)
    motion = {*MOTION_INPUTS} if manifest.state is not None else set()
    fits = bool(states) == bool(motion) and tensors.keys() & {*MOTION_INPUTS} == motion
    for pair in manifest.states:
        fits &= states.get(pair.input) == pair.output and pair.dtype == "float32"
        fits &= tensors.get(pair.input) == tensors[pair.output] == (pair.shape, pair.dtype)
        fits &= pair.warp == "none" or len(pair.shape) == 4
    if not fits:
        raise InputError(f"{file}: state: is not that of the network's inputs and outputs; export the bundle again")


def _require_contract(file: Path, manifest: Manifest) -> None:
    """Raise InputError unless this software computes what the manifest tells any runtime to compute."""
    own = contract_of(manifest.spec, manifest.heads, [each.name for each in manifest.inputs], manifest.taxonomy)
    for name, section in own.items():
        if getattr(manifest, name) != section and not (name == "results" and manifest.schema_version == OLDEST):
            raise InputError(f"{file}: {name}: is not that of this version; export the bundle again, with this version")


def _require_schema(file: Path, content: bytes) -> None:
    """Raise InputError for a schema version that is not read. Invalid JSON is reported later."""
    try:
        version = json.loads(content)["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if version not in range(OLDEST, SCHEMA + 1):
        newer = isinstance(version, int) and version > SCHEMA
        remedy = "update this program, or export again with it" if newer else "export again"
        raise InputError(f"{file}: this bundle is schema {version!r}, this version reads {SCHEMA}; {remedy}")
