"""replay.json: drives, settings, bundle, software and machine of a finished replay. No torch here.

A baseline must have the same settings and data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from perception.errors import InputError
from perception.files import write_atomically
from perception.section import Section
from perception.taxonomy import Taxonomy

PROVENANCE = "replay.json"


class BundleUsed(Section):
    name: str  # of the configuration, from the manifest
    manifest_sha256: str
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
    """See deploy.replay.selection."""

    start: float  # s
    end: float | None  # s; None: to the end
    every: int


class DriveUsed(Section):
    """A scene of a dataroot, or a recording."""

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
    latency: bool  # whether latencies were measured as on a vehicle (`perception replay --latency`)
    drives: tuple[DriveUsed, ...] = ()
    frames: int = 0  # that were perceived
    resumed_at_frame: int = 0  # number of frames before the last interruption
    finished: str = ""  # ISO 8601, UTC

    @staticmethod
    def load(folder: Path) -> ReplayProvenance:
        """Read the provenance of the replay in this folder.

        Raises:
            InputError: there is no finished replay, or it is from another version of this software.
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

    def about(self, path: Path) -> dict[str, Any]:
        """What an unfinished replay must have in common with one that goes on with it, as JSON.

        Args:
            path: of the drives.
        """
        known = self.model_dump(mode="json")
        names = ("version", "scenes", "topics_sha256", "faults", "conditions", "evidence", "selection", "latency")
        about = {"drive": str(path.resolve()), **{name: known[name] for name in names}}
        return about | {"bundle": self.bundle.manifest_sha256, "target": self.engine.target}

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
            "bundle": f"manifest {self.bundle.manifest_sha256[:16]}{release}",
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
