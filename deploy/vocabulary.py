"""Check that a manifest's routes require only facts that its taxonomy has."""

from __future__ import annotations

from pathlib import Path

from deploy.manifest import Manifest
from perception.errors import InputError
from perception.taxonomy import SENSORS

# Facts other than conditions that modules can require, see deploy.route.steering_inputs.
SENSOR_FACTS = (*SENSORS, *(f"no-{sensor}" for sensor in SENSORS))


def require_vocabulary(file: Path, manifest: Manifest) -> None:
    """Raise InputError if a route or a module requires a fact that no frame can have, or the tasks' names differ."""
    conditions = manifest.taxonomy.condition_values
    for name, task in manifest.tasks.items():
        try:
            task.require_taxonomy(manifest.taxonomy)
        except ValueError as error:
            raise InputError(f"{file}: tasks.{name}: {error}; export the bundle again") from None
    for field, names, known in (
        ("routes", manifest.routes, conditions),
        ("apart", manifest.apart, conditions),
        *((f"banked.{m.name}.asks", m.asks, (*conditions, *SENSOR_FACTS)) for m in manifest.banked),
    ):
        for fact in (fact for name in names for fact in name.split("+") if fact != "base"):
            if fact not in known:
                raise InputError(
                    f"{file}: {field}: {fact!r} is none of {', '.join(known)}; export the bundle again, with this "
                    "version"
                )
