"""Opening nuScenes tables of the size of v1.0-trainval: the first time, and from then on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path
from typing import Annotated, Any

import typer

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.rig import load_rig
from perception.taxonomy import load_taxonomy

VERSION = "v1.0-generated"
KEYFRAMES, BOXES, BOXES_OF_AN_OBJECT = 40, 35, 18  # of a drive, of a keyframe, and in a drive
RADARS = tuple(f"RADAR_{i}" for i in range(5))
RATES = {"LIDAR_TOP": 20, "camera": 12, "radar": 13}  # Hz


def tables(
    drives: Annotated[int, typer.Option(help="Of 20 s; v1.0-trainval has 850.")] = 850,
) -> dict[str, Any]:
    """Seconds and peak memory of processes that open generated tables and read boxes; imports are not measured."""
    with tempfile.TemporaryDirectory() as folder:
        data, cache = Path(folder) / "data", Path(folder) / "cache"
        counts = generate(data, drives)
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
    folder = root / VERSION
    folder.mkdir(parents=True)
    cameras = load_rig("nuscenes").sensors.cameras
    modality = {"LIDAR_TOP": "lidar", **dict.fromkeys(cameras, "camera"), **dict.fromkeys(RADARS, "radar")}
    names, scenes = load_taxonomy("nuscenes").class_names, [_token("scene", drive) for drive in range(drives)]
    small = {
        "sensor": [{"token": _token(name), "channel": name, "modality": kind} for name, kind in modality.items()],
        "calibrated_sensor": [
            {
                "token": _token("calibration", drive, name), "sensor_token": _token(name),
                "translation": [0.9, 0.0, 1.8], "rotation": [0.7, 0.0, 0.0, 0.7],
                "camera_intrinsic": [[1266, 0, 816], [0, 1266, 491], [0, 0, 1]] if name in cameras else [],
            }
            for drive in range(drives) for name in modality
        ],
        "log": [{"token": _token("log"), "location": "boston-seaport"}],
        "scene": [
            {"token": scene, "name": f"scene-{i:04}", "log_token": _token("log"), "description": "Rain"}
            for i, scene in enumerate(scenes)
        ],
        "sample": [
            {"token": _token("sample", drive, i), "timestamp": _time(drive, i / 2), "scene_token": scene}
            for drive, scene in enumerate(scenes) for i in range(KEYFRAMES)
        ],
        "category": [{"token": _token("category", name), "name": f"vehicle.{name}"} for name in names],
        "attribute": [],
        "instance": [
            {"token": _token("instance", drive, i), "category_token": _token("category", names[i % len(names)])}
            for drive in range(drives) for i in range(-(-KEYFRAMES * BOXES // BOXES_OF_AN_OBJECT))
        ],
    }  # fmt: skip
    for name, listed in small.items():
        (folder / f"{name}.json").write_text(json.dumps(listed))
    counts = {
        name: _write(folder / f"{name}.json", (pair[i] for drive in range(drives) for pair in _files(drive, modality)))
        for i, name in enumerate(("sample_data", "ego_pose"))
    }
    annotations = (row for drive in range(drives) for row in _annotations(drive))
    return counts | {"sample_annotation": _write(folder / "sample_annotation.json", annotations)}


def _files(drive: int, modality: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Rows of sample_data and of ego_pose, as JSON."""
    for channel, kind in modality.items():
        rate = RATES.get(channel) or RATES[kind]
        keyframes = {round(i / 2 * rate): i for i in range(KEYFRAMES)}
        count, previous = round(KEYFRAMES / 2 * rate), ""
        sample, calibration = _token("sample", drive, 0), _token("calibration", drive, channel)
        for i in range(count):
            token, at = _token("file", drive, channel, i), _time(drive, i / rate)
            if i in keyframes:
                sample = _token("sample", drive, keyframes[i])
            folder, ending = ("samples" if i in keyframes else "sweeps"), ("jpg" if kind == "camera" else "pcd.bin")
            name = f"n008-2018-08-01-15-16-36-0400__{channel}__{at}.{ending}"
            following = _token("file", drive, channel, i + 1) if i + 1 < count else ""
            data = (
                f'{{"token": "{token}", "sample_token": "{sample}", "ego_pose_token": "{token}", '
                f'"calibrated_sensor_token": "{calibration}", "timestamp": {at}, "fileformat": "{ending[:3]}", '
                f'"is_key_frame": {json.dumps(i in keyframes)}, "height": {900 if kind == "camera" else 0}, '
                f'"width": {1600 if kind == "camera" else 0}, "filename": "{folder}/{channel}/{name}", '
                f'"prev": "{previous}", "next": "{following}"}}'
            )
            pose = (
                f'{{"token": "{token}", "timestamp": {at}, "rotation": [0.5720320396729045, -0.0016977771610471074, '
                f'0.011798001930183783, -0.8201446642457809], "translation": [{411.3 + i / rate}, 1180.89, 0.0]}}'
            )
            previous = token
            yield data, pose


def _annotations(drive: int) -> Iterator[str]:
    for i in range(KEYFRAMES * BOXES):
        sample, box = divmod(i, BOXES)
        instance, part = divmod(box * KEYFRAMES + sample, BOXES_OF_AN_OBJECT)
        before, after = _token("box", drive, sample - 1, box), _token("box", drive, sample + 1, box)
        begins, ends = part == 0 or sample == 0, part == BOXES_OF_AN_OBJECT - 1 or sample == KEYFRAMES - 1
        yield (
            f'{{"token": "{_token("box", drive, sample, box)}", "sample_token": "{_token("sample", drive, sample)}", '
            f'"instance_token": "{_token("instance", drive, instance)}", "visibility_token": "4", '
            f'"attribute_tokens": [], "translation": [{373.256 + sample / 2}, 1130.419, 0.8], '
            f'"size": [0.621, 0.669, 1.642], "rotation": [0.9831098797903927, 0.0, 0.0, -0.18301629506281616], '
            f'"prev": "{"" if begins else before}", '
            f'"next": "{"" if ends else after}", "num_lidar_pts": 5, "num_radar_pts": 0}}'
        )


def _write(path: Path, listed: Iterator[str]) -> int:
    count = 0
    with path.open("w") as file:
        for row in listed:
            file.write(",\n" if count else "[\n")
            file.write(row)
            count += 1
        file.write("\n]")
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
    seconds = time.perf_counter() - start
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return {"open_seconds": opened, "with_boxes_seconds": seconds, "megabytes": float(peak.split()[1]) / 1e3}


if __name__ == "__main__":
    print(json.dumps(_open(Path(sys.argv[1]))))
