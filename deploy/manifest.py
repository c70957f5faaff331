"""manifest.json: the description of a bundle. No torch here."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    AwareDatetime,
    SerializeAsAny,
    ValidationError,
    field_validator,
)

from deploy.contract import GoldenRules, Preprocessing, Steering, contract_of
from deploy.integrity import Content
from deploy.route import BankedModule
from deploy.tolerances import Precision, Tolerances
from perception.config import CameraBranch, Grid, Lidar, Section
from perception.errors import InputError
from perception.modules.spec import NEXT_STATE, STATE_INPUTS
from perception.rig import Rig
from perception.sensors.inputs import InputSpec
from perception.sensors.state import Limits
from perception.tasks import counted_truth, parse_tasks, point_places, tasks_of
from perception.tasks.task import Task, TaskConfig
from perception.taxonomy import Taxonomy

# A reader of schema N reads N - 1, too: what schema N adds has a default, and what it no longer needs stays allowed.
OLDEST, SCHEMA = 13, 13
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
    tasks: dict[str, SerializeAsAny[TaskConfig]]
    preprocessing: Preprocessing
    steering: Steering
    postprocessing: dict[str, dict[str, Any]]  # by task, see `Task.postprocessing`
    golden: GoldenRules
    modules: tuple[str, ...]  # of the checkpoint
    apart: tuple[str, ...] = ()  # other routes, each with its own bundle in routes/
    origin: Origin

    @field_validator("tasks", mode="before")
    @classmethod
    def _parse_tasks(cls, content: object) -> dict[str, TaskConfig]:
        return parse_tasks(content)

    @cached_property
    def heads(self) -> dict[str, Task[Any]]:
        return tasks_of(self.tasks, self.head_grid.build(), self.taxonomy)

    @property
    def spec(self) -> InputSpec:
        """How a frame becomes the network's inputs."""
        places, truth = point_places(self.tasks), counted_truth(self.tasks)
        memory = None if self.state is None else Limits(self.state.seconds, self.state.speed)
        return InputSpec(self.grid.build(), self.lidar, self.camera, self.rig, places, truth, memory)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """By name."""
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
    """Raise InputError unless the inputs of a memory and its pair fit to each other."""
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
        if getattr(manifest, name) != section:
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
