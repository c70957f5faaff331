"""The tasks of networks, one folder for each, and the dict of them. numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, create_model

from perception.grid import BevGrid
from perception.io.section import Contents, Section
from perception.registry import Registry
from perception.tasks.task import Task, TaskConfig
from perception.taxonomy import Taxonomy

TASKS = Registry(
    detection="perception.tasks.detection.task:DetectionTask",
    map="perception.tasks.map.task:MapTask",
    conditions="perception.tasks.conditions.task:ConditionsTask",
    points="perception.tasks.points.task:PointsTask",
    occupancy="perception.tasks.occupancy.task:OccupancyTask",
)


def parse_tasks(content: object) -> dict[str, TaskConfig]:
    """Task -> configuration, from a parsed document; None omits a task. A wrong key is a ValidationError."""
    named = content if isinstance(content, Mapping) else {}
    known = _section([name for name in TASKS if name in named]).model_validate(content)
    return {name: config for name, config in known if config is not None}


def _section(names: Iterable[str]) -> type[Section]:
    """The section with the configurations of these tasks."""
    fields: Any = {name: (TASKS[name].Config | None, None) for name in names}
    return create_model("Tasks", __base__=Section, **fields)


TaskConfigs = Annotated[
    dict[str, SerializeAsAny[TaskConfig]], BeforeValidator(parse_tasks), Contents(lambda: _section(TASKS))
]


def point_places(configs: Mapping[str, TaskConfig]) -> int:
    """Number of points of the keyframe that the network takes for these tasks; 0 if none of them reads points."""
    return max((config.point_places for config in configs.values()), default=0)


def counted_truth(tasks: Iterable[str]) -> tuple[str, ...]:
    """The kinds of `Frame.truth` that the metrics of these tasks count with."""
    return tuple(dict.fromkeys(kind for name in tasks for kind in TASKS[name].metric.truth))


def tasks_of(configs: Mapping[str, TaskConfig], grid: BevGrid, taxonomy: Taxonomy) -> dict[str, Task[Any]]:
    """Task -> task object of a model, whose trunk has outputs on this grid."""
    return {name: TASKS[name](config, grid, taxonomy) for name, config in configs.items()}
