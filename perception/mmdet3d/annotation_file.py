"""Writes nuScenes tables as the annotation file ("infos", version 2) of mmdet3d's NuScenesDataset.

It is JSON instead of a pickle; mmdet3d chooses the reader by the file's suffix.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perception.datasets.infos import CAMERAS, CLASSES, LIDAR
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.recordings import SampleData
from perception.errors import InputError
from perception.frame import Boxes
from perception.io.files import write_atomically

_SWEEPS = 10  # before each keyframe, as in mmdet3d's converter
# The order of labels in mmdet3d's NuScenesDataset.METAINFO, of our classes.
LABELS = tuple(CLASSES[i] for i in (0, 1, 4, 3, 2, 7, 6, 8, 9, 5))


def write(path: Path, tables: NuScenesTables, samples: Sequence[str]) -> None:
    """Write the .json file for these keyframes, except those without their LiDAR file, which mmdet3d needs."""
    available = [s for s in samples if (tables.dataroot / tables.recordings[s][LIDAR].file).exists()]
    if not available:
        raise InputError(f"{tables.dataroot}: none of the {len(samples)} keyframes has its LiDAR file")
    content = {
        "metainfo": {
            "categories": {name: i for i, name in enumerate(LABELS)},
            "dataset": "nuscenes",
            "version": tables.version,
            "info_version": "1.1",
        },
        "data_list": [_entry(tables, sample, i) for i, sample in enumerate(available)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content).encode())


def _entry(tables: NuScenesTables, sample: str, index: int) -> dict[str, Any]:
    recordings = tables.recordings
    keyframe, *earlier = recordings.chain(recordings[sample][LIDAR], _SWEEPS)
    frame = tables.frame(sample, Reads("lidar", lidar=False, cameras=False))
    assert frame.boxes is not None
    return {
        "sample_idx": index,
        "token": sample,
        "timestamp": 1e-6 * frame.timestamp,  # s
        "ego2global": frame.global_from_ego.tolist(),
        "lidar_points": {
            "num_pts_feats": 5,
            "lidar_path": Path(keyframe.file).name,
            "lidar2ego": recordings.ego_from_sensor[keyframe.calibration].tolist(),
        },
        "lidar_sweeps": [
            _sweep(tables, recording, frame.global_from_reference)
            for recording in earlier
            if (tables.dataroot / recording.file).exists()
        ],
        "images": {
            name: _image(tables, recordings[sample][name], frame.global_from_reference)
            for name in CAMERAS
            if name in recordings[sample]
        },
        "instances": _instances(frame.boxes),
    }


def _sweep(tables: NuScenesTables, recording: SampleData, global_from_lidar: np.ndarray) -> dict[str, Any]:
    """The entry of an earlier sweep, such that mmdet3d places its points correctly.

    mmdet3d computes p @ R - t from rotation and translation of `lidar2sensor`, so t is minus the translation of
    lidar_from_sensor. Its own converter writes the translation of the inverse, which misplaces sweeps in turns.
    """
    pose, ego_from_lidar = _pose(tables, recording)
    lidar_from_sensor = np.linalg.inv(global_from_lidar) @ pose @ ego_from_lidar
    lidar2sensor = np.eye(4)
    lidar2sensor[:3, :3], lidar2sensor[:3, 3] = lidar_from_sensor[:3, :3].T, -lidar_from_sensor[:3, 3]
    return {
        "timestamp": 1e-6 * recording.timestamp,
        "ego2global": pose.tolist(),
        "lidar_points": {
            "lidar_path": recording.file,
            "lidar2ego": ego_from_lidar.tolist(),
            "lidar2sensor": lidar2sensor.tolist(),
        },
    }


def _image(tables: NuScenesTables, recording: SampleData, global_from_lidar: np.ndarray) -> dict[str, Any]:
    pose, ego_from_camera = _pose(tables, recording)
    return {
        "img_path": Path(recording.file).name,
        "timestamp": 1e-6 * recording.timestamp,
        "cam2img": tables.recordings.intrinsics[recording.calibration].tolist(),
        "cam2ego": ego_from_camera.tolist(),
        "lidar2cam": (np.linalg.inv(pose @ ego_from_camera) @ global_from_lidar).tolist(),
    }


def _pose(tables: NuScenesTables, recording: SampleData) -> tuple[np.ndarray, np.ndarray]:
    recordings = tables.recordings
    return recordings.global_from_ego(recording), recordings.ego_from_sensor[recording.calibration]


def _instances(boxes: Boxes) -> list[dict[str, Any]]:
    """Boxes in the LiDAR's frame: centre, length, width, height, yaw. `num_lidar_pts` includes RADAR points, because
    `Boxes.num_points` is their sum."""
    numbers = np.column_stack([boxes.centers, boxes.sizes[:, [1, 0, 2]], boxes.yaws])
    labels = [LABELS.index(CLASSES[label]) for label in boxes.labels]
    return [
        {
            "bbox_label": labels[i],
            "bbox_label_3d": labels[i],
            "bbox_3d": numbers[i].tolist(),
            "velocity": boxes.velocities[i, :2].tolist(),
            "num_lidar_pts": int(boxes.num_points[i]),
            "num_radar_pts": 0,
            "bbox_3d_isvalid": bool(boxes.num_points[i] > 0),
        }
        for i in range(len(boxes))
    ]
