"""What follows from the health of each sensor and from lateness while driving, from a YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from deploy.manifest import Manifest
from perception.errors import InputError
from perception.io.section import Section, load_section
from perception.scene.health.features import Status
from perception.scene.health.monitor import VEHICLE, SensorHealth
from perception.tasks.published import ScoreThresholds

Seconds = Annotated[float, Field(gt=0, le=10)]
# warn: the state is DEGRADED; mask: and the network does not see the sensor; stop: the state is DOWN.
Action = Literal["ignore", "warn", "mask", "stop"]


class Delay(Section):
    """How late an output may be, in seconds after the message that completed its frame came; the names and values are
    Autoware's."""

    allowed: Seconds = 0.2  # max_allowed_processing_time_ms
    consecutive: Seconds = 1.0  # max_acceptable_consecutive_delay_ms; late for longer, the state is DOWN
    check: Seconds = 0.1  # validation_callback_interval_ms


class Policy(Section):
    """The content of the file. Without an entry the action is `warn`."""

    # s after a frame was announced for which it waits for its sensors; as max_camera_lidar_delay
    lateness: Seconds = 0.12
    delay: Delay = Delay()
    hang: Seconds = 2.0  # s that the engine may take before the state is DOWN
    golden: Annotated[float, Field(gt=0)] = 30.0  # s between two golden frames
    publish_untrusted: bool = False  # whether frames are perceived although the engine has failed a golden frame
    failing: Seconds = 5.0  # s without a frame because the engine fails, after which the process ends
    score_thresholds: ScoreThresholds | None = None  # instead of the bundle's
    # By sensor, or pattern such as CAM_*: status -> action.
    sensors: dict[str, dict[Status | Literal["any"], Action]] = Field(default={})

    def action(self, sensor: str, status: Status) -> Action:
        """What follows when a sensor has a status; the first pattern that fits counts."""
        for pattern, actions in self.sensors.items():
            if fnmatchcase(sensor, pattern):
                return actions.get(status, actions.get("any", "warn"))
        return "warn"

    def actions(self, health: Mapping[str, SensorHealth]) -> dict[str, dict[Action, str]]:
        """Sensor -> action -> reason, of all findings."""
        found: dict[str, dict[Action, str]] = {}
        for name, each in health.items():
            for finding in each.findings:
                why = f"{finding.status}: {finding.reason}"
                found.setdefault(name, {}).setdefault(self.action(name, finding.status), why)
        return found

    def masked(self, health: Mapping[str, SensorHealth]) -> frozenset[str]:
        """The sensors that the network shall not see."""
        return frozenset(name for name, actions in self.actions(health).items() if "mask" in actions)

    def require_known(self, sensors: Sequence[str]) -> None:
        """Raise InputError if an entry is for none of these sensors, since a misspelt one would never act."""
        for pattern in self.sensors:
            if not any(fnmatchcase(each, pattern) for each in (*sensors, VEHICLE)):
                there = ", ".join(sensors)
                raise InputError(f"--policy: sensors.{pattern}: fits none of the bundle's sensors {there}; correct it")

    def adjust(self, manifest: Manifest) -> Manifest:
        """The manifest with the policy's score thresholds, if any; InputError if they are not of its classes."""
        scores, classes = self.score_thresholds, manifest.taxonomy.class_names
        if scores is None:
            return manifest
        detecting = [name for name, task in manifest.heads.items() if task.thresholds is not None]
        if not detecting:
            raise InputError("--policy: score_thresholds: the network detects no objects; leave it out")
        try:
            scores.require_classes(manifest.taxonomy)
        except ValueError as error:
            raise InputError(f"--policy: {error} {', '.join(classes)}; correct it") from None
        adjusted = {name: manifest.tasks[name].model_copy(update={"score_thresholds": scores}) for name in detecting}
        content = {name: getattr(manifest, name) for name in Manifest.model_fields}
        return Manifest(**content | {"tasks": {**manifest.tasks, **adjusted}})


def load_policy(path: Path | None) -> Policy:
    """The policy in a file; None: the default one. InputError if it cannot be read or has a wrong key or value."""
    return Policy() if path is None else load_section(Policy, path, "the policy")
