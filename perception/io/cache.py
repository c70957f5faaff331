"""Arrays that are computed once and memory-mapped from then on, by all processes of a machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from perception.errors import InputError
from perception.io.files import atomic_folder

FORMAT = 1  # of what is stored; a higher one makes the arrays anew
LEAST = 1 << 24  # bytes of all arrays together, below which computing them anew is quick


def user_cache() -> Path:
    """The folder of this package in the user's cache ($XDG_CACHE_HOME or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perception"


def cached_arrays(
    name: str, files: Mapping[str, Sequence[Any]], about: Any, compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays, read-only, from the user's cache if it has them; else computed.

    Small arrays are not stored, and none where the cache cannot be written. What was made of the same files before they
    changed is removed.

    Args:
        files: by any name the path, and the size and time of change, of each file that the arrays are made of.
        about: all else that they depend on, as JSON.
    """
    place, version, rest = map(_hash, ([each[0] for each in files.values()], [FORMAT, files], about))
    folder = user_cache() / f"{name}-{place}-{version}-{rest}"
    found = _read_arrays(folder)
    if found is None:
        found = compute()
        if sum(each.nbytes for each in found.values()) >= LEAST:
            with suppress(InputError):  # a full disk or a read-only home; the arrays are there
                _store(folder, found)
            for other in user_cache().glob(f"{name}-{place}-*"):
                if not other.name.startswith(f"{name}-{place}-{version}-"):
                    shutil.rmtree(other, ignore_errors=True)
    for each in found.values():
        each.setflags(write=False)
    return found


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()[:16]


def _read_arrays(folder: Path) -> dict[str, np.ndarray] | None:
    try:
        names = json.loads((folder / "arrays.json").read_text(encoding="utf-8"))
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    except (OSError, ValueError, TypeError):
        return None


def _store(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with atomic_folder(folder, "the cache") as fresh:
        for name, each in arrays.items():
            np.save(fresh / f"{name}.npy", each, allow_pickle=False)
        (fresh / "arrays.json").write_text(json.dumps([*arrays]), encoding="utf-8")
