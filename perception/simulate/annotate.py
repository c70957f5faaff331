"""Annotations: boxes of the objects that the sensors saw, linked over the keyframes of a drive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perception.sensors.lidar.points_in_boxes import points_in_boxes
from perception.simulate.agents import attribute
from perception.simulate.nuscenes_writer import Row, link, token, visibility_token
from perception.simulate.world import World

ANNOTATION_RANGE = 80.0  # m around the vehicle


@dataclass(frozen=True)
class Observation:
    """One agent near the ego vehicle at one keyframe."""

    agent: int
    category: str
    center: np.ndarray  # (3,) m, global, whole millimetres
    size: np.ndarray  # (3,) m: width, length, height
    yaw: float  # rad
    attribute: str  # '' for none
    points: int  # LiDAR points inside the box
    visible_share: float  # of the object, in the camera that sees most of it; NaN if it is in no image


def observe(world: World, time: float, points: np.ndarray, visible_share: np.ndarray) -> list[Observation]:
    """The agents around the ego vehicle at a keyframe. points (N, 3) in the global frame, visible_share (A,)."""
    pose = world.global_from_ego_at(time)
    xy, yaw, velocity = world.agents_at(time)
    near = np.flatnonzero(np.linalg.norm(xy - pose[:2, 3], axis=1) < ANNOTATION_RANGE)
    sizes = np.array([world.agents[n].size for n in near]).reshape(-1, 3)
    centers = np.concatenate([xy[near], sizes[:, 2:3] / 2], axis=1).round(3)
    counts = points_in_boxes(points, centers, sizes, yaw[near])
    return [
        Observation(
            agent=int(n),
            category=world.agents[n].category,
            center=centers[k],
            size=sizes[k],
            yaw=float(yaw[n]),
            attribute=attribute(world.agents[n], float(np.linalg.norm(velocity[n]))),
            points=int(counts[k]),
            visible_share=float(visible_share[n]),
        )
        for k, n in enumerate(near)
    ]


def annotate(scene: str, samples: list[str], observations: list[list[Observation]]) -> tuple[list[Row], list[Row]]:
    """Rows of sample_annotation and instance.

    As in nuScenes, an object is annotated from the first to the last keyframe in which a sensor saw it, also where it
    is occluded in between.

    Args:
        samples: tokens of the keyframes.
        observations: the agents near the ego vehicle at each keyframe.
    """
    by_agent: dict[int, list[tuple[int, Observation]]] = {}
    for k, keyframe in enumerate(observations):
        for observation in keyframe:
            by_agent.setdefault(observation.agent, []).append((k, observation))
    annotations: list[tuple[int, int, Row]] = []
    instances: list[Row] = []
    for agent, track in sorted(by_agent.items()):
        seen = [k for k, o in track if o.points > 0 or o.visible_share > 0]
        if not seen:
            continue
        instance = token(scene, "instance", agent)
        rows = [
            (k, agent, _annotation_row(token(scene, "annotation", agent, k), samples[k], instance, o))
            for k, o in track
            if seen[0] <= k <= seen[-1]
        ]
        link([row for _, _, row in rows])
        annotations += rows
        instances.append(
            {
                "token": instance,
                "category_token": token("category", track[0][1].category),
                "nbr_annotations": len(rows),
                "first_annotation_token": rows[0][2]["token"],
                "last_annotation_token": rows[-1][2]["token"],
            }
        )
    annotations.sort(key=lambda row: row[:2])
    return [row for _, _, row in annotations], instances


def _annotation_row(annotation: str, sample: str, instance: str, observation: Observation) -> Row:
    return {
        "token": annotation,
        "sample_token": sample,
        "instance_token": instance,
        "visibility_token": visibility_token(observation.visible_share),
        "attribute_tokens": [token("attribute", observation.attribute)] if observation.attribute else [],
        "translation": observation.center.tolist(),
        "size": observation.size.tolist(),
        "rotation": [float(np.cos(observation.yaw / 2)), 0.0, 0.0, float(np.sin(observation.yaw / 2))],
        "prev": "",
        "num_lidar_pts": observation.points,
        "num_radar_pts": 0,
    }
