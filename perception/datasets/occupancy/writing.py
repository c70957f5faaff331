"""Writes the occupancy of recorded drives, as Occ3D lays it out, into a dataroot."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from perception.datasets.keyframes import Keyframes
from perception.datasets.nuscenes.labels import GRID, occ3d_arrays, occ3d_file
from perception.datasets.occupancy.drive import Drive, gather, mark_crossed
from perception.datasets.occupancy.returns import (
    NONE,
    UNKNOWN,
    BoxMotion,
    Movable,
    Returns,
    move_points,
    owners,
    returns_of,
)
from perception.errors import InputError
from perception.frame import Boxes, Frame
from perception.grid import OTHERS, Occupancy, VoxelGrid, occupancy_classes, traverse
from perception.io.files import make_folder, write_atomically

_FOLDER = "gts"
_NEAR = 0.1  # m along the optical axis
Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # (N, 3) m, (N,) classes, (N,) number of returns


def annotate(frame: Frame, source: Keyframes, drive: Drive, grid: VoxelGrid) -> Occupancy:
    """The voxels of a keyframe, in the ego frame at its time.

    A voxel with a point in it is occupied, and of the class of most points. One that a ray crosses before it ends is
    seen, and free unless it is occupied. In the boxes of objects only points and rays of the keyframe itself and points
    of the objects count.

    Args:
        frame: of a keyframe, in the ego frame, with points of it alone and with cameras.
        drive: gathered for this grid.
    """
    movable, from_global = Movable(source), np.linalg.inv(frame.global_from_reference)
    boxes = movable.boxes(frame.token)
    own = returns_of(frame, source, 0)
    own_classes = movable.assign(own, BoxMotion(boxes, boxes), 1.0).classes
    own, boxes = own.transformed(from_global), boxes.transformed(from_global)
    parts = [_static(drive, np.linalg.inv(drive.global_from_ego(frame)), grid), *_objects(drive, boxes)]
    parts.append((own.points, own_classes, np.ones(len(own_classes), np.int64)))
    points, classes, counts = (np.concatenate(each) for each in zip(*parts, strict=True))
    known = classes if drive.annotated else np.maximum(classes, NONE)
    occupied, of_voxel = voxel_classes(points, known, counts, grid, len(source.taxonomy.voxel_names) - 1)
    seen = occupied | _find_crossed(own, boxes, drive, drive.global_from_ego(frame), grid)
    free = occupancy_classes(source.taxonomy).index("free")
    return Occupancy(
        grid=grid,
        classes=np.where(occupied, of_voxel, free).astype(np.uint8),
        seen_by_lidar=seen,
        seen_by_cameras=find_seen_by_cameras(frame, occupied, seen, grid),
    )


def _static(drive: Drive, from_global: np.ndarray, grid: VoxelGrid) -> Points:
    points, classes, counts = drive.static.content()
    points = move_points(points, from_global)
    _, inside = grid.indices(points)
    return points[inside], classes[inside], counts[inside]


def _objects(drive: Drive, boxes: Boxes) -> list[Points]:
    found = []
    for n, name in enumerate(boxes.instances.tolist()):
        if name in drive.objects:
            points, classes, counts = drive.objects[name].content()
            found.append((points @ boxes.rotations[n].T + boxes.centers[n], classes, counts))
    return found


def voxel_classes(
    points: np.ndarray, classes: np.ndarray, counts: np.ndarray, grid: VoxelGrid, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Occupied voxels and the majority class of their points; ties go to the lower class.

    A voxel with points but none with an annotation takes the class of the nearest one that has; OTHERS if none has.

    Args:
        classes: (N,) index of the point class, NONE or UNKNOWN.
        number: of solid point classes, which are the first; points of the others are left out.

    Returns:
        (levels, rows, columns) bool, and int64 index into `occupancy_classes`, OTHERS where there is no point.
    """
    flat, inside = grid.indices(points)
    inside &= classes < number
    flat, classes, counts = flat[inside], classes[inside], counts[inside]
    occupied = np.zeros(grid.shape, bool)
    occupied.reshape(-1)[flat] = True
    voxels = np.flatnonzero(occupied)
    place = np.searchsorted(voxels, flat)
    voted = classes != UNKNOWN
    key = place[voted] * (number + 1) + classes[voted] + 1  # none of the classes is OTHERS, the others follow
    votes = np.bincount(key, counts[voted], len(voxels) * (number + 1)).reshape(len(voxels), number + 1)
    chosen, known = votes.argmax(axis=1), votes.any(axis=1)
    if known.any() and not known.all():
        where = np.stack(np.unravel_index(voxels, grid.shape), axis=1) * grid.edges[::-1]
        _, nearest = cKDTree(where[known]).query(where[~known])
        chosen[~known] = chosen[known][nearest]
    result = np.full(grid.shape, OTHERS, np.int64)
    result.reshape(-1)[voxels] = chosen
    return occupied, result


