"""Facts of a frame that are known before the network runs (conditions, sensors, task), and requirements of modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from perception.frame import Conditions
from perception.tasks import TASKS
from perception.taxonomy import SENSORS

Facts = frozenset[str]  # conditions, sensors and tasks


def present(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sensor of the model -> (B,) bool whether each frame has it; a missing one has zeros as inputs."""
    found = {}
    if "pillar_counts" in inputs:
        found["lidar"] = (inputs["pillar_counts"] > 0).any(dim=1)
    if "image_from_reference" in inputs:
        found["cameras"] = (inputs["image_from_reference"] != 0).flatten(1).any(dim=1)
    return found


def facts(conditions: Sequence[Conditions], sensors: Mapping[str, Tensor], task: str | None) -> list[Facts]:
    """Facts of each frame of a batch.

    Args:
        conditions: of each frame; empty if unknown.
        sensors: as returned by `present`; a sensor that it lacks counts as neither present nor missing.
        task: that the features are for; None for all tasks.
    """
    size = len(conditions) or max((len(there) for there in sensors.values()), default=1)
    known = [set(c.known()) for c in conditions] or [set() for _ in range(size)]
    for name in SENSORS:
        if name in sensors:
            for frame, there in zip(known, sensors[name].tolist(), strict=True):
                frame.add(name if there else f"no-{name}")
    return [frozenset(frame | ({task} if task else set())) for frame in known]


def condition_vectors(conditions: Sequence[Conditions], values: Sequence[str]) -> Tensor:
    """(B, values): one where a condition holds; zeros for unknown conditions."""
    known = [c.known() for c in conditions] or [()]
    return torch.tensor([[float(value in frame) for value in values] for frame in known])


def meets_requirements(required: Facts, sensors: Mapping[str, Tensor], tasks: Sequence[str]) -> Tensor:
    """(B,) bool: frames that have the sensors and tasks that a module requires, by tensor operations only.

    Args:
        required: the module's requirements.
        sensors: as returned by `present`; a sensor that it lacks is neither present nor missing.
        tasks: that the features are for; several only if no module requires one.
    """
    holds = torch.ones_like(next(iter(sensors.values())))
    for name, there in sensors.items():
        if name in required:
            holds = holds & there
        if f"no-{name}" in required:
            holds = holds & ~there
    unknown = {fact for name in SENSORS if name not in sensors for fact in (name, f"no-{name}")}
    other = set(TASKS) - set(tasks)
    return holds & (not required & (unknown | other))


def required_kinds(requirements: Iterable[Facts], conditions: Mapping[str, Sequence[str]]) -> list[str]:
    """The kinds of conditions (weather, light, city) that some module requires.

    Args:
        conditions: kind -> values.
    """
    required = frozenset[str]().union(*requirements)
    return [kind for kind, values in conditions.items() if required & set(values)]
