"""Which module imports which: perception nothing of deploy, and none itself by way of others."""

import ast
from collections.abc import Set
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from repository import ROOT


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports() -> dict[str, set[str]]:
    """What each module of ours imports of ours: late, and for types alone, as well."""
    files = {name_of(path): path for package in ("perception", "deploy") for path in (ROOT / package).rglob("*.py")}
    return {name: imported(path.read_text(), files.keys()) - {name} for name, path in files.items()}


def imported(code: str, ours: Set[str]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not looked for"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in ours else node.module for name in inside}
    return found & ours


def test_perception_imports_nothing_of_deploy() -> None:
    upwards = {
        (name, other)
        for name, others in imports().items()
        for other in others
        if name.split(".")[0] == "perception" and other.split(".")[0] == "deploy"
    }
    assert not upwards


def test_no_modules_import_each_other() -> None:
    TopologicalSorter(imports()).prepare()  # raises CycleError, which names the circle


def test_the_scan_sees_every_kind_of_import() -> None:
    code = """
from __future__ import annotations
import a.b
from a import c, d
from a.e import thing
if TYPE_CHECKING:
    from a.f import Type
def late():
    from a.g import function
    import numpy
"""
    ours = {"a", "a.b", "a.c", "a.e", "a.f", "a.g"}
    assert imported(code, ours) == ours
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).prepare()
