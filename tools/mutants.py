"""Deliberate defects of the product, and whether the tests find them: `mutants.py [WORD]`, or `make mutants`.

tools/mutants.yaml has the defects: `before` stands once in `file`, `after` takes its place, `tests` are the test files
(or tests) that find it, `why` says what breaks. Each is made in a copy of the repository's files, where its tests run
until one fails. That a test has failed says nothing if it fails without the defect, too, so all of those run once more
without any. WORD chooses the defects whose file or reason has it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
FAILED = 1  # pytest's exit code if a test has failed
SECONDS = 900  # a defect whose tests take longer hangs, and is found


class Defect(NamedTuple):
    file: str
    before: str
    after: str
    why: str
    tests: list[str]


def read_defects(root: Path) -> list[Defect]:
    return [Defect(**row) for row in yaml.safe_load((root / "tools" / "mutants.yaml").read_text())]


def misplaced(root: Path, defect: Defect) -> str:
    """Say what keeps a defect from being made, or nothing."""
    path = root / defect.file
    count = path.read_text().count(defect.before) if path.exists() else 0
    if count != 1:
        return f"{defect.file} has its text {count} times, not once"
    for test in defect.tests:
        file, _, function = test.partition("::")
        if not (root / file).exists() or f"def {function}" not in (root / file).read_text():
            return f"{test} is not there"
    return "" if defect.tests else "no tests are named"


def copy(root: Path, folder: Path) -> Path:
    """The repository's files as they are, beside the same recorded data."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (root / name).exists():
            (folder / "main" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / "main" / name)
    if (root.parent / "shared").exists():
        (folder / "shared").symlink_to(root.parent / "shared")
    return folder / "main"


def run_tests(folder: Path, tests: list[str]) -> tuple[int, str]:
    """Pytest's exit code, and the test that failed or the last line."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return FAILED, tests[0]
    failed = re.findall(r"^(?:FAILED|ERROR) (tests/.+?)(?: - |$)", done.stdout, re.MULTILINE)
    return done.returncode, (failed or (done.stdout + done.stderr).splitlines() or [""])[-1]


def attempt(folder: Path, defect: Defect) -> str:
    """The test that finds the defect, or nothing."""
    path = folder / defect.file
    source = path.read_text()

    def write(text: str) -> None:
        path.write_text(text)
        shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)  # may have the same time and size

    write(source.replace(defect.before, defect.after))
    code, last = run_tests(folder, defect.tests)
    write(source)
    state = "found    " if code == FAILED else f"NOT FOUND (pytest's exit code {code})"
    print(f"{state} {defect.file}: {defect.why}: {last}", flush=True)
    return last if code == FAILED else ""


def main() -> int:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    defects = [each for each in read_defects(ROOT) if word in each.file or word in each.why]
    if wrong := [f"{each.why}: {text}" for each in defects if (text := misplaced(ROOT, each))]:
        print(*wrong, sep="\n")
        return 1
    free: SimpleQueue[Path] = SimpleQueue()

    def in_a_copy(defect: Defect) -> str:
        folder = free.get()
        found = attempt(folder, defect)
        free.put(folder)
        return found

    with tempfile.TemporaryDirectory(prefix="mutants-") as where, ThreadPoolExecutor(os.cpu_count()) as pool:
        for i in range(os.cpu_count() or 1):
            free.put(copy(ROOT, Path(where) / str(i)))
        found = list(pool.map(in_a_copy, defects))
        code, last = run_tests(free.get(), sorted({*filter(None, found)}))
    print(f"{sum(map(bool, found))} of {len(found)} defects are found")
    if code:
        print(f"without a defect, too, this fails: {last}")
    return int(bool(code) or not all(found))


if __name__ == "__main__":
    sys.exit(main())
