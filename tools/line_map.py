"""Which lines of perception and deploy each test executes: `make line-map`, then questions about the result.

    python tools/line_map.py record --out runs/lines [PYTEST OPTIONS]    run the tests, recorded
    python tools/line_map.py lost runs/before runs/after                  lines that only the first run executed
    python tools/line_map.py least runs/lines --share 0.99                the cheapest functions that execute this share

`sys.monitoring` (Python 3.12) reports each line once for each test, so the recorded run takes about as long as a plain
one. Python processes that tests start are recorded too, under the test that runs at that time; not those that a signal
kills. What a fixture of a module or the session executes counts for each test that uses the fixture; what a cached
helper executes counts for the first test only.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
FOLDER = "LINE_MAP"  # environment variable: where each process writes what it recorded
CONTEXT = "LINE_MAP_CONTEXT"  # environment variable: the test that runs
PRODUCT = ("perception", "deploy")
monitoring: Any = getattr(sys, "monitoring", None)  # since Python 3.12


class Recorder:
    """Lines of the product that this process executes, by context."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder, self._files = folder, 0
        self._product = tuple(f"{root / package}{os.sep}" for package in PRODUCT)
        self._lines: dict[str, set[tuple[str, int]]] = defaultdict(set)
        self._current = self._lines[os.environ.get(CONTEXT, "import")]
        self._forked = False

    def start(self) -> None:
        monitoring.use_tool_id(monitoring.COVERAGE_ID, "line map")
        monitoring.register_callback(monitoring.COVERAGE_ID, monitoring.events.PY_START, self._enter)
        monitoring.register_callback(monitoring.COVERAGE_ID, monitoring.events.LINE, self._line)
        monitoring.set_events(monitoring.COVERAGE_ID, monitoring.events.PY_START)
        os.register_at_fork(after_in_child=self._begin_anew)
        leave = os._exit

        def write_and_leave(code: int) -> None:
            self.write()
            leave(code)

        os._exit = write_and_leave  # type: ignore[assignment]

    def switch(self, context: str) -> None:
        """Record under this context from now on; each line is reported anew."""
        os.environ[CONTEXT] = context
        self._current = self._lines[context]
        monitoring.restart_events()

    def write(self) -> None:
        if self._forked:  # what it runs for may have come after the fork, with the environment of a command
            self._lines = {os.environ.get(CONTEXT, "import"): set().union(*self._lines.values())}
        content = {context: _by_file(lines) for context, lines in self._lines.items() if lines}
        if content:
            self._files += 1
            path = self._folder / f"{os.getpid()}-{self._files}.lines.json"
            unfinished = path.with_suffix(".unfinished")  # if the process is killed meanwhile
            unfinished.write_text(json.dumps(content))
            unfinished.rename(path)
        self._lines = defaultdict(set)
        self._current = self._lines[os.environ.get(CONTEXT, "import")]

    def _begin_anew(self) -> None:
        self._forked, self._lines = True, defaultdict(set)
        self.switch(os.environ.get(CONTEXT, "import"))

    def _enter(self, code: CodeType, offset: int) -> object:
        if code.co_filename.startswith(self._product):
            monitoring.set_local_events(monitoring.COVERAGE_ID, code, monitoring.events.LINE)
        return monitoring.DISABLE

    def _line(self, code: CodeType, line: int) -> object:
        self._current.add((code.co_filename, line))
        return monitoring.DISABLE


@cache
def recorder() -> Recorder:
    """That of this process, which records from now on until the process ends."""
    recording = Recorder(Path(os.environ[FOLDER]), Path(os.environ["LINE_MAP_ROOT"]))
    recording.start()
    atexit.register(recording.write)
    return recording


def _by_file(lines: set[tuple[str, int]]) -> dict[str, list[int]]:
    files: dict[str, list[int]] = defaultdict(list)
    for file, line in sorted(lines):
        files[os.path.relpath(file, os.environ.get("LINE_MAP_ROOT", ROOT))].append(line)
    return files


