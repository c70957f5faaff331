"""Infos of mmdet3d for a dataroot, made of the devkit's reading of it as mmdet3d's converters make them.

`tools/dataset_converters/nuscenes_converter.py` and `update_infos_to_v2.py` of mmdet3d 1.4.0; before 1.0.0rc0 sizes
were width, length, height and angles -r - pi/2. tests/mmdet3d compares these with what the converters themselves write.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from pyquaternion import Quaternion
from vocabulary import CAMERAS

MMDET3D_CLASSES = (
    "car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian", "traffic_cone",
    "barrier",
)  # fmt: skip


def opened_tiny(root: Path) -> NuScenes:
    """The dataroot of `write_tiny`, with what the devkit wants beside; it looks whether the map is there."""
    logs = [row["token"] for row in json.loads((root / "v1.0-tiny" / "log.json").read_text())]
    row = {"token": "map", "log_tokens": logs, "filename": "map.png", "category": "-"}
    (root / "map.png").touch()
    (root / "v1.0-tiny" / "map.json").write_text(json.dumps([row]))
    (root / "v1.0-tiny" / "visibility.json").write_text("[]")
    return NuScenes("v1.0-tiny", str(root), verbose=False)


def write_infos(path: Path, content: Any) -> Path:
    """As mmengine.dump: protocol 2."""
    path.write_bytes(pickle.dumps(content, 2))
    return path


def old_infos(devkit: NuScenes, old_boxes: bool = True) -> Any:
    """The layout before mmdet3d 1.1.

    Args:
        old_boxes: as before 1.0.0rc0.
    """
    rows = [_old_row(devkit, sample, old_boxes) for sample in devkit.sample]
    return {"infos": rows, "metadata": {"version": devkit.version}}


def _old_row(devkit: NuScenes, sample: dict[str, Any], old_boxes: bool) -> dict[str, Any]:
    lidar = sample["data"]["LIDAR_TOP"]
    data, mounting, pose = _recording(devkit, lidar)
    boxes = devkit.get_boxes(lidar)
    for box in boxes:
        box.translate(-np.array(pose["translation"]))
        box.rotate(Quaternion(pose["rotation"]).inverse)
        box.translate(-np.array(mounting["translation"]))
        box.rotate(Quaternion(mounting["rotation"]).inverse)
    turned = (Quaternion(pose["rotation"]) * Quaternion(mounting["rotation"])).inverse
    annotations = [devkit.get("sample_annotation", token) for token in sample["anns"]]
    velocities = [turned.rotate([*devkit.box_velocity(token)[:2], 0.0])[:2] for token in sample["anns"]]
    earlier, token = [], data["prev"]
    while token and len(earlier) < 10:
        earlier.append(_sensor(devkit, token, lidar, "lidar"))
        token = devkit.get("sample_data", token)["prev"]
    cameras = {name: _sensor(devkit, sample["data"][name], lidar, name) for name in CAMERAS}
    for name, camera in cameras.items():
        camera["cam_intrinsic"] = np.array(_recording(devkit, sample["data"][name])[1]["camera_intrinsic"])
    wlh = np.array([box.wlh for box in boxes]).reshape(-1, 3)
    yaws = np.array([box.orientation.yaw_pitch_roll[0] for box in boxes]).reshape(-1, 1)
    centers = np.array([box.center for box in boxes]).reshape(-1, 3)
    shape = [wlh, -yaws - np.pi / 2] if old_boxes else [wlh[:, [1, 0, 2]], yaws]
    points = [np.array([a[f"num_{kind}_pts"] for a in annotations]) for kind in ("lidar", "radar")]
    return {
        "lidar_path": f"./data/nuscenes/{data['filename']}",
        "token": sample["token"],
        "sweeps": earlier,
        "cams": cameras,
        "lidar2ego_translation": mounting["translation"],
        "lidar2ego_rotation": mounting["rotation"],
        "ego2global_translation": pose["translation"],
        "ego2global_rotation": pose["rotation"],
        "timestamp": sample["timestamp"],
        "gt_boxes": np.concatenate([centers, *shape], axis=1),
        "gt_names": np.array([category_to_detection_name(box.name) or box.name for box in boxes]),
        "gt_velocity": np.array(velocities).reshape(-1, 2),
        "num_lidar_pts": points[0],
        "num_radar_pts": points[1],
        "valid_flag": (points[0] + points[1] > 0).reshape(-1),
    }


def _recording(devkit: NuScenes, token: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """sample_data, calibrated_sensor and ego_pose."""
    data = devkit.get("sample_data", token)
    mounting = devkit.get("calibrated_sensor", data["calibrated_sensor_token"])
    return data, mounting, devkit.get("ego_pose", data["ego_pose_token"])


def _sensor(devkit: NuScenes, token: str, lidar: str, kind: str) -> dict[str, Any]:
    data, mounting, pose = _recording(devkit, token)
    lidar_from_sensor = np.linalg.inv(_global_from(*_recording(devkit, lidar)[1:])) @ _global_from(mounting, pose)
    return {
        "data_path": f"./data/nuscenes/{data['filename']}",
        "type": kind,
        "sample_data_token": token,
        "sensor2ego_translation": mounting["translation"],
        "sensor2ego_rotation": mounting["rotation"],
        "ego2global_translation": pose["translation"],
        "ego2global_rotation": pose["rotation"],
        "timestamp": data["timestamp"],
        "sensor2lidar_rotation": lidar_from_sensor[:3, :3],
        "sensor2lidar_translation": lidar_from_sensor[:3, 3],
    }


def _global_from(mounting: dict[str, Any], pose: dict[str, Any]) -> np.ndarray:
    return _matrix(pose["rotation"], pose["translation"]) @ _matrix(mounting["rotation"], mounting["translation"])


def _matrix(rotation: list[float], translation: list[float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Quaternion(rotation).rotation_matrix, translation
    return matrix


def new_infos(old: Any) -> Any:
    """The layout since mmdet3d 1.1, of one in the older layout with boxes as since 1.0.0rc0."""
    rows = [_new_row(i, row) for i, row in enumerate(old["infos"])]
    categories = {name: i for i, name in enumerate(MMDET3D_CLASSES)}
    ignored = {name: -1 for name in old["infos"][-1]["gt_names"].tolist() if name not in categories}
    metainfo = {"categories": categories | ignored, "dataset": "nuscenes", "version": "-", "info_version": "1.1"}
    return {"metainfo": metainfo, "data_list": rows}


def _new_row(index: int, old: dict[str, Any]) -> dict[str, Any]:
    row = {
        "sample_idx": index,
        "token": old["token"],
        "timestamp": old["timestamp"] / 1e6,
        "ego2global": _single(_matrix(old["ego2global_rotation"], old["ego2global_translation"])),
        "images": {
            name: {
                "img_path": Path(camera["data_path"]).name,
                "cam2img": camera["cam_intrinsic"].tolist(),
                "cam2ego": _single(_matrix(camera["sensor2ego_rotation"], camera["sensor2ego_translation"])),
                "sample_data_token": camera["sample_data_token"],
                "timestamp": camera["timestamp"] / 1e6,
                "lidar2cam": _single(_sensor_from_lidar(camera)),
            }
            for name, camera in old["cams"].items()
        },
        "lidar_points": {
            "num_pts_feats": 5,
            "lidar_path": Path(old["lidar_path"]).name,
            "lidar2ego": _single(_matrix(old["lidar2ego_rotation"], old["lidar2ego_translation"])),
        },
        "instances": [
            {
                "bbox_label": _label(old["gt_names"][i]),
                "bbox_3d": old["gt_boxes"][i].tolist(),
                "bbox_3d_isvalid": old["valid_flag"][i],
                "bbox_label_3d": _label(old["gt_names"][i]),
                "num_lidar_pts": old["num_lidar_pts"][i],
                "num_radar_pts": old["num_radar_pts"][i],
                "velocity": old["gt_velocity"][i].tolist(),
            }
            for i in range(len(old["gt_names"]))
        ],
    }
    sweeps = [
        {
            "timestamp": sweep["timestamp"] / 1e6,
            "ego2global": _single(_matrix(sweep["ego2global_rotation"], sweep["ego2global_translation"])),
            "lidar_points": {
                "num_pts_feats": None,
                "lidar_path": sweep["data_path"],
                "lidar2ego": _single(_matrix(sweep["sensor2ego_rotation"], sweep["sensor2ego_translation"])),
                "lidar2sensor": _single(_sensor_from_lidar(sweep)),
            },
            "sample_data_token": sweep["sample_data_token"],
        }
        for sweep in old["sweeps"]
    ]
    return row | ({"lidar_sweeps": sweeps} if sweeps else {})  # the converter drops empty lists


def _label(name: str) -> int:
    return MMDET3D_CLASSES.index(name) if name in MMDET3D_CLASSES else -1


def _sensor_from_lidar(sensor: dict[str, Any]) -> np.ndarray:
    rotation, translation = sensor["sensor2lidar_rotation"], sensor["sensor2lidar_translation"]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation.T, -rotation.T @ translation
    return matrix


def _single(matrix: np.ndarray) -> list[list[float]]:
    return matrix.astype(np.float32).tolist()
