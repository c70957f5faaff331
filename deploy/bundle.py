"""The bundle: a folder with all that a vehicle needs to run an exported network, and to check that it is intact.

    manifest.json         inputs and outputs of the network, how it was made, and the sha256 of every other file
    manifest.sig          the signature of manifest.json, if the exporter signed it
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

Manifest and records contain their own sha256, and files that the manifest does not name are refused, except in
engines/, which is filled later. So any changed byte of a bundle is detected. Hashes can be recomputed by anyone; only a
signature shows who made the bundle. The bytes that are used are those that were hashed. No torch here, since bundles
are read on the vehicle.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from deploy.golden import Arrays, GoldenFrame, require_golden
from deploy.golden_file import golden_content, read_golden, require_end_to_end
from deploy.integrity import Content, SelfHashed, read_verified, require_inside, require_nothing_else, sha256
from deploy.manifest import MANIFEST, Manifest, parse_manifest, read_manifest
from deploy.onnx_file import require_self_contained
from deploy.state import Engine, in_sequence
from deploy.targets import is_same_compiler
from deploy.trust import Trust
from perception.errors import InputError
from perception.io.files import atomic_folder, restore_folder, write_atomically
from perception.scene.health.statistics import Statistics
from perception.sensors.inputs import InputSpec
from perception.taxonomy import SENSORS

if TYPE_CHECKING:
    from deploy.signature import Signer


# engines/<target>.json: the record of how a plan was compiled, and of which network.


class EngineRecord(SelfHashed):
    """The record of one plan; `build.sh` writes the same."""

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


@dataclass(frozen=True)
class StoredPlan(Content):
    """A plan's content, with the record that it was checked against."""

    record: EngineRecord


# Check that a manifest's routes require only facts that its taxonomy has.

# Facts other than conditions that modules can require, see deploy.route.steering_inputs.
SENSOR_FACTS = (*SENSORS, *(f"no-{sensor}" for sensor in SENSORS))


def require_vocabulary(file: Path, manifest: Manifest) -> None:
    """Raise InputError if a route or a module requires a fact that no frame can have, or the tasks' names differ."""
    conditions = manifest.taxonomy.condition_values
    for name, task in manifest.tasks.items():
        try:
            task.require_taxonomy(manifest.taxonomy)
        except ValueError as error:
            raise InputError(f"{file}: tasks.{name}: {error}; export the bundle again") from None
    for key, names, known in (
        ("routes", manifest.routes, conditions),
        ("apart", manifest.apart, conditions),
        *((f"banked.{m.name}.asks", m.asks, (*conditions, *SENSOR_FACTS)) for m in manifest.banked),
    ):
        for fact in (fact for name in names for fact in name.split("+") if fact != "base"):
            if fact not in known:
                raise InputError(
                    f"{file}: {key}: {fact!r} is none of {', '.join(known)}; export the bundle again, with this version"
                )