def record(out: Path, root: Path, options: list[str]) -> int:
    """Run pytest at `root` with these options; `out`/map.json is the result. The exit code is pytest's."""
    if sys.version_info < (3, 12):
        sys.exit("the line map needs Python 3.12 or newer: make line-map PYTHON=python3.13 VENV=.venv-3.13")
    parts = out.resolve() / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    for old in parts.iterdir():
        old.unlink()
    site = out.resolve() / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text("import line_map\n\nline_map.recorder()\n")
    paths = [str(site), str(root), str(TOOLS), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        FOLDER: str(parts),
        "LINE_MAP_ROOT": str(root),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    command = [sys.executable, "-m", "pytest", "-p", "line_map_plugin", *options]
    code = subprocess.run(command, check=False, cwd=root, env=environment).returncode
    (out / "map.json").write_text(json.dumps(_join(parts)))
    return code


def _join(parts: Path) -> dict[str, Any]:
    """Tests and fixtures with their seconds and lines, from what the processes wrote."""
    lines: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for path in parts.glob("*.lines.json"):
        for context, files in json.loads(path.read_text()).items():
            for file, numbers in files.items():
                lines[context][file].update(numbers)
    tests: dict[str, Any] = {}
    fixtures: dict[str, Any] = {}
    for path in parts.glob("*.tests.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            if "fixture" in row:
                fixtures[row["fixture"]] = {"seconds": row["seconds"]}
            else:
                tests[row["test"]] = {key: row[key] for key in ("seconds", "fixtures", "passed")}
    for kind in (tests, fixtures):
        for name, value in kind.items():
            value["lines"] = {file: sorted(numbers) for file, numbers in lines.pop(name, {}).items()}
    other = {context: {file: sorted(n) for file, n in files.items()} for context, files in lines.items()}
    return {"tests": tests, "fixtures": fixtures, "other": other}


class LineMap:
    """A recorded run."""

    def __init__(self, folder: Path) -> None:
        content = json.loads((folder / "map.json").read_text())
        self.tests, self.fixtures = content["tests"], content["fixtures"]
        self.imported = _pairs(content["other"].get("import", {}))
        self._lines: dict[str, set[tuple[str, int]]] = {}

    def seconds(self, test: str) -> float:
        """What the test takes alone, with all the fixtures that it needs."""
        entry = self.tests[test]
        own = sum(self.fixtures[name]["seconds"] for name in entry["fixtures"] if name in self.fixtures)
        return float(entry["seconds"] + own)

    def lines(self, test: str) -> set[tuple[str, int]]:
        """(file, line) that the test and its fixtures execute."""
        if test not in self._lines:
            entry = self.tests[test]
            self._lines[test] = _pairs(entry["lines"])
            for name in entry["fixtures"]:
                self._lines[test] |= _pairs(self.fixtures.get(name, {}).get("lines", {}))
        return self._lines[test]

    def executed(self) -> set[tuple[str, int]]:
        return set().union(self.imported, *map(self.lines, self.tests))

    def by_line(self) -> dict[tuple[str, int], list[str]]:
        """The tests that execute each line, the cheapest first, but for lines that run when a file is imported."""
        tests: dict[tuple[str, int], list[str]] = defaultdict(list)
        for test in sorted(self.tests, key=self.seconds):
            for pair in self.lines(test) - self.imported:
                tests[pair].append(test)
        return tests


def _pairs(files: dict[str, list[int]]) -> set[tuple[str, int]]:
    return {(file, line) for file, lines in files.items() for line in lines}


def find_lost(before: LineMap, after: LineMap) -> list[str]:
    """Lines that only the first run executed, as `file:line`."""
    return [f"{file}:{line}" for file, line in sorted(before.executed() - after.executed())]


def choose_least(recorded: LineMap, share: float) -> list[str]:
    """Functions that execute this share of the lines in bodies of functions, chosen greedily by lines per second."""
    wanted = recorded.executed() - recorded.imported
    gains: dict[str, set[tuple[str, int]]] = defaultdict(set)
    seconds: dict[str, float] = defaultdict(float)
    for test, entry in recorded.tests.items():
        function = test.split("[")[0]
        gains[function] |= recorded.lines(test) & wanted
        seconds[function] += entry["seconds"]
    chosen: list[str] = []
    covered: set[tuple[str, int]] = set()
    while len(covered) < share * len(wanted):
        best = max(gains, key=lambda function: len(gains[function]) / (0.05 + seconds[function]))
        covered |= gains.pop(best)
        chosen.append(best)
        gains = {function: lines - covered for function, lines in gains.items() if lines - covered}
    return sorted(chosen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("--out", type=Path, required=True)
    recording.add_argument("--root", type=Path, default=ROOT, help="the checkout whose tests run")
    comparing = commands.add_parser("lost")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    choosing = commands.add_parser("least")
    choosing.add_argument("map", type=Path)
    choosing.add_argument("--share", type=float, default=0.99)
    arguments, options = parser.parse_known_args()
    if arguments.command == "record":
        return record(arguments.out, arguments.root.resolve(), options)
    if arguments.command == "lost":
        missing = find_lost(LineMap(arguments.before), LineMap(arguments.after))
        print("\n".join(missing))
        return int(bool(missing))
    print("\n".join(choose_least(LineMap(arguments.map), arguments.share)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
