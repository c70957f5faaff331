"""Deliberate defects in the product, and whether the tests find them: `make mutants`.

    python tools/mutants.py --map runs/lines --out runs/mutants.json [--against EARLIER.json | --resume]

A mutant is one change of one place: drawn with a seed over all folders of perception and deploy (an operator, a number,
a comparison, a deleted statement), or written by hand in tools/mutants.yaml (a sign, a frame of reference, a missing
reset, a swapped route, a skipped hash, a tolerance). It runs against at most ten of the tests that execute its line by
the line map of tools/line_map.py, the fastest first, until one fails. Each mutant has a process of its own, forked from
one that has imported the libraries, and a copy of the repository to change. With `--against`, a mutant that an earlier
run found and this one does not is an error (exit code 1). `--resume` goes on with an interrupted run of the same code.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from line_map import ROOT, LineMap
from mutant_places import Mutant, change, draw, earlier, read_written

IMPORTED = (
    *(
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "cv2",
        "scipy.optimize",
        "scipy.spatial",
        "scipy.stats",
        "shapely.geometry",
    ),
    *(
        "onnx",
        "onnxscript",
        "onnxruntime",
        "hypothesis.extra.numpy",
        "pydantic",
        "rich.console",
        "typer",
        "mcap.reader",
    ),
    *("rosbags.typesys", "matplotlib.pyplot", "nuscenes.eval.detection.evaluate", "accelerate", "orjson", "pandas"),
)
TESTS = 10  # per mutant
NO_SUCH_TEST = -1  # instead of a number of tests
SECONDS = 300.0  # a mutant whose tests take longer hangs, and counts as found
COPIED = ("perception", "deploy", "tests", "tools", "configs", "docs", "requirements", "docker", ".ci")


@dataclass(frozen=True)
class Outcome:
    mutant: Mutant
    found_by: str | None
    tests: int
    seconds: float


class Selection:
    """Chooses the tests of a mutant by a line map."""

    def __init__(self, root: Path, recorded: LineMap) -> None:
        self._root, self._recorded = root, recorded
        self.by_line = recorded.by_line()
        self._trees: dict[str, ast.Module] = {}

    def tests_of(self, mutant: Mutant, times: int = 1) -> list[str]:
        """At most TESTS, or `times` as many, of the tests that execute the mutant, the fastest first.

        A third are the fastest of all, a third those of whose lines most are in the mutant's file, and the others those
        that execute most of the rarely executed lines of its function, such as the one that raises the error. One case
        of each function comes before a second one of any.
        """
        most = times * TESTS
        last = mutant.line + mutant.before.count("\n")
        tests = [test for line in range(mutant.line, last + 1) for test in self.by_line.get((mutant.file, line), ())]
        if not tests:  # what runs when the file is imported: the tests that execute most of the file
            every = (names for (file, _), names in self.by_line.items() if file == mutant.file)
            share = Counter(test for names in every for test in names)
            tests = [test for test, _ in share.most_common(3 * most)]
        fastest = _cases_apart(sorted(dict.fromkeys(tests), key=self._recorded.seconds))
        rarity = self._rarity(mutant)
        rarest = _cases_apart(sorted(fastest, key=lambda test: -rarity[test]))
        nearest = _cases_apart(sorted(fastest, key=lambda test: -self._share(test, mutant.file)))
        third = most // 3
        chosen = list(dict.fromkeys([*fastest[:third], *nearest[:third], *rarest]))[:most]
        return sorted(chosen, key=self._recorded.seconds)

    def _share(self, test: str, file: str) -> float:
        """The share of the test's lines that are in the file."""
        files = Counter(name for name, _ in self._recorded.lines(test) - self._recorded.imported)
        return files[file] / max(1, files.total())

    def _rarity(self, mutant: Mutant) -> Counter[str]:
        """For each test the sum over the function's lines that it executes of one by the number of such tests."""
        found: Counter[str] = Counter()
        for line in self._function(mutant):
            names = self.by_line.get((mutant.file, line), ())
            for test in names:
                found[test] += 1 / len(names)  # type: ignore[assignment]
        return found

    def _function(self, mutant: Mutant) -> range:
        """The lines of the innermost function around the mutant; only its own line outside of any."""
        if mutant.file not in self._trees:
            self._trees[mutant.file] = ast.parse((self._root / mutant.file).read_text())
        lines = range(mutant.line, mutant.line + 1)
        for node in ast.walk(self._trees[mutant.file]):
            if isinstance(node, ast.FunctionDef) and node.lineno <= mutant.line <= (node.end_lineno or 0):
                lines = range(node.lineno, (node.end_lineno or 0) + 1)  # an inner function comes after its outer one
        return lines


