"""The smallest dataroot there is: one drive of three keyframes; or its drive in several scenes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pyquaternion import Quaternion
from vocabulary import CAMERAS

_SENSORS = ("LIDAR_TOP", *CAMERAS, "RADAR_FRONT")
_SPEED = 5.0  # m/s
_START = 1_500_000_000_000_000  # us
_PLACES = {"car": (10.0, 0.0), "walker": (5.0, 8.0), "rack": (5.0, -8.0)}  # m ahead and left at the start


def token(*parts: Any) -> str:
    """The token of a row in the tiny dataroot."""
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


def write_tiny(root: Path, keyframes: int = 3, between: bool = False) -> None:
    """The drive; `between` also has pictures at the sweeps between keyframes, so that there are frames."""
    rng = np.random.default_rng(0)
    calibrations, recordings, poses = [], [], []
    for i, channel in enumerate(_SENSORS):
        camera = channel.startswith("CAM")
        # Optical axis along x of the vehicle, then turned about z.
        turn = Quaternion(axis=[0, 0, 1], radians=2 * np.pi * i / len(_SENSORS))
        rotation = (turn * Quaternion(0.5, -0.5, 0.5, -0.5) if camera else Quaternion()).elements
        intrinsics = [[60, 0, 39.5], [0, 60, 24.5], [0, 0, 1]] if camera else []
        mounting = {"translation": [1.0, 0.0, 1.5], "rotation": rotation.tolist(), "camera_intrinsic": intrinsics}
        calibration = token("calibration", channel)
        calibrations.append({"token": calibration, "sensor_token": token("sensor", channel), **mounting})
        previous = ""
        for step in range(2 * keyframes):  # 4 Hz; every second one is a keyframe
            keyframe = step % 2 == 1
            if channel != "LIDAR_TOP" and not keyframe and not between:
                continue
            timestamp = _START + step * 250_000 + 1000 * i
            file = f"{'samples' if keyframe else 'sweeps'}/{channel}/{timestamp}{'.jpg' if camera else '.pcd.bin'}"
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            if camera:
                picture = cv2.resize(rng.integers(0, 255, (5, 8, 3), np.uint8), (80, 50))
                (root / file).write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
            else:
                points = rng.uniform([-30, -30, -2, 0, 0], [30, 30, 1, 255, 31], (500, 5))
                points[:, 4] = np.round(points[:, 4])
                (root / file).write_bytes(points.astype(np.float32).tobytes())
            own = token("data", channel, step)
            recordings.append({
                "token": own, "sample_token": token("sample", step // 2), "ego_pose_token": own,
                "calibrated_sensor_token": calibration, "timestamp": timestamp, "is_key_frame": keyframe,
                "fileformat": "jpg" if camera else "pcd", "filename": file, "prev": previous, "next": "",
                "width": 80 if camera else 0, "height": 50 if camera else 0,
            })  # fmt: skip
            place = [100 + _SPEED * (timestamp - _START) / 1e6, 50.0, 0.0]
            poses.append({"token": own, "timestamp": timestamp, "translation": place, "rotation": [1.0, 0, 0, 0]})
            previous = own
    categories = {"car": "vehicle.car", "walker": "human.pedestrian.adult", "rack": "static_object.bicycle_rack"}
    scene = {"name": "scene-0001", "description": "Night, rain, near a train station"}
    tables: dict[str, list[dict[str, Any]]] = {
        "sensor": [{"token": token("sensor", c), "channel": c, "modality": "-"} for c in _SENSORS],
        "calibrated_sensor": calibrations,
        "sample_data": recordings,
        "ego_pose": poses,
        "sample": [
            {"token": token("sample", i), "timestamp": _START + (2 * i + 1) * 250_000, "scene_token": token("scene")}
            | _neighbours("sample", i, keyframes)
            for i in range(keyframes)
        ],
        "scene": [{"token": token("scene"), "log_token": token("log"), **scene}],
        "log": [{"token": token("log"), "location": "boston-seaport"}],
        "category": [{"token": token("category", n), "name": c} for n, c in categories.items()],
        "attribute": [{"token": token("attribute"), "name": "vehicle.moving"}],
        "instance": [{"token": token("instance", n), "category_token": token("category", n)} for n in categories],
        "sample_annotation": [_annotation(name, i, keyframes) for i in range(keyframes) for name in categories],
    }
    folder = root / "v1.0-tiny"
    folder.mkdir()
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))
    (folder / "splits.json").write_text(json.dumps({"train": ["scene-0001"], "val": ["scene-0002"]}))


def _annotation(name: str, sample: int, keyframes: int) -> dict[str, Any]:
    ahead, left = _PLACES[name]
    if name == "car":
        ahead += _SPEED * (2 * sample + 1) * 0.25
    tokens = {"sample_token": token("sample", sample), "instance_token": token("instance", name)}
    return {
        "token": token("annotation", name, sample), **tokens, **_neighbours(f"annotation/{name}", sample, keyframes),
        "attribute_tokens": [token("attribute")] if name == "car" else [], "num_lidar_pts": 4, "num_radar_pts": 1,
        "translation": [100 + ahead, 50 + left, 1.0], "size": [2.0, 4.0, 1.5], "rotation": [1.0, 0.0, 0.0, 0.0],
    }  # fmt: skip


def _neighbours(kind: str, number: int, count: int) -> dict[str, str]:
    """Tokens of the rows before and behind this one."""
    before, behind = number - 1, number + 1
    return {"prev": token(kind, before) if before >= 0 else "", "next": token(kind, behind) if behind < count else ""}


def write_scenes(root: Path, scenes: int, keyframes: int, between: bool = False) -> None:
    """A dataroot with version v1.0-tiny: its one drive in as many scenes, one after the other."""
    write_tiny(root, scenes * keyframes, between)
    folder = root / "v1.0-tiny"
    samples, (scene,) = (json.loads((folder / f"{name}.json").read_text()) for name in ("sample", "scene"))
    for i, sample in enumerate(samples):
        own, place = divmod(i, keyframes)
        sample["scene_token"] = token("scene", own)
        sample["prev"] = "" if place == 0 else sample["prev"]
        sample["next"] = "" if place == keyframes - 1 else sample["next"]
    rows = [{**scene, "token": token("scene", i), "name": f"scene-{1 + i:04}"} for i in range(scenes)]
    (folder / "sample.json").write_text(json.dumps(samples))
    (folder / "scene.json").write_text(json.dumps(rows))
