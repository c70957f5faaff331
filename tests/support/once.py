"""What takes long to prepare and no test changes, made once for all the processes of a test run."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

run = Path(os.devnull)  # folder of this test run, set by conftest.py; nothing can be made before


def once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` that `make` writes; the first process that needs it makes it, the others wait for it."""
    path = run / name
    with (run / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = run / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            os.rename(unfinished, path)
    return path