def _find_crossed(own: Returns, boxes: Boxes, drive: Drive, global_from_ego: np.ndarray, grid: VoxelGrid) -> np.ndarray:
    """(levels, rows, columns) bool: crossed by a ray of the keyframe, or outside the boxes by any ray of the drive."""
    centers = grid.centers().reshape(-1, 3).astype(np.float64)
    inside, _ = owners(centers, np.ones(len(centers)), BoxMotion(boxes, boxes), grid.cell / 2)
    crossed = drive.crossed.at(move_points(centers, global_from_ego)) & (inside < 0)
    mark_crossed(crossed, grid, own.origins, own.points)
    return crossed.reshape(grid.shape)


def find_seen_by_cameras(frame: Frame, occupied: np.ndarray, seen: np.ndarray, grid: VoxelGrid) -> np.ndarray:
    """(levels, rows, columns) bool: the middle of a seen voxel is in a picture, and no occupied voxel is before it.

    Args:
        frame: in the grid's frame of reference.
        occupied, seen: (levels, rows, columns) bool; what is not seen hides nothing.
    """
    wanted = np.flatnonzero(seen)
    centers, visible = grid.centers().reshape(-1, 3)[wanted].astype(np.float64), np.zeros(len(wanted), bool)
    for name, camera in frame.cameras.items():
        pixels = np.column_stack([centers, np.ones(len(centers))]) @ frame.image_from_reference(name).T
        height, width = camera.image.shape[:2]
        with np.errstate(divide="ignore", invalid="ignore"):
            x, y = (pixels[:, :2] / pixels[:, 2:]).T
        view = (pixels[:, 2] > _NEAR) & (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
        there = np.flatnonzero(view & ~visible)
        global_from_camera = camera.global_from_ego @ camera.ego_from_camera
        origin = (np.linalg.inv(frame.global_from_reference) @ global_from_camera)[:3, 3]
        visible[there] = _unhidden(origin, centers[there], wanted[there], occupied.reshape(-1), grid)
    result = np.zeros(grid.shape, bool)
    result.reshape(-1)[wanted] = visible
    return result


def _unhidden(
    origin: np.ndarray, centers: np.ndarray, voxels: np.ndarray, occupied: np.ndarray, grid: VoxelGrid
) -> np.ndarray:
    """(N,) bool: no occupied voxel on the ray from the origin to the middle of a voxel, but itself."""
    free = np.ones(len(centers), bool)
    for rays, crossed in traverse(np.broadcast_to(origin, centers.shape), centers, grid):
        blocked = occupied[crossed] & (crossed != voxels[rays])
        free[rays[blocked]] = False
    return free


def annotate_drives(
    source: Keyframes, selectors: Sequence[str], sweeps: int, out: Path, advance: Callable[[], None] = lambda: None
) -> dict[str, int]:
    """Annotate the voxels of keyframes, and make `out` a dataroot that has them beside the recorded data.

    What is annotated is gathered from the same keyframes.

    Args:
        sweeps: number of earlier LiDAR sweeps to gather with each keyframe.
        out: the source's dataroot itself, or a folder for a new one, which links to the files of the source.
        advance: called twice for each keyframe.

    Returns:
        Numbers of `drives`, of `keyframes` that are annotated, and of those `without_lidar`.
    """
    if not source.taxonomy.point_classes:
        raise InputError(
            f"taxonomy {source.taxonomy.name}: has no `point_classes`, which are those of voxels; add some"
        )
    counts = {"drives": 0, "keyframes": 0, "without_lidar": 0}
    link_dataroot(source.dataroot, make_folder(out))
    for scene in source.scenes(selectors=selectors):
        samples = [each for each in source.samples(selectors=selectors) if source.scene(each) == scene]
        written = _annotate_drive(source, samples, sweeps, out, advance)
        counts["drives"] += written > 0
        counts["keyframes"] += written
        counts["without_lidar"] += len(samples) - written
    if not counts["keyframes"]:
        raise InputError(f"{source.dataroot}: no LiDAR file of the {counts['without_lidar']} keyframes is there")
    return counts


def _annotate_drive(
    source: Keyframes, samples: Sequence[str], sweeps: int, out: Path, advance: Callable[[], None]
) -> int:
    drive, written = gather(source, samples, sweeps, GRID, advance), 0
    for sample in samples:
        frame = source.frame(sample)
        if drive is not None and frame.points is not None:
            content = io.BytesIO()
            np.savez_compressed(content, **occ3d_arrays(annotate(frame, source, drive, GRID)))
            file = occ3d_file(out, source.scene(sample), sample)
            make_folder(file.parent)
            write_atomically(file, content.getvalue())
            written += 1
        advance()
    return written


def link_dataroot(data: Path, out: Path) -> None:
    """Link to all files and folders of a dataroot, but its voxels, from another folder; nothing where both are one."""
    if out.samefile(data):
        return
    if out.resolve().is_relative_to(data.resolve()):
        raise InputError(f"{out}: is in the dataroot {data}; give that itself as --out, or a folder outside")
    for entry in sorted(data.iterdir()):
        link = out / entry.name
        if entry.name == _FOLDER or (link.exists() and link.samefile(entry)):
            continue
        try:
            link.symlink_to(entry.resolve(), entry.is_dir())
        except OSError as error:
            raise InputError(
                f"{link}: cannot become a link to {entry} ({error.strerror}); choose another --out"
            ) from None
