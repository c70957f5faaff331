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
Row = dict[str, Any]


def open_tiny(root: Path) -> NuScenes:
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


def _old_row(devkit: NuScenes, sample: Row, old_boxes: bool) -> Row:
    lidar, tokens = sample["data"]["LIDAR_TOP"], sample["anns"]
    data, mounting, pose = _recording(devkit, lidar)
    _, boxes, _ = devkit.get_sample_data(lidar)
    turned = (Quaternion(pose["rotation"]) * Quaternion(mounting["rotation"])).inverse
    velocities = [turned.rotate([*devkit.box_velocity(token)[:2], 0.0])[:2] for token in tokens]
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
    annotations = [devkit.get("sample_annotation", token) for token in tokens]
    points = {name: np.array([a[name] for a in annotations]) for name in ("num_lidar_pts", "num_radar_pts")}
    return {
        "lidar_path": f"./data/nuscenes/{data['filename']}",
        "token": sample["token"],
        "timestamp": sample["timestamp"],
        "sweeps": earlier,
        "cams": cameras,
        **_placing("lidar2ego", mounting),
        **_placing("ego2global", pose),
        "gt_boxes": np.concatenate([centers, *shape], axis=1),
        "gt_names": np.array([category_to_detection_name(box.name) or box.name for box in boxes]),
        "gt_velocity": np.array(velocities).reshape(-1, 2),
        **points,
        "valid_flag": (points["num_lidar_pts"] + points["num_radar_pts"] > 0).reshape(-1),
    }


def _placing(name: str, row: Row) -> Row:
    return {f"{name}_{part}": row[part] for part in ("translation", "rotation")}


def _recording(devkit: NuScenes, token: str) -> tuple[Row, Row, Row]:
    """sample_data, calibrated_sensor and ego_pose."""
    data = devkit.get("sample_data", token)
    mounting = devkit.get("calibrated_sensor", data["calibrated_sensor_token"])
    return data, mounting, devkit.get("ego_pose", data["ego_pose_token"])


def _sensor(devkit: NuScenes, token: str, lidar: str, kind: str) -> Row:
    data, mounting, pose = _recording(devkit, token)
    global_from_sensor, global_from_lidar = (
        _matrix(ego["rotation"], ego["translation"]) @ _matrix(place["rotation"], place["translation"])
        for _, place, ego in (_recording(devkit, each) for each in (token, lidar))
    )
    lidar_from_sensor = np.linalg.inv(global_from_lidar) @ global_from_sensor
    return {
        "data_path": f"./data/nuscenes/{data['filename']}",
        "type": kind,
        "sample_data_token": token,
        **_placing("sensor2ego", mounting),
        **_placing("ego2global", pose),
        "timestamp": data["timestamp"],
        "sensor2lidar_rotation": lidar_from_sensor[:3, :3],
        "sensor2lidar_translation": lidar_from_sensor[:3, 3],
    }


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


def _new_row(index: int, old: Row) -> Row:
    labels = [MMDET3D_CLASSES.index(name) if name in MMDET3D_CLASSES else -1 for name in old["gt_names"]]
    row = {
        "sample_idx": index,
        "token": old["token"],
        "timestamp": old["timestamp"] / 1e6,
        "ego2global": _to_matrix(old, "ego2global"),
        "images": {
            name: {
                "img_path": Path(camera["data_path"]).name,
                "cam2img": camera["cam_intrinsic"].tolist(),
                "cam2ego": _to_matrix(camera, "sensor2ego"),
                "sample_data_token": camera["sample_data_token"],
                "timestamp": camera["timestamp"] / 1e6,
                "lidar2cam": _sensor_from_lidar(camera),
            }
            for name, camera in old["cams"].items()
        },
        "lidar_points": {
            "num_pts_feats": 5,
            "lidar_path": Path(old["lidar_path"]).name,
            "lidar2ego": _to_matrix(old, "lidar2ego"),
        },
        "instances": [
            {
                "bbox_label": label,
                "bbox_3d": old["gt_boxes"][i].tolist(),
                "bbox_3d_isvalid": old["valid_flag"][i],
                "bbox_label_3d": label,
                "num_lidar_pts": old["num_lidar_pts"][i],
                "num_radar_pts": old["num_radar_pts"][i],
                "velocity": old["gt_velocity"][i].tolist(),
            }
            for i, label in enumerate(labels)
        ],
    }
    sweeps = [
        {
            "timestamp": sweep["timestamp"] / 1e6,
            "ego2global": _to_matrix(sweep, "ego2global"),
            "lidar_points": {
                "num_pts_feats": None,
                "lidar_path": sweep["data_path"],
                "lidar2ego": _to_matrix(sweep, "sensor2ego"),
                "lidar2sensor": _sensor_from_lidar(sweep),
            },
            "sample_data_token": sweep["sample_data_token"],
        }
        for sweep in old["sweeps"]
    ]
    return row | ({"lidar_sweeps": sweeps} if sweeps else {})  # the converter drops empty lists


def _to_matrix(row: Row, name: str) -> list[list[float]]:
    return _matrix(row[f"{name}_rotation"], row[f"{name}_translation"]).astype(np.float32).tolist()


def _sensor_from_lidar(sensor: Row) -> list[list[float]]:
    rotation, translation = sensor["sensor2lidar_rotation"], sensor["sensor2lidar_translation"]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation.T, -rotation.T @ translation
    return matrix.astype(np.float32).tolist()
