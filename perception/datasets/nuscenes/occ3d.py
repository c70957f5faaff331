"""Annotated voxels beside nuScenes' tables, as Occ3D-nuScenes lays them out.

Tian et al., "Occ3D: A Large-Scale 3D Occupancy Prediction Benchmark for Autonomous Driving", NeurIPS 2023. The file
gts/SCENE/SAMPLE/labels.npz has `semantics`, `mask_lidar` and `mask_camera`, uint8 of (200, 200, 16): voxels by x, y and
z in the ego frame at the LiDAR's time.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np

from perception.datasets.keyframes import Truth
from perception.errors import InputError
from perception.taxonomy import Taxonomy
from perception.voxels import Occupancy, VoxelGrid, occupancy_classes

GRID = VoxelGrid()
_NAMES = ("semantics", "mask_lidar", "mask_camera")


def occ3d_file(dataroot: Path, scene: str, sample: str) -> Path:
    """Where the voxels of a keyframe are."""
    return dataroot / "gts" / scene / sample / "labels.npz"


def read_occ3d(path: Path, taxonomy: Taxonomy) -> Occupancy | None:
    """The voxels in a file, whose numbers are those of the taxonomy's `occupancy_classes`; None without the file.

    Raises:
        InputError: it is damaged, or of another grid or other classes.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            semantics, lidar, camera = (content[name] for name in _NAMES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, ZlibError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not Occ3D's {', '.join(_NAMES)} ({reason}); copy the file again") from None
    shape = GRID.shape[::-1]
    for name, array in zip(_NAMES, (semantics, lidar, camera), strict=True):
        if array.shape != shape or array.dtype.kind not in "bu":
            raise InputError(f"{path}: {name} is {array.dtype.name} of {array.shape}; expected uint8 of {shape}, x y z")
    known = len(occupancy_classes(taxonomy))
    if semantics.max() >= known:
        raise InputError(
            f"{path}: the class {semantics.max()} is none of the {known} that the taxonomy {taxonomy.name} makes"
        )
    # Ours are by z, y and x.
    return Occupancy(
        GRID, *(np.ascontiguousarray(a.T, t) for a, t in ((semantics, np.uint8), (lidar, bool), (camera, bool)))
    )


def with_voxels(truth: Truth, dataroot: Path, scene: str, sample: str, taxonomy: Taxonomy) -> Truth:
    """The annotations of a keyframe with its voxels, if the taxonomy has the classes of them."""
    if not taxonomy.point_classes:
        return truth
    path = occ3d_file(dataroot, scene, sample)
    return replace(truth, has_occupancy=path.exists, occupancy=partial(read_occ3d, path, taxonomy))


def occ3d_arrays(occupancy: Occupancy) -> dict[str, np.ndarray]:
    """The arrays of such a file."""
    arrays = (occupancy.classes, occupancy.seen_by_lidar, occupancy.seen_by_cameras)
    return {name: np.ascontiguousarray(array.T, np.uint8) for name, array in zip(_NAMES, arrays, strict=True)}
