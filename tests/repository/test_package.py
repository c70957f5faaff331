"""The package as it is installed: one version for Python, C++ and ROS, and what the wheel contains."""

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from zipfile import ZipFile

from commands import succeeds
from repository import ROOT

from perception import __version__


def test_python_cpp_and_ros_have_one_version() -> None:
    assert succeeds("--version") == f"perception {__version__}\n"
    assert f"project(tessera VERSION {__version__} " in (ROOT / "deploy/cpp/CMakeLists.txt").read_text()
    assert f"<version>{__version__}</version>" in (ROOT / "deploy/ros2/package.xml").read_text()


def test_the_wheel_has_all_that_commands_read_and_no_other_sources(tmp_path: Path) -> None:
    """Every tracked file of the two packages and of `configs` is in it, except C++, ROS and hidden files."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob(f"tessera_perception-{__version__}-py3-none-any.whl")
    tracked = subprocess.run(
        ["git", "ls-files", "perception", "deploy", "configs"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    names = (re.sub("^configs/", "perception/configs/", line) for line in tracked.stdout.splitlines())
    expected = {name for name in names if not re.match(r"deploy/(cpp|ros2)/|.*/\.", name)}
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(f"tessera_perception-{__version__}.dist-info/METADATA").decode()
    assert packed == expected
    assert all(files(package).joinpath("py.typed").is_file() for package in ("perception", "deploy"))
    assert "License-Expression: Apache-2.0" in metadata
