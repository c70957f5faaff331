"""Annotations: boxes of what the sensors saw, chained over the keyframes of a drive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perception.simulate.nuscenes_writer import Row, link, token, visibility_token


@dataclass(frozen=True)
class Sighting:
    """One agent near the vehicle at one keyframe."""

    agent: int
    category: str
    center: np.ndarray  # (3,) m, global, whole millimetres
    size: np.ndarray  # (3,) m: width, length, height
    yaw: float  # rad
    attribute: str  # '' for none
    points: int  # LiDAR points inside the box
    visible: float  # share of it that a camera sees; NaN if it is in no picture


def points_in_boxes(points: np.ndarray, centers: np.ndarray, sizes: np.ndarray, yaws: np.ndarray) -> np.ndarray:
    """(B,) number of points (N, 3) inside each upright box, faces included.

    centers (B, 3) m, sizes (B, 3) width, length, height m, yaws (B,) rad; the devkit's `points_in_box`.
    """
    points = points[np.argsort(points[:, 0], kind="stable")]
    reach = np.hypot(sizes[:, 0], sizes[:, 1]) / 2
    first = np.searchsorted(points[:, 0], centers[:, 0] - reach)
    last = np.searchsorted(points[:, 0], centers[:, 0] + reach, side="right")
    counts = np.zeros(len(centers), np.int64)
    for n in range(len(centers)):
        x, y, z = (points[first[n] : last[n]] - centers[n]).T
        along = np.abs(np.cos(yaws[n]) * x + np.sin(yaws[n]) * y) <= sizes[n, 1] / 2
        across = np.abs(np.cos(yaws[n]) * y - np.sin(yaws[n]) * x) <= sizes[n, 0] / 2
        counts[n] = np.count_nonzero(along & across & (np.abs(z) <= sizes[n, 2] / 2))
    return counts


def annotate(scene: str, samples: list[str], sightings: list[list[Sighting]]) -> tuple[list[Row], list[Row]]:
    """Rows of sample_annotation and instance.

    As in nuScenes, an object is annotated from the first to the last keyframe in which a sensor saw it, also
    where it is hidden in between.
    """
    found: dict[int, list[tuple[int, Sighting]]] = {}
    for k, keyframe in enumerate(sightings):
        for sighting in keyframe:
            found.setdefault(sighting.agent, []).append((k, sighting))
    annotations: list[tuple[int, int, Row]] = []
    instances: list[Row] = []
    for agent, appearances in sorted(found.items()):
        seen = [k for k, s in appearances if s.points > 0 or s.visible > 0]
        if not seen:
            continue
        instance = token(scene, "instance", agent)
        rows = [
            (k, agent, _row(token(scene, "annotation", agent, k), samples[k], instance, s))
            for k, s in appearances
            if seen[0] <= k <= seen[-1]
        ]
        link([row for _, _, row in rows])
        annotations += rows
        instances.append(
            {
                "token": instance,
                "category_token": token("category", appearances[0][1].category),
                "nbr_annotations": len(rows),
                "first_annotation_token": rows[0][2]["token"],
                "last_annotation_token": rows[-1][2]["token"],
            }
        )
    annotations.sort(key=lambda row: row[:2])
    return [row for _, _, row in annotations], instances


def _row(name: str, sample: str, instance: str, sighting: Sighting) -> Row:
    return {
        "token": name,
        "sample_token": sample,
        "instance_token": instance,
        "visibility_token": visibility_token(sighting.visible),
        "attribute_tokens": [token("attribute", sighting.attribute)] if sighting.attribute else [],
        "translation": sighting.center.tolist(),
        "size": sighting.size.tolist(),
        "rotation": [float(np.cos(sighting.yaw / 2)), 0.0, 0.0, float(np.sin(sighting.yaw / 2))],
        "prev": "",
        "num_lidar_pts": sighting.points,
        "num_radar_pts": 0,
    }
