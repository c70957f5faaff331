"""The tiny dataroot with annotated points and voxels, as the devkit and Occ3D lay them out."""

import json
from pathlib import Path

import numpy as np
from tiny import token, write_tiny

from perception.datasets.nuscenes.labels import occ3d_file

VERSION = "v1.0-tiny"
_INDICES = {"noise": 0, "vehicle.car": 17, "human.pedestrian.adult": 2, "static_object.bicycle_rack": 13}
_DATA = [token("data", "LIDAR_TOP", 2 * k + 1) for k in range(3)]  # the LiDAR's keyframes


def write_annotated(root: Path) -> Path:
    """The first two keyframes have classes of points, and the first one has voxels."""
    write_tiny(root)
    folder, labels = root / VERSION, root / "lidarseg" / VERSION
    categories = json.loads((folder / "category.json").read_text())
    rows = [{**row, "index": _INDICES[row["name"]]} for row in categories]
    rows.append({"token": "noise", "name": "noise", "index": 0})
    (folder / "category.json").write_text(json.dumps(rows))
    labels.mkdir(parents=True)
    rng, table = np.random.default_rng(1), []
    for path in (root / "samples" / "LIDAR_TOP").iterdir():
        points = np.fromfile(path, np.float32).reshape(-1, 5)
        points[::7, :2] *= 0.01  # returns from the roof
        path.write_bytes(points.tobytes())
    for k, name in enumerate(_DATA[:2]):
        labels_of(root, k).write_bytes(rng.choice([*_INDICES.values()], 500).astype(np.uint8).tobytes())
        table.append({"token": name, "sample_data_token": name, "filename": str(labels_of(root, k).relative_to(root))})
    (folder / "lidarseg.json").write_text(json.dumps(table))
    voxels_of(root).parent.mkdir(parents=True)
    semantics = rng.integers(0, 18, (200, 200, 16)).astype(np.uint8)
    masks = rng.integers(0, 2, (2, 200, 200, 16)).astype(np.uint8)
    np.savez(voxels_of(root), semantics=semantics, mask_lidar=masks[0], mask_camera=masks[1])
    return root


def labels_of(root: Path, keyframe: int = 0) -> Path:
    return root / "lidarseg" / VERSION / f"{_DATA[keyframe]}_lidarseg.bin"


def voxels_of(root: Path) -> Path:
    return occ3d_file(root, "scene-0001", token("sample", 0))