ONNX, GOLDEN, MODULES, ENGINES, SIGNATURE = "model.onnx", "golden.safetensors", "modules", "engines", "manifest.sig"
CPU_ONNX, CALIBRATION, STATISTICS, ROUTES = "model.cpu.onnx", "calibration.json", "statistics.json", "routes"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. Its hashes were checked when it was opened, and are checked again whenever a file is used."""

    path: Path
    manifest: Manifest
    trust: Trust | None = None  # by which the manifest was accepted, and plans will be
    routes: Mapping[str, Bundle] = field(default_factory=dict)  # bundles for other routes, by name

    @staticmethod
    def load(path: Path, trust: Trust | None = None) -> Bundle:
        """Open the bundle in the folder `path`.

        Args:
            trust: who must have signed it, and how old it may be; None accepts it unsigned and of any age.

        Raises:
            InputError: it is not a bundle, has another schema version or other classes or conditions than this
                software, a file is missing, was changed or does not belong there, a graph has external weights, a
                path leads out of the folder, or `trust` refuses it.
        """
        restore_folder(path)
        return Bundle._open_accepted(path, read_manifest(path, trust), trust)

    @staticmethod
    def _open_accepted(path: Path, manifest: Manifest, trust: Trust | None) -> Bundle:
        """Open the bundle of an accepted manifest, whose hashes cover the bundles of other routes."""
        require_vocabulary(path / MANIFEST, manifest)
        for name in manifest.files:
            require_inside(path, name)
        apart = {route: f"{ROUTES}/{route}" for route in manifest.apart}
        for name in (ONNX, GOLDEN, *(f"{folder}/{MANIFEST}" for folder in apart.values())):
            if name not in manifest.files:
                raise InputError(f"{path / MANIFEST}: does not name {name}; export the bundle again")
        free = (ENGINES, *(f"{folder}/{ENGINES}" for folder in apart.values()))
        require_nothing_else(path, {MANIFEST, SIGNATURE, *manifest.files}, free)
        bundle = Bundle(path, manifest, trust)
        for name in manifest.files:
            content = bundle.read(name)
            if name in (ONNX, CPU_ONNX):
                require_self_contained(content)
        routes = {
            route: Bundle._open_accepted(path / folder, parse_manifest(bundle.read(f"{folder}/{MANIFEST}")), trust)
            for route, folder in apart.items()
        }
        states = [state for each in (manifest, *(r.manifest for r in routes.values())) if (state := each.state)]
        for route, other in routes.items():
            if other.manifest.state is not None and other.manifest.state.pairs != states[0].pairs:
                raise InputError(
                    f"{path / apart[route] / MANIFEST}: state: has another shape than that of the bundle's other "
                    "networks; export the bundle again"
                )
        return replace(bundle, routes=routes)

    def read(self, name: str) -> Content:
        """Read a file that the manifest names; InputError if its hash differs."""
        return read_verified(self.path / name, self.manifest.files[name], "export the bundle again")

    @property
    def spec(self) -> InputSpec:
        """How a frame becomes the network's inputs."""
        return self.manifest.spec

    @property
    def onnx(self) -> Path:
        return self.path / ONNX

    @property
    def cpu_onnx(self) -> Path:
        """The graph for ONNX Runtime."""
        return self.path / (CPU_ONNX if CPU_ONNX in self.manifest.files else ONNX)

    @property
    def statistics(self) -> Statistics | None:
        """What the sensors delivered on drives of the training; None if the export was given none."""
        if STATISTICS not in self.manifest.files:
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
        """The golden frames with the outputs of `graph`, or those of model.onnx if the bundle has no such graph.

        Raises:
            InputError: the tensors are not those that the manifest describes.
        """
        graph = graph if graph in self.manifest.files else ONNX
        return read_golden(self.read(GOLDEN), self.manifest, graph)

    def require_golden(self, engine: Engine, name: str, graph: str = ONNX) -> tuple[GoldenFrame, ...]:
        """The golden frames with the outputs of `graph`, which an engine gives within the tolerances.

        Raises:
            InputError: preprocessing or decoding are not those of the export.
            WrongEngine: the engine gives other outputs.
        """
        golden = self.golden_frames(graph)
        require_end_to_end(golden, self.manifest, self.path / GOLDEN)
        require_golden(golden, in_sequence(engine), name, self.manifest.tolerances)
        return golden

    def plan(self, target: str, compiler: str | None = None) -> StoredPlan:
        """Read the plan for `target`, and check it against its record and this network.

        Args:
            compiler: compiler and version of the machine that will run the plan; plans by others do not load. None
                accepts any.

        Raises:
            InputError: there is none, it was changed or is not trusted, or it was compiled from another network, for
                another target or by another compiler.
        """
        record, plan = self._record(target), self.path / ENGINES / f"{target}.plan"
        remedy = self._build_remedy(target)
        compiled_by = record.compiler.split(" with ")[0]  # without " with DLA 0"
        if compiler is not None and not is_same_compiler(compiler, compiled_by):
            raise InputError(f"{plan}: compiled by {record.compiler}, but here is {compiler}; {remedy}")
        return StoredPlan(plan, read_verified(plan, record.plan_sha256, remedy).data, record)

    def _record(self, target: str) -> EngineRecord:
        """Read the record of the plan for `target`; raises like `plan`, which also checks the plan itself."""
        names = (f"{ENGINES}/{target}.{suffix}" for suffix in ("json", "plan", "sig"))
        for name in names:
            require_inside(self.path, name)
        file, remedy = self.path / ENGINES / f"{target}.json", self._build_remedy(target)
        try:
            content = file.read_bytes()
            record = EngineRecord.model_validate_json(content)
        except FileNotFoundError:
            raise InputError(f"{self.path}: no engine for {target}; {remedy}") from None
        except ValidationError:
            raise InputError(f"{file}: not an engine record of this version; {remedy}") from None
        if self.trust is not None and file.with_suffix(".sig").exists():
            self.trust.require_signed(file, content)
        if content != record.to_hashed_json():
            raise InputError(f"{file}: was changed (its sha256 differs); {remedy}")
        if record.target != target:
            raise InputError(f"{file}: is of an engine for {record.target}; {remedy}")
        if record.weights_sha256 != self.manifest.files[ONNX] or (record.refitted and not record.refittable):
            raise InputError(f"{file.with_suffix('.plan')}: compiled from another network; {remedy}")
        if self.trust is not None and not file.with_suffix(".sig").exists():
            self._require_permitted(file, record)
        return record

    def _require_permitted(self, file: Path, record: EngineRecord) -> None:
        """Raise InputError unless the manifest permits this plan to run without a signature (`deploy.trust`)."""
        if record.refitted:
            reason = "the manifest cannot permit a plan of another bundle's network"
        elif not any(permit.covers(record.target, record.compiler) for permit in self.manifest.builds):
            reason = f"the manifest does not permit {record.compiler} to compile for {record.target} without"
        else:
            return
        raise InputError(
            f"{file}: is not signed, and {reason}; sign it with "
            f"`perception sign {self.path} --target {record.target} --key PRIVATE`"
        )

    def add_plan(self, plan: bytes, record: EngineRecord, signer: Signer | None = None) -> Path:
        """Store a compiled plan. The record is written last: without it, or with an older one, the plan is refused."""
        file, content = self.path / ENGINES / f"{record.target}.plan", record.to_hashed_json()
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
        """Raise InputError unless this key signed the manifest, so that it signs only plans of its own bundles."""
        file = self.path / MANIFEST
        if not signer.has_signed(file, file.read_bytes()):
            raise InputError(
                f"{file}: is not signed by the key {signer.id}, which signs plans of its own bundles only; if it is "
                f"yours, run `perception sign {self.path} --key PRIVATE` first"
            )

    def _build_remedy(self, target: str) -> str:
        """The remedy for a plan that cannot be used."""
        return f"run `perception build {self.path} --target {target}`"


