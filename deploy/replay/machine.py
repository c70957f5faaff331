"""The software and the machine, on which results and latencies depend."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import numpy as np
import scipy

from deploy.integrity import sha256
from deploy.manifest import MANIFEST
from deploy.replay.provenance import BundleUsed, EngineUsed, Machine, ReplayProvenance, SelectionUsed
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from deploy.targets import find_target

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("deploy", "perception")


@cache
def software() -> dict[str, str]:
    """Versions of the software besides the engine.

    `source` is the SHA-256 of our code: unlike version or commit it is always known, and any change of a line changes
    it.
    """
    try:
        tessera = version("tessera-perception")
    except PackageNotFoundError:
        tessera = "not installed"
    return {
        "tessera": tessera,
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
            manifest_sha256=sha256(bundle.path / MANIFEST),
            release=getattr(bundle.manifest, "release", None),
        ),
        engine=_engine(runtime),
        taxonomy=runtime.bundle.manifest.taxonomy,
        software=software(),
        commit=commit(),
        machine=machine(),
        path=source.path.resolve().name,
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
        latency=settings.latency,
    )


def _engine(runtime: Runtime) -> EngineUsed:
    target, bundle = runtime.target, runtime.bundle
    if find_target(target).compiler == "onnxruntime":
        return EngineUsed(target=target, compiler=f"onnxruntime {version('onnxruntime')}")
    records = [part.plan(target).record for part in (bundle, *bundle.routes.values())]
    return EngineUsed(
        target=target, compiler=records[0].compiler, records_sha256=tuple(record.sha256 for record in records)
    )
