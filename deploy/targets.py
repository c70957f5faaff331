"""What a bundle can be compiled for, with which compiler, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from perception.errors import InputError

Compiler = Literal["onnxruntime", "tensorrt_rtx", "tensorrt"]


@dataclass(frozen=True)
class Target:
    """A kind of machine that runs bundles."""

    name: str
    device: str
    compiler: Compiler
    compute_capability: int | None = None  # of its GPU: 86 is 8.6
    install: str = ""  # how its compiler gets there


_RTX = "pip install 'tessera-perception[rtx]' (Linux or Windows, x86-64; no GPU needed)"

# TensorRT-RTX compiles for any RTX GPU on any x86-64 machine. TensorRT compiles for the GPU it runs on: for Jetson
# and DRIVE that is the device itself.
TARGETS = {
    target.name: target
    for target in (
        Target("cpu", "any CPU", "onnxruntime"),
        Target("rtx-ampere", "GeForce RTX 30, RTX A2000-A6000", "tensorrt_rtx", 86, _RTX),
        Target("rtx-ada", "GeForce RTX 40, RTX 2000-6000 Ada", "tensorrt_rtx", 89, _RTX),
        Target("rtx-blackwell", "GeForce RTX 50, RTX PRO Blackwell", "tensorrt_rtx", 120, _RTX),
        Target("orin", "Jetson Orin", "tensorrt", 87, "JetPack 6 brings TensorRT 10"),
        Target("thor", "Jetson Thor", "tensorrt", 110, "JetPack 7 brings TensorRT 10.13 or later"),
        Target("drive-orin", "DRIVE AGX Orin", "tensorrt", 87, "DRIVE OS 6.5 or later brings TensorRT 10"),
        Target("drive-thor", "DRIVE AGX Thor", "tensorrt", 101, "DRIVE OS 7 brings TensorRT 10"),
    )
}


def find_target(name: str) -> Target:
    """The target of that name; InputError lists them where there is none."""
    if name not in TARGETS:
        raise InputError(f"{name}: unknown target; choose one of {', '.join(TARGETS)}")
    return TARGETS[name]
