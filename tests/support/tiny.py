"""The smallest dataroot there is: one drive of three keyframes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pyquaternion import Quaternion
from vocabulary import CAMERAS


def token(*parts: Any) -> str:
    """The token of a row in the tiny dataroot."""
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


_SENSORS = ("LIDAR_TOP", *CAMERAS, "RADAR_FRONT")


_SPEED = 5.0  # m/s


_START = 1_500_000_000_000_000  # us


def write_tiny(root: Path, keyframes: int = 3) -> None:
    rng = np.random.default_rng(0)
    calibrations, recordings, poses = [], [], []
    for i, channel in enumerate(_SENSORS):
        camera = channel.startswith("CAM")
        turn = 2 * np.pi * i / len(_SENSORS)
        # Optical axis along x of the vehicle, then turned about z.
        about_z = Quaternion(axis=[0, 0, 1], radians=turn)
        rotation = (about_z * Quaternion(0.5, -0.5, 0.5, -0.5) if camera else Quaternion()).elements
        calibrations.append(
            {
                "token": token("calibration", channel),
                "sensor_token": token("sensor", channel),
                "translation": [1.0, 0.0, 1.5],
                "rotation": rotation.tolist(),
                "camera_intrinsic": [[60, 0, 39.5], [0, 60, 24.5], [0, 0, 1]] if camera else [],
            }
        )
        previous = ""
        for step in range(2 * keyframes):  # 4 Hz; every second one is a keyframe
            keyframe, sample = step % 2 == 1, step // 2
            if channel != "LIDAR_TOP" and not keyframe:
                continue
            timestamp = _START + step * 250_000 + 1000 * i
            name = f"{'samples' if keyframe else 'sweeps'}/{channel}/{timestamp}"
            file = root / (f"{name}.jpg" if camera else f"{name}.pcd.bin")
            file.parent.mkdir(parents=True, exist_ok=True)
            if camera:
                picture = cv2.resize(rng.integers(0, 255, (5, 8, 3), np.uint8), (80, 50))
                file.write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
            else:
                points = rng.uniform([-30, -30, -2, 0, 0], [30, 30, 1, 255, 31], (500, 5))
                file.write_bytes(points.astype(np.float32).tobytes())
            own = token("data", channel, step)
            recordings.append(
                {
                    "token": own,
                    "sample_token": token("sample", sample),
                    "ego_pose_token": own,
                    "calibrated_sensor_token": token("calibration", channel),
                    "timestamp": timestamp,
                    "fileformat": "jpg" if camera else "pcd",
                    "is_key_frame": keyframe,
                    "width": 80 if camera else 0,
                    "height": 50 if camera else 0,
                    "filename": str(file.relative_to(root)),
                    "prev": previous,
                    "next": "",
                }
            )
            seconds = (timestamp - _START) / 1e6
            poses.append(
                {
                    "token": own,
                    "timestamp": timestamp,
                    "translation": [100 + _SPEED * seconds, 50.0, 0.0],
                    "rotation": [1.0, 0, 0, 0],
                }
            )
            previous = own
    samples = [
        {
            "token": token("sample", i),
            "timestamp": _START + (2 * i + 1) * 250_000,
            "scene_token": token("scene"),
            "prev": token("sample", i - 1) if i > 0 else "",
            "next": token("sample", i + 1) if i < keyframes - 1 else "",
        }
        for i in range(keyframes)
    ]
    categories = {"car": "vehicle.car", "walker": "human.pedestrian.adult", "rack": "static_object.bicycle_rack"}
    tables: dict[str, list[dict[str, Any]]] = {
        "sensor": [{"token": token("sensor", c), "channel": c, "modality": "-"} for c in _SENSORS],
        "calibrated_sensor": calibrations,
        "sample_data": recordings,
        "ego_pose": poses,
        "sample": samples,
        "scene": [
            {
                "token": token("scene"),
                "log_token": token("log"),
                "name": "scene-0001",
                "description": "Night, rain, near a train station",
            }
        ],
        "log": [{"token": token("log"), "location": "boston-seaport"}],
        "category": [{"token": token("category", n), "name": c} for n, c in categories.items()],
        "attribute": [{"token": token("attribute"), "name": "vehicle.moving"}],
        "instance": [{"token": token("instance", n), "category_token": token("category", n)} for n in categories],
        "sample_annotation": [_annotation(name, i, keyframes - 1) for i in range(keyframes) for name in categories],
    }
    folder = root / "v1.0-tiny"
    folder.mkdir()
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))
    (folder / "splits.json").write_text(json.dumps({"train": ["scene-0001"], "val": ["scene-0002"]}))


def _annotation(name: str, sample: int, last: int) -> dict[str, Any]:
    seconds = (2 * sample + 1) * 0.25
    ahead, left = {"car": (10 + _SPEED * seconds, 0.0), "walker": (5.0, 8.0), "rack": (5.0, -8.0)}[name]
    return {
        "token": token("annotation", name, sample),
        "sample_token": token("sample", sample),
        "instance_token": token("instance", name),
        "attribute_tokens": [token("attribute")] if name == "car" else [],
        "translation": [100 + ahead, 50 + left, 1.0],
        "size": [2.0, 4.0, 1.5],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "prev": token("annotation", name, sample - 1) if sample > 0 else "",
        "next": token("annotation", name, sample + 1) if sample < last else "",
        "num_lidar_pts": 4,
        "num_radar_pts": 1,
    }
