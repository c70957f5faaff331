"""Opening nuScenes tables of the size of v1.0-trainval: the first time, and from then on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from hashlib import md5
from pathlib import Path
from typing import Any

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.rig import load_rig
from perception.taxonomy import load_taxonomy

VERSION, DRIVES = "v1.0-generated", 850  # of 20 s, as in v1.0-trainval
KEYFRAMES, BOXES, BOXES_OF_AN_OBJECT = 40, 35, 18  # of a drive, of a keyframe, and in a drive
CAMERAS = load_rig("nuscenes").sensors.cameras
RATES = {"LIDAR_TOP": 20, **dict.fromkeys(CAMERAS, 12), **{f"RADAR_{i}": 13 for i in range(5)}}  # Hz

Row = dict[str, Any]


def tables(quick: bool) -> dict[str, Any]:
    """Seconds and peak memory of processes that open generated tables and read boxes; imports are not measured."""
    with tempfile.TemporaryDirectory() as folder:
        data, cache = Path(folder) / "data", Path(folder) / "cache"
        counts = generate(data, 2 if quick else DRIVES)
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
        command = [sys.executable, __file__, str(data)]
        first, *later = (
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
            for _ in range(4)
        )
        return {
            "rows": counts,
            "first": first,
            "later": {name: sorted(each[name] for each in later)[1] for name in first},
            "megabytes_stored": sum(each.stat().st_size for each in cache.rglob("*.npy")) / 1e6,
            "megabytes_of_tables": sum(each.stat().st_size for each in data.rglob("*.json")) / 1e6,
        }


def generate(root: Path, drives: int) -> dict[str, int]:
    """Write tables with the sensors, rates and boxes of nuScenes; returns the number of rows of the largest."""
    folder, each, names = root / VERSION, range(drives), load_taxonomy("nuscenes").class_names
    folder.mkdir(parents=True)
    lens = [[1266, 0, 816], [0, 1266, 491], [0, 0, 1]]
    rows: dict[str, Iterable[Row]] = {
        "sensor": ({"token": name, "channel": name, "modality": _modality(name)} for name in RATES),
        "log": [{"token": "log", "location": "boston-seaport"}],
        "category": ({"token": name, "name": f"vehicle.{name}"} for name in names),
        "attribute": [],
        "scene": ({"token": f"{d}", "name": f"scene-{d:04}", "log_token": "log", "description": "Rain"} for d in each),
        "calibrated_sensor": (
            {"token": _token("calibration", d, name), "sensor_token": name, "translation": [0.9, 0.0, 1.8],
             "rotation": [0.7, 0.0, 0.0, 0.7], "camera_intrinsic": lens if name in CAMERAS else []}
            for d in each for name in RATES
        ),
        "sample": (
            {"token": _token("sample", d, i), "timestamp": _time(d, i / 2), "scene_token": f"{d}"}
            for d in each for i in range(KEYFRAMES)
        ),
        "instance": (
            {"token": _token("instance", d, i), "category_token": names[i % len(names)]}
            for d in each for i in range(-(-KEYFRAMES * BOXES // BOXES_OF_AN_OBJECT))
        ),
        "sample_data": (row for d in each for row in _files(d)),
        "ego_pose": (row for d in each for row in _poses(d)),
        "sample_annotation": (row for d in each for row in _annotations(d)),
    }  # fmt: skip
    counts = {name: _write(folder / f"{name}.json", listed) for name, listed in rows.items()}
    return {name: counts[name] for name in ("sample_data", "ego_pose", "sample_annotation")}


def _modality(channel: str) -> str:
    return "camera" if channel in CAMERAS else channel.partition("_")[0].lower()


def _files(drive: int) -> Iterator[Row]:
    for channel, rate in RATES.items():
        keyframes = {round(i / 2 * rate): i for i in range(KEYFRAMES)}
        count = round(KEYFRAMES / 2 * rate)
        tokens = ["", *(_token("file", drive, channel, i) for i in range(count)), ""]
        calibration, is_camera, sample = _token("calibration", drive, channel), channel in CAMERAS, ""
        for i in range(count):
            if i in keyframes:
                sample = _token("sample", drive, keyframes[i])
            at, folder = _time(drive, i / rate), "samples" if i in keyframes else "sweeps"
            name = f"n008-2018-08-01-15-16-36-0400__{channel}__{at}.{'jpg' if is_camera else 'pcd.bin'}"
            yield {
                "token": tokens[i + 1], "sample_token": sample, "ego_pose_token": tokens[i + 1],
                "calibrated_sensor_token": calibration, "timestamp": at, "fileformat": "jpg" if is_camera else "pcd",
                "is_key_frame": i in keyframes, "height": 900 * is_camera, "width": 1600 * is_camera,
                "filename": f"{folder}/{channel}/{name}", "prev": tokens[i], "next": tokens[i + 2],
            }  # fmt: skip


def _poses(drive: int) -> Iterator[Row]:
    for channel, rate in RATES.items():
        for i in range(round(KEYFRAMES / 2 * rate)):
            yield {
                "token": _token("file", drive, channel, i), "timestamp": _time(drive, i / rate),
                "rotation": [0.5720320396729045, -0.0016977771610471074, 0.011798001930183783, -0.8201446642457809],
                "translation": [411.3 + i / rate, 1180.89, 0.0],
            }  # fmt: skip


def _annotations(drive: int) -> Iterator[Row]:
    for i in range(KEYFRAMES * BOXES):
        sample, box = divmod(i, BOXES)
        instance, part = divmod(box * KEYFRAMES + sample, BOXES_OF_AN_OBJECT)
        begins, ends = part == 0 or sample == 0, part == BOXES_OF_AN_OBJECT - 1 or sample == KEYFRAMES - 1
        yield {
            "token": _token("box", drive, sample, box), "sample_token": _token("sample", drive, sample),
            "instance_token": _token("instance", drive, instance), "visibility_token": "4", "attribute_tokens": [],
            "translation": [373.256 + sample / 2, 1130.419, 0.8], "size": [0.621, 0.669, 1.642],
            "rotation": [0.9831098797903927, 0.0, 0.0, -0.18301629506281616],
            "prev": "" if begins else _token("box", drive, sample - 1, box),
            "next": "" if ends else _token("box", drive, sample + 1, box), "num_lidar_pts": 5, "num_radar_pts": 0,
        }  # fmt: skip


def _write(path: Path, rows: Iterable[Row]) -> int:
    """One row at a time, since the large tables do not fit into memory as dictionaries."""
    count = 0
    with path.open("w") as file:
        for count, row in enumerate(rows, 1):
            file.write(",\n" if count > 1 else "[\n")
            file.write(json.dumps(row))
        file.write("\n]" if count else "[]")
    return count


def _token(*parts: object) -> str:
    return md5("/".join(map(str, parts)).encode()).hexdigest()


def _time(drive: int, seconds: float) -> int:
    return 1_533_151_603_000_000 + drive * 100_000_000 + round(seconds * 1e6)


def _open(root: Path) -> dict[str, float]:
    """Seconds until the tables are open, and until a keyframe's boxes are read as well; peak memory in MB."""
    start = time.perf_counter()
    tables = NuScenesTables(root, VERSION)
    opened = time.perf_counter() - start
    assert tables.recording(tables.samples()[-1]).annotated("boxes") is not None
    return {"open_seconds": opened, "with_boxes_seconds": time.perf_counter() - start, "megabytes": peak_megabytes()}


def peak_megabytes() -> float:
    """Peak memory of this process; getrusage would include that of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1e3


if __name__ == "__main__":
    print(json.dumps(_open(Path(sys.argv[1]))))
