"""A drive replayed where nothing is installed but requirements-vehicle.txt: no torch, no devkit, no ONNX tools.

Builds a virtual environment with pip from the registry (or pip's cache): the slowest test there is.
"""

from __future__ import annotations

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
from recordings import make_log
from test_vehicle_imports import VEHICLE

from deploy.replay.player import replay
from deploy.replay.settings import Source

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements-vehicle.txt"
COMMAND = (
    "perception.cli",
    "perception.commands.common",
    "perception.commands.replays",
    "perception.commands.vehicle",
)
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "yaml": "PyYAML",
    "mcap_protobuf": "mcap-protobuf-support",
    "foxglove_schemas_protobuf": "foxglove-schemas-protobuf",
}  # where they are not called as what is imported
# TensorRT comes with the device; tensorrt_rtx and the bindings (cuda) are in extras.
LATE = {"tensorrt", "tensorrt_rtx", "cuda"}
# Imported inside functions that the vehicle does not need: the official splits, and training and export.
DEVKIT, WORKSHOP = "nuscenes", {"deploy.demo", "deploy.export", "deploy.plan", "deploy.replay.rerun_results"}
FORBIDDEN = {
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxscript",
    "accelerate",
    "nuscenes-devkit",
    "matplotlib",
}


def required() -> dict[str, str]:
    """Requirement by distribution."""
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    return {re.split(r"[<>=]", line)[0]: line for line in lines}


def test_requirements_are_those_of_the_project_word_for_word() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(required().values()) <= set(dependencies)


def test_requirements_are_what_the_vehicle_imports() -> None:
    """Every requirement is imported by the vehicle's modules or its command, and every import is a requirement."""
    imported: set[str] = set()
    seen: set[str] = set()
    queue = [*VEHICLE, *COMMAND]
    while queue:
        module = queue.pop()
        if module in seen or module in WORKSHOP:
            continue
        seen.add(module)
        file = ROOT.joinpath(*module.split("."))
        tree = ast.parse((file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text())
        for name in _imports(tree, late=not module.startswith("perception.commands")):
            if name.split(".")[0] in ("perception", "deploy"):
                queue.append(name)
            else:
                imported.add(name.split(".")[0])
    third = {DISTRIBUTIONS.get(name, name) for name in imported - set(sys.stdlib_module_names) - LATE - {DEVKIT}}
    assert third == set(required())


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
    """The `bin` folder of a virtual environment as docker/vehicle makes one."""
    folder = tmp_path_factory.mktemp("vehicle") / "environment"
    venv.create(folder, symlinks=True)  # without pip: the one at hand installs
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder), "install", "--quiet"]
    for what in (["--requirement", str(REQUIREMENTS)], ["--no-deps", str(ROOT)]):
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
