"""How well occupancy that is annotated from a part of a drive fits what LiDARs measure later."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.nuscenes.labels import GRID
from perception.datasets.occupancy.annotation import annotate
from perception.datasets.occupancy.drive import gather
from perception.datasets.occupancy.levels import Levels
from perception.datasets.occupancy.movable import Movable
from perception.datasets.occupancy.objects import Motion, owners
from perception.datasets.occupancy.returns import Returns, returns_of
from perception.errors import InputError
from perception.evaluation.occupancy_geometry import GeometricFigures, geometric_figures
from perception.frame import Boxes
from perception.sources import open_source
from perception.taxonomy import Taxonomy
from perception.voxels import Occupancy


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", type=Path, default=Path("../shared/data/pandaset"))
    command.add_argument("--version", help="of nuScenes' tables")
    command.add_argument("--made", default="002:0-16", help="keyframes that the occupancy is made of")
    command.add_argument("--later", default="002:24-32", help="keyframes whose returns it is compared with")
    command.add_argument("--sweeps", type=int, default=0, help="LiDAR sweeps before each keyframe to use, too")
    command.set_defaults(run=occupancy)


def occupancy(arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of the occupancy of the last keyframe of `--made`, against returns of the keyframes of `--later`.

    drive: made as `perception annotate-occupancy` does. Beside it keyframe: from the points of the last keyframe alone;
    no_objects: from the drive, all of it taken as still; itself: from the very returns that it is compared with, which
    is what the size of the voxels allows.

    Returns count if they are of nothing that may move and in the grid; `seen` is the share of them in voxels that are
    annotated, and `in_occupied_of_seen` leaves out the others. Voxels in boxes of objects count as no violation.
    """
    source = open_source(arguments.data, arguments.version)
    made = _with_points(source, arguments.made)
    later = _later(source, made[-1], _with_points(source, arguments.later))
    still = open_source(arguments.data, arguments.version, source.rig, _still(source.taxonomy))
    ways = {"drive": (source, made), "keyframe": (source, made[-1:]), "no_objects": (still, made)}
    pose = source.frame(made[-1], Reads(lidar=False, cameras=False)).global_from_reference
    moving = _in_boxes(Movable(source).boxes(made[-1]).transformed(np.linalg.inv(pose)))
    result: dict[str, Any] = {
        name: _figures(_made(*way, arguments.sweeps), later, pose, moving) for name, way in ways.items()
    }
    return {**result, "itself": _itself(later, pose, moving), "made": len(made), "later": len(later)}


def _with_points(source: Keyframes, selector: str) -> list[str]:
    samples = source.samples(selectors=[selector])
    found = [each for each in samples if source.frame(each, Reads(cameras=False)).points is not None]
    if not found:
        raise InputError(f"{selector}: no LiDAR file of these keyframes is there")
    return found


def _still(taxonomy: Taxonomy) -> Taxonomy:
    """The taxonomy with classes that do not move."""
    classes = tuple(each.model_copy(update={"static": True}) for each in taxonomy.classes)
    return taxonomy.model_copy(update={"classes": classes})


def _later(source: Keyframes, last: str, samples: list[str]) -> list[tuple[Returns, np.ndarray]]:
    """The returns of keyframes in the global frame, raised to the ground of the last one before, and (N,) bool which
    are of nothing that may move."""
    movable, levels, found = Movable(source), Levels(), []
    for sample in (last, *samples):
        frame, boxes = source.frame(sample, Reads(cameras=False)), movable.boxes(sample)
        returns = returns_of(frame, source, 0)
        static = movable.assigned(returns, Motion(boxes, boxes), 1.0).static
        height = levels.next(returns, frame.global_from_ego)
        found.append((returns.raised(np.full(len(static), height)), static))
    return found[1:]


def _made(source: Keyframes, samples: list[str], sweeps: int) -> Occupancy:
    drive = gather(source, samples, sweeps if len(samples) > 1 else 0, GRID)
    assert drive is not None
    return annotate(source.frame(samples[-1], Reads(cameras=False)), source, drive, GRID)


def _in_boxes(boxes: Boxes) -> np.ndarray:
    """(levels, rows, columns) bool: voxels in or next to a box."""
    centers = GRID.centers().reshape(-1, 3).astype(np.float64)
    inside, _ = owners(centers, np.ones(len(centers)), Motion(boxes, boxes), GRID.cell)
    return np.asarray(inside >= 0).reshape(GRID.shape)


def _placed(later: list[tuple[Returns, np.ndarray]], pose: np.ndarray) -> Iterator[tuple[Returns, np.ndarray]]:
    for returns, static in later:
        yield returns.transformed(np.linalg.inv(pose)), static


def _figures(
    made: Occupancy, later: list[tuple[Returns, np.ndarray]], pose: np.ndarray, moving: np.ndarray
) -> dict[str, float | int]:
    occupied = made.classes < made.classes.max()
    total, seen = GeometricFigures(), 0
    for returns, static in _placed(later, pose):
        total += geometric_figures(occupied, GRID, returns.origins, returns.points, static, moving)
        flat, inside = GRID.indices(returns.points)
        seen += int(np.count_nonzero(made.seen_by_lidar.reshape(-1)[flat[inside & static]]))
    shares = {"seen": seen / total.returns, "in_occupied_of_seen": total.in_occupied / seen}
    return {**total.shares(), **shares, "occupied_voxels": int(np.count_nonzero(occupied))}


def _itself(later: list[tuple[Returns, np.ndarray]], pose: np.ndarray, moving: np.ndarray) -> dict[str, float | int]:
    total = GeometricFigures()
    for returns, static in _placed(later, pose):
        flat, inside = GRID.indices(returns.points)
        occupied = np.zeros(GRID.shape, bool)
        occupied.reshape(-1)[flat[inside]] = True
        total += geometric_figures(occupied, GRID, returns.origins, returns.points, static, moving)
    return total.shares()
