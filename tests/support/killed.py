"""As a program: replaces a folder, killed one step later each time, until it is done; prints what was there each time.

Apart from the tests, as a fork of a process that has imported torch takes a tenth of a second.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from perception.io import files

OLD, NEW = {"a": "old", "sub/b": "old", "only-old": "old"}, {"a": "new", "sub/b": "new"}


def write(root: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def replace_and_die(folder: Path, exchange: Callable[[Path, Path], bool], steps: int) -> None:
    """Replace the folder in a process that kills itself before a step: one that Python reports to audit hooks (open,
    mkdir, rename, remove, rmtree, scandir, calls of C), or the swap itself."""

    def step(*_: object) -> None:
        nonlocal steps
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def swap(a: Path, b: Path) -> bool:
        step()
        done = exchange(a, b)
        step()
        return done

    try:
        files._exchange = swap
        sys.addaudithook(step)
        with files.atomic_folder(folder, "it") as fresh:
            write(fresh, NEW)
        os._exit(0)
    finally:
        os._exit(1)


def replace_again_and_again(folder: Path, swaps: bool) -> tuple[int, int, list[dict[str, str]]]:
    """The exit code at last, how often there was no folder until `restore_folder`, and the folder's files each time."""
    found, missing, end = list[dict[str, str]](), 0, -signal.SIGKILL
    exchange = files._exchange if swaps else lambda a, b: False
    while end == -signal.SIGKILL:
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, OLD)
        child = os.fork()
        if child == 0:
            replace_and_die(folder, exchange, len(found) + 1)
        end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        missing += not folder.exists()
        files.restore_folder(folder)
        there = (path for path in folder.rglob("*") if path.is_file())
        found.append({path.relative_to(folder).as_posix(): path.read_text() for path in there})
    return end, missing, found


if __name__ == "__main__":
    print(json.dumps(replace_again_and_again(Path(sys.argv[1]), sys.argv[2] == "with")))