def _cases_apart(tests: list[str]) -> list[str]:
    """The tests in their order, but second cases of a function after the first ones of all, and so on."""
    seen: Counter[str] = Counter()
    ranked = []
    for i, test in enumerate(tests):
        function = test.split("[")[0]
        ranked.append((seen[function], i, test))
        seen[function] += 1
    return [test for _, _, test in sorted(ranked)]


class _Result:
    """Plugin of pytest: runs the tests in the given order and keeps the first that failed."""

    def __init__(self, tests: list[str]) -> None:
        self.rank = {test: i for i, test in enumerate(tests)}
        self.failed: str | None = None
        self.ran = 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.rank.get(item.nodeid, len(self.rank)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call"
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.failed is None:
            self.failed = f"collection of {report.nodeid}"


def _test(folder: Path, tests: list[str], answer: int) -> None:
    """Run the tests in `folder` and write what failed, and how many ran, to the file descriptor; ends the process."""
    os.setsid()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)
    for stream in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    result = _Result(tests)
    try:
        options = ["-x", "-p", "no:cacheprovider", "--basetemp", f"{folder}.tmp"]
        code = int(pytest.main([*options, *tests], plugins=[result]))
        if code == pytest.ExitCode.USAGE_ERROR:
            result.ran = NO_SUCH_TEST
        elif code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            result.failed = result.failed or f"pytest's exit code {code}"
    except BaseException as error:
        result.failed = result.failed or f"{type(error).__name__} in {tests[0]}"
    os.write(answer, json.dumps([result.failed, result.ran]).encode())
    os._exit(0)


class Attempt:
    """A mutant in a copy of the repository, and the process that tests it."""

    def __init__(self, folder: Path, mutant: Mutant, tests: list[str], stamp: int) -> None:
        self.folder, self.mutant, self.start = folder, mutant, time.monotonic()
        self._path = folder / mutant.file
        self._source, self._times = self._path.read_text(), self._path.stat()
        self._path.write_text(change(self._source, mutant))
        # Python compiles a file anew if its time is another one.
        os.utime(self._path, (self._times.st_atime, self._times.st_mtime + stamp))
        self._answer, writing = os.pipe()
        self._process = os.fork()
        if not self._process:
            _test(folder, tests, writing)
        os.close(writing)
        os.set_blocking(self._answer, False)

    def outcome(self) -> Outcome | None:
        """None while the tests run."""
        seconds = time.monotonic() - self.start
        try:
            answer = os.read(self._answer, 65536)
        except BlockingIOError:
            if seconds < SECONDS:
                return None
            answer = b""
        failed, ran = json.loads(answer) if answer else ("a crash, or no end", 0)
        self._clean()
        if ran == NO_SUCH_TEST:
            sys.exit("the line map names tests that are not there; record it anew (tools/line_map.py)")
        return Outcome(self.mutant, failed, ran, seconds)

    def _clean(self) -> None:
        os.close(self._answer)
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        shutil.rmtree(f"{self.folder}.tmp", ignore_errors=True)
        self._path.write_text(self._source)
        os.utime(self._path, (self._times.st_atime, self._times.st_mtime))


def run_all(root: Path, jobs: list[tuple[Mutant, list[str]]], workers: int) -> Iterator[Outcome]:
    """Each job in one of `workers` copies of the repository."""
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as where:
        free = [_copy(root, Path(where) / f"copy{i}" / "main") for i in range(workers)]
        waiting, running, stamp = list(reversed(jobs)), list[Attempt](), 0
        while waiting or running:
            while waiting and free:
                mutant, tests = waiting.pop()
                if tests:
                    stamp += 10
                    running.append(Attempt(free.pop(), mutant, tests, stamp))
                else:
                    yield Outcome(mutant, None, 0, 0.0)
            time.sleep(0.05)
            for attempt in tuple(running):
                outcome = attempt.outcome()
                if outcome is not None:
                    running.remove(attempt)
                    free.append(attempt.folder)
                    yield outcome


