"""replay.json: drives, settings, bundle, software and machine of a finished replay. No torch here.

A baseline must have the same settings and data.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import scipy
from pydantic import ValidationError

from deploy.integrity import sha256
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from deploy.targets import find_target
from perception import __version__
from perception.errors import InputError
from perception.io.files import text_of, write_atomically
from perception.io.section import Section, explain
from perception.taxonomy import Taxonomy

PROVENANCE = "replay.json"


class BundleUsed(Section):
    name: str  # of the configuration, from the manifest
    sums_sha256: str  # of SHA256SUMS, which has the hashes of its files
    release: int | None = None  # from the manifest


class EngineUsed(Section):
    target: str
    compiler: str  # name and version, such as onnxruntime 1.26.0
    records_sha256: tuple[str, ...] = ()  # of engines/<target>.json of each network; empty for ONNX Runtime


class Machine(Section):
    processor: str  # model
    cores: int  # that this process may use
    platform: str  # architecture and operating system


class SelectionUsed(Section):
    start: float  # s
    end: float | None  # s; None: to the end
    every: int


class DriveUsed(Section):
    name: str  # of the scene, or of the recorded file
    frames: int  # that were perceived


class ReplayProvenance(Section):
    """The content of replay.json."""

    schema_version: Literal[2] = 2
    bundle: BundleUsed
    taxonomy: Taxonomy  # of the network
    engine: EngineUsed
    software: dict[str, str]  # versions; `source` is a hash of our code
    commit: str | None = None  # of our code, with -dirty if files differed from it; None: not known
    machine: Machine
    path: str  # name of the dataroot or recording
    version: str | None  # of a dataroot's tables
    scenes: tuple[str, ...]  # as selected; empty: all
    topics_sha256: str | None  # of the YAML file of topics
    faults: tuple[str, ...]  # as `perception replay --fault` takes them, in order
    conditions: tuple[str, ...] | None  # used instead of the drive's tags; None: the tags
    evidence: tuple[str, ...] = ("tags", "recognised")  # its sources, with what they depend on
    selection: SelectionUsed
    real_time: bool
    drives: tuple[DriveUsed, ...] = ()
    frames: int = 0  # that were perceived
    absent_faults: tuple[str, ...] = ()  # those of `faults` that occurred in no frame
    resumed_at_frame: int = 0  # number of frames before the last interruption
    finished: str = ""  # ISO 8601, UTC

    @staticmethod
    def load(folder: Path) -> ReplayProvenance:
        """Read the provenance of the replay in this folder."""
        path = folder / PROVENANCE
        try:
            return ReplayProvenance.model_validate_json(path.read_bytes())
        except OSError:
            raise InputError(f"{folder}: holds no finished replay (no readable {PROVENANCE}); replay again") from None
        except ValidationError as error:
            what = explain(ReplayProvenance, error, "the text")
            raise InputError(f"{path}: {what}; replay again with this version") from None

    def about(self, path: Path) -> dict[str, Any]:
        """What an unfinished replay must have in common with one of drives at `path` that goes on with it, as JSON."""
        known = self.model_dump(mode="json")
        names = ("version", "scenes", "topics_sha256", "faults", "conditions", "evidence", "selection")
        about = {"drive": str(path.resolve()), **{name: known[name] for name in names}}
        return about | {"bundle": self.bundle.sums_sha256, "target": self.engine.target}

    @property
    def computed(self) -> dict[str, Any]:
        """Software and machine, on which results depend, as JSON."""
        known = self.model_dump(mode="json")
        return {**known["software"], **known["engine"], **known["machine"]}

    def brief(self) -> dict[str, str]:
        """Names and texts for the report."""
        end = "the end" if self.selection.end is None else f"{self.selection.end:g} s"
        release = "" if self.bundle.release is None else f", release {self.bundle.release}"
        return {
            "bundle": f"SHA256SUMS {self.bundle.sums_sha256[:16]}{release}",
            "compiler": self.engine.compiler,
            "drives": f"{len(self.drives)} of {self.path}, {self.frames} frames",
            "selection": f"{self.selection.start:g} s to {end}, every {self.selection.every}",
            "faults": ", ".join(self.faults) or "none",
            "conditions": "the drive's tags" if self.conditions is None else ", ".join(self.conditions) or "none known",
            "evidence": ", ".join(self.evidence),
            "software": ", ".join(f"{name} {each[:16]}" for name, each in self.software.items()),
            "commit": self.commit or "not known",
            "machine": f"{self.machine.processor}, {self.machine.cores} cores, {self.machine.platform}",
            "finished": self.finished,
        }

    def write(self, folder: Path) -> None:
        """Write replay.json. InputError if the folder cannot be written."""
        write_atomically(folder / PROVENANCE, self.model_dump_json(indent=2).encode() + b"\n")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The names whose values differ, with both values; "" if all are equal. The old ones were read from JSON."""
    new = json.loads(json.dumps(new))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {_short(old.get(name))} (now {_short(new.get(name))})" for name in names)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_ROOT = Path(__file__).parents[2]
