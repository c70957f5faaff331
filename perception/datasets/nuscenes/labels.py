"""Annotated classes of points and voxels beside nuScenes' tables.

nuScenes-lidarseg's table and files, which T4 has too (Fong et al., "Panoptic nuScenes", RA-L 2022): lidarseg.json names
a file for the keyframe's sweep, which holds a byte for each point, in the order of the sweep: the `index` of a row in
category.json.

Voxels as Occ3D-nuScenes lays them out (Tian et al., "Occ3D: A Large-Scale 3D Occupancy Prediction Benchmark for
Autonomous Driving", NeurIPS 2023): gts/SCENE/SAMPLE/labels.npz has `semantics`, `mask_lidar` and `mask_camera`, uint8
of (200, 200, 16): voxels by x, y and z in the ego frame at the LiDAR's time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np

from perception.datasets.keyframes import Annotation
from perception.datasets.nuscenes.tables import report_links, rows
from perception.errors import InputError
from perception.grid import Occupancy, VoxelGrid, occupancy_classes
from perception.taxonomy import Taxonomy

TABLE = "lidarseg"
NO_CLASS = -1
_UNKNOWN = -2  # number that is no category's index
GRID = VoxelGrid()
_NAMES = ("semantics", "mask_lidar", "mask_camera")


@dataclass(frozen=True)
class Lidarseg:
    """The annotated sweeps of a dataroot."""

    dataroot: Path
    files: dict[str, str]  # file of a sweep -> file of its classes, both in the dataroot
    labels: np.ndarray  # (256,) int16 label of each number in a file

    @staticmethod
    def read(dataroot: Path, folder: Path, sweeps: Callable[[], Mapping[str, str]], taxonomy: Taxonomy) -> Lidarseg:
        """The table in a folder of tables; no annotated sweep without it, or if no category of it is in a class.

        Args:
            sweeps: token of sample_data -> file; others that the table names are left out.
        """
        labels = np.full(256, _UNKNOWN, np.int16)
        if not (folder / f"{TABLE}.json").exists():
            return Lidarseg(dataroot, {}, labels)
        with report_links(folder, TABLE):
            file_of = sweeps()
            named = [(file_of.get(row["sample_data_token"]), row["filename"]) for row in rows(folder, TABLE)]
        files = {sweep: str(file) for sweep, file in named if sweep is not None}
        label_of = taxonomy.point_labels_of_categories()
        with report_links(folder, "category"):
            for row in rows(folder, "category"):
                if not 0 <= (number := int(row["index"])) < len(labels):
                    raise ValueError(f"index {number} is no byte")
                labels[number] = label_of.get(row["name"], NO_CLASS)
        if not (labels >= 0).any():
            files = {}  # points without a class would teach nothing
        return Lidarseg(dataroot, files, labels)

    def classes(self, sweep: str, count: int) -> np.ndarray | None:
        """(count,) int16 label of the points in the file of a sweep; None if they are not annotated."""
        if sweep not in self.files:
            return None
        path = self.dataroot / self.files[sweep]
        try:
            numbers = np.frombuffer(path.read_bytes(), np.uint8)
        except OSError as error:
            raise InputError(
                f"{path}: cannot read the classes of points ({error.strerror}); copy {TABLE}/ from the data set, or "
                f"remove {TABLE}.json"
            ) from None
        if len(numbers) != count:
            raise InputError(f"{path}: has the classes of {len(numbers)} points, the sweep {count}; copy both again")
        found = self.labels[numbers]
        if (unknown := found == _UNKNOWN).any():
            raise InputError(
                f"{path}: the class {numbers[unknown.argmax()]} is no index of category.json; copy both again"
            )
        return found


def occ3d_file(dataroot: Path, scene: str, sample: str) -> Path:
    return dataroot / "gts" / scene / sample / "labels.npz"


def read_occ3d(path: Path, taxonomy: Taxonomy) -> Occupancy | None:
    """The voxels in a file, whose numbers are those of the taxonomy's `occupancy_classes`; None without the file."""
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


def voxel_truth(
    dataroot: Path, scene: str, sample: str, taxonomy: Taxonomy, paths: Mapping[str, np.ndarray]
) -> dict[str, Annotation]:
    """The kinds of truth `occupancy` and `lidar_path` of a keyframe, if the taxonomy has the classes of voxels.

    Args:
        paths: as `LidarPaths`.
    """
    if not taxonomy.point_classes:
        return {}
    path = occ3d_file(dataroot, scene, sample)
    return {
        "occupancy": Annotation(partial(read_occ3d, path, taxonomy), path.exists),
        "lidar_path": Annotation(partial(paths.__getitem__, scene)),
    }


def occ3d_arrays(occupancy: Occupancy) -> dict[str, np.ndarray]:
    arrays = (occupancy.classes, occupancy.seen_by_lidar, occupancy.seen_by_cameras)
    return {name: np.ascontiguousarray(array.T, np.uint8) for name, array in zip(_NAMES, arrays, strict=True)}
