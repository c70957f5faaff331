"""Admission of a frame to a drive: what cannot be used is missing in it, and a finding says so. numpy only.

A frame without a usable pose gets that of the frame before: the memories stay there and learn nothing (`Scene`), and
its cameras count as exposed at the frame's time. Points that are not finite are left out and the others stay, since a
damaged packet of a LiDAR says nothing of the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from perception.frame import Camera, Conditions, Frame, JpegFile, Reading, Scan, Warped
from perception.grid import Reference
from perception.rig import Sensors

POSES = ("global_from_ego", "global_from_reference")  # the first one names the finding of a frame without a pose
# Field of the points -> the shape of a row, and its type.
_CLOUD: Any = {"points": ((5,), "float32"), "sweep_of_point": ((), "uint8")}
_CLOUD |= {"lidar_of_point": ((), "uint8"), "class_of_point": ((), "int16")}  # may be None
_ELSEWHERE = "in another frame of reference"
_LONGEST_GAP = 60.0  # s from the frame before, above which the clock is doubted
FAR = 1e9  # m or pixels, which no number of a matrix reaches
NARROWEST = 50  # focal length in sides of the picture, which then shows a degree
RIGID = 1e-3  # largest entry of R R^T - 1 of a rotation R
LARGEST = (1 << 15) - 1  # pixels, side of a picture
UPRIGHT = 0.5  # least z of the vehicle's z axis, since the memories are on the ground

Findings = dict[str, str]


def admit(frame: Frame, sensors: Sensors, reference: Reference, before: Frame | None) -> tuple[Frame, Findings]:
    """The frame without what cannot be used, and the findings: name of a sensor or of a field of `Frame` -> the reason.

    A time that does not grow, or too far, is a finding and stays. Annotations are not looked at: no sensor gives them.

    Args:
        before: the latest frame of a drive, as admitted; None: there is none.
    """
    if before is not None and isinstance(frame.scene, str) and frame.scene != before.scene:
        before = None
    findings: Findings = {}
    admitted = replace(frame, **_vehicle(frame, reference, before, findings))
    admitted = replace(admitted, **_cloud(admitted, sensors.lidars, findings))
    admitted = replace(admitted, cameras=_cameras(admitted, sensors.cameras, findings))
    admitted = replace(admitted, scans=_scans(admitted, sensors.scanners, findings))
    return (admitted if findings or len(admitted.scans) < len(frame.scans) else frame), findings


def _vehicle(frame: Frame, reference: Reference, before: Frame | None, findings: Findings) -> dict[str, Any]:
    """What is taken instead of the fields of no sensor that cannot be used."""
    tags, place = frame.conditions, frame.position
    located = isinstance(place, tuple) and len(place) == 2 and all(map(_is_number, place, (90, 180)))
    given: Mapping[str, Any] = frame.signals if isinstance(frame.signals, Mapping) else {}
    signals = {name: each for name, each in given.items() if isinstance(each, Sequence) and all(map(_is_reading, each))}
    checks: dict[str, tuple[bool, Any]] = {
        "token": (isinstance(frame.token, str), ""),
        "scene": (isinstance(frame.scene, str), getattr(before, "scene", "")),
        "location": (isinstance(frame.location, str), ""),
        "reference": (isinstance(frame.reference, str) and frame.reference == reference, reference),
        "timestamp": (_is_time(frame.timestamp), getattr(before, "timestamp", 0)),
        "nanoseconds": (type(frame.nanoseconds) is int and 0 <= frame.nanoseconds < 1000, 0),
        "conditions": (isinstance(tags, Conditions) and all(isinstance(v, str) for v in tags.values()), Conditions()),
        "position": (place is None or located, None),
        "placed": (isinstance(frame.placed, bool), True),
        "signals": (given is frame.signals and len(signals) == len(given), signals),
    }
    changes = {name: instead for name, (usable, instead) in checks.items() if not usable}
    findings |= {name: _unusable(frame, name) for name in changes}
    if "timestamp" not in changes and before is not None:
        step = 1e-6 * (frame.timestamp - before.timestamp)
        if not 0 < step <= _LONGEST_GAP:
            findings["timestamp"] = f"{step:+.2f} s from the frame before"
    wrong = [name for name in POSES if not _is_rigid(getattr(frame, name), UPRIGHT)]
    if wrong or "reference" in changes:
        findings[POSES[0]] = "; ".join(_unusable(frame, name) for name in wrong) or _ELSEWHERE
        changes |= {name: getattr(before, name, np.eye(4)) for name in POSES}
    return changes


def _cloud(frame: Frame, lidars: Sequence[str], findings: Findings) -> dict[str, Any]:
    """The fields of the points: without those that are not finite; None if a field cannot be used."""
    fields: dict[str, Any] = {name: getattr(frame, name) for name in _CLOUD}
    points, owners, names = fields["points"], fields["lidar_of_point"], lidars or ("points",)
    if points is None:
        return {}
    given = [name for name in _CLOUD if fields[name] is not None or name == "sweep_of_point"]
    count = getattr(points, "shape", ())[:1]
    wrong = [n for n in given if not _is_array(fields[n], (*count, *_CLOUD[n][0]), _CLOUD[n][1])]
    if not wrong and owners is not None and owners.max(initial=0) >= (len(lidars) or 256):
        wrong = ["lidar_of_point"]
    if wrong or "reference" in findings:
        findings |= dict.fromkeys(names, "; ".join(_unusable(frame, name) for name in wrong) or _ELSEWHERE)
        return dict.fromkeys(_CLOUD)
    finite = np.isfinite(points)
    if finite.all():
        return {}
    kept = np.logical_and.reduce([*finite.T])  # by columns, because numpy is slow along an axis of length five
    lost = np.bincount(np.zeros(len(points), int)[~kept] if owners is None else owners[~kept], minlength=len(names))
    findings |= {name: f"{n} of its points are not finite" for name, n in zip(names, lost, strict=False) if n}
    return {name: np.compress(kept, fields[name], axis=0) for name in given}


def _cameras(frame: Frame, known: Sequence[str], findings: Findings) -> dict[str, Camera]:
    """The cameras that can be used, of the known ones; of all without any known ones, whose pictures are only shown."""
    if not isinstance(frame.cameras, Mapping):
        findings["cameras"] = _unusable(frame, "cameras")
        return {}
    cameras: dict[str, Camera] = {}
    for name, camera in frame.cameras.items():
        if POSES[0] in findings and isinstance(camera, Camera):
            camera = replace(camera, global_from_ego=frame.global_from_ego)
        why = _why_unusable(camera)
        if not isinstance(name, str) or name not in (known or frame.cameras):
            findings["cameras"] = f"{name!r:.40} is none of the network's"
        elif why:
            findings[name] = why
        else:
            cameras[name] = camera
    return cameras


def _scans(frame: Frame, known: Mapping[str, str], findings: Findings) -> dict[str, Scan]:
    """The scans that can be used, of the known sensors; those of other kinds say nothing to the network."""
    if not isinstance(frame.scans, Mapping):
        findings["scans"] = _unusable(frame, "scans")
        return {}
    usable: dict[str, Scan] = {}
    for name, scan in frame.scans.items():
        if not isinstance(scan, Scan) or not isinstance(scan.arrays, Mapping):
            findings["scans"] = f"scans cannot be used: {name!r:.40} is no scan"
        elif scan.kind not in known.values():
            continue
        elif known.get(name) != scan.kind:
            findings["scans"] = f"{name!r:.40} is none of the network's"
        elif "reference" in findings:
            findings[name] = _ELSEWHERE
        elif not _is_time(scan.timestamp):
            findings[name] = _unusable(scan, "timestamp")
        elif not scan.arrays or not all(map(_is_finite, scan.arrays.values())):
            findings[name] = "its numbers are not finite"
        else:
            usable[name] = scan
    return usable


def _why_unusable(camera: Any) -> str:
    """Why a camera cannot be used; '' if it can."""
    if not isinstance(camera, Camera):
        return f"{camera!r:.40} is no camera"
    k: Any = camera.intrinsics
    size: Any = getattr(camera.image, "shape", ())[:2]
    height, width = size if _is_array(camera.image, (*size, 3), "uint8") else (0, 0)
    axes = ((k[0], width), (k[1, 1:], height)) if _is_matrix(k, 3) and (k[2] == (0, 0, 1)).all() else ()
    checks = {
        "image": min(height, width) > 0 and max(height, width) <= LARGEST,
        "intrinsics": bool(axes) and all(0 < a[0] <= NARROWEST * side and 0 <= a[-1] <= side for a, side in axes),
        "ego_from_camera": _is_rigid(camera.ego_from_camera),
        "global_from_ego": _is_rigid(camera.global_from_ego),
        "timestamp": _is_time(camera.timestamp),
        "file": camera.file is None or isinstance(camera.file, JpegFile),
        "ahead": camera.ahead is None or isinstance(camera.ahead, Warped),
    }
    return "; ".join(_unusable(camera, name) for name, usable in checks.items() if not usable)


def _is_array(value: Any, shape: Sequence[int], *types: str) -> bool:
    return isinstance(value, np.ndarray) and value.shape == shape and value.dtype.name in types


def _is_finite(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and bool(np.isfinite(value).all())


def _is_matrix(value: Any, side: int) -> bool:
    """Whether it is a matrix of numbers, of a type that numpy's linear algebra takes."""
    return _is_array(value, (side, side), "float32", "float64") and bool((np.abs(value) < FAR).all())


def _is_rigid(pose: Any, upright: float = -1.0) -> bool:
    """Whether it is a rotation and translation (4, 4), with a z axis of at least this z."""
    if not _is_matrix(pose, 4):
        return False
    rotation, last = pose[:3, :3].astype(np.float64), np.abs(pose[3] - (0, 0, 0, 1)).max()
    off = max(np.abs(rotation @ rotation.T - np.eye(3)).max(), last)
    return bool(off < RIGID and np.linalg.det(rotation) > 0 and rotation[2, 2] >= upright)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | np.integer) and bool(0 <= value < 1 << 62)  # so that the memories' int64 holds sums


def _is_number(value: Any, largest: float) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and bool(-largest <= value <= largest)


def _is_reading(value: Any) -> bool:
    """Whether it is a reading of a signal; one that is not finite makes the signal unknown (`signals`)."""
    timed = isinstance(value, Reading) and _is_time(value.timestamp)
    return timed and (isinstance(value.value, str | float) or _is_number(value.value, 1e300))


def _unusable(owner: Any, name: str) -> str:
    value = getattr(owner, name)
    words = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else repr(value)
    return f"{name} cannot be used: {words:.60}"
