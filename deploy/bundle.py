"""The bundle: a folder with all that a vehicle needs to run one exported network, and the proof that it is intact.

    manifest.json         what the network takes and gives, how it was made, and the sha256 of every other file
    model.onnx            the network
    model.cpu.onnx        the same in INT8 as ONNX Runtime wants it, where TensorRT wants it otherwise
    golden.safetensors    the inputs of one frame, and the outputs that the trained network gave for them
    engines/              plans compiled from model.onnx by `perception build`, each with its own record

The manifest carries its own sha256 too, so no byte of a bundle can change unnoticed. No torch here: a bundle is
read on the vehicle.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from deploy.route import Banked
from perception.atomic import write_atomically
from perception.config import CameraBranch, Grid, Lidar, Section
from perception.data.inputs import InputSpec
from perception.errors import InputError

SCHEMA_VERSION = 2  # as in Manifest
MANIFEST, ONNX, GOLDEN, ENGINES = "manifest.json", "model.onnx", "golden.safetensors", "engines"
CPU_ONNX = "model.cpu.onnx"

Arrays = Mapping[str, np.ndarray]
Precision = Literal["fp32", "fp16", "int8"]


class TensorInfo(Section):
    """One input or output of the network."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # numpy's name
    unit: str  # what the numbers mean


class Block(Section):
    """A part of an INT8 network, and whether it is INT8 itself."""

    name: str
    layers: int  # convolutions
    error: float  # of the outputs with this block alone in INT8, see deploy.precision.sensitivity
    precision: Precision


class Manifest(Section):
    """What the bundle says of itself; `manifest.json` is exactly this."""

    schema_version: Literal[2] = 2
    sha256: str = ""  # of this manifest, written with an empty string here
    name: str  # of the configuration
    precision: Precision = "fp32"
    blocks: tuple[Block, ...] = ()  # of INT8
    opset: int
    tolerance: float  # how far an engine's outputs for the golden frame may be off, see deploy.golden
    outliers: float = 0.0  # share of them that may be off by more
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    map_classes: tuple[str, ...]  # empty: the network has no map head
    cameras: tuple[str, ...]  # order of the pictures in the inputs
    grid: Grid
    map_grid: Grid | None  # of the map output
    lidar: Lidar | None
    camera: CameraBranch | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    modules: tuple[str, ...]  # that were in the checkpoint
    routes: tuple[str, ...]  # conditions that the network was exported for, such as boston+rain; base: none known
    folded: tuple[str, ...]  # modules in force on all routes, now part of the weights
    inline: tuple[str, ...]  # modules in force on all routes that stay in the graph beside their layers
    banked: tuple[Banked, ...]  # modules in force on some routes, in the order of the input `route`
    parameters: int
    flops: int  # of one frame; a multiply-add counts as two
    operators: dict[str, int]  # ONNX operator -> number of nodes
    files: dict[str, str]  # name -> sha256

    @property
    def spec(self) -> InputSpec:
        """How a frame becomes the network's inputs."""
        return InputSpec(self.grid.build(), self.lidar, self.camera)

    @property
    def conditional(self) -> bool:
        """Whether the network takes the conditions as an input."""
        return any(tensor.name == "conditions" for tensor in self.inputs)

    @property
    def sensors(self) -> tuple[str, ...]:
        """Which sensors the network takes."""
        return tuple(name for name in ("lidar", "camera") if getattr(self, name) is not None)

    def sealed(self) -> str:
        """The text of manifest.json, with its sha256 filled in."""
        digest = hashlib.sha256(self.model_copy(update={"sha256": ""}).model_dump_json(indent=2).encode())
        return self.model_copy(update={"sha256": digest.hexdigest()}).model_dump_json(indent=2)


