"""The locked packages of each Python: complete, in range, and the same for any machine."""

import ast
import sys
from importlib.metadata import files
from itertools import chain
from pathlib import Path

import pytest
from locks import pinned, requirements
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from repository import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKS = {path.stem.removeprefix("py"): path for path in (ROOT / "requirements").glob("py3.*.txt")}
OLD = ("3.10", "3.11")
each_python = pytest.mark.parametrize("python", sorted(LOCKS, key=lambda version: int(version.split(".")[1])))
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "sklearn": "scikit-learn",
    "mpl_toolkits": "matplotlib",
    "rerun": "rerun-sdk",
}
JUDGES = {"nuscenes", "truckscenes", "t4_devkit", "motmetrics"}
# motmetrics solves assignments with whichever of these is there; scipy is. `imp` it takes on Python 2 alone.
UNUSED = {"lap", "lapsolver", "munkres", "ortools", "imp"}


def test_every_python_of_the_project_has_a_lock() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    assert set(LOCKS) == {version for version in (f"3.{minor}" for minor in range(100)) if version in supported}


@each_python
def test_what_make_installs_is_locked_in_range(python: str) -> None:
    versions = pinned(LOCKS[python])
    extras = ["rtx", "viewer", "pretrained", "devkit", "dev", *(["mmdet3d"] if python in OLD else [])]
    for requirement in map(Requirement, chain(PROJECT["dependencies"], *(EXTRAS[extra] for extra in extras))):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), (requirement, version)


@each_python
def test_nothing_in_a_lock_belongs_to_one_machine(python: str) -> None:
    """No local version, address, index or path: a name and its version, line by line."""
    lines = [line for line in LOCKS[python].read_text().splitlines() if not line.startswith("#")]
    assert lines == [f"{name}=={version}" for name, version in pinned(LOCKS[python]).items()]
    assert not [line for line in lines if "+" in line]


@each_python
def test_the_locks_hold_both_ends_of_what_is_supported(python: str) -> None:
    versions = pinned(LOCKS[python])
    major = [versions[name].split(".")[0] for name in ("numpy", "opencv-python-headless")]
    assert major == (["1", "4"] if python in OLD else ["2", "5"])


def test_what_the_judges_import_is_in_the_extra() -> None:
    """They are installed without their dependencies, so nothing else would notice that one is missing."""
    installed = (*PROJECT["dependencies"], *EXTRAS["devkit"], *EXTRAS["viewer"])  # T4's draws with the viewer
    offered = {canonicalize_name(Requirement(each).name) for each in installed}
    for distribution in requirements(ROOT / "requirements" / "devkit.txt"):
        imported = set().union(*(_imports(path) for path in _modules(distribution)))
        third = imported - set(sys.stdlib_module_names) - JUDGES - UNUSED
        assert {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in third} - offered == set()


def _modules(distribution: str) -> list[Path]:
    """What our evaluation, our tests and mmdet3d import of a judge: not its own tests and examples."""
    listed = [path for path in files(distribution) or [] if path.suffix == ".py" and path.parts[0] in JUDGES]
    unused = {"tests", "scripts", "prediction", "baselines.py", "visualization_utils.py"}
    return [Path(str(path.locate())) for path in listed if not unused & set(path.parts)]


def _imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.split(".")[0]
        for name in plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    }
