"""The bundle: a folder with all that a vehicle needs to run an exported network, and to check that it is intact.

    SHA256SUMS            the sha256 of every other file except those in engines/
    SHA256SUMS.sig        the signature of SHA256SUMS, if the exporter signed it
    manifest.json         inputs and outputs of the network, and how it was made
    model.onnx            the network
    model.cpu.onnx        INT8: the network in the layout of ONNX Runtime; model.onnx has that of TensorRT
    golden.safetensors    a few frames' inputs, and the exported network's outputs for them; of one frame also its
                          sensor data and its prediction
    calibration.json      INT8: the calibration frames, and the measured ranges of the activations
    statistics.json       what the sensors delivered on drives of the training, if the export was given some
    ml_package.param.yaml what a ROS 2 node must know of it (deploy/ros2)
    modules/              the modules that the network was made with, as written by `Bank.save`
    engines/              plans compiled by `perception build`, each with its own record, from model.onnx or from one
                          of the same structure
    routes/               bundles of the same checkpoint for other routes, if each has its own network

Files that SHA256SUMS does not name are refused, except in engines/, which is filled later. So any changed byte of an
export is detected. Hashes can be recomputed by anyone; only a signature shows who made the bundle. The bytes that are
used are those that were hashed. No torch here, since bundles are read on the vehicle.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from deploy.engine import Engine, in_sequence
from deploy.golden import GoldenFrame, require_golden
from deploy.golden_file import golden_content, read_golden, require_end_to_end
from deploy.integrity import (
    SUMS,
    SUMS_SIGNATURE,
    Content,
    make_sums,
    parse_sums,
    read_verified,
    require_inside,
    require_nothing_else,
)
from deploy.manifest import MANIFEST, Manifest, no_bundle, parse_manifest
from deploy.targets import WITH_DLA, is_same_compiler
from deploy.trust import Trust
from perception.errors import InputError
from perception.frame import Arrays
from perception.io.files import atomic_folder, restore_folder, write_atomically
from perception.io.section import Section
from perception.scene.health.statistics import Statistics
from perception.sensors import sensor_facts
from perception.sensors.inputs import InputSpec

if TYPE_CHECKING:
    from deploy.signature import Signer


class EngineRecord(Section):
    """engines/<target>.json: how a plan was compiled. A signature of the plan covers it; `build.sh` writes the same."""

    target: str
    compiler: str  # name and version
    layers: int
    seconds: float
    plan_bytes: int
    plan_sha256: str
    refittable: bool  # whether its weights can be replaced
    onnx_sha256: str  # of the model.onnx that was compiled
    weights_sha256: str  # of the model.onnx whose weights it runs with, the same or one of the same structure

    @property
    def refitted(self) -> bool:
        """Whether the plan runs with other weights than it was compiled with."""
        return self.weights_sha256 != self.onnx_sha256

    def content(self) -> bytes:
        return self.model_dump_json(indent=2).encode()


@dataclass(frozen=True)
class StoredPlan(Content):
    """A plan's content, with the record that it was checked against."""

    record: EngineRecord
    record_data: bytes = field(repr=False)  # the content of the record's file


def require_vocabulary(file: Path, manifest: Manifest) -> None:
    """Raise InputError if a route or a module requires a fact that no frame can have, or the tasks' names differ."""
    conditions = manifest.taxonomy.condition_values
    facts = (*conditions, *sensor_facts(), *(f"no-{sensor}" for sensor in sensor_facts()))
    for name, task in manifest.tasks.items():
        try:
            task.require_taxonomy(manifest.taxonomy)
        except ValueError as error:
            raise InputError(f"{file}: tasks.{name}: {error}; export the bundle again") from None
    for key, names, known in (
        ("routes", manifest.routes, conditions),
        ("apart", manifest.apart, conditions),
        *((f"banked.{m.name}.asks", m.asks, facts) for m in manifest.banked),
    ):
        for fact in (fact for name in names for fact in name.split("+") if fact != "base"):
            if fact not in known:
                raise InputError(
                    f"{file}: {key}: {fact!r} is none of {', '.join(known)}; export the bundle again, with this version"
                )


