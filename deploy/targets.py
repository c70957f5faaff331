"""The targets that a bundle can be compiled for: compiler and versions, supported graphs, and devices.

Sources (pages of docs.nvidia.com/deeplearning/tensorrt, for TensorRT 11.4.1):

- TensorRT compiles for the GPU it runs on; TensorRT-RTX compiles for any RTX GPU on any x86-64 machine.
- Opsets: TensorRT 10 reads 9-20, TensorRT 11 9-25 ("ONNX Opset Guide"). A range here holds for all of a target's
  versions. TensorRT-RTX is assumed to read the same as TensorRT 10, since it has the same parser.
- Jetson Orin: JetPack 6.1 brings TensorRT 10.3, and JetPack 6 stays on 10 ("Migrating TensorRT from 10.x to 11.x on
  Jetson/JetPack"). JetPack 7.2.2 brings 11.4 to AGX Orin, which is not supported here.
- Jetson Thor: JetPack 7.0 brings TensorRT 10.13, JetPack 7.2.2 allows 11.4 (the same page).
- DRIVE Orin: DriveOS stays on a branch of TensorRT 10 ("Migrating TensorRT from 10.x to 11.x on NVIDIA DriveOS").
- DRIVE Thor: DriveOS 7.0.3 brings TensorRT 10.10 and calls the GPU 10.1 ("TensorRT Release Properties" of DRIVE OS);
  DriveOS 7.2.5 brings TensorRT 11. CUDA 13 calls the same GPU 11.0.
- DLA: AGX Orin and DRIVE Orin have two cores, Thor has none; they run FP16 and INT8. TensorRT 10.7 is the last of
  TensorRT 10 that compiles for them ("Working with DLA"). The smallest Orin modules have none, which the build detects.
- INT8 means explicit Q/DQ. It is not in the support matrix of TensorRT-RTX, but such graphs compile with 1.7.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rich import box
from rich.table import Table

from deploy.tolerances import Precision
from perception.errors import InputError, install_hint, suggestion

Compiler = Literal["onnxruntime", "tensorrt_rtx", "tensorrt"]


@dataclass(frozen=True)
class Versions:
    """A range of versions (major, minor), from `first` up to but not including `end`."""

    first: tuple[int, int]
    end: tuple[int, int]

    def __str__(self) -> str:
        return f">={self.first[0]}.{self.first[1]},<{self.end[0]}" + (f".{self.end[1]}" if self.end[1] else "")

    def __contains__(self, version: str) -> bool:
        """Whether a version such as `10.3.0` or `1.7.1.116` is in the range."""
        numbers = re.match(r"(\d+)\.(\d+)", version)
        return numbers is not None and self.first <= (int(numbers[1]), int(numbers[2])) < self.end


WITH_DLA = " with DLA 0"  # ends the compiler's name and version in the record of a plan with layers on a DLA


def is_same_compiler(a: str, b: str) -> bool:
    """Whether two names, such as `tensorrt 10.3.0` by trtexec and `tensorrt 10.3.0.30` by Python, are the same release.

    The fourth number is the build of a release. If plans of two builds are incompatible, TensorRT refuses them.
    """
    numbers = re.compile(r"(\S+) (\d+)\.(\d+)(?:\.(\d+))?(?:\.\d+)*")
    one, other = numbers.fullmatch(a), numbers.fullmatch(b)
    if one is None or other is None:
        return a == b
    (name, *version), (other_name, *other_version) = one.groups("0"), other.groups("0")
    return name == other_name and [*map(int, version)] == [*map(int, other_version)]


@dataclass(frozen=True)
class Target:
    """A kind of machine that runs bundles."""

    name: str
    device: str
    compiler: Compiler
    versions: Versions  # of the compiler
    opsets: tuple[int, int]  # of ONNX, the first and the last
    install: str  # how to install the compiler
    compute_capabilities: tuple[int, ...] = ()  # of its GPU, times ten; two if CUDA renumbered it
    dla_cores: int = 0
    dla_versions: Versions | None = None  # of the compiler, to compile for a DLA

    def versions_for(self, dla: bool) -> Versions:
        """The supported versions of the compiler, with or without a DLA. InputError if there is no DLA."""
        if not dla:
            return self.versions
        if self.dla_versions is None:
            equipped = " and ".join(target.name for target in TARGETS.values() if target.dla_cores)
            raise InputError(f"{self.name}: has no DLA; leave out --dla ({equipped} have one)")
        return self.dla_versions

    def require_opset(self, opset: int) -> None:
        """Raise InputError if this target does not support graphs of this opset."""
        first, last = self.opsets
        if not first <= opset <= last:
            raise InputError(f"{self.name}: takes ONNX opsets {first} to {last}, but the bundle has {opset}")

    def to_json(self) -> dict[str, Any]:
        """The target as JSON values."""
        return {
            "target": self.name,
            "device": self.device,
            "compiler": self.compiler,
            "versions": str(self.versions),
            "compiles_on": "the device" if self.compiler == "tensorrt" else "any machine",
            "compute_capabilities": [value / 10 for value in self.compute_capabilities],
            "precisions": list(get_args(Precision)),
            "opsets": list(self.opsets),
            "dla_cores": self.dla_cores,
            "dla_versions": None if self.dla_versions is None else str(self.dla_versions),
            "install": self.install,
        }


def _rtx(name: str, device: str, compute_capability: int) -> Target:
    return Target(
        name,
        device,
        "tensorrt_rtx",
        Versions((1, 1), (2, 0)),
        opsets=(9, 20),
        install=f"{install_hint('rtx')} (Linux or Windows, x86-64; no GPU needed)",
        compute_capabilities=(compute_capability,),
    )


def _orin(name: str, device: str, versions: Versions, install: str) -> Target:
    return Target(
        name,
        device,
        "tensorrt",
        versions,
        opsets=(9, 20),
        install=install,
        compute_capabilities=(87,),
        dla_cores=2,
        dla_versions=Versions(versions.first, (10, 8)),
    )


def _thor(name: str, device: str, versions: Versions, install: str, compute_capabilities: tuple[int, ...]) -> Target:
    return Target(name, device, "tensorrt", versions, (9, 20), install, compute_capabilities)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("cpu", "any CPU", "onnxruntime", Versions((1, 20), (2, 0)), (7, 21), "pip install onnxruntime"),
        _rtx("rtx-ampere", "GeForce RTX 30, RTX A2000 to A6000", 86),
        _rtx("rtx-ada", "GeForce RTX 40, RTX 2000 to 6000 Ada", 89),
        _rtx("rtx-blackwell", "GeForce RTX 50, RTX PRO Blackwell", 120),
        _orin("orin", "Jetson Orin", Versions((10, 3), (11, 0)), "JetPack 6.1 or later brings TensorRT 10"),
        _thor("thor", "Jetson Thor", Versions((10, 13), (12, 0)), "JetPack 7 brings TensorRT 10.13 or later", (110,)),
        _orin(
            "drive-orin", "DRIVE AGX Orin", Versions((10, 0), (11, 0)), "DriveOS for Orin with TensorRT 10 brings it"
        ),
        _thor(
            "drive-thor",
            "DRIVE AGX Thor",
            Versions((10, 10), (12, 0)),
            "DriveOS 7 brings TensorRT 10.10 or later",
            (101, 110),
        ),
    )
}


def find_target(name: str) -> Target:
    """The target with this name; InputError if there is none."""
    if name not in TARGETS:
        raise InputError(f"{name}: unknown target; choose one of {', '.join(TARGETS)}{suggestion(name, TARGETS)}")
    return TARGETS[name]


def table() -> Table:
    """The table of all targets, with what each supports."""
    shown = Table(title="Targets", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("target", no_wrap=True)
    shown.add_column("device", min_width=11)
    shown.add_column("compiler", no_wrap=True)
    for column in ("compiles\non", "GPU", "types", "ONNX\nopsets", "DLA\ncores"):
        shown.add_column(column)
    for target in TARGETS.values():
        shown.add_row(
            target.name,
            target.device,
            f"{target.compiler}\n{target.versions}",
            target.to_json()["compiles_on"],
            "\n".join(str(value / 10) for value in target.compute_capabilities),
            "\n".join(get_args(Precision)),
            "{}-{}".format(*target.opsets),
            str(target.dla_cores or "none"),
        )
    return shown
