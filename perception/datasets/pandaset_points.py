"""Points of sweeps in PandaSet's layout, and their annotated classes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from perception.datasets.dataframe_pickle import read_table
from perception.datasets.files import read_json
from perception.datasets.pandaset_files import file_of
from perception.errors import InputError

_COLUMNS = {**dict.fromkeys("xyzit", "f"), "d": "iu"}
_NONE = -1  # class of points that are of no class


class PandaSweep(NamedTuple):
    """The points of some of the LiDARs in a frame's table."""

    columns: np.ndarray  # (N, 5) float64 x y z (m, in the drive's world), intensity (0-255), time (s)
    lidars: np.ndarray  # (N,) uint8, place of each point's LiDAR among them
    kept: np.ndarray  # (rows,) bool: which rows of the table they are


@lru_cache(maxsize=2)
def sweep(drive: Path, index: int, lidars: tuple[int, ...]) -> PandaSweep:
    """The points of LiDARs by their numbers in the tables."""
    table = read_table(file_of(drive / "lidar", index), _COLUMNS)
    place = np.full(2, -1)
    place[list(lidars)] = range(len(lidars))
    of_rows = place[table["d"].astype(int)]
    kept = of_rows >= 0
    return PandaSweep(np.stack([table[name] for name in "xyzit"], axis=1)[kept], of_rows[kept].astype(np.uint8), kept)


def classes_of_sweep(drive: Path, index: int, kept: np.ndarray, labels: Mapping[str, int]) -> np.ndarray | None:
    """(N,) int16 label of each point of a sweep, -1 for other categories; None if the sweep is not annotated.

    Args:
        kept: as in `PandaSweep`.
        labels: category -> label.
    """
    folder = drive / "annotations" / "semseg"
    path = file_of(folder, index)
    if not path.exists():
        return None
    numbers = read_table(path, {"class": "iu"})["class"]
    if len(numbers) != len(kept):
        raise InputError(f"{path}: has {len(numbers)} points, the sweep {len(kept)}; copy both again")
    found, place = np.unique(numbers[kept], return_inverse=True)
    known = _categories(folder / "classes.json")
    if unknown := sorted({*found.tolist()} - known.keys()):
        raise InputError(f"{path}: the class {unknown[0]} is not in classes.json")
    return np.array([labels.get(known[number], _NONE) for number in found.tolist()], np.int16)[place]


@cache
def _categories(path: Path) -> dict[int, str]:
    try:
        return {int(number): str(name) for number, name in read_json(path).items()}
    except (AttributeError, ValueError) as error:
        raise InputError(f"{path}: not the classes of PandaSet's points ({error})") from None
