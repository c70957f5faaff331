"""manifest.json: the description of a bundle. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field, ValidationError

from deploy import golden, state
from deploy.integrity import Content
from deploy.route import BankedModule
from deploy.tolerances import Precision, Tolerances
from perception.datasets import sweeps as lidar_sweeps
from perception.errors import InputError
from perception.grid import Reference
from perception.io.section import Section
from perception.modules.spec import NEXT_STATE, STATE_INPUTS
from perception.parts import CameraBranch, Grid, Lidar
from perception.rig import Rig
from perception.scene import admission
from perception.sensors.camera import picture
from perception.sensors.inputs import PRESENCE, InputSpec
from perception.sensors.state import RIGID, Limits
from perception.tasks import TaskConfigs, counted_truth, point_places, tasks_of
from perception.tasks.outputs import Output
from perception.tasks.task import Task
from perception.taxonomy import Taxonomy


class PillarRules(Section):
    """How points become pillars; cells are rows (along y) times columns (along x)."""

    rows: int
    columns: int
    cell: float  # m
    x: tuple[float, float]  # m; a point is inside from the first to before the second
    y: tuple[float, float]
    z: tuple[float, float]
    most: int  # pillars
    points: int  # of a pillar: the first ones in the order of the frame
    overflow: Literal["fullest", "first"]  # the pillars that stay if there are more


class SweepRules(Section):
    """Which earlier sweeps are added to the keyframe's, and which points are left out."""

    most: int  # earlier sweeps of each LiDAR
    oldest: float  # s before the frame
    own: float  # m from the sensor along x and along y: nearer points are of the vehicle, where the rig has no `own`


class PictureRules(Section):
    """How recorded pictures become the network's."""

    cameras: tuple[str, ...]  # in the order of the input `images`
    height: int
    width: int
    steps: int  # of a pixel, to which places between pixels are rounded


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
    sweeps: SweepRules | None
    pillars: PillarRules | None
    points: int  # places for single points of the keyframe; 0: no task reads them
    pictures: PictureRules | None
    admission: AdmissionRules

    @staticmethod
    def of(spec: InputSpec) -> Preprocessing:
        grid, sweeps, pillars, pictures = spec.grid, None, None, None
        if spec.lidar is not None:
            rows, columns = grid.shape
            sweeps = SweepRules(most=spec.lidar.sweeps, oldest=lidar_sweeps.OLDEST, own=lidar_sweeps.ROOF)
            pillars = PillarRules(
                rows=rows,
                columns=columns,
                cell=grid.cell,
                x=grid.x,
                y=grid.y,
                z=grid.z,
                most=spec.lidar.max_pillars,
                points=spec.lidar.points_per_pillar,
                overflow=spec.lidar.overflow,
            )
        if spec.camera is not None:
            size, cameras = spec.camera.image, spec.rig.sensors.cameras
            pictures = PictureRules(cameras=cameras, height=size.height, width=size.width, steps=picture.STEPS)
        rules = AdmissionRules(
            rigid=admission.RIGID,
            upright=admission.UPRIGHT,
            far=admission.FAR,
            narrowest=admission.NARROWEST,
            largest=admission.LARGEST,
            state_rigid=RIGID,
        )
        return Preprocessing(
            reference=grid.reference,
            sweeps=sweeps,
            pillars=pillars,
            points=spec.points,
            pictures=pictures,
            admission=rules,
        )


class Steering(Section):
    """From what is known to the inputs `route` and `conditions`."""

    # Fact -> input: it holds where a number of the input is not zero; otherwise no-FACT does.
    sensors: dict[str, str]
    values: tuple[str, ...]  # of the input `conditions`, in its order; empty for a network without it


class GoldenRules(Section):
    """How engines are compared on golden frames, beside the tolerances."""

    around: float = golden.AROUND  # m, where another detection may take the place of one
    state_step: int = state.STEP  # rows and columns from one compared cell of a state to the next
    grey_levels: int = golden.GREY_LEVELS  # by which a pixel of a picture may differ
    rounded: float = golden.ROUNDED  # share of a picture's pixels that may differ more
    close: float = golden.CLOSE  # relative and absolute difference of other numbers


def contract_of(
    spec: InputSpec, tasks: Mapping[str, Task[Any]], inputs: Sequence[str], taxonomy: Taxonomy
) -> dict[str, Any]:
    """The sections of a network's manifest, by name."""
    sensors = {fact: name for fact, name in PRESENCE.items() if name in inputs}
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
    frame: Literal["reference"] = "reference"  # of its rows and columns: that of the frame that it was computed on


class State(Section):
    """How the memory of a network goes from frame to frame: `perception.sensors.state` computes its other inputs."""

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
    lidar: Lidar | None
    camera: CameraBranch | None
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

    @property
    def spec(self) -> InputSpec:
        places, truth = point_places(self.tasks), counted_truth(self.tasks)
        memory = None if self.state is None else Limits(self.state.seconds, self.state.speed)
        return InputSpec(self.grid.build(), self.lidar, self.camera, self.rig, places, truth, memory)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        return {tensor.name: tensor.shape for tensor in self.inputs}

    @property
    def condition_values(self) -> tuple[str, ...]:
        """The values of the input `conditions`, in its order; empty for a network without it."""
        return self.steering.values

    @property
    def sensors(self) -> tuple[str, ...]:
        return self.spec.sensors


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
        manifest = Manifest.model_validate_json(file.data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the text"
        raise InputError(f"{file.path}: {where}: {first['msg'].lower()}; export the bundle again") from None
    _require_outputs(file.path, manifest)
    _require_state(file.path, manifest)
    _require_contract(file.path, manifest)
    return manifest


def _require_outputs(file: Path, manifest: Manifest) -> None:
    """Raise InputError unless the outputs are those of the tasks and the state; others would never be compared."""
    wanted = [f"{name}/{output.name}" for name, task in manifest.heads.items() for output in task.outputs]
    wanted += [pair.output for pair in manifest.state.pairs] if manifest.state is not None else []
    found = [output.name for output in manifest.outputs]
    if found != wanted:
        raise InputError(
            f"{file}: outputs are {', '.join(found)}, those of its tasks {', '.join(wanted)}; export the bundle again"
        )


def _require_state(file: Path, manifest: Manifest) -> None:
    tensors = {each.name: (each.shape, each.dtype) for each in (*manifest.inputs, *manifest.outputs)}
    needed, state = (*STATE_INPUTS, NEXT_STATE), manifest.state
    fits = state is None and tensors.keys().isdisjoint(needed)
    if state is not None and tensors.keys() >= {*needed}:
        shape, dtype = tensors[NEXT_STATE][0], "float32"
        pair = StatePair(input=STATE_INPUTS[0], output=NEXT_STATE, shape=shape, dtype=dtype)
        fits = state.pairs == (pair,) and tensors[pair.input] == tensors[pair.output] == (shape, dtype)
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
