"""The line map and the mutants, on a product of two files: what a test executes is mapped, what it proves is found."""

import json
import subprocess
import sys

import pytest
import yaml
from line_map import LineMap, choose_least, find_lost
from repository import ROOT

PRODUCT = """\
def larger(a, b):
    if a > b:
        return a
    return b


def logged(lines, line):
    lines.append(line)
    return len(lines)


def never(a):
    return a + 1
"""
TESTS = """\
import subprocess, sys
import pytest
from perception.numbers import larger, logged

@pytest.fixture(scope="module")
def lines():
    found = []
    logged(found, "first")
    return found

def test_larger():
    assert (larger(2, 1), larger(1, 2), larger(1, 1)) == (2, 2, 1)

def test_logged_is_only_run(lines):
    logged(lines, "second")

def test_in_another_process():
    code = "from deploy.sign import sign; assert sign(-2) == -1"
    subprocess.run([sys.executable, "-c", code], check=True)
"""
SIGN = "def sign(x):\n    return -1 if x < 0 else 1\n"
FILES = {
    "perception/__init__.py": "", "perception/numbers.py": PRODUCT, "deploy/__init__.py": "", "deploy/sign.py": SIGN,
    "tests/test_it.py": TESTS, "pyproject.toml": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The product, with its line map in the folder `lines`."""
    if sys.version_info < (3, 12):
        pytest.skip("sys.monitoring came with Python 3.12")
    root = tmp_path_factory.mktemp("product")
    for file, content in FILES.items():
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(content)
    tool("line_map.py", "record", "--out", root / "lines", "--root", root, "tests")
    return root


def tool(name, *arguments):
    subprocess.run([sys.executable, ROOT / "tools" / name, *arguments], check=True, capture_output=True)


def test_lines_are_those_that_each_test_and_its_fixtures_execute(recorded):
    lines = LineMap(recorded / "lines")
    own = {name.split("::")[1]: lines.lines(name) - lines.imported for name in lines.tests}
    file = "perception/numbers.py"
    assert own["test_larger"] == {(file, 2), (file, 3), (file, 4)}
    assert own["test_logged_is_only_run"] == {(file, 8), (file, 9)}
    assert own["test_in_another_process"] >= {("deploy/sign.py", 2)}
    assert (file, 13) not in lines.executed()
    assert len(choose_least(lines, 1.0)) == 3
    after = LineMap(recorded / "lines")
    del after.tests["tests/test_it.py::test_larger"]
    assert find_lost(lines, after) == [f"perception/numbers.py:{line}" for line in (2, 3, 4)]


def test_a_defect_is_found_by_an_assertion_and_not_by_being_executed(recorded):
    rows = [
        {"file": "perception/numbers.py", "before": "a > b", "after": "a < b", "why": "comparison"},
        {"file": "perception/numbers.py", "before": "return len(lines)", "after": "return 0", "why": "not asserted"},
        {"file": "deploy/sign.py", "before": "x < 0", "after": "x > 0", "why": "another process"},
    ]
    written, out = recorded / "by_hand.yaml", recorded / "mutants.json"
    written.write_text(yaml.safe_dump(rows))
    options = ("--written", written, "--count", "0", "--preload", "", "--out", out)
    tool("mutants.py", "--map", recorded / "lines", "--root", recorded, *options)
    found = {row["mutant"]["name"].split(": ")[1]: row["found_by"] for row in json.loads(out.read_text())}
    assert found["comparison"] == "tests/test_it.py::test_larger"
    assert found["another process"] == "tests/test_it.py::test_in_another_process"
    assert found["not asserted"] is None
    assert (recorded / "perception" / "numbers.py").read_text() == PRODUCT
    interrupted = json.loads(out.read_text())[:2]
    interrupted[0]["found_by"] = "tests/test_it.py::test_of_before"
    out.write_text(json.dumps(interrupted))
    tool("mutants.py", "--map", recorded / "lines", "--root", recorded, *options, "--resume")
    resumed = json.loads(out.read_text())
    assert resumed[:2] == interrupted  # was not tested again
    assert {row["mutant"]["name"].split(": ")[1] for row in resumed} == {*found}
