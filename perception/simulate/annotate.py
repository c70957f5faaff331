"""Annotations of a simulated keyframe: boxes, visible voxels and their classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from perception.geometry import points_in_boxes
from perception.grid import OTHERS, VoxelGrid, occupancy_classes, traverse
from perception.simulate.agents import attribute
from perception.simulate.nuscenes_writer import Row, link, token, visibility_token
from perception.simulate.snapshot import CATEGORIES, GROUND_CATEGORIES, NOISE, GroundRaster, Solids
from perception.simulate.world import World
from perception.taxonomy import Taxonomy

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
    """Rows of sample_annotation and instance, from the keyframes' tokens and the agents near the vehicle at each.

    As in nuScenes, an object is annotated from the first to the last keyframe in which a sensor saw it, also where it
    is occluded in between.
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


# Which voxels the sensors see, as in Occ3D.
#
# Tian et al., "Occ3D", NeurIPS 2023: a LiDAR sees the voxels that its rays cross or end in, and a camera those on the
# way of the rays through its pixels up to the first one with something in it.


class Seen(NamedTuple):
    """Rays of a sensor, from one place to where they end."""

    origin: np.ndarray  # (3,) m, global
    ends: np.ndarray  # (N, 3) m, global


def pixel_rays(intrinsics: np.ndarray, size: tuple[int, int], global_from_camera: np.ndarray, grid: VoxelGrid) -> Seen:
    """Rays through pixels of a camera to the ground or beyond the grid; two are a voxel apart at the grid's edges."""
    reach = max(map(abs, (*grid.x, *grid.y)))
    step = max(1, int(min(intrinsics[0, 0], intrinsics[1, 1]) * grid.cell / reach))
    v, u = np.meshgrid(*(np.arange(step // 2, edge, step) for edge in size[::-1]), indexing="ij")
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], axis=1)
    rays = pixels @ np.linalg.inv(intrinsics).T @ global_from_camera[:3, :3].T
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    origin = global_from_camera[:3, 3]
    to_ground = np.where(rays[:, 2] < 0, origin[2] / np.maximum(-rays[:, 2], 1e-9), np.inf)
    return Seen(origin, origin + np.minimum(to_ground, 2 * reach)[:, None] * rays)


def find_crossed(seen: Iterable[Seen], global_from_ego: np.ndarray, grid: VoxelGrid) -> np.ndarray:
    """(levels, rows, columns) bool: the voxels that rays cross or end in."""
    met, inverse = np.zeros(grid.shape, bool), np.linalg.inv(global_from_ego)
    for each in seen:
        for _, voxels in _steps(each, inverse, grid):
            met.ravel()[voxels] = True
    return met


def find_pictured(seen: Iterable[Seen], global_from_ego: np.ndarray, grid: VoxelGrid, filled: np.ndarray) -> np.ndarray:
    """(levels, rows, columns) bool: what cameras see: the voxels on the way of a ray, up to the first filled one.

    Rays are too sparse to meet each far voxel of the ground. A filled voxel also counts if a free one before its face
    towards the camera is seen.
    """
    met, inverse = np.zeros(grid.shape, bool), np.linalg.inv(global_from_ego)
    for each in seen:
        own, hidden = np.zeros(grid.shape, bool), np.zeros(len(each.ends), bool)
        for rays, voxels in _steps(each, inverse, grid):
            own.ravel()[voxels[~hidden[rays]]] = True
            hidden[rays] |= filled.ravel()[voxels]
        camera = inverse[:3, :3] @ each.origin + inverse[:3, 3]
        met |= own | (filled & _find_behind(own & ~filled, (camera - (grid.x[0], grid.y[0], grid.z[0])) / grid.edges))
    return met


def _steps(seen: Seen, ego_from_global: np.ndarray, grid: VoxelGrid) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    origin, ends = (each @ ego_from_global[:3, :3].T + ego_from_global[:3, 3] for each in seen)
    return traverse(np.broadcast_to(origin, ends.shape), ends, grid)


def _find_behind(voxels: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(levels, rows, columns) bool: neighbours of voxels whose face towards a place (column, row, level) they share."""
    found = np.zeros_like(voxels)
    for axis, at in enumerate(place[::-1]):
        source, target = np.moveaxis(voxels, axis, 0), np.moveaxis(found, axis, 0)
        beyond = int(np.clip(np.ceil(at), 1, len(source)))  # the first that is wholly on the far side
        before = int(np.clip(np.floor(at), 0, len(source) - 1))  # voxels up to here are wholly on the near side
        target[beyond:] |= source[beyond - 1 : -1]
        target[:before] |= source[1 : before + 1]
    return found


STEP = 0.2  # m, between the places at which the plan of a solid is sampled
SKIN = 0.005  # m, by which a solid reaches into a voxel that it is in


def voxel_classes(
    solids: Solids, ground: GroundRaster, global_from_ego: np.ndarray, taxonomy: Taxonomy, grid: VoxelGrid
) -> np.ndarray:
    """(levels, rows, columns) uint8 index into `occupancy_classes`: what is in each voxel around an upright vehicle.

    The ground is in the voxels of its plane. Of several solids in a voxel, the one that fills most of it counts.
    """
    class_of = np.full(len(CATEGORIES), OTHERS, np.uint8)
    for name, label in taxonomy.point_labels_of_categories().items():
        if name in CATEGORIES:
            class_of[CATEGORIES.index(name)] = label + 1
    levels, rows, columns = grid.shape
    classes = np.full((levels, rows, columns), len(occupancy_classes(taxonomy)) - 1, np.uint8)
    level, centers = _level_of(grid, global_from_ego[2, 3]), grid.centers()[0, :, :, :2].astype(np.float64)
    if 0 <= level < levels:
        kinds = ground.at(centers @ global_from_ego[:2, :2].T + global_from_ego[:2, 3])
        classes[level] = class_of[GROUND_CATEGORIES[kinds]]
    solids = _select_near(solids[solids.categories != NOISE], global_from_ego, grid)
    solid, voxel, volume = _fill_voxels(solids, global_from_ego, grid)
    order = np.argsort(volume, kind="stable")
    classes.ravel()[voxel[order]] = class_of[solids.categories[solid[order]]]
    return classes


def _level_of(grid: VoxelGrid, height: float) -> int:
    """Level of the ground, which is at z = 0 of the global frame, for a vehicle at this height."""
    return int(np.floor((-height - grid.z[0]) / grid.cell))


def _select_near(solids: Solids, global_from_ego: np.ndarray, grid: VoxelGrid) -> Solids:
    reach = np.hypot(max(map(abs, grid.x)), max(map(abs, grid.y)))
    apart = np.linalg.norm(solids.centers[:, :2] - global_from_ego[:2, 3], axis=1)
    return solids[apart < reach + np.hypot(solids.sizes[:, 0], solids.sizes[:, 1]) / 2]


def _fill_voxels(
    solids: Solids, global_from_ego: np.ndarray, grid: VoxelGrid
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) solid, flat voxel that it is in, and the volume (m^3) of it there, about."""
    solid, xy, area = _plan(solids)
    local = (xy - global_from_ego[:2, 3]) @ global_from_ego[:2, :2]
    place = np.floor((local - (grid.x[0], grid.y[0])) / grid.cell).astype(np.int64)
    levels, rows, columns = grid.shape
    inside = ((place >= 0) & (place < (columns, rows))).all(axis=1)
    solid, place, area = solid[inside], place[inside], area[inside]
    pillar, which, count = np.unique(
        (solid * rows + place[:, 1]) * columns + place[:, 0], return_index=True, return_counts=True
    )
    solid, area, pillar = solid[which], area[which] * count, pillar % (rows * columns)

    low = solids.centers[:, 2] - solids.sizes[:, 2] / 2 - global_from_ego[2, 3] - grid.z[0]
    high, skin = low + solids.sizes[:, 2], np.minimum(SKIN, solids.sizes[:, 2] / 2)
    first = np.floor((low + skin) / grid.cell).astype(np.int64)
    last = np.maximum(np.floor((high - skin) / grid.cell).astype(np.int64), first)
    first, last = first.clip(0, levels), last.clip(-1, levels - 1)
    heights = (last - first + 1).clip(0)[solid]
    which = np.repeat(np.arange(len(solid)), heights)
    level = np.arange(len(which)) - np.repeat(np.cumsum(heights) - heights, heights) + first[solid[which]]
    solid, area, pillar = solid[which], area[which], pillar[which]
    inner = np.minimum(high[solid], (level + 1) * grid.cell) - np.maximum(low[solid], level * grid.cell)
    return solid, level * (rows * columns) + pillar, area * inner


def _plan(solids: Solids) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) solid, (N, 2) m places in its plan, edges included, at most STEP apart, and (N,) m^2 the area of each."""
    inner = (solids.sizes[:, :2] - 2 * SKIN).clip(0)
    counts = np.ceil(inner / STEP).astype(np.int64) + 1
    total = counts.prod(axis=1)
    solid = np.repeat(np.arange(len(total)), total)
    at = np.arange(len(solid)) - np.repeat(np.cumsum(total) - total, total)
    index = np.stack([at // counts[solid, 1], at % counts[solid, 1]], axis=1)
    local = (index / (counts - 1).clip(1)[solid] - 0.5) * inner[solid]
    cos, sin = np.cos(solids.yaws)[solid], np.sin(solids.yaws)[solid]
    x, y = cos * local[:, 0] - sin * local[:, 1], sin * local[:, 0] + cos * local[:, 1]
    area = solids.sizes[:, :2].prod(axis=1) / total
    return solid, solids.centers[solid, :2] + np.stack([x, y], axis=1), area[solid]
