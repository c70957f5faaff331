"""Drives to test on: real nuScenes keyframes, simulated drives, and the smallest dataroot there is."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import once
import pytest
from hypothesis import settings
from pyquaternion import Quaternion
from vocabulary import CAMERAS

from perception.datasets.nuscenes.dataset import NuScenesTables

# The gate draws the same examples on every machine; `pytest --hypothesis-profile=random` draws others each time.
# What those find becomes an @example.
settings.register_profile("gate", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("random", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("gate")

_REPOSITORY = Path(__file__).parents[1]
# These files take longest. They come first, so that no worker is left alone with one at the end; pytest-xdist keeps
# to the order with --no-loadscope-reorder.
_FIRST = (
    *("anchored_export", "readme", "full_size", "fault_detection", "changing_drive"),
    *("export_modules", "apart"),
    *("mmdet3d_run", "precision", "toy_task", "golden_sensitivity", "golden_faults", "precision_export", "tracking"),
    *(
        "simulate_drive",
        "other_vehicles",
        "other_names",
        "player",
        "refit",
        "vehicle_environment",
        "runtime",
        "scene",
        "recogniser_precision",
    ),
    *("export", "settings", "mmdet3d_import", "build_package", "simulate_world"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {f"test_{name}.py": i for i, name in enumerate(_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def _folder_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What `once` prepares lies where all workers of pytest-xdist see it; pytest removes it with the run's folder."""
    own = tmp_path_factory.getbasetemp()
    once.run = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def nuscenes_root() -> Path:
    """A dataroot with version v1.0-mini and files for the first keyframes of scene-0103."""
    given = os.environ.get("PERCEPTION_NUSCENES")
    root = Path(given) if given else _REPOSITORY.parent / "shared" / "data" / "nuscenes"
    if not (root / "v1.0-mini" / "sample.json").exists():
        pytest.skip(f"real nuScenes keyframes not found at {root} (set PERCEPTION_NUSCENES)")
    return root


@pytest.fixture(scope="session")
def pandaset_root() -> Path:
    """A dataroot of PandaSet with frames 0 to 31 of drive 002."""
    given = os.environ.get("PERCEPTION_PANDASET")
    root = Path(given) if given else _REPOSITORY.parent / "shared" / "data" / "pandaset"
    if not (root / "002" / "lidar" / "poses.json").exists():
        pytest.skip(f"recorded drive of PandaSet not found at {root} (set PERCEPTION_PANDASET)")
    return root


@pytest.fixture(scope="session")
def sim_root() -> Path:
    """A dataroot with version v1.0-sim: two drives of three keyframes, two LiDAR sweeps before each."""
    from perception.simulate.simulate import simulate

    conditions = ["clear-day-boston", "rain-night-singapore"]
    return once.once("simulated", lambda root: simulate(root, 2, 3, seed=0, condition_names=conditions, sweeps=2))


@pytest.fixture(scope="session")
def truck_root() -> Path:
    """A drive of a truck as MAN TruckScenes lays it out: three keyframes, two LiDAR sweeps before each."""
    from perception.rig import load_rig
    from perception.simulate.conditions import parse
    from perception.simulate.simulate import simulate
    from perception.simulate.world_files import Worlds
    from perception.taxonomy import load_taxonomy

    courses = parse(["clear-day-boston"], load_taxonomy("truckscenes"), Worlds())
    return once.once("truck", lambda root: simulate(root, 1, 3, 1, courses, 2, rig=load_rig("truck")))


@pytest.fixture(scope="session")
def tables(sim_root: Path) -> NuScenesTables:
    """Of the simulated drives."""
    return NuScenesTables(sim_root, "v1.0-sim")


@pytest.fixture(scope="session", params=[("nuscenes_root", "v1.0-mini"), ("sim_root", "v1.0-sim")], ids=["real", "sim"])
def keyframes(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """Real and simulated keyframes: dataroot and version."""
    root, version = request.param
    return request.getfixturevalue(root), version


def token(*parts: Any) -> str:
    """The token of a row in the tiny dataroot."""
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


@pytest.fixture
def tiny_root(tmp_path: Path) -> Path:
    """A dataroot with version v1.0-tiny: one drive of three keyframes, all sensors, a sweep before each keyframe.

    The vehicle drives at 5 m/s along x of the global frame. A car drives 10 m before it, a pedestrian stands still,
    a bicycle rack belongs to no detection class. scene-0001 is the split `train`.
    """
    root = tmp_path / "tiny"
    write_tiny(root)
    return root


@pytest.fixture(scope="session")
def recorded_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataroot, which no test changes."""
    root = tmp_path_factory.mktemp("recorded") / "root"
    write_tiny(root)
    return root


@pytest.fixture(scope="session")
def log(recorded_root: Path) -> list[Any]:
    """Messages of its three keyframes 0.5 s apart, a sweep before each; cameras 1 to 6 ms after the LiDAR."""
    from recordings import TINY, sent

    return sent(recorded_root, "v1.0-tiny", TINY)


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
