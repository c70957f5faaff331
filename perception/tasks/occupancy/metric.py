"""Scores of occupancy: mIoU, RayIoU and unknown obstacles. numpy only.

mIoU is as Occ3D scores occupancy (Tian et al., "Occ3D: A Large-Scale 3D Occupancy Prediction Benchmark for Autonomous
Driving", NeurIPS 2023): over the voxels that the cameras, or the LiDAR, see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from perception.frame import Boxes, Frame
from perception.grid import Occupancy, VoxelGrid, occupancy_classes
from perception.io.files import format_number
from perception.tasks.metric import (
    RING,
    Counts,
    Curve,
    GateMetric,
    GroupSums,
    Metric,
    ReplayedFrames,
    Score,
    Weights,
    WorstFrame,
    lowest_ious,
    mean_known,
    rings,
)
from perception.tasks.occupancy.labels import ego_from_reference, lookup
from perception.tasks.occupancy.obstacle_scores import (
    CURVE,
    count_recalled,
    false_alarms,
    obstacle_report,
    read_voxels,
    score_obstacles,
    share,
)
from perception.tasks.occupancy.obstacles import obstacle_clusters
from perception.tasks.occupancy.rays import THRESHOLDS, cast, choose_origins, count_rays, directions, ray_ious
from perception.tasks.occupancy.result import OccupancyResult

if TYPE_CHECKING:
    from rich.table import Table

MASKS = ("cameras", "lidar")  # what saw the voxels that count in an evaluation


class OccupancyMetric(Metric[OccupancyResult]):
    """Scores on the voxels of the annotations, whatever the grid of the results.

    In an evaluation:
    occupancy_mIoU   over the voxels that the cameras see, mean over the classes that are annotated or predicted
    occupancy_IoU    likewise, by class
    RayIoU           mean over the errors of distance and over the classes
    obstacle_recall  share of the annotated unknown obstacles that clusters of voxels find in their frame
    false_alarms     clusters that are no annotated obstacle, per 100 m

    Gates of a replay, besides obstacle_recall:
    occupancy_IoU   over the voxels that the cameras or the LiDAR see, of the annotated classes
    explained       share of the occupied voxels of detection classes that objects explain
    """

    truth = ("occupancy", "obstacles", "boxes", "lidar_path")
    main = "RayIoU"
    shown = ("occupancy_mIoU", "RayIoU", "obstacle_recall", "false_alarms", "occupancy_IoU")
    lower_is_better = ("false_alarms",)
    gates: ClassVar[Mapping[str, GateMetric]] = {
        "explained": GateMetric(
            "class_names",
            ranged=False,
            by_class="explained_by_class",
            missing="obstacles.json cannot be read or lacks a frame of the replay; replay again",
            item="occupied voxel",
        ),
        "occupancy_IoU": GateMetric(
            "voxel_names",
            step=RING,
            overall="seen_mIoU",
            by_class="seen_IoU",
            missing="there are no annotated voxels, or the network has no occupancy",
            item="annotated voxel",
        ),
        "obstacle_recall": GateMetric(
            missing="there are no annotated unknown obstacles, or the network has no occupancy",
            item="annotated unknown obstacle",
        ),
    }

    def counts(self, frame: Frame, result: OccupancyResult) -> dict[str, Any]:
        """`counts` (rings, 3, classes) of `parts`, of the voxels that the cameras or the LiDAR see.

        And `obstacles`: distance and whether it is found, of each annotated one. None without annotations.
        """
        voxels: Occupancy | None = frame.truth.get("occupancy")
        obstacles: Boxes | None = frame.truth.get("obstacles")
        counts, found = None, None
        if voxels is not None:
            predicted = self._predicted_classes(frame, result, voxels)
            seen = voxels.seen_by_cameras | voxels.seen_by_lidar
            counts = parts(confusion(predicted, voxels.classes, seen, len(self._classes), voxels.grid))
        if obstacles is not None:
            own = obstacles.transformed(np.linalg.inv(frame.global_from_reference))
            score = score_obstacles(obstacle_clusters(result), result.grid, own)
            found = [*zip(score.distances.tolist(), score.found.tolist(), strict=True)]
        return {"counts": counts, "obstacles": found}

    @property
    def _classes(self) -> Sequence[str]:
        return occupancy_classes(self.taxonomy)

    def _predicted_classes(self, frame: Frame, result: OccupancyResult, voxels: Occupancy) -> np.ndarray:
        return on_grid_of_truth(frame, result, voxels.grid, len(self._classes) - 1)

    def details(self, frame: Frame, result: OccupancyResult) -> dict[str, Any]:
        """`voxels` (masks, rings, classes, classes): confusions; `rays` of `count_rays`; None without annotated voxels.

        And `curve`: the `ObstacleScore` at each probability of CURVE, None without annotated obstacles; `ego` (2,) m,
        the position of the vehicle; `scene`.
        """
        voxels: Occupancy | None = frame.truth.get("occupancy")
        obstacles: Boxes | None = frame.truth.get("obstacles")
        found: dict[str, Any] = {"ego": frame.global_from_ego[:2, 3], "scene": frame.scene}
        found |= {"voxels": None, "rays": None, "curve": None}
        if voxels is not None:
            found |= self._count(frame, self._predicted_classes(frame, result, voxels), voxels)
        if obstacles is not None:
            own, grid = obstacles.transformed(np.linalg.inv(frame.global_from_reference)), result.grid
            found["curve"] = [score_obstacles(obstacle_clusters(result, each), grid, own) for each in CURVE]
        return found

    def _count(self, frame: Frame, predicted: np.ndarray, truth: Occupancy) -> dict[str, np.ndarray]:
        free, grid = len(self._classes) - 1, truth.grid
        masks = {"cameras": truth.seen_by_cameras, "lidar": truth.seen_by_lidar}
        voxels = [confusion(predicted, truth.classes, masks[name], free + 1, grid) for name in MASKS]
        path, ego_from_global = frame.truth.get("lidar_path", np.zeros((0, 3))), np.linalg.inv(frame.global_from_ego)
        places = path @ ego_from_global[:3, :3].T + ego_from_global[:3, 3]
        origins = choose_origins(places, grid)
        rays = np.tile(directions(), (len(origins), 1))
        starts = np.repeat(origins, len(directions()), axis=0)
        found, true = cast(np.stack([predicted, truth.classes]), grid, starts, rays, free)
        return {"voxels": np.stack(voxels), "rays": count_rays(found, true, free + 1, grid)}

    def recorded(self, frames: ReplayedFrames, counts: Iterable[Counts | None]) -> list[dict[str, Any] | None]:
        """With the sum of the `counts` of each group, and `explained`, see `read_voxels`."""
        explained = read_voxels(frames.folder, frames.tokens)
        sums, found = GroupSums(frames.groups), list[dict[str, Any] | None]()
        for i, own in enumerate(counts):
            kept = None
            if own is not None:
                obstacles = None if own["obstacles"] is None else np.array(own["obstacles"], np.float64)
                kept = {"counts": own["counts"], "obstacles": obstacles, "explained": explained[i]}
                if sums.add(i, kept) is None:
                    kept["counts"] = None
            found.append(kept)
        return found

    def scores(self, counts: Sequence[Counts | None], weights: Weights) -> dict[str, Score]:
        scores = {"obstacle_recall": share(count_recalled(counts, weights), weights)}
        first = next((each for each in counts if each is not None), {})
        if "voxels" in first:
            scores |= self._scores_to_show(counts, weights)
        if "explained" in first:
            scores |= self._scores_for_gates(counts, weights)
        return scores

    def _scores_for_gates(self, counts: Sequence[Counts | None], weights: Weights) -> dict[str, Score]:
        """Those that gates need besides the recall."""
        names, inside = self.taxonomy.voxel_names, rings(weights.range)
        by_scene = weights.sums(counts, lambda own: _of(own["counts"], lambda each: each[inside].sum(axis=0)))
        values, true = np.full((len(weights.draws), len(names)), np.nan), None
        if by_scene is not None:
            drawn, true = weights.drawn(by_scene), by_scene[:, 2]
            values = np.where(drawn[:, 2] > 0, ious(drawn), np.nan)
        voxels = weights.sums(counts, lambda own: own["explained"])
        return {
            "seen_mIoU": Score(mean_known(values), (), true, by_scene),
            "seen_IoU": Score(values, names, true, by_scene),
            "explained": share(None if voxels is None else voxels.sum(axis=2), weights),
            "explained_by_class": share(voxels, weights, self.taxonomy.class_names),
        }

    def _scores_to_show(self, counts: Sequence[Counts | None], weights: Weights) -> dict[str, Score]:
        """Those that an evaluation shows besides the recall."""
        undefined = np.full((len(weights.draws), len(self._classes) - 1), np.nan)
        shares, ray_means = undefined, undefined[:, 0]
        voxels, rays = self._sum_counts(counts, weights)
        if voxels is not None and rays is not None:
            shares = ious(parts(weights.drawn(voxels)[:, MASKS.index("cameras")]))
            ray_means = mean_known(np.stack([ray_ious(each) for each in weights.drawn(rays)])).mean(axis=1)
        return {
            "occupancy_mIoU": Score(mean_known(shares)),
            "RayIoU": Score(ray_means),
            "false_alarms": Score(false_alarms(counts, weights)),
            "occupancy_IoU": Score(shares, self._classes[:-1]),
        }

    def _sum_counts(
        self, counts: Sequence[Counts | None], weights: Weights
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(S, masks, classes, classes) confusions and (S, thresholds + 2, classes - 1) rays of each scene."""
        inside = rings(weights.range)
        voxels = weights.sums(counts, lambda own: _of(own["voxels"], lambda each: each[:, inside].sum(axis=1)))
        return voxels, weights.sums(counts, lambda own: _of(own["rays"], lambda each: each[inside].sum(axis=0)))

    def report(self, counts: Sequence[Counts]) -> dict[str, Any]:
        """`occupancy`: scores of the voxels, None without annotated ones; `obstacles`: None without annotated ones.

        `mIoU` and `IoU` by class are over the voxels that the cameras see, `mIoU_lidar` over those that the LiDAR sees,
        as is `geometric_IoU`, over all classes together; `RayIoU` is the mean of those at 1, 2 and 4 m. Classes that
        neither the annotations nor the results have do not count.
        """
        return {"occupancy": self._voxel_report(counts), "obstacles": obstacle_report(counts)}

    def _voxel_report(self, counts: Sequence[Counts]) -> dict[str, Any] | None:
        weights = Weights.of(np.ones(len(counts), bool))
        voxels, rays_by_scene = self._sum_counts(counts, weights)
        if voxels is None or rays_by_scene is None:
            return None
        by_class = {name: ious(parts(own)) for name, own in zip(MASKS, voxels[0], strict=True)}
        rays, names = ray_ious(rays_by_scene[0]), self._classes[:-1]
        return {
            "mIoU": mean(by_class["cameras"]),
            "mIoU_lidar": mean(by_class["lidar"]),
            "geometric_IoU": geometric_iou(voxels[0, MASKS.index("lidar")]),
            "RayIoU": None if np.isnan(rays).all() else float(mean_known(rays).mean()),
            **{f"RayIoU_{at:g}": mean(each) for at, each in zip(THRESHOLDS, rays, strict=True)},
            "IoU": Score(by_class["cameras"][None], names).first(),
            "RayIoU_classes": Score(np.mean(rays, axis=0)[None], names).first(),
        }

    def curves(self, counts: Sequence[Counts]) -> list[Curve]:
        """Recall of obstacles by false alarms, a point for each probability of CURVE."""
        obstacles = obstacle_report(counts) or {"curve": ()}
        points = [(each["false_alarms_per_100_m"], each["recall"]) for each in obstacles["curve"]]
        if not points or None in points[0]:  # no obstacle is annotated, or the vehicle stood still
            return []
        x, y = np.array(points, np.float64).T
        axes = "false alarms per 100 m", "recall"
        return [Curve("unknown obstacles: recall by false alarms", "obstacles", axes, x, y)]

    def find_worst(self, counts: Sequence[Counts], most: int) -> list[WorstFrame]:
        """The frames with the lowest `occupancy_mIoU`."""
        seen = MASKS.index("cameras")
        found = (_of(each["voxels"], lambda own: ious(parts(own[seen].sum(axis=0)))) for each in counts)
        return lowest_ious("occupancy_mIoU", found, most)

    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        """IoU and RayIoU by class; recall of unknown obstacles by distance."""
        from rich.table import Table

        tables = []
        if voxels := scores["occupancy"]:
            title = f"occupancy  geometric IoU {format_number(voxels['geometric_IoU'])}"
            columns = {
                "IoU": {**voxels["IoU"], "mean": voxels["mIoU"]},
                "RayIoU": {**voxels["RayIoU_classes"], "mean": voxels["RayIoU"]},
            }
            tables.append(self.class_table(title, self._classes[:-1], columns))
        if obstacles := scores["obstacles"]:
            table = Table(title=f"unknown obstacles, {obstacles['metres']:.0f} m driven")
            for column in ("probability", *obstacles["by_distance"], "false alarms per 100 m"):
                table.add_column(column, justify="right")
            for row in obstacles["curve"]:
                numbers = (row["probability"], *row["by_distance"].values(), row["false_alarms_per_100_m"])
                table.add_row(*map(format_number, numbers))
            tables.append(table)
        return tables

    def list_usual_gates(self, counts: Sequence[Counts | None]) -> tuple[Sequence[str], Sequence[str]]:
        """Also without annotations: a class that is no longer detected leaves its voxels unexplained."""
        annotated = any(each and each["obstacles"] is not None for each in counts)
        return ("obstacle_recall", "explained") if annotated else ("explained",), ()


