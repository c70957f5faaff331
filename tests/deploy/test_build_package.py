"""The package with which a device compiles a bundle: build.sh run for real, with a stand-in for trtexec."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import perception
from devices import Device, refused
from exported import QUIET, apart, bundle, copied

from deploy.build import build
from deploy.build_package import BuildPackage
from deploy.bundle import Bundle
from perception.errors import InputError

PILLARS = "pillar_points:1x12000x8x5,pillar_counts:1x12000,pillar_cells:1x12000"


def packaged(folder: Path, target: str, dla: bool = False, refittable: bool = False) -> BuildPackage:
    package = build(bundle().path, target, QUIET, dla, folder / "package", refittable=refittable)
    return package


@pytest.mark.parametrize(
    ("target", "version", "capability", "dla", "options"),
    [
        ("orin", 100300, "8.7", False, ["--refit", "--stronglyTyped"]),
        ("thor", 110401, "11.0", False, ["--refit"]),
        ("orin", 100300, "8.7", False, ["--stronglyTyped"]),
        ("orin", 100300, "8.7", True, ["--useDLACore=0", "--allowGPUFallback", "--stronglyTyped"]),
        ("drive-orin", 100700, "8.7", True, ["--useDLACore=0", "--allowGPUFallback", "--stronglyTyped"]),
        ("thor", 101303, "11.0", False, ["--stronglyTyped"]),
        ("thor", 110401, "11.0", False, []),
        ("drive-thor", 101010, "10.1", False, ["--stronglyTyped"]),
        ("drive-thor", 110001, "11.0", False, []),
    ],
)
def test_script_compiles_and_leaves_an_engine_that_the_bundle_accepts(
    tmp_path: Path, target: str, version: int, capability: str, dla: bool, options: list[str]
) -> None:
    refittable = "--refit" in options
    package, device = packaged(tmp_path, target, dla, refittable), Device(tmp_path, version, capability)
    done = device.builds(package)
    assert (done.returncode, done.stderr) == (0, "")
    plan = f"bundle/engines/{target}.plan"
    assert device.arguments == [
        "--onnx=bundle/model.onnx", f"--saveEngine={plan}.new", "--noTF32", "--skipInference",
        *(f"--{bound}Shapes={PILLARS}" for bound in ("min", "opt", "max")), *options
    ]  # fmt: skip
    # What the README and --json announce is what ran.
    announced = package.commands[str(version // 10000)]
    assert shlex.split(announced)[1:] == device.arguments
    assert announced in (tmp_path / "package" / "README.md").read_text()
    assert Bundle.load(tmp_path / "package" / "bundle").plan(target).data == b"compiled\n"
    record = json.loads((tmp_path / "package" / "bundle" / "engines" / f"{target}.json").read_text())
    readable = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
    assert record["refittable"] is refittable
    assert ("--refit\n" in (tmp_path / "package" / "README.md").read_text()) is refittable
    assert record["compiler"] == f"tensorrt {readable}{' with DLA 0' if dla else ''}"
    assert sorted(path.suffix for path in (tmp_path / "package" / "bundle" / "engines").iterdir()) == [".json", ".plan"]
    assert device.builds(package).returncode == 0  # once more, over the engine that is there


@pytest.mark.parametrize(
    ("target", "dla", "version", "range_"),
    [
        ("orin", False, 8602, ">=10.3,<11"),  # JetPack 5 and 6.0
        ("orin", False, 100001, ">=10.3,<11"),
        ("orin", False, 110401, ">=10.3,<11"),
        ("orin", True, 100800, ">=10.3,<10.8"),
        ("thor", False, 100300, ">=10.13,<12"),
        ("drive-thor", False, 120000, ">=10.10,<12"),
    ],
)
def test_script_refuses_another_tensorrt(tmp_path: Path, target: str, dla: bool, version: int, range_: str) -> None:
    device = Device(tmp_path, version)
    refused(device.builds(packaged(tmp_path, target, dla)), f"{target} needs TensorRT {range_}, but ")
    assert not device.recorded.exists()


def test_script_refuses_a_changed_package(tmp_path: Path) -> None:
    package, device = packaged(tmp_path, "orin"), Device(tmp_path, 100300)
    graph = tmp_path / "package" / "bundle" / "model.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(device.builds(package), "build.sh: bundle/model.onnx: is missing or was changed")
    graph.unlink()
    refused(device.builds(package), "build.sh: bundle/model.onnx: is missing or was changed")
    graph.write_bytes(content)
    (tmp_path / "package" / "SHA256SUMS").unlink()
    refused(device.builds(package), "build.sh: SHA256SUMS: is missing or was changed")
    assert not device.recorded.exists()


def test_script_refuses_a_machine_without_trtexec(tmp_path: Path) -> None:
    refused(Device(tmp_path, None).builds(packaged(tmp_path, "orin")), "no trtexec on the PATH")


def test_script_refuses_arguments(tmp_path: Path) -> None:
    device, package = Device(tmp_path, 100300), packaged(tmp_path, "orin")
    refused(device.builds(package, "--fast", "--faster"), "takes the public key that must have signed this package")
    refused(device.builds(package, "--fast"), "--fast: no such key")


def test_script_refuses_the_engine_of_another_gpu(tmp_path: Path) -> None:
    """TensorRT 10.13 is in the range of an Orin, but a Thor has it as well."""
    done = Device(tmp_path, 101303, "11.0").builds(packaged(tmp_path, "orin"))
    refused(done, "this GPU has compute capability 11.0, a Jetson Orin has 8.7")
    assert not list((tmp_path / "package" / "bundle" / "engines").iterdir())


@pytest.mark.parametrize(
    ("end", "reason"),
    [("echo '[E] Error[4]: unsupported'; exit 1", "[E] Error[4]: unsupported"), ("exit 0", "wrote no engine")],
)
def test_script_ends_with_1_and_keeps_the_old_engine(tmp_path: Path, end: str, reason: str) -> None:
    package = packaged(tmp_path, "orin")
    assert Device(tmp_path / "good", 100300).builds(package).returncode == 0
    done = Device(tmp_path / "bad", 100300, end=end).builds(package)
    assert done.returncode == 1
    assert reason in done.stderr
    assert Bundle.load(tmp_path / "package" / "bundle").plan("orin").data == b"compiled\n"


def test_script_passes_shellcheck(tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    script = Path(packaged(tmp_path, "drive-thor").package) / "build.sh"
    done = subprocess.run([shellcheck, script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_package_is_whole_and_stale_engines_stay_behind(tmp_path: Path) -> None:
    path = copied(tmp_path / "bundle")
    build(path, "orin", QUIET)
    (path / "engines").mkdir()
    (path / "engines" / "rtx-ada.plan").write_bytes(b"of another GPU")
    build(path, "orin", QUIET)  # replaces the first
    package = tmp_path / "bundle-orin"
    assert {str(file.relative_to(package)) for file in package.rglob("*") if file.is_file()} == {
        "README.md", "SHA256SUMS", "build.sh", "bundle/golden.safetensors", "bundle/manifest.json", "bundle/model.onnx",
    }  # fmt: skip
    assert os.access(package / "build.sh", os.X_OK)
    assert {file.name for file in tmp_path.iterdir()} == {"bundle", "bundle-orin"}


def test_package_replaces_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "precious").write_text("a week of work")
    with pytest.raises(InputError, match="results: exists and is not a build package"):
        build(bundle().path, "orin", QUIET, out=tmp_path / "results")
    assert (tmp_path / "results" / "precious").read_text() == "a week of work"


def test_command_writes_a_package(tmp_path: Path) -> None:
    done = perception("build", bundle().path, "--target", "orin", "--dla", "--out", "package", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert described["target"] == "orin"
    assert "--useDLACore=0 --allowGPUFallback" in described["commands"]["10"]
    assert "all layers of this fp32 bundle will stay on the GPU" in " ".join(done.stderr.split())
    assert (tmp_path / "package" / "build.sh").exists()


def test_every_network_of_a_bundle_is_compiled(tmp_path: Path) -> None:
    shutil.copytree(apart()[0].path, tmp_path / "bundle")
    package = build(tmp_path / "bundle", "orin", QUIET, out=tmp_path / "package")
    device = Device(tmp_path, 100300)
    done = device.builds(package)
    assert done.returncode == 0, done.stderr
    announced = package.commands["10"].splitlines()
    assert [line.split()[1] for line in announced] == [
        "--onnx=bundle/model.onnx",
        "--onnx=bundle/routes/rain/model.onnx",
        "--onnx=bundle/routes/rain+night/model.onnx",
    ]
    found = Bundle.load(Path(package.package) / "bundle")
    for part in (found, *found.routes.values()):
        assert part.plan("orin", "tensorrt 10.3.0").data == b"compiled\n"
    assert device.arguments == announced[2].split()[1:]  # of the last run
