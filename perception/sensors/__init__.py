"""The kinds of sensors of networks, one folder for each, and the dict of them. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, create_model

from perception.io.section import Section
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
    fields: Any = {kind: (SENSORS[kind].Config | None, None) for kind in SENSORS if kind in given}
    known = create_model("Sensors", __base__=Section, **fields).model_validate(content)
    return {kind: config for kind, config in known if config is not None}


SensorConfigs = Annotated[dict[str, SerializeAsAny[Section]], BeforeValidator(parse_sensors)]