def _copy(root: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for name in COPIED:
        if (root / name).exists():
            shutil.copytree(root / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in root.iterdir():
        if path.is_file():
            shutil.copy2(path, to)
    shared = root.parent / "shared"
    if shared.exists():
        (to.parent / "shared").symlink_to(shared)
    return to


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--map", type=Path, required=True, help="folder that line_map.py record wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to mutate")
    parser.add_argument("--written", type=Path, default=ROOT / "tools" / "mutants.yaml")
    parser.add_argument("--count", type=int, default=150, help="drawn mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument(
        "--against", type=Path, help="an earlier result, whose mutants are tested again; what it found must be found"
    )
    parser.add_argument("--resume", action="store_true", help="keep what --out has of these mutants")
    parser.add_argument("--preload", default=",".join(IMPORTED), help="modules that each process has from the start")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    selection = Selection(root, LineMap(arguments.map))
    if arguments.against is None:
        executed = set(selection.by_line)
        mutants = [*read_written(root, arguments.written), *draw(root, executed, arguments.count, arguments.seed)]
    else:
        mutants = earlier(root, arguments.against)
    kept = read(arguments.out) if arguments.resume else []
    tested = {outcome.mutant for outcome in kept}
    jobs = [(mutant, selection.tests_of(mutant)) for mutant in mutants if mutant not in tested]
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in filter(None, arguments.preload.split(",")):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    outcomes = _run_tests(root, jobs, arguments, kept)
    if arguments.against is not None:  # the tests are others, so the one that found it may not be among the ten
        found = {row["mutant"]["name"] for row in json.loads(arguments.against.read_text()) if row["found_by"]}
        lost = [each.mutant for each in outcomes if not each.found_by and each.mutant.name in found]
        outcomes = [each for each in outcomes if each.mutant not in lost]
        more = [(mutant, selection.tests_of(mutant, 6)) for mutant in lost]
        outcomes = _run_tests(root, more, arguments, outcomes)
    return _report(outcomes, arguments.against)


def _run_tests(
    root: Path, jobs: list[tuple[Mutant, list[str]]], arguments: argparse.Namespace, before: list[Outcome]
) -> list[Outcome]:
    """The outcomes before and those of the jobs, which are in the file as soon as they are known."""
    outcomes, out = list(before), arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    for i, outcome in enumerate(run_all(root, jobs, arguments.workers), 1):
        outcomes.append(outcome)
        state = "found    " if outcome.found_by else "NOT FOUND"
        print(f"{i:3}/{len(jobs)} {state} {outcome.mutant.name} ({outcome.seconds:.0f} s)", flush=True)
        out.write_text(json.dumps([asdict(each) for each in outcomes], indent=1))
    return outcomes


def read(out: Path) -> list[Outcome]:
    """What an interrupted run wrote."""
    rows = json.loads(out.read_text()) if out.exists() else []
    return [Outcome(**{**row, "mutant": Mutant(**row["mutant"])}) for row in rows]


def _report(outcomes: list[Outcome], against: Path | None) -> int:
    found = {outcome.mutant.name for outcome in outcomes if outcome.found_by}
    survivors = [outcome.mutant for outcome in outcomes if not outcome.found_by]
    print(f"{len(found)} of {len(outcomes)} found, {sum(o.seconds for o in outcomes) / 60:.0f} minutes of one worker")
    print("\n".join(f"not found: {mutant.name} in {mutant.function}" for mutant in survivors))
    if against is None:
        return 0
    found_before = {row["mutant"]["name"] for row in json.loads(against.read_text()) if row["found_by"]}
    lost = [mutant.name for mutant in survivors if mutant.name in found_before]
    print("\n".join(f"no longer found: {name}" for name in lost) or "every mutant that was found before is found")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
