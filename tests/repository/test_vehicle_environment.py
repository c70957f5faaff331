"""A drive replayed where nothing is installed but the vehicle's locked packages: no torch, no devkit, no ONNX tools.

Builds a virtual environment with pip from the registry (or pip's cache): the slowest test there is.
"""

import ast
import filecmp
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from exported import QUIET, bundle
from locks import pinned, requirements
from recordings import make_log
from repository import ROOT
from vehicle_modules import ABSENT, VEHICLE

from deploy.replay.run import replay
from deploy.replay.settings import Source

VERSIONS = {"jetpack6": "3.10", "jetpack7": "3.12"}  # of Python
JETPACKS = {name: ROOT / "requirements" / f"{name}.txt" for name in VERSIONS}
each_jetpack = pytest.mark.parametrize("jetpack", JETPACKS)
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "yaml": "PyYAML",
    "mcap_protobuf": "mcap-protobuf-support",
    "foxglove_schemas_protobuf": "foxglove-schemas-protobuf",
}  # where they are not called as what is imported
LATE = {"tensorrt", "tensorrt_rtx", "fsspec"}  # TensorRT comes with the device; the others with extras
BY_NAME = {"cuda-bindings"}  # imported by importlib, in deploy/engines/cuda.py
# Imported inside functions that the vehicle does not need: the official splits, and training and export.
DEVKIT = "nuscenes"
HEADS = (
    *("network", "detection.center_head", "detection.anchor_head", "detection.joined_head", "detection.peaks"),
    *("map.network", "conditions.network", "conditions.recogniser", "points.network", "occupancy.network"),
)
WORKSHOP = {
    *("deploy.demo", "deploy.export", "deploy.plan", "deploy.replay.rerun_results", "perception.ray_workers"),
    *(f"perception.tasks.{name}" for name in HEADS),
}
DASHES = str.maketrans("_.", "--")  # in the names of distributions
FORBIDDEN = {*ABSENT, "nuscenes-devkit", "matplotlib"}


def required() -> set[str]:
    return set(requirements(ROOT / "requirements" / "vehicle.in"))


@each_jetpack
def test_locked_versions_are_in_the_ranges_of_the_vehicle(jetpack: str) -> None:
    versions = pinned(JETPACKS[jetpack])
    for name, requirement in requirements(ROOT / "requirements" / "vehicle.in").items():
        assert requirement.specifier.contains(versions[name.lower()]), requirement


@each_jetpack
def test_nothing_of_the_workshop_is_locked(jetpack: str) -> None:
    assert not FORBIDDEN & set(pinned(JETPACKS[jetpack]))


def test_the_readme_counts_the_packages() -> None:
    """Finding D13: it said nine where there were fourteen, and did not count what those need."""
    (counts,) = re.findall(r"(\d+) packages on JetPack 6, (\d+) on JetPack 7", (ROOT / "README.md").read_text())
    assert [int(count) for count in counts] == [len(pinned(file)) for file in JETPACKS.values()]


@pytest.mark.registry
@each_jetpack
def test_every_package_has_a_wheel_for_the_device(jetpack: str, tmp_path: Path) -> None:
    """Whose content has the locked hash; nothing is installed."""
    platforms = [f"--platform=manylinux_2_{glibc}_aarch64" for glibc in range(17, 29)]  # pip takes each alone
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "--quiet", "--report=-"]
    device = ["--only-binary=:all:", *platforms, f"--python-version={VERSIONS[jetpack]}", "--target", str(tmp_path)]
    # Without dependencies, since pip would choose those of the Python that runs it.
    done = run([*pip, *device, "--no-deps", "--require-hashes", "--requirement", str(JETPACKS[jetpack])], ROOT)
    assert done.returncode == 0, done.stderr
    found = [package["metadata"] for package in json.loads(done.stdout)["install"]]
    assert {package["name"].lower().translate(DASHES): package["version"] for package in found} == pinned(
        JETPACKS[jetpack]
    )
    assert list(tmp_path.iterdir()) == []