def manifest_files(manifest: Manifest, signer: Signer | None) -> dict[str, bytes]:
    """The content of the manifest and, with a signer, of its signature, by file name."""
    content = manifest.model_copy(update={"signer": signer.id if signer else "", "sha256": ""}).to_hashed_json()
    return {MANIFEST: content} | ({SIGNATURE: signer.sign(content)} if signer else {})


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
        manifest: complete except for the hashes of the files.
        more: other files by name, such as modules/rain.json.
        signer: signs the manifest.
        cpu_onnx: the graph for ONNX Runtime, if it has its own.
        routes: bundles for other routes, which are copied into this one.

    Raises:
        InputError: `path` exists and is not a bundle, or cannot be written.
    """
    if path.exists() and not (path / MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: exists and is not a bundle; choose another place for the export")
    contents = {ONNX: onnx} | ({CPU_ONNX: cpu_onnx} if cpu_onnx is not None else {}) | {GOLDEN: golden_content(golden)}
    contents |= more or {}
    with atomic_folder(path, "the bundle") as fresh:
        for name, content in contents.items():
            (fresh / name).parent.mkdir(exist_ok=True)
            (fresh / name).write_bytes(content)
        for route, bundle in (routes or {}).items():
            shutil.copytree(bundle, fresh / ROUTES / route)
        names = sorted(file.relative_to(fresh).as_posix() for file in fresh.rglob("*") if file.is_file())
        whole = manifest.model_copy(update={"files": {name: sha256(fresh / name) for name in names}})
        for name, content in manifest_files(whole, signer).items():
            (fresh / name).write_bytes(content)
    return Bundle.load(path)