class EngineRecord(Section):
    """engines/<target>.json: where a plan came from."""

    target: str
    compiler: str  # with its version
    layers: int
    seconds: float
    plan_bytes: int
    plan_sha256: str
    onnx_sha256: str  # of the model.onnx that was compiled


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose hashes were right when it was opened."""

    path: Path
    manifest: Manifest

    @staticmethod
    def load(path: Path) -> Bundle:
        """Open the bundle in the folder `path`.

        Raises:
            InputError: it is no bundle, has another schema version, or a file is missing or was changed.
        """
        manifest = _read_manifest(path)
        for name, digest in manifest.files.items():
            verify(path / name, digest, "export the bundle again")
        return Bundle(path, manifest)

    @property
    def spec(self) -> InputSpec:
        """How a frame becomes the network's inputs."""
        return self.manifest.spec

    @property
    def onnx(self) -> Path:
        return self.path / ONNX

    @property
    def cpu_onnx(self) -> Path:
        """The network as ONNX Runtime runs it fastest."""
        return self.path / (CPU_ONNX if CPU_ONNX in self.manifest.files else ONNX)

    def golden(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Inputs and outputs of the golden frame."""
        try:
            tensors = load_file(self.path / GOLDEN)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.path / GOLDEN}: cannot read the golden frame ({error})") from None
        inputs = {name: tensors[f"inputs.{name}"] for name in (t.name for t in self.manifest.inputs)}
        outputs = {name: tensors[f"outputs.{name}"] for name in (t.name for t in self.manifest.outputs)}
        return inputs, outputs

    def plan(self, target: str) -> Path:
        """The plan compiled for `target`, checked against its record and this network.

        Raises:
            InputError: there is none, it was changed, or it was compiled from another network.
        """
        plan, record_path = self.path / ENGINES / f"{target}.plan", self.path / ENGINES / f"{target}.json"
        remedy = f"run `perception build {self.path} --target {target}`"
        try:
            record = EngineRecord.model_validate_json(record_path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{self.path}: no engine for {target}; {remedy}") from None
        except ValidationError:
            raise InputError(f"{record_path}: not an engine record; {remedy}") from None
        if record.onnx_sha256 != self.manifest.files[ONNX]:
            raise InputError(f"{plan}: compiled from another network; {remedy}")
        verify(plan, record.plan_sha256, remedy)
        return plan

    def add_plan(self, plan: bytes, record: EngineRecord) -> Path:
        """Store a compiled plan. The record is written last: without it, or with an older one, the plan is refused."""
        folder = self.path / ENGINES
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{record.target}.plan", plan)
        write_atomically(folder / f"{record.target}.json", record.model_dump_json(indent=2).encode())
        return folder / f"{record.target}.plan"


def write_bundle(
    path: Path,
    onnx: bytes,
    golden: tuple[Arrays, Arrays],
    describe: Callable[..., Manifest],
    cpu_onnx: bytes | None = None,
) -> Bundle:
    """Write a bundle to the folder `path`, replacing the bundle that is there.

    Everything is written to a folder beside it that takes its place at the end: when the disk fills up or the
    process dies before that, the old bundle is still whole.

    Args:
        golden: inputs and outputs by name.
        describe: makes the manifest, given `files`, the sha256 of each file.
        cpu_onnx: the network for ONNX Runtime, where it is another file.

    Raises:
        InputError: `path` exists and is no bundle, or cannot be written.
    """
    if path.exists() and not (path / MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: exists and is not a bundle; choose another place for the export")
    fresh, old = (path.with_name(f".{path.name}.{suffix}-{os.getpid()}") for suffix in ("new", "old"))
    try:
        fresh.mkdir(parents=True)
        graphs = {ONNX: onnx} | ({CPU_ONNX: cpu_onnx} if cpu_onnx is not None else {})
        for name, content in graphs.items():
            (fresh / name).write_bytes(content)
        tensors = {
            f"{side}.{k}": np.ascontiguousarray(v)
            for side, arrays in zip(("inputs", "outputs"), golden, strict=True)
            for k, v in arrays.items()
        }
        (fresh / GOLDEN).write_bytes(save(tensors))
        manifest = describe(files={name: sha256(fresh / name) for name in (*graphs, GOLDEN)})
        (fresh / MANIFEST).write_text(manifest.sealed())
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except (OSError, SafetensorError) as error:
        if old.exists() and not path.exists():
            old.rename(path)
        raise InputError(f"{path}: cannot write the bundle ({error})") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return Bundle.load(path)


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError):
        if path.is_dir() and file.is_file():
            raise InputError(f"{file}: cannot read the manifest; export the bundle again") from None
        raise InputError(f"{path}: not a bundle (no {MANIFEST}); make one with `perception export`") from None
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the text"
        if where == "schema_version":
            raise InputError(
                f"{file}: schema version {first['input']}, but this program reads {SCHEMA_VERSION}; export again"
            ) from None
        raise InputError(f"{file}: {where}: {first['msg'].lower()}; export the bundle again") from None
    if text != manifest.sealed():
        raise InputError(f"{file}: was changed after the export (its sha256 differs); export the bundle again")
    return manifest


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def verify(path: Path, digest: str, remedy: str) -> None:
    """Raise InputError unless the file is there and has this sha256."""
    if not path.is_file():
        raise InputError(f"{path}: the file is missing; {remedy}")
    if sha256(path) != digest:
        raise InputError(f"{path}: was changed (its sha256 differs from the record); {remedy}")
