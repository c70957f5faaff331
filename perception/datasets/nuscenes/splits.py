"""The official splits of the data sets in nuScenes' schema: names of scenes, as their devkits have them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import cache
from importlib.resources import files
from typing import Any

_OFFICIAL_VERSION = re.compile(r"v\d+\.\d+-(mini|trainval|test)")


def is_official(version: str) -> bool:
    """Whether tables of this version have official splits."""
    return _OFFICIAL_VERSION.fullmatch(version) is not None


def official_splits(scenes: Collection[str] = ()) -> dict[str, list[str]]:
    """The splits of the data set that these scenes are of, as in `utils.splits` of its devkit; nuScenes' by default."""
    here = set(scenes)
    truckscenes = _truckscenes()
    return truckscenes if any(here & {*names} for names in truckscenes.values()) else _nuscenes()


@cache
def _nuscenes() -> dict[str, list[str]]:
    return {split: [f"scene-{number:04d}" for number in numbers] for split, numbers in _content("nuscenes").items()}


@cache
def _truckscenes() -> dict[str, list[str]]:
    """A scene has the number of its part of a log."""
    return {
        split: [f"scene-{log}-{number}" for log, numbers in logs.items() for number in numbers]
        for split, logs in _content("truckscenes").items()
    }


def _content(name: str) -> dict[str, Any]:
    path = files("perception.datasets.nuscenes").joinpath(f"splits_{name}.json")
    return json.loads(path.read_text(encoding="utf-8"))
