"""The rows of the evidence, each stored in a file immediately; several processes may share the folder."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perception.files import write_atomically


class Rows:
    """The rows in a folder, all on the same base."""

    def __init__(self, folder: Path, base: str) -> None:
        self.folder, self.base = folder, base

    def add(self, seed: int, domain: str, way: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a row and store it, unless it exists or another process is measuring it."""
        path = self.place(seed, domain, way)
        with locked(path, wait=False) as mine:
            if mine and not (path.exists() and json.loads(path.read_text())["base"] == self.base):
                row = {"seed": seed, "domain": domain, "way": way, "base": self.base} | measure()
                self.keep(row)
                print(row, flush=True)

    def keep(self, row: dict[str, Any]) -> None:
        path = self.place(row["seed"], row["domain"], row["way"])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(row, indent=1) + "\n").encode())

    def place(self, seed: int, domain: str, way: str) -> Path:
        words = re.findall(r"[\w.]+", way)
        return self.folder / f"{domain}-{'-'.join(words)}-{seed}.json"


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock, which ends with the process; yields whether this process has it.

    Args:
        path: the lock is a file beside it.
        wait: wait until the lock is free.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
