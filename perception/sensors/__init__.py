"""The kinds of sensors of networks, one folder for each, and the dict of them. numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, create_model

from perception.io.section import Contents, Section
from perception.registry import Registry

SENSORS = Registry(
    lidar="perception.sensors.lidar.sensor:LidarSensor",
    camera="perception.sensors.camera.sensor:CameraSensor",
)


def sensor_facts() -> tuple[str, ...]:
    """The words by which modules require sensors; with `no-` before it, a word requires that one is missing."""
    return tuple(kind.fact for kind in SENSORS.values())


def parse_sensors(content: object) -> dict[str, Section]:
    """Kind of sensor -> configuration of its branch, in the order of `SENSORS`, from a parsed document; None omits one.

    A wrong key is a ValidationError.
    """
    given = content if isinstance(content, Mapping) else {}
    known = _section([kind for kind in SENSORS if kind in given]).model_validate(content)
    return {kind: config for kind, config in known if config is not None}


def _section(kinds: Iterable[str]) -> type[Section]:
    """The section with the configurations of these kinds of sensors."""
    fields: Any = {kind: (SENSORS[kind].Config | None, None) for kind in kinds}
    return create_model("Sensors", __base__=Section, **fields)


SensorConfigs = Annotated[
    dict[str, SerializeAsAny[Section]], BeforeValidator(parse_sensors), Contents(lambda: _section(SENSORS))
]
