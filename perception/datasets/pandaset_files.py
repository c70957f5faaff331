"""Poses, positions and calibrations in PandaSet's layout."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from perception.datasets.files import read_json
from perception.datasets.motion import Poses
from perception.errors import InputError

CAMERAS = ("front", "front_left", "front_right", "left", "right", "back")


def file_of(folder: Path, index: int) -> Path:
    """The table of a frame."""
    return folder / f"{index:02d}.pkl.gz"


@cache
def poses_of(folder: Path) -> Poses:
    times, poses = (read_json(folder / name) for name in ("timestamps.json", "poses.json"))
    try:
        values = [[*(p["position"][k] for k in "xyz"), *(p["heading"][k] for k in "wxyz")] for p in poses]
        return Poses(np.array(times, np.float64), np.array(values, np.float64))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: poses.json and timestamps.json do not fit PandaSet's layout ({error})") from None


@cache
def fixes(path: Path) -> dict[int, Mapping[str, float]]:
    """The position of each frame; none without the file."""
    return dict(enumerate(read_json(path))) if path.exists() else {}


@cache
def intrinsics_of(folder: Path) -> np.ndarray:
    path = folder / "intrinsics.json"
    try:
        fx, fy, cx, cy = (float(read_json(path)[name]) for name in ("fx", "fy", "cx", "cy"))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not the intrinsics of a camera ({error})") from None
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def distortions(path: Path) -> dict[str, np.ndarray]:
    """Camera -> OpenCV's five coefficients of its lens."""
    try:
        content = yaml.safe_load(path.read_bytes())
        return {name: np.array(content[f"{name}_camera"]["intrinsic"]["D"], np.float64) for name in CAMERAS}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"{path}: not the calibration of PandaSet's cameras ({what})") from None
