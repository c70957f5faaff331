"""manifest.json: the description of a bundle. No torch here."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, SerializeAsAny, ValidationError, field_validator

from deploy.integrity import Content, Sealed, require_inside
from deploy.permit import Permit
from deploy.route import Banked
from deploy.tolerances import Precision, Tolerances, require_bounded
from deploy.trust import Trust
from perception.config import CameraBranch, Grid, Lidar, Section
from perception.errors import InputError
from perception.sensors.inputs import InputSpec
from perception.tasks import configured, tasks_of
from perception.tasks.task import Task, TaskConfig

SCHEMA_VERSION = 8  # as in Manifest
MANIFEST = "manifest.json"


class TensorInfo(Section):
    """One input or output of the network."""

    name: str
    shape: tuple[int, ...]  # with as many pillars as there can be; the graph takes fewer too
    dtype: str  # numpy's name
    unit: str  # what the numbers mean


class Block(Section):
    """A part of an INT8 network, and whether it is INT8 itself."""

    name: str
    layers: int  # convolutions
    error: float  # of the outputs with this block alone in INT8, see deploy.precision.sensitivity
    precision: Precision


class Calibration(Section):
    """calibration.json: what the ranges of an INT8 network's activations were measured on, and found to be."""

    data: str  # version of the tables
    frames: tuple[str, ...]  # tokens of the keyframes
    ranges: dict[str, tuple[float, float]]  # tensor -> low and high, as deploy.precision.calibrate gives them


class Origin(Section):
    """Where the network comes from, and under which terms it may be used."""

    checkpoint: str  # sha256 of the checkpoint's model.safetensors
    base: str  # fingerprint of the base that the modules are for, as `perception modules` prints it
    modules: dict[str, str]  # module in the network, whose files are modules/NAME.* -> what it was trained on, if known
    data: tuple[str, ...]  # what the checkpoint was trained on, an entry for each training; empty: it does not say
    golden: str  # token of the first golden frame; synthetic-0 is made by deploy.golden, all others were recorded
    license: str  # of network, modules and golden frame, as the exporter stated it; empty: not stated


class NetworkFacts(Section):
    """The part of the manifest that describes the network."""

    precision: Precision = "fp32"
    blocks: tuple[Block, ...] = ()  # of INT8
    opset: int
    tolerances: Tolerances  # how far an engine's outputs for the golden frames may be off
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    routes: tuple[str, ...]  # conditions that the network was exported for, such as boston+rain; base: none known
    folded: tuple[str, ...]  # modules in force on all routes, now part of the weights
    inline: tuple[str, ...]  # modules in force on all routes that stay in the graph beside their layers
    banked: tuple[Banked, ...]  # modules in force on some routes, in the order of the input `route`
    parameters: int
    flops: int  # of one frame; a multiply-add counts as two
    operators: dict[str, int]  # ONNX operator -> number of nodes
    structure_sha256: str  # of all of model.onnx but its weights; a plan can be refitted from a network with the same


