"""A stand-in for the device of a build package."""

import shutil
import subprocess
from pathlib import Path

from deploy.build_package import BuildPackage

# What TensorRT's own prints first, records its arguments, and writes an engine.
TRTEXEC = """#!/bin/sh
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] [b9] # trtexec $*"
[ "$1" = --help ] && exit 0
printf '%s\\n' "$@" > "{arguments}"
echo "[11/25/2026-02:00:00] [I] Compute Capability: {capability}"
{end}
"""
WRITES = (
    """for each in "$@"; do case "$each" in --saveEngine=*) echo compiled > "${each#--saveEngine=}" ;; esac; done"""
)
TOOLS = (
    "basename", "cat", "cut", "date", "dirname", "grep", "head", "mkdir", "mv", "openssl", "rm", "sed", "sh",
    "sha256sum", "tail", "wc",
)  # fmt: skip


class Device:
    """A machine with some trtexec on its PATH, or with none."""

    def __init__(self, folder: Path, version: int | None, capability: str = "8.7", end: str = WRITES) -> None:
        self.bin, self.recorded = folder / "bin", folder / "arguments"
        self.bin.mkdir(parents=True)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)
        if version is not None:
            script = self.bin / "trtexec"
            script.write_text(TRTEXEC.format(version=version, arguments=self.recorded, capability=capability, end=end))
            script.chmod(0o755)

    def builds(self, package: BuildPackage, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", f"{package.package}/build.sh", *arguments]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, env={"PATH": str(self.bin)}, cwd=self.bin.parent
        )

    @property
    def arguments(self) -> list[str]:
        return self.recorded.read_text().splitlines()


def require_refusal(done: subprocess.CompletedProcess[str], reason: str) -> None:
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert reason in done.stderr
