"""A drive of real keyframes with nine earlier LiDAR sweeps each, which the few real files do not have by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from perception.datasets.nuscenes.dataset import NuScenesTables

VERSION = "v1.0-mini"
SWEEPS = 9  # before each keyframe
_BETWEEN = 50_000  # us


def drive(data: Path, root: Path) -> tuple[NuScenesTables, list[str]]:
    """The tables of a new dataroot, and the keyframes of which all files are there.

    The other real clouds of the street, each at its own pose, stand in for the sweeps before a keyframe: their number
    of points is real, their times are not.

    Args:
        data: a dataroot with version v1.0-mini.
        root: a folder for the new one, which links to the files of `data`.
    """
    if not (data / VERSION).is_dir():
        raise SystemExit(f"{data}: has no {VERSION}; say with --data where the real keyframes are")
    folder = root / VERSION
    folder.mkdir(parents=True)
    for name in ("samples", "maps"):
        (root / name).symlink_to((data / name).resolve())
    tables = {path.stem: json.loads(path.read_text()) for path in (data / VERSION).glob("*.json")}
    recordings = [row for row in tables["sample_data"] if (data / row["filename"]).exists()]
    clouds = [row for row in recordings if row["fileformat"] == "pcd"]
    keyframes = {row["sample_token"]: row for row in clouds if row["is_key_frame"]}
    pictures = [row["sample_token"] for row in recordings if row["fileformat"] == "jpg"]
    whole = [token for token in keyframes if pictures.count(token) == 6]
    (root / "sweeps" / "LIDAR_TOP").mkdir(parents=True)
    for token in whole:
        others = [row for row in clouds if row is not keyframes[token]]
        tables["sample_data"] += _before(keyframes[token], others, data, root)
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return NuScenesTables(root, VERSION), whole


def _before(keyframe: dict[str, Any], clouds: list[dict[str, Any]], data: Path, root: Path) -> list[dict[str, Any]]:
    """Rows of the sweeps before a keyframe, to which it is linked, latest first."""
    rows, later = [], keyframe
    for i in range(SWEEPS):
        cloud, time = clouds[i % len(clouds)], keyframe["timestamp"] - (i + 1) * _BETWEEN
        token = f"{keyframe['token']}-{i}"
        file = root / "sweeps" / "LIDAR_TOP" / f"{token}.pcd.bin"
        file.symlink_to((data / cloud["filename"]).resolve())
        change = {"token": token, "timestamp": time, "filename": str(file.relative_to(root)), "is_key_frame": False}
        rows.append({**cloud, **change, "prev": ""})
        later["prev"], later = token, rows[-1]
    return rows
