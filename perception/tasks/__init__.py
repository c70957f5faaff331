"""The tasks of networks, one folder for each, and the dict of them. numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import create_model

from perception.grid import BevGrid
from perception.io.section import Section
from perception.tasks.conditions.task import ConditionsTask
from perception.tasks.detection.task import DetectionTask
from perception.tasks.map.task import MapTask
from perception.tasks.occupancy.task import OccupancyTask
from perception.tasks.points.task import PointsTask
from perception.tasks.task import Task, TaskConfig
from perception.taxonomy import Taxonomy

TASKS: dict[str, type[Task[Any]]] = {
    task.name: task for task in (DetectionTask, MapTask, ConditionsTask, PointsTask, OccupancyTask)
}


def parse_tasks(content: object) -> dict[str, TaskConfig]:
    """Task -> configuration, from a parsed document; None omits a task. A wrong key is a ValidationError."""
    fields: Any = {name: (task.Config | None, None) for name, task in TASKS.items()}
    known = create_model("Tasks", __base__=Section, **fields).model_validate(content)
    return {name: config for name, config in known if config is not None}


def point_places(configs: Mapping[str, TaskConfig]) -> int:
    """Number of points of the keyframe that the network takes for these tasks; 0 if none of them reads points."""
    return max((config.point_places for config in configs.values()), default=0)


def counted_truth(tasks: Iterable[str]) -> tuple[str, ...]:
    """The kinds of `Frame.truth` that the metrics of these tasks count with."""
    return tuple(dict.fromkeys(kind for name in tasks for kind in TASKS[name].metric.truth))


def tasks_of(configs: Mapping[str, TaskConfig], grid: BevGrid, taxonomy: Taxonomy) -> dict[str, Task[Any]]:
    """Task -> task object of a model, whose trunk has outputs on this grid."""
    return {name: TASKS[name](config, grid, taxonomy) for name, config in configs.items()}
