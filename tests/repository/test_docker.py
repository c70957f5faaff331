"""The Dockerfiles, as far as they can be checked without a docker engine: they were not built here."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from locks import requirements
from packaging.requirements import Requirement
from repository import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOCKERFILES = [ROOT / "docker" / "train" / "Dockerfile", ROOT / "docker" / "vehicle" / "Dockerfile"]
each_file = pytest.mark.parametrize("file", DOCKERFILES, ids=[path.parent.name for path in DOCKERFILES])


def instructions(file: Path) -> list[tuple[str, str]]:
    """Instruction and arguments of every line, with continued lines joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def arguments(file: Path, instruction: str) -> list[str]:
    return [rest for name, rest in instructions(file) if name == instruction]


def ignored(path: str) -> bool:
    """As docker reads .dockerignore: the last pattern that matches a path or a folder above it decides."""
    decision = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        parts = Path(path).parts
        above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        if line and not line.startswith("#") and any(_matches(each, pattern) for each in above):
            decision = not line.startswith("!")
    return decision


def _matches(path: str, pattern: str) -> bool:
    return fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(f"/{path}", f"*/{pattern.removeprefix('**/')}")


@each_file
def test_base_image_is_pinned_by_a_tag(file: Path) -> None:
    (image,) = arguments(file, "FROM")
    assert re.fullmatch(r"[\w./-]+:[\w.-]*\d+\.\d+[\w.-]*", image)


@each_file
def test_what_is_copied_exists_and_reaches_the_engine(file: Path) -> None:
    sources = [source for copy in arguments(file, "COPY") for source in shlex.split(copy)[:-1]]
    assert {"perception", "deploy", "configs", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


def test_nothing_else_reaches_the_engine() -> None:
    for path in (".git", ".venv", "runs", "tests", "docs", "perception/__pycache__", "deploy/replay/__pycache__"):
        assert ignored(path), path


@each_file
def test_the_header_has_a_smoke_test_and_says_what_was_not_done(file: Path) -> None:
    header = file.read_text().split("FROM ")[0]
    assert "docker build --file docker/" in header
    assert re.search(r"Smoke test.*docker run --rm ", header, re.DOTALL)
    assert "not built when it was written" in header


def test_vehicle_installs_the_locked_packages_and_nothing_more() -> None:
    """With the bindings without which no TensorRT plan runs, as the extra for TensorRT has them."""
    runs = [each.strip() for run in arguments(DOCKERFILES[1], "RUN") for each in run.split("&&")]
    install = "python3 -m pip install --no-cache-dir"
    assert [run for run in runs if "pip install" in run] == [
        f"{install} --only-binary :all: --require-hashes --requirement requirements/jetpack6.txt",
        f"{install} --no-deps .",
    ]
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["tensorrt"]
    (bindings,) = (requirement for requirement in extra if requirement.startswith("cuda-bindings"))
    assert str(requirements(ROOT / "requirements" / "vehicle.in")["cuda-bindings"]) == str(Requirement(bindings))
    assert f"'{bindings}'" in (ROOT / "deploy" / "engines" / "cuda.py").read_text()  # what its absence is told with


def test_train_installs_torch_for_the_cuda_of_its_base_image_and_the_extras() -> None:
    (image,), installs = arguments(DOCKERFILES[0], "FROM"), " ".join(" ".join(arguments(DOCKERFILES[0], "RUN")).split())
    major, minor = re.search(r":(\d+)\.(\d+)", image).groups()  # type: ignore[union-attr]
    assert f"download.pytorch.org/whl/cu{major}{minor}" in installs
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (chosen,) = re.findall(r'"\.\[([\w,]+)\]"', installs)
    assert {"mmdet3d", "devkit"} <= set(chosen.split(",")) <= set(extras)
    # numpy 1, which mmdet3d needs; its packages and the judges without their dependencies, as in the Makefile.
    assert '--constraint requirements/oldest.in ".[' in installs
    assert "--no-deps --requirement requirements/devkit.txt --requirement requirements/mmdet3d.txt" in installs
    compiled = requirements(ROOT / "requirements" / "mmdet3d.txt")["onedl-mmcv"]
    pins = dict(re.findall(r" ([\w-]+)==([\d.]+)", installs))
    for requirement in (*project["dependencies"], *extras["mmdet3d"]):
        name, _, least = requirement.partition(">=")
        if name in pins:
            assert [*map(int, pins[name].split("."))] >= [*map(int, least.split("."))], requirement
    assert {"torch", "torchvision"} <= set(pins)
    assert str(compiled.specifier) == f"=={pins['onedl-mmcv']}"


@each_file
def test_hadolint(file: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, "--no-color", file], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
