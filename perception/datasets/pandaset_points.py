"""Points of sweeps in PandaSet's layout, and their annotated classes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from perception.datasets.dataframe_pickle import read_table
from perception.datasets.files import read_json
from perception.datasets.pandaset_files import file_of
from perception.errors import InputError

_COLUMNS = {**dict.fromkeys("xyzit", "f"), "d": "iu"}
_NONE = -1  # class of points that are of no class


@lru_cache(maxsize=2)
def sweep(drive: Path, index: int, lidars: tuple[int, ...]) -> np.ndarray:
    """(N, 6) float64 x y z (m, in the drive's world), intensity (0-255), time (s), place in `lidars`."""
    table = read_table(file_of(drive / "lidar", index), _COLUMNS)
    place = np.full(2, -1.0)
    place[list(lidars)] = range(len(lidars))
    columns = np.stack([*(table[name] for name in "xyzit"), place[table["d"].astype(int)]], axis=1)
    return columns[columns[:, 5] >= 0]


def classes_of_sweep(drive: Path, index: int, lidars: tuple[int, ...], labels: Mapping[str, int]) -> np.ndarray | None:
    """(N,) int16 label of each point of `sweep`, -1 for other categories; None if the sweep is not annotated.

    Args:
        labels: category -> label.
    """
    folder = drive / "annotations" / "semseg"
    path, sensors = file_of(folder, index), read_table(file_of(drive / "lidar", index), {"d": "iu"})["d"]
    if not path.exists():
        return None
    numbers = read_table(path, {"class": "iu"})["class"]
    if len(numbers) != len(sensors):
        raise InputError(f"{path}: has {len(numbers)} points, the sweep {len(sensors)}; copy both again")
    found, place = np.unique(numbers[np.isin(sensors, lidars)], return_inverse=True)
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
