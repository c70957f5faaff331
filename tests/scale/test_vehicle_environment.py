"""Replaying and driving where nothing is installed but the vehicle's locked packages: no torch, devkit or ONNX tools.

Builds a virtual environment with pip from the registry (or pip's cache).
"""

import filecmp
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from check_repository import ABSENT, read_pins, vehicle_packages
from exported import QUIET, bundle
from live import free_port
from repository import ROOT

from deploy.log import write_log
from deploy.recordings.mcap import McapRecording
from deploy.replay.run import replay
from deploy.replay.settings import Source

VERSIONS = {"jetpack6": "3.10", "jetpack7": "3.12"}  # of Python
JETPACKS = {name: ROOT / "requirements" / f"{name}.txt" for name in VERSIONS}
DASHES = str.maketrans("_.", "--")  # in the names of distributions
FORBIDDEN = {*ABSENT, "nuscenes-devkit", "matplotlib"}


@pytest.mark.registry
@pytest.mark.parametrize("jetpack", JETPACKS)
def test_every_package_has_a_wheel_for_the_device(jetpack: str, tmp_path: Path) -> None:
    """Whose content has the locked hash; nothing is installed."""
    platforms = [f"--platform=manylinux_2_{glibc}_aarch64" for glibc in range(17, 29)]  # pip takes each alone
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "--quiet", "--report=-"]
    device = ["--only-binary=:all:", *platforms, f"--python-version={VERSIONS[jetpack]}", "--target", str(tmp_path)]
    lock = JETPACKS[jetpack]
    # Without dependencies, since pip would choose those of the Python that runs it.
    done = run([*pip, *device, "--no-deps", "--require-hashes", "--requirement", str(lock)], ROOT)
    assert done.returncode == 0, done.stderr
    found = [package["metadata"] for package in json.loads(done.stdout)["install"]]
    assert {package["name"].lower().translate(DASHES): package["version"] for package in found} == read_pins(lock)
    assert list(tmp_path.iterdir()) == []


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
def test_a_simulated_drive_is_replayed_and_driven_without_torch(
    environment: Path, sim_root: Path, tmp_path: Path
) -> None:
    listing = "import importlib.metadata as m; print(*sorted(d.metadata['Name'].lower() for d in m.distributions()))"
    installed = set(run([str(environment / "python"), "-c", listing], tmp_path).stdout.split())
    assert {name.lower() for name in vehicle_packages()} | {"tessera-perception"} <= installed
    assert not FORBIDDEN & installed

    arguments = ["--bundle", str(bundle().path), "--scenes", "scene-0001", "--out", "replay", "--json"]
    done = run([str(environment / "perception"), "replay", str(sim_root), *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 3
    assert (tmp_path / "replay" / "report.html").stat().st_size > 100_000

    # Its recording too, to the byte.
    write_log(sim_root, "scene-0001", tmp_path / "drive.mcap")
    arguments = ["--bundle", str(bundle().path), "--out", "recorded"]
    done = run([str(environment / "perception"), "replay", "drive.mcap", *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    assert filecmp.cmp(tmp_path / "recorded" / "results.json", tmp_path / "replay" / "results.json", shallow=False)

    # It drives as well, with all that the options add.
    added = ["--metrics", str(free_port()), "--view", str(free_port()), "--record", "driven.mcap"]
    arguments = ["drive", str(bundle().path), "--from", "drive.mcap", "--out", "driven", *added, "--json"]
    done = run([str(environment / "perception"), *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    frames = json.loads(done.stdout)["frames"]
    assert frames.pop("announced") == sum(frames.values()) == 3
    assert McapRecording(tmp_path / "driven.mcap").info.counts["/keyframe"] == 3

    # The same as here, up to the versions of numpy, OpenCV and ONNX Runtime.
    replay(Source(sim_root, "v1.0-sim", ["scene-0001"]), bundle().path, tmp_path / "here", console=QUIET)
    there, here = (json.loads((tmp_path / side / "results.json").read_text())["results"] for side in ("replay", "here"))
    assert there.keys() == here.keys()
    for token in here:
        scores = [np.sort([box["detection_score"] for box in side[token]]) for side in (there, here)]
        np.testing.assert_allclose(*scores, atol=1e-3)


@pytest.mark.registry
def test_a_bundle_is_built_and_packaged_without_torch(environment: Path, tmp_path: Path) -> None:
    for target in ("cpu", "orin"):
        command = [str(environment / "perception"), "build", str(bundle().path), "--target", target, "--json"]
        done = run([*command, *(["--out", "package"] if target == "orin" else [])], tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["target"] == target
    assert (tmp_path / "package" / "build.sh").exists()