def on_grid_of_truth(frame: Frame, result: OccupancyResult, grid: VoxelGrid, free: int) -> np.ndarray:
    """(levels, rows, columns) predicted classes on a grid in the ego frame; free outside the grid of the result."""
    index, inside = lookup(grid, result.grid, np.linalg.inv(ego_from_reference(frame)))
    return np.where(inside, result.classes.reshape(-1)[index], np.uint8(free))


def _of(values: np.ndarray | None, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    """What is made of the values; None without any."""
    return None if values is None else of(values)


def confusion(predicted: np.ndarray, truth: np.ndarray, seen: np.ndarray, count: int, grid: VoxelGrid) -> np.ndarray:
    """(rings, classes, classes) number of seen voxels by ring of RING around the vehicle, true and predicted class."""
    ring = _rings(grid)
    number = int(ring.max()) + 1
    pair = truth[seen].astype(np.int64) * count + predicted[seen]
    index = np.broadcast_to(ring, truth.shape)[seen] * count**2 + pair
    return np.bincount(index, minlength=number * count**2).reshape(number, count, count)


@lru_cache(maxsize=8)
def _rings(grid: VoxelGrid) -> np.ndarray:
    """(rows, columns) int64 ring of each column of voxels."""
    x, y = np.moveaxis(grid.centers()[0, ..., :2].astype(np.float64), -1, 0)
    return np.asarray((np.hypot(x, y) // RING).astype(np.int64))


def parts(table: np.ndarray) -> np.ndarray:
    """(..., 3, classes - 1) intersection, union and true voxels of each class but free, from confusions (..., C, C)."""
    hits = np.diagonal(table, axis1=-2, axis2=-1)
    true, found = table.sum(axis=-1), table.sum(axis=-2)
    return np.stack([hits, true + found - hits, true], axis=-2)[..., :-1]


def ious(counts: np.ndarray) -> np.ndarray:
    """(..., classes) IoU of counts (..., 3, classes) of intersection, union and truth; NaN for classes in neither."""
    intersection, union = counts[..., 0, :].astype(np.float64), counts[..., 1, :]
    return np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def geometric_iou(table: np.ndarray) -> float | None:
    """IoU of what is occupied, whatever its class, from a confusion (C, C); None if nothing is in either."""
    hits = table[:-1, :-1].sum()
    union = table.sum() - table[-1, -1]
    return float(hits / union) if union else None


def mean(values: np.ndarray) -> float | None:
    """Mean over the numbers that are not NaN; None without any."""
    return None if np.isnan(values).all() else float(mean_known(values))
