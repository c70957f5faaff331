"""Facts known of a frame before the network runs: its conditions, its sensors, the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from perception.frame import CONDITION_VALUES, CONDITIONS, Conditions
from perception.modules.spec import SENSORS
from perception.tasks import TASKS

Facts = frozenset[str]  # members of `spec.FACTS`


def present(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """For each sensor of the model, whether each frame has it, (B,) bool: a missing one is an input of zeros."""
    found = {}
    if "pillar_counts" in inputs:
        found["lidar"] = (inputs["pillar_counts"] > 0).any(dim=1)
    if "image_from_reference" in inputs:
        found["cameras"] = (inputs["image_from_reference"] != 0).flatten(1).any(dim=1)
    return found


def facts(conditions: Sequence[Conditions], sensors: Mapping[str, Tensor], task: str | None) -> list[Facts]:
    """Facts of each frame of a batch.

    Args:
        conditions: of each frame; empty where nothing is known.
        sensors: as `present` gives it; a sensor that it lacks counts as neither present nor missing.
        task: that the features are for; None for those of all tasks.
    """
    size = len(conditions) or max((len(there) for there in sensors.values()), default=1)
    known = [set(c.known()) for c in conditions] or [set() for _ in range(size)]
    for name in SENSORS:
        if name in sensors:
            for frame, there in zip(known, sensors[name].tolist(), strict=True):
                frame.add(name if there else f"no-{name}")
    return [frozenset(frame | ({task} if task else set())) for frame in known]


def condition_vectors(conditions: Sequence[Conditions]) -> Tensor:
    """(B, 7): one where a condition holds, in the order of CONDITION_VALUES; zeros where nothing is known."""
    known = [c.known() for c in conditions] or [()]
    return torch.tensor([[float(value in frame) for value in CONDITION_VALUES] for frame in known])


def possible(asked: Facts, sensors: Mapping[str, Tensor], tasks: Sequence[str]) -> Tensor:
    """(B,) bool: frames that have the sensors and tasks that a module requires; tensor operations throughout.

    Args:
        asked: all that it requires.
        sensors: as `present` gives it; a sensor that it lacks is neither present nor missing.
        tasks: that the features are for; several only if no module requires one.
    """
    holds = torch.ones_like(next(iter(sensors.values())))
    for name, there in sensors.items():
        if name in asked:
            holds = holds & there
        if f"no-{name}" in asked:
            holds = holds & ~there
    unknown = {fact for name in SENSORS if name not in sensors for fact in (name, f"no-{name}")}
    other = set(TASKS) - set(tasks)
    return holds & (not asked & (unknown | other))


def asked_kinds(asks: Iterable[Facts]) -> list[str]:
    """The kinds of conditions (weather, light, city) that some module requires."""
    asked = frozenset[str]().union(*asks)
    return [kind for kind, values in CONDITIONS.items() if asked & set(values)]
