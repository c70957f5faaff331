"""replay.json: what was replayed, through which bundle, on which machine. No torch here.

The file exists only when the replay is finished. A baseline must have the same settings and data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from perception.atomic import write_atomically
from perception.errors import InputError
from perception.section import Section

PROVENANCE = "replay.json"


class BundleUsed(Section):
    name: str  # of the configuration, as the manifest has it
    manifest_sha256: str
    release: int | None = None  # where the manifest has one


class EngineUsed(Section):
    target: str
    compiler: str  # with its version, such as onnxruntime 1.26.0
    records_sha256: tuple[str, ...] = ()  # of engines/<target>.json, one for each network; none for ONNX Runtime


class Machine(Section):
    processor: str  # its model
    cores: int  # that this process may use
    platform: str  # architecture and operating system


class SelectionUsed(Section):
    """See deploy.replay.selection."""

    start: float  # s
    end: float | None  # s; None: to the end
    every: int


class DriveUsed(Section):
    """A scene of a dataroot, or a recording."""

    name: str  # of the scene; of a recording the name of the file
    frames: int  # that were perceived
    sensors_sha256: str  # of what the sensors gave in these frames, faults included: deploy.replay.fingerprint


class ReplayProvenance(Section):
    """What was replayed, through what, on what."""

    schema_version: Literal[1] = 1
    bundle: BundleUsed
    engine: EngineUsed
    software: dict[str, str]  # version of each program and library that computes; `source` is a hash of our own code
    commit: str | None = None  # of our own code, with -dirty where files differed from it; None: not known
    machine: Machine
    path: str  # last part of the drive's path: of the dataroot or the recording
    version: str | None  # of a dataroot's tables
    scenes: tuple[str, ...]  # as selected; empty: all
    topics_sha256: str | None  # of the YAML file of topics
    faults: tuple[str, ...]  # as `perception replay --fault` takes them, in order
    conditions: tuple[str, ...] | None  # that the vehicle gets; None: the drive's tags
    selection: SelectionUsed
    real_time: bool
    latency: bool  # whether latencies are those of a vehicle: `perception replay --latency`
    drives: tuple[DriveUsed, ...] = ()
    frames: int = 0  # that were perceived
    resumed_at_frame: int = 0  # that were perceived before the replay was interrupted
    finished: str = ""  # ISO 8601, UTC

    @staticmethod
    def load(folder: Path) -> ReplayProvenance:
        """Of the replay in the folder.

        Raises:
            InputError: the folder holds no finished replay, or one of another version of this program.
        """
        path = folder / PROVENANCE
        try:
            return ReplayProvenance.model_validate_json(path.read_bytes())
        except OSError:
            raise InputError(f"{folder}: holds no finished replay (no readable {PROVENANCE}); replay again") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the text"
            raise InputError(f"{path}: {where}: {first['msg'].lower()}; replay again with this version") from None

    def brief(self) -> dict[str, str]:
        """Names and texts for the report."""
        end = "the end" if self.selection.end is None else f"{self.selection.end:g} s"
        release = "" if self.bundle.release is None else f", release {self.bundle.release}"
        return {
            "bundle": f"manifest {self.bundle.manifest_sha256[:16]}{release}",
            "compiler": self.engine.compiler,
            "drives": f"{len(self.drives)} of {self.path}, {self.frames} frames",
            "selection": f"{self.selection.start:g} s to {end}, every {self.selection.every}",
            "faults": ", ".join(self.faults) or "none",
            "conditions": "the drive's tags" if self.conditions is None else ", ".join(self.conditions) or "none known",
            "software": ", ".join(f"{name} {each[:16]}" for name, each in self.software.items()),
            "commit": self.commit or "not known",
            "machine": f"{self.machine.processor}, {self.machine.cores} cores, {self.machine.platform}",
            "finished": self.finished,
        }

    def write(self, folder: Path) -> None:
        """Raises InputError where the folder cannot be written."""
        write_atomically(folder / PROVENANCE, self.model_dump_json(indent=2).encode() + b"\n")