_PACKAGES = ("deploy", "perception")


@cache
def software() -> dict[str, str]:
    """Versions of the software besides the engine.

    `source` is the SHA-256 of our code: unlike version or commit it is always known, and any change of a line changes
    it.
    """
    return {
        "tessera": __version__,
        "source": _source(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "scipy": scipy.__version__,
    }


@cache
def commit() -> str | None:
    """The checked-out commit, with -dirty if files differ from it; None outside of a repository."""
    if not (_ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):  # git is missing, or does not trust the repository
        return None
    return done.stdout.strip()


@cache
def machine() -> Machine:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    system = f"{platform.machine()}, {platform.system()} {platform.release()}"
    return Machine(processor=_processor(), cores=cores, platform=system)


def _source() -> str:
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for file in sorted((_ROOT / package).rglob("*.py")):
            digest.update(file.relative_to(_ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _processor() -> str:
    """The model of the processor on x86, of the board on a Jetson."""
    for file, key in (("/proc/device-tree/model", ""), ("/proc/cpuinfo", "model name")):
        try:
            lines = Path(file).read_text(encoding="utf-8", errors="replace").strip("\0\n").splitlines()
        except OSError:
            continue
        found = [line.partition(":")[2].strip() if key else line for line in lines if line.startswith(key)]
        if found:
            return found[0]
    return platform.processor() or platform.machine()


def new_provenance(runtime: Runtime, source: Source, settings: Settings) -> ReplayProvenance:
    """The provenance of a replay before its first frame."""
    bundle, selection = runtime.bundle, settings.selection
    return ReplayProvenance(
        bundle=BundleUsed(
            name=bundle.manifest.name,
            sums_sha256=hashlib.sha256(bundle.sums.data).hexdigest(),
            release=getattr(bundle.manifest, "release", None),
        ),
        engine=_engine(runtime),
        taxonomy=runtime.bundle.manifest.taxonomy,
        software=software(),
        commit=commit(),
        machine=machine(),
        path=text_of(source.path.resolve().name),
        version=source.version,
        scenes=tuple(source.scenes),
        topics_sha256=None if source.topics is None else sha256(source.topics),
        faults=tuple(settings.faults),
        conditions=None if settings.conditions is None else settings.conditions.known(),
        evidence=runtime.sources.about,
        selection=SelectionUsed(
            start=selection.start, end=None if math.isinf(selection.end) else selection.end, every=selection.every
        ),
        real_time=settings.real_time,
    )


def _engine(runtime: Runtime) -> EngineUsed:
    target, bundle = runtime.target, runtime.bundle
    if find_target(target).compiler == "onnxruntime":
        return EngineUsed(target=target, compiler=f"onnxruntime {version('onnxruntime')}")
    plans = [part.plan(target) for part in (bundle, *bundle.routes.values())]
    digests = tuple(hashlib.sha256(plan.record_data).hexdigest() for plan in plans)
    return EngineUsed(target=target, compiler=plans[0].record.compiler, records_sha256=digests)
