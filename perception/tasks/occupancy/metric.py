"""Scores of occupancy: mIoU, RayIoU and recall of unknown obstacles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.frame import Frame
from perception.grid import BevGrid
from perception.strict_json import shown
from perception.tasks.metric import Curve, Metric, Sample, lowest_ious
from perception.tasks.occupancy.confusion import confusion, geometric_iou, ious, mean, parts
from perception.tasks.occupancy.obstacles import (
    DISTANCES,
    PROBABILITY,
    ObstacleScore,
    driven,
    obstacle_clusters,
    score_obstacles,
)
from perception.tasks.occupancy.ray_iou import THRESHOLDS, cast, chosen_origins, count_rays, directions, ray_ious
from perception.tasks.occupancy.result import OccupancyResult
from perception.tasks.occupancy.truth import lidar_places, obstacles_of, on_grid_of_truth
from perception.tasks.rings import rings
from perception.voxels import Occupancy, occupancy_classes

if TYPE_CHECKING:
    from rich.table import Table

MASKS = ("cameras", "lidar")  # what saw the voxels that count
CURVE = (0.3, PROBABILITY, 0.7, 0.9, 0.95, 0.99, 0.995, 0.999)  # probabilities that obstacles are scored at


@dataclass(frozen=True)
class _Counts:
    """Of one frame.

    Attributes:
        voxels: (masks, rings, classes, classes) confusions.
        rays: (rings, thresholds + 2, classes - 1), see `count_rays`.
    """

    voxels: np.ndarray
    rays: np.ndarray


class OccupancyMetric(Metric[OccupancyResult]):
    """Scores on the voxels of the annotations, whatever the grid of the results."""

    main = "RayIoU"
    lower_is_better = ("false_alarms",)

    def __init__(self, source: Keyframes, grid: BevGrid) -> None:
        super().__init__(source, grid)
        self._classes = occupancy_classes(source.taxonomy)
        self._counts: list[_Counts | None] = []  # of each frame; None without annotations
        self._obstacles: list[Sequence[ObstacleScore] | None] = []  # of each frame, by CURVE; None without annotations
        self._egos: list[np.ndarray] = []
        self._scenes: list[str] = []
        self._places: tuple[str, np.ndarray] = ("", np.zeros((0, 3)))  # of the LiDAR in the latest drive

    def add(self, frame: Frame, result: OccupancyResult) -> None:
        truth, annotated = self.source.truth(frame.token).occupancy(), obstacles_of(frame, self.source)
        self._counts.append(None if truth is None else self._count(frame, result, truth))
        self._obstacles.append(
            None
            if annotated is None
            else [
                score_obstacles(obstacle_clusters(result, result.grid, probability), result.grid, annotated)
                for probability in CURVE
            ]
        )
        self._egos.append(frame.global_from_ego[:2, 3])
        self._scenes.append(frame.scene)

    def _count(self, frame: Frame, result: OccupancyResult, truth: Occupancy) -> _Counts:
        free, grid = len(self._classes) - 1, truth.grid
        predicted = on_grid_of_truth(frame, result, grid, free)
        masks = {"cameras": truth.seen_by_cameras, "lidar": truth.seen_by_lidar}
        voxels = [confusion(predicted, truth.classes, masks[name], free + 1, grid) for name in MASKS]
        if self._places[0] != frame.scene:
            self._places = frame.scene, lidar_places(self.source, frame.scene)
        ego_from_global = np.linalg.inv(frame.global_from_ego)
        origins = chosen_origins(self._places[1] @ ego_from_global[:3, :3].T + ego_from_global[:3, 3], grid)
        rays = np.tile(directions(), (len(origins), 1))
        starts = np.repeat(origins, len(directions()), axis=0)
        found, true = cast(np.stack([predicted, truth.classes]), grid, starts, rays, free)
        return _Counts(np.stack(voxels), count_rays(found, true, free + 1, grid))

    def scores(self) -> dict[str, Any]:
        """`occupancy`: scores of the voxels, None without annotated ones; `obstacles`: None without annotated ones.

        `mIoU` and `IoU` by class are over the voxels that the cameras see, `mIoU_lidar` over those that the LiDAR sees,
        as is `geometric_IoU`, over all classes together; `RayIoU` is the mean of those at 1, 2 and 4 m. Classes that
        neither the annotations nor the results have do not count.
        """
        return {"occupancy": self._of_voxels(slice(None), None), "obstacles": self._of_obstacles(slice(None), None)}

    def part(self, frames: np.ndarray, bounds: tuple[float, float] | None = None) -> dict[str, Any]:
        """`occupancy_mIoU`, `RayIoU`, `obstacle_recall`, `false_alarms` per 100 m, and `occupancy_IoU` by class."""
        voxels, obstacles = self._of_voxels(frames, bounds) or {}, self._of_obstacles(frames, bounds) or {}
        return {
            "occupancy_mIoU": voxels.get("mIoU"),
            "RayIoU": voxels.get("RayIoU"),
            "obstacle_recall": obstacles.get("recall"),
            "false_alarms": obstacles.get("false_alarms_per_100_m"),
            "occupancy_IoU": voxels.get("IoU", {}),
        }

    def _of_voxels(self, frames: np.ndarray | slice, bounds: tuple[float, float] | None) -> dict[str, Any] | None:
        chosen = np.arange(len(self._counts))[frames]
        known = [counts for counts in (self._counts[i] for i in chosen) if counts is not None]
        if not known:
            return None
        table = np.sum([each.voxels[:, rings(bounds)].sum(axis=1) for each in known], axis=0)
        by_class = {name: ious(parts(own)) for name, own in zip(MASKS, table, strict=True)}
        rays = ray_ious(np.sum([each.rays[rings(bounds)].sum(axis=0) for each in known], axis=0))
        return {
            "mIoU": mean(by_class["cameras"]),
            "mIoU_lidar": mean(by_class["lidar"]),
            "geometric_IoU": geometric_iou(table[MASKS.index("lidar")]),
            "RayIoU": None if np.isnan(rays).all() else float(np.nanmean(rays, axis=1).mean()),
            **{f"RayIoU_{at:g}": mean(each) for at, each in zip(THRESHOLDS, rays, strict=True)},
            "IoU": self._named(by_class["cameras"]),
            "RayIoU_classes": self._named(np.mean(rays, axis=0)),
        }

    def _named(self, values: np.ndarray) -> dict[str, float | None]:
        return {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(self._classes[:-1], values, strict=True)
        }

    def _of_obstacles(self, frames: np.ndarray | slice, bounds: tuple[float, float] | None) -> dict[str, Any] | None:
        chosen = [i for i in np.arange(len(self._obstacles))[frames] if self._obstacles[i] is not None]
        if not chosen:
            return None
        metres = driven(
            np.array([self._egos[i] for i in chosen]),
            np.unique([self._scenes[i] for i in chosen], return_inverse=True)[1],
        )
        curve = []
        for i, probability in enumerate(CURVE):
            own = [scores[i] for scores in (self._obstacles[frame] for frame in chosen) if scores is not None]
            curve.append({"probability": probability, **_recall(own, metres, bounds)})
        return {**curve[CURVE.index(PROBABILITY)], "metres": metres, "curve": curve}

    def curves(self) -> list[Curve]:
        """Recall of obstacles by false alarms, a point for each probability of CURVE."""
        obstacles = self._of_obstacles(slice(None), None) or {"curve": ()}
        points = [(each["false_alarms_per_100_m"], each["recall"]) for each in obstacles["curve"]]
        if not points or None in points[0]:  # no obstacle is annotated, or the vehicle stood still
            return []
        x, y = np.array(points, np.float64).T
        axes = "false alarms per 100 m", "recall"
        return [Curve("unknown obstacles: recall by false alarms", "obstacles", axes, x, y)]

    def worst(self, count: int) -> list[Sample]:
        """The frames with the lowest `occupancy_mIoU`."""
        seen = MASKS.index("cameras")
        found = (None if each is None else ious(parts(each.voxels[seen].sum(axis=0))) for each in self._counts)
        return lowest_ious("occupancy_mIoU", found, count)

    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        """IoU and RayIoU by class; recall of unknown obstacles by distance."""
        from rich.table import Table

        tables = []
        if voxels := scores["occupancy"]:
            table = Table(title=f"occupancy  geometric IoU {shown(voxels['geometric_IoU'])}", show_footer=True)
            table.add_column("class", footer="mean")
            table.add_column("IoU", shown(voxels["mIoU"]), justify="right")
            table.add_column("RayIoU", shown(voxels["RayIoU"]), justify="right")
            for name in self._classes[:-1]:
                table.add_row(name, shown(voxels["IoU"][name]), shown(voxels["RayIoU_classes"][name]))
            tables.append(table)
        if obstacles := scores["obstacles"]:
            table = Table(title=f"unknown obstacles, {obstacles['metres']:.0f} m driven")
            for column in ("probability", *obstacles["by_distance"], "false alarms per 100 m"):
                table.add_column(column, justify="right")
            for row in obstacles["curve"]:
                numbers = (row["probability"], *row["by_distance"].values(), row["false_alarms_per_100_m"])
                table.add_row(*map(shown, numbers))
            tables.append(table)
        return tables


def _recall(
    scores: Sequence[ObstacleScore], metres: float, bounds: tuple[float, float] | None
) -> dict[str, float | int | dict[str, float | None] | None]:
    """Recall of obstacles and false alarms in a range (m) over frames in which the vehicle went so many metres.

    `by_distance` is the recall up to each of DISTANCES.
    """
    low, high = bounds or (0.0, np.inf)
    distances, found, alarms = (
        np.concatenate([getattr(each, name) for each in scores]) for name in ("distances", "found", "alarms")
    )
    within = (distances >= low) & (distances < high)
    number = int(((alarms >= low) & (alarms < high)).sum())

    def share(mask: np.ndarray) -> float | None:
        return float(found[mask].mean()) if mask.any() else None

    return {
        "obstacles": int(within.sum()),
        "recall": share(within),
        "by_distance": {f"within {d:g} m": share(within & (distances < d)) for d in DISTANCES},
        "false_alarms": number,
        "false_alarms_per_100_m": 100 * number / metres if metres else None,
    }