class Manifest(Sealed, NetworkFacts):
    """The description of a bundle; `manifest.json` holds exactly this."""

    schema_version: Literal[8] = 8
    name: str  # of the configuration
    release: int = 0  # counts up; a vehicle that has run a higher one refuses this (`deploy.trust`)
    expires: AwareDatetime | None = None  # from then on a vehicle that trusts keys refuses it
    signer: str = ""  # the id of the key that signed it (`deploy.signature`); empty: nobody
    builds: tuple[Permit, ...] = ()  # plans that run without a signature of their own
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    map_classes: tuple[str, ...]  # empty: the network has no map head
    cameras: tuple[str, ...]  # order of the pictures in the inputs
    conditions: tuple[str, ...]  # order in the input `conditions`, and of what is recognised
    grid: Grid
    head_grid: Grid  # of the cells that heads see
    lidar: Lidar | None
    camera: CameraBranch | None
    tasks: dict[str, SerializeAsAny[TaskConfig]]
    modules: tuple[str, ...]  # that were in the checkpoint
    apart: tuple[str, ...] = ()  # other routes, each with a bundle of its own in routes/
    origin: Origin
    files: dict[str, str]  # name -> sha256

    @field_validator("tasks", mode="before")
    @classmethod
    def _configured(cls, content: object) -> dict[str, TaskConfig]:
        return configured(content)

    @cached_property
    def heads(self) -> dict[str, Task[Any]]:
        """The tasks, by name."""
        return tasks_of(self.tasks, self.head_grid.build())

    @property
    def spec(self) -> InputSpec:
        """How a frame becomes the network's inputs."""
        return InputSpec(self.grid.build(), self.lidar, self.camera)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """By name."""
        return {tensor.name: tensor.shape for tensor in self.inputs}

    @property
    def conditional(self) -> bool:
        """Whether the network takes the conditions as an input."""
        return any(tensor.name == "conditions" for tensor in self.inputs)

    @property
    def sensors(self) -> tuple[str, ...]:
        """Which sensors the network takes."""
        return tuple(name for name in ("lidar", "camera") if getattr(self, name) is not None)


def read_manifest(bundle: Path, trust: Trust | None = None) -> Manifest:
    """The manifest of the bundle in this folder.

    Args:
        trust: who must have signed it, and how old it may be; None takes it unsigned and of any age.

    Raises:
        InputError: no bundle, another schema version, a manifest that was changed, one that is not trusted, or
            tolerances beyond what its precision needs.
    """
    require_inside(bundle, MANIFEST)
    file = bundle / MANIFEST
    try:
        content = file.read_bytes()
    except OSError as error:
        if file.is_file():
            raise InputError(f"{file}: cannot read the manifest ({error.strerror})") from None
        raise InputError(f"{bundle}: not a bundle (no {MANIFEST}); make one with `perception export`") from None
    if trust is None:
        return parse_manifest(Content(file, content))
    trust.require_signed(file, content, _signer(content))
    manifest = parse_manifest(Content(file, content))
    trust.require_current(file, manifest.release, manifest.expires)
    return manifest


def parse_manifest(file: Content) -> Manifest:
    """The manifest in a file's content. InputError: another schema version, or it was changed."""
    _require_schema(file.path, file.data)
    try:
        manifest = Manifest.model_validate_json(file.data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the text"
        raise InputError(f"{file.path}: {where}: {first['msg'].lower()}; export the bundle again") from None
    if file.data != manifest.sealed():
        raise InputError(f"{file.path}: was changed after the export (its sha256 differs); export the bundle again")
    _require_outputs(file.path, manifest)
    require_bounded(manifest.tolerances, manifest.precision, manifest.heads, str(file.path))
    return manifest


def _require_outputs(file: Path, manifest: Manifest) -> None:
    """The outputs must be those of the tasks: what no task reads, nothing would compare."""
    wanted = [f"{name}/{output.name}" for name, task in manifest.heads.items() for output in task.outputs]
    found = [output.name for output in manifest.outputs]
    if found != wanted:
        raise InputError(
            f"{file}: outputs are {', '.join(found)}, those of its tasks {', '.join(wanted)}; export the bundle again"
        )


def _signer(content: bytes) -> str:
    """The key that a manifest names, whose signature is still to be checked."""
    try:
        signer = str(json.loads(content)["signer"])
    except (ValueError, KeyError, TypeError):
        return ""
    return signer if re.fullmatch("[0-9a-f]{16}", signer) else ""


def _require_schema(file: Path, content: bytes) -> None:
    """Before all else is read: another version may know other fields. What is no JSON is left to the reader."""
    try:
        version = json.loads(content)["schema_version"]
    except (ValueError, KeyError, TypeError):
        return
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        remedy = "update this program, or export again with it" if newer else "export again"
        raise InputError(f"{file}: this bundle is schema {version!r}, this version reads {SCHEMA_VERSION}; {remedy}")