def test_requirements_are_what_the_vehicle_imports() -> None:
    """Every requirement is imported by the vehicle's modules or its command, and every import is a requirement."""
    imported: set[str] = set()
    seen: set[str] = set()
    queue = [*VEHICLE]
    while queue:
        module = queue.pop()
        if module in seen or module in WORKSHOP:
            continue
        seen.add(module)
        file = ROOT.joinpath(*module.split("."))
        tree = ast.parse((file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text())
        for name in _imports(tree, late=".commands." not in module):
            if name.split(".")[0] in ("perception", "deploy"):
                queue.append(name)
            else:
                imported.add(name.split(".")[0])
    third = {DISTRIBUTIONS.get(name, name) for name in imported - set(sys.stdlib_module_names) - LATE - {DEVKIT}}
    assert third | BY_NAME == required()


def _imports(tree: ast.Module, late: bool) -> set[str]:
    """Names of imported modules: all, or those at the top of the file alone."""
    nodes = ast.walk(tree) if late else iter(tree.body)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            package = ROOT.joinpath(*node.module.split("."))
            names |= {
                f"{node.module}.{alias.name}" if (package / f"{alias.name}.py").exists() else node.module
                for alias in node.names
            }
    return names


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a virtual environment as docker/vehicle makes one, from the lock that is nearest this Python.

    The locks have the hashes of every platform's wheels, so those of this one are held to them as well.
    """
    lock = JETPACKS["jetpack6" if sys.version_info < (3, 12) else "jetpack7"]
    folder = tmp_path_factory.mktemp("vehicle") / "environment"
    venv.create(folder, symlinks=True)  # without pip: the one at hand installs
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder), "install", "--quiet"]
    for what in (["--only-binary=:all:", "--require-hashes", "--requirement", str(lock)], ["--no-deps", str(ROOT)]):
        done = run([*pip, "--no-compile", *what], ROOT)
        assert done.returncode == 0, done.stderr
    return folder / "bin"


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=clean)


@pytest.mark.registry
def test_a_simulated_drive_is_replayed_without_torch(environment: Path, sim_root: Path, tmp_path: Path) -> None:
    listing = "import importlib.metadata as m; print(*sorted(d.metadata['Name'].lower() for d in m.distributions()))"
    installed = set(run([str(environment / "python"), "-c", listing], tmp_path).stdout.split())
    assert {name.lower() for name in required()} | {"tessera-perception"} <= installed
    assert not FORBIDDEN & installed

    arguments = ["--bundle", str(bundle().path), "--scenes", "scene-0001", "--out", "replay", "--json"]
    done = run([str(environment / "perception"), "replay", str(sim_root), *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 3
    assert (tmp_path / "replay" / "report.html").stat().st_size > 100_000

    # Its recording too, to the byte.
    make_log(sim_root, "scene-0001", tmp_path / "drive.mcap")
    arguments = ["--bundle", str(bundle().path), "--out", "recorded"]
    done = run([str(environment / "perception"), "replay", "drive.mcap", *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    assert filecmp.cmp(tmp_path / "recorded" / "results.json", tmp_path / "replay" / "results.json", shallow=False)

    # The same as here, up to the versions of numpy, OpenCV and ONNX Runtime.
    replay(Source(sim_root, "v1.0-sim", ["scene-0001"]), bundle().path, tmp_path / "here", console=QUIET)
    there, here = (json.loads((tmp_path / side / "results.json").read_text())["results"] for side in ("replay", "here"))
    assert there.keys() == here.keys()
    for token in here:
        scores = [np.sort([box["detection_score"] for box in side[token]]) for side in (there, here)]
        np.testing.assert_allclose(*scores, atol=1e-3)


@pytest.mark.registry
def test_commands_of_the_workshop_say_what_they_lack(environment: Path, sim_root: Path, tmp_path: Path) -> None:
    config, run_ = ROOT / "configs" / "tiny.yaml", str(tmp_path)
    for command in (
        ["train", str(config), "--data", str(sim_root), "--out", "run"],
        ["export", run_, "--out", "bundle"],
        ["plan", run_],
        ["evaluate", run_, "--data", str(sim_root), "--out", "evaluation"],
        ["modules", run_],
        ["demo", "--out", "demo"],
    ):
        done = run([str(environment / "perception"), *command], tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "this command needs " in done.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.mark.registry
def test_a_bundle_is_built_and_packaged_without_torch(environment: Path, tmp_path: Path) -> None:
    for target in ("cpu", "orin"):
        command = [str(environment / "perception"), "build", str(bundle().path), "--target", target, "--json"]
        done = run([*command, *(["--out", "package"] if target == "orin" else [])], tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["target"] == target
    assert (tmp_path / "package" / "build.sh").exists()
