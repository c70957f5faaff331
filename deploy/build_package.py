"""The build package: a folder to copy to a device, which compiles the bundle in it with its own TensorRT.

    bundle/          the bundle, in which the engine will be stored
    build.sh         checks the package and the device's TensorRT, compiles, and writes the engine's record
    README.md        instructions, with the exact commands
    SHA256SUMS       hashes of all of these
    SHA256SUMS.sig   the signature of SHA256SUMS, if a key was given

The options of trtexec are those of TensorRT 10 and 11 (docs.nvidia.com/deeplearning/tensorrt, "Migrating trtexec Usage
from TensorRT 10.x to 11.x", "Building and Launching the Loadable"). The script is tested with a stand-in for trtexec,
which comes with JetPack and DriveOS only.
"""

from __future__ import annotations

import shutil
import textwrap
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.bundle import ENGINES, Bundle
from deploy.integrity import SUMS, SUMS_SIGNATURE, make_sums
from deploy.targets import WITH_DLA, Target
from perception.errors import InputError
from perception.io.files import atomic_folder
from perception.io.section import Section
from perception.sensors.inputs import PILLARS

if TYPE_CHECKING:
    from deploy.signature import Signer

SCRIPT = "build.sh"

README = """# {name} for {device}

Copy this folder to the {device} and run

    sh build.sh

{signed}It checks every file against {sums}, finds `trtexec` (on the PATH or in /usr/src/tensorrt/bin), checks that its
TensorRT is {versions}, compiles, checks that the GPU has compute capability {capabilities}, and stores the engine and
its record in `bundle/engines`, where the runtime looks for them. It runs:

{commands}

The output is in `build.log`. Exit code 0: the engine is in the bundle; 1: TensorRT cannot compile the graph; 2: the
package or the machine is unsuitable. The last line gives the reason.

If this project and TensorRT's Python module are installed on the device, `bundle` can be compiled without trtexec:

    {perception}

Neither has been run on a {device} yet. The runtime runs the golden frames of the bundle first, and refuses an engine
that does not compute the exported network.
{dla_note}"""

SIGNED = """with the public key of its maker, which must not come with this folder:

    sh build.sh /path/to/public.pem

Then it first checks the signature of {sums} with openssl. A manipulated script would skip that. If you do not trust
this folder, check it with tools that are already on the device, `perception verify . --key /path/to/public.pem` or

    openssl pkeyutl -verify -rawin -in {sums} -sigfile {sums}.sig -pubin -inkey /path/to/public.pem
    sha256sum -c {sums}

"""

DLA_NOTE = """
Layers that the DLA cannot run stay on the GPU; `build.log` lists them. A DLA runs FP16 and INT8; this bundle is
{precision}.
"""


class BuildPackage(Section):
    """A written build package."""

    target: str
    package: str  # its folder
    versions: str  # of TensorRT that may compile it
    commands: dict[str, str]  # commands of build.sh by major version of TensorRT, a line per network


def write_package(
    bundle: Bundle, target: Target, out: Path, dla: bool, refittable: bool, signer: Signer | None = None
) -> BuildPackage:
    """Write the build package of a bundle, without its engines, to the folder `out`, replacing an older one."""
    if out.exists() and not (out / SCRIPT).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not a build package; choose another --out")
    package = _describe(bundle, target, out, dla, refittable)
    with atomic_folder(out, "the build package") as fresh:
        shutil.copytree(bundle.path, fresh / "bundle", ignore=shutil.ignore_patterns(ENGINES))
        script = fresh / SCRIPT
        script.write_text(_script(bundle, target, dla, refittable), "utf-8")
        script.chmod(0o755)
        (fresh / "README.md").write_text(_readme(bundle, target, package, dla, refittable, signer), "utf-8")
        sums = make_sums(fresh)
        (fresh / SUMS).write_bytes(sums)
        if signer is not None:
            (fresh / SUMS_SIGNATURE).write_bytes(signer.sign(sums))
    return package


def _describe(bundle: Bundle, target: Target, out: Path, dla: bool, refittable: bool) -> BuildPackage:
    versions = target.versions_for(dla)
    commands = [
        f"trtexec --onnx={folder}/{bundle.onnx.name} --saveEngine={folder}/engines/{target.name}.plan.new "
        f"{_flags(bundle, dla, refittable)}"
        for folder in _folders(bundle)
    ]
    majors = range(versions.first[0], versions.end[0] + bool(versions.end[1]))
    return BuildPackage(
        target=target.name,
        package=str(out),
        versions=str(versions),
        commands={
            str(major): "\n".join(command + (" --stronglyTyped" if major < 11 else "") for command in commands)
            for major in majors
        },
    )


def _folders(bundle: Bundle) -> list[str]:
    return ["bundle", *(f"bundle/{part.path.relative_to(bundle.path).as_posix()}" for part in bundle.routes.values())]


def _flags(bundle: Bundle, dla: bool, refittable: bool) -> str:
    """Options of trtexec for every version: no TF32, whose mantissa is shorter than FP32's, and no timing runs.

    The graph takes any number of pillars, the plan exactly as many as the manifest says.
    """
    options = "--noTF32 --skipInference"
    pillars = [tensor for tensor in bundle.manifest.inputs if tensor.name in PILLARS]
    if pillars:
        shapes = ",".join(f"{tensor.name}:{'x'.join(map(str, tensor.shape))}" for tensor in pillars)
        options += "".join(f" --{bound}Shapes={shapes}" for bound in ("min", "opt", "max"))
    return options + (" --useDLACore=0 --allowGPUFallback" if dla else "") + (" --refit" if refittable else "")


def _script(bundle: Bundle, target: Target, dla: bool, refittable: bool) -> str:
    script = files("deploy").joinpath("build.sh").read_text(encoding="utf-8")
    versions = target.versions_for(dla)
    for name, value in {
        "target": target.name,
        "device": target.device,
        "install": target.install,
        "versions": str(versions),
        "first": _version_number(versions.first),
        "end": _version_number(versions.end),
        "graph": bundle.onnx.name,
        "compile": "\n".join(f"compile {folder}" for folder in _folders(bundle)),
        "flags": _flags(bundle, dla, refittable),
        "refittable": "true" if refittable else "false",
        "capabilities": _capabilities(target, " | "),
        "with_dla": WITH_DLA if dla else "",
    }.items():
        script = script.replace(f"@{name}@", value)
    return script


def _readme(
    bundle: Bundle, target: Target, package: BuildPackage, dla: bool, refittable: bool, signer: Signer | None
) -> str:
    commands = "\n\n".join(f"# TensorRT {major}\n{command}" for major, command in package.commands.items())
    return README.format(
        name=bundle.manifest.name,
        device=target.device,
        sums=SUMS,
        signed=SIGNED.format(sums=SUMS) if signer else "",
        versions=package.versions,
        capabilities=_capabilities(target, " or "),
        commands=textwrap.indent(commands, "    "),
        perception=f"perception build bundle --target {target.name}"
        + (" --dla" if dla else "")
        + (" --refit" if refittable else ""),
        dla_note=DLA_NOTE.format(precision=bundle.manifest.precision) if dla else "",
    )


def _capabilities(target: Target, between: str) -> str:
    return between.join(str(value / 10) for value in target.compute_capabilities)


def _version_number(version: tuple[int, int]) -> str:
    """A version in the format of trtexec: 100300 for 10.3.0."""
    return str(10000 * version[0] + 100 * version[1])