ONNX, GOLDEN, MODULES, ENGINES = "model.onnx", "golden.safetensors", "modules", "engines"
CPU_ONNX, CALIBRATION, STATISTICS, ROUTES = "model.cpu.onnx", "calibration.json", "statistics.json", "routes"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. Its hashes were checked when it was opened, and are checked again whenever a file is used."""

    path: Path
    manifest: Manifest
    files: Mapping[str, str]  # name -> sha256
    sums: Content  # of SHA256SUMS
    trust: Trust | None = None  # by which it was accepted, and plans will be
    signer: str = ""  # id of the trusted key that signed it
    routes: Mapping[str, Bundle] = field(default_factory=dict)  # bundles for other routes, by name

    @staticmethod
    def load(path: Path, trust: Trust | None = None) -> Bundle:
        """Open the bundle in the folder `path`; without `trust` it is accepted unsigned and of any age."""
        restore_folder(path)
        require_inside(path, SUMS)
        if not (path / SUMS).is_file():
            raise no_bundle(path, SUMS)
        sums = Content(path / SUMS, (path / SUMS).read_bytes())
        signer = "" if trust is None else trust.require_signed(sums.path, sums.data)
        files = parse_sums(sums)
        bundle = Bundle._open(path, files, sums, trust)
        if trust is not None:
            trust.require_current(path / MANIFEST, bundle.manifest.release, bundle.manifest.expires)
        free = (ENGINES, *(f"{ROUTES}/{route}/{ENGINES}" for route in bundle.routes))
        require_nothing_else(path, {SUMS, SUMS_SIGNATURE, *files}, free)
        for name in files:
            bundle.read(name)
        return replace(bundle, signer=signer)

    @staticmethod
    def _open(path: Path, files: Mapping[str, str], sums: Content, trust: Trust | None) -> Bundle:
        """Open the bundle with these files, and the bundles for other routes in it."""
        for name in (MANIFEST, ONNX, GOLDEN):
            if name not in files:
                raise InputError(f"{sums.path}: does not name {path / name}; export the bundle again")
        manifest = parse_manifest(read_verified(path / MANIFEST, files[MANIFEST], "export the bundle again"))
        require_vocabulary(path / MANIFEST, manifest)
        bundle = Bundle(path, manifest, files, sums, trust)
        routes = {}
        for route in manifest.apart:
            folder = f"{ROUTES}/{route}/"
            inside = {name.removeprefix(folder): files[name] for name in files if name.startswith(folder)}
            routes[route] = Bundle._open(path / folder, inside, sums, trust)
        states = [state for each in (manifest, *(r.manifest for r in routes.values())) if (state := each.state)]
        for other in routes.values():
            if other.manifest.state is not None and other.manifest.state.pairs != states[0].pairs:
                raise InputError(
                    f"{other.path / MANIFEST}: state: has another shape than that of the bundle's other "
                    "networks; export the bundle again"
                )
        return replace(bundle, routes=routes)

    def read(self, name: str) -> Content:
        """Read a file that SHA256SUMS names; InputError if its hash differs."""
        return read_verified(self.path / name, self.files[name], "export the bundle again")

    @property
    def root(self) -> Path:
        """The folder of SHA256SUMS; of a bundle for another route, the bundle that it is in."""
        return self.sums.path.parent

    @property
    def spec(self) -> InputSpec:
        return self.manifest.spec

    @property
    def onnx(self) -> Path:
        return self.path / ONNX

    @property
    def cpu_onnx(self) -> Path:
        return self.path / (CPU_ONNX if CPU_ONNX in self.files else ONNX)

    @property
    def statistics(self) -> Statistics | None:
        """What the sensors delivered on drives of the training; None if the export was given none."""
        if STATISTICS not in self.files:
            return None
        content = self.read(STATISTICS)
        try:
            return Statistics.model_validate_json(content.data)
        except ValidationError:
            raise InputError(f"{content.path}: not statistics of this version; export the bundle again") from None

    def golden(self) -> tuple[Arrays, Arrays]:
        """Inputs and outputs of the first of the `golden_frames`."""
        first = self.golden_frames()[0]
        return first.inputs, first.outputs

    def golden_frames(self, graph: str = ONNX) -> tuple[GoldenFrame, ...]:
        """The golden frames with the outputs of `graph`, or those of model.onnx if the bundle has no such graph."""
        graph = graph if graph in self.files else ONNX
        return read_golden(self.read(GOLDEN), self.manifest, graph)

    def require_golden(self, engine: Engine, name: str, graph: str = ONNX) -> tuple[GoldenFrame, ...]:
        """The golden frames with the outputs of `graph`, which an engine gives within the tolerances.

        Raises:
            InputError: preprocessing or decoding differ from the export's.
            WrongEngine: the engine gives other outputs.
        """
        golden = self.golden_frames(graph)
        require_end_to_end(golden, self.manifest, self.path / GOLDEN)
        require_golden(golden, in_sequence(engine), name, self.manifest.tolerances)
        return golden

    def plan(self, target: str, compiler: str | None = None) -> StoredPlan:
        """Read the plan for `target`, and check it against its record and this network.

        A plan loads only if the `compiler` of the machine that will run it has compiled it; None accepts any.
        """
        for suffix in ("json", "plan", "sig"):
            require_inside(self.path, f"{ENGINES}/{target}.{suffix}")
        file, remedy = self.path / ENGINES / f"{target}.json", f"run `perception build {self.root} --target {target}`"
        plan = file.with_suffix(".plan")
        try:
            content = file.read_bytes()
            record = EngineRecord.model_validate_json(content)
        except FileNotFoundError:
            raise InputError(f"{self.path}: no engine for {target}; {remedy}") from None
        except ValidationError:
            raise InputError(f"{file}: not an engine record of this version; {remedy}") from None
        if record.target != target:
            raise InputError(f"{file}: is of an engine for {record.target}; {remedy}")
        if record.weights_sha256 != self.files[ONNX] or (record.refitted and not record.refittable):
            raise InputError(f"{plan}: compiled from another network; {remedy}")
        if self.trust is not None:
            self.trust.require_plan(file, content, f"{target} of {record.weights_sha256}", self.root)
        compiled_by = record.compiler.removesuffix(WITH_DLA)
        if compiler is not None and not is_same_compiler(compiler, compiled_by):
            raise InputError(f"{plan}: compiled by {record.compiler}, but here is {compiler}; {remedy}")
        return StoredPlan(plan, read_verified(plan, record.plan_sha256, remedy).data, record, content)

    def add_plan(self, plan: bytes, record: EngineRecord, signer: Signer | None = None) -> Path:
        """Store a compiled plan. The record is written last: without it, or with an older one, the plan is refused."""
        file, content = self.path / ENGINES / f"{record.target}.plan", record.content()
        require_inside(self.path, ENGINES)
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, plan)
        if signer is None:
            file.with_suffix(".sig").unlink(missing_ok=True)
        else:
            write_atomically(file.with_suffix(".sig"), signer.sign(content))
        write_atomically(file.with_suffix(".json"), content)
        return file

    def require_signed_by(self, signer: Signer) -> None:
        """Raise InputError unless this key signed the bundle, so that it signs only plans of its own bundles."""
        if not signer.has_signed(self.sums.path, self.sums.data):
            raise InputError(
                f"{self.sums.path}: is not signed by the key {signer.id}, which signs plans of its own bundles only; "
                f"if it is yours, run `perception sign {self.root} --key PRIVATE` first"
            )


def write_bundle(
    path: Path,
    onnx: bytes,
    golden: Sequence[GoldenFrame],
    manifest: Manifest,
    more: Mapping[str, bytes] | None = None,
    signer: Signer | None = None,
    cpu_onnx: bytes | None = None,
    routes: Mapping[str, Path] | None = None,
) -> Bundle:
    """Write a bundle to the folder `path`. An existing bundle is replaced when the new one is complete.

    Args:
        more: other files by name, such as modules/rain.json.
        cpu_onnx: the graph for ONNX Runtime, if it has its own.
        routes: bundles for other routes, which are copied into this one.
    """
    if path.exists() and not (path / MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: exists and is not a bundle; choose another place for the export")
    contents = {ONNX: onnx} | ({CPU_ONNX: cpu_onnx} if cpu_onnx is not None else {}) | {GOLDEN: golden_content(golden)}
    contents |= {MANIFEST: manifest.model_dump_json(indent=2).encode(), **(more or {})}
    with atomic_folder(path, "the bundle") as fresh:
        for name, content in contents.items():
            (fresh / name).parent.mkdir(exist_ok=True)
            (fresh / name).write_bytes(content)
        for route, bundle in (routes or {}).items():
            shutil.copytree(bundle, fresh / ROUTES / route, ignore=shutil.ignore_patterns(SUMS, SUMS_SIGNATURE))
        sums = make_sums(fresh)
        (fresh / SUMS).write_bytes(sums)
        if signer is not None:
            (fresh / SUMS_SIGNATURE).write_bytes(signer.sign(sums))
    return Bundle.load(path)
