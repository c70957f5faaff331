"""Check that a manifest has this software's classes and conditions, in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from deploy.manifest import Manifest
from perception.errors import InputError
from perception.frame import ATTRIBUTES, CLASSES, CONDITION_VALUES, MAP_CLASSES

# Facts other than conditions that modules can require, see deploy.route.steering_inputs.
SENSORS = ("lidar", "no-lidar", "cameras", "no-cameras")


def require_vocabulary(file: Path, manifest: Manifest) -> None:
    """Raise InputError if classes, attributes or conditions, or their order, differ from this software's."""
    for field, found, known in (
        ("classes", manifest.classes, CLASSES),
        ("attributes", manifest.attributes, ATTRIBUTES),
        ("map_classes", manifest.map_classes, MAP_CLASSES if "map" in manifest.tasks else ()),
        ("conditions", manifest.conditions, CONDITION_VALUES),
    ):
        _require_same(f"{file}: {field}", found, known)
    for field, names, known in (
        ("routes", manifest.routes, CONDITION_VALUES),
        ("apart", manifest.apart, CONDITION_VALUES),
        *((f"banked.{m.name}.asks", m.asks, (*CONDITION_VALUES, *SENSORS)) for m in manifest.banked),
    ):
        for fact in (fact for name in names for fact in name.split("+") if fact != "base"):
            if fact not in known:
                raise InputError(
                    f"{file}: {field}: this software does not know {fact!r}, only {', '.join(known)}; export the "
                    "bundle again, with this version"
                )


def _require_same(where: str, found: Sequence[str], known: Sequence[str]) -> None:
    for place, (theirs, ours) in enumerate(zip_longest(found, known)):
        if theirs != ours:
            here, there = ("nothing" if name is None else repr(name) for name in (ours, theirs))
            raise InputError(
                f"{where}: number {place} is {there}, but {here} for this software; export the bundle again, with this "
                "version"
            )
