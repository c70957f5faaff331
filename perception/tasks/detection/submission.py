"""Predictions as a nuScenes detection submission, the file that the official devkit scores. numpy only.

Format: https://www.nuscenes.org/object-detection. `meta` says which sensors were used; `results` lists, for
each sample token, at most 500 boxes in the global frame.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from perception.errors import InputError
from perception.frame import ATTRIBUTES, CLASSES, Boxes, Frame, Prediction

MAX_BOXES = 500  # per sample; the devkit refuses more
MOVING = 0.2  # m/s; below it a box counts as standing still

# The part before the dot of the attributes that a class may have; barriers and traffic cones have none.
ATTRIBUTE_FAMILY = {
    "car": "vehicle",
    "truck": "vehicle",
    "construction_vehicle": "vehicle",
    "bus": "vehicle",
    "trailer": "vehicle",
    "motorcycle": "cycle",
    "bicycle": "cycle",
    "pedestrian": "pedestrian",
}
MOVING_ATTRIBUTE = {
    "vehicle": "vehicle.moving",
    "cycle": "cycle.with_rider",
    "pedestrian": "pedestrian.moving",
}
STILL_ATTRIBUTE = {
    "vehicle": "vehicle.parked",
    "cycle": "cycle.without_rider",
    "pedestrian": "pedestrian.standing",
}


def attribute_name(class_name: str, attribute: int, speed: float) -> str:
    """The attribute to submit for a box: the predicted one where it fits the class, else a default.

    The defaults are those of mmdet3d's NuScenesMetric for LiDAR boxes: faster than 0.2 m/s, a vehicle is
    moving, a cycle has a rider and a pedestrian is moving; else a vehicle is parked (a bus is stopped), a cycle
    has no rider and a pedestrian is standing. Barriers and traffic cones have the empty attribute.

    Args:
        class_name: one of CLASSES.
        attribute: index into ATTRIBUTES, or -1 where none was predicted.
        speed: m/s in the ground plane; NaN counts as standing still.
    """
    family = ATTRIBUTE_FAMILY.get(class_name)
    if family is None:
        return ""
    if attribute >= 0 and ATTRIBUTES[attribute].startswith(family):
        return ATTRIBUTES[attribute]
    if speed > MOVING:
        return MOVING_ATTRIBUTE[family]
    return "vehicle.stopped" if class_name == "bus" else STILL_ATTRIBUTE[family]


def quaternions(rotations: np.ndarray) -> np.ndarray:
    """(N, 4) unit quaternions w x y z, w >= 0, of rotation matrices (N, 3, 3).

    Four times the outer product q q^T is linear in the matrix. Its row with the largest diagonal entry is a
    multiple of q that loses no digits at any angle (Shepperd, "Quaternion from rotation matrix", 1978).
    """
    m = rotations
    xx, yy, zz = m[:, 0, 0], m[:, 1, 1], m[:, 2, 2]
    wx, wy, wz = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    xy, xz, yz = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    outer = np.stack(
        [
            np.stack([1 + xx + yy + zz, wx, wy, wz], axis=-1),
            np.stack([wx, 1 + xx - yy - zz, xy, xz], axis=-1),
            np.stack([wy, xy, 1 - xx + yy - zz, yz], axis=-1),
            np.stack([wz, xz, yz, 1 - xx - yy + zz], axis=-1),
        ],
        axis=1,
    )
    largest = np.argmax(np.diagonal(outer, axis1=1, axis2=2), axis=1)
    q = outer[np.arange(len(m)), largest]
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    return np.where(q[:, :1] < 0, -q, q)


def sample_results(frame: Frame, boxes: Boxes) -> list[dict[str, object]]:
    """The entries of one sample, best score first.

    Only the best 500 are kept. An unknown velocity (NaN) is submitted as zero, because the format has no word
    for unknown.

    Args:
        frame: the sample; it says where in the world its reference frame is.
        boxes: N boxes in the frame's reference.

    Raises:
        InputError: a box is not finite or has a size that is not positive.
    """
    best = np.argsort(-boxes.scores, kind="stable")[:MAX_BOXES]
    boxes = boxes.select(best)
    boxes = replace(boxes, velocities=np.where(np.isnan(boxes.velocities), 0.0, boxes.velocities))
    numbers = np.column_stack(
        [boxes.centers, boxes.sizes, boxes.rotations.reshape(-1, 9), boxes.velocities, boxes.scores]
    )
    wrong = ~np.isfinite(numbers).all(axis=1) | (boxes.sizes <= 0).any(axis=1)
    if wrong.any():
        raise InputError(
            f"sample {frame.token}: {wrong.sum()} of {len(boxes)} predicted boxes are not finite or have no "
            "extent; check the weights and the precision that produced them"
        )
    boxes = boxes.transformed(frame.global_from_reference)
    speeds = np.linalg.norm(boxes.velocities[:, :2], axis=1)
    names = [CLASSES[label] for label in boxes.labels]
    return [
        box
        | {
            "detection_name": name,
            "detection_score": score,
            "attribute_name": attribute_name(name, attribute, speed),
        }
        for box, name, score, attribute, speed in zip(
            global_boxes(frame.token, boxes),
            names,
            boxes.scores.tolist(),
            boxes.attributes.tolist(),
            speeds.tolist(),
            strict=True,
        )
    ]


def global_boxes(sample: str, boxes: Boxes) -> list[dict[str, object]]:
    """What the entries of every task say of boxes in the global frame: where, how large, how fast."""
    return [
        {"sample_token": sample, "translation": translation, "size": size, "rotation": rotation, "velocity": velocity}
        for translation, size, rotation, velocity in zip(
            boxes.centers.tolist(),
            boxes.sizes.tolist(),
            quaternions(boxes.rotations).tolist(),
            boxes.velocities[:, :2].tolist(),
            strict=True,
        )
    ]


Writer = TypeVar("Writer", bound="ResultsWriter")


class ResultsWriter:
    """Writes a submission one sample at a time, so that memory does not grow with the drive.

    The file appears under its name, complete, when the block ends; after an exception nothing is left of it
    and an earlier file is untouched.

    Args:
        path: of the JSON file; its folder must exist.
        sensors: what the model sees, of "camera" and "lidar".
    """

    def __init__(self, path: Path, sensors: Sequence[str]) -> None:
        self.path = path
        self.meta = {f"use_{kind}": kind in sensors for kind in ("camera", "lidar", "radar", "map", "external")}
        self.temporary = path.with_name(f".{path.name}.tmp")
        self.tokens: set[str] = set()

    def __enter__(self: Writer) -> Writer:
        try:
            self.file = self.temporary.open("w", encoding="utf-8")
        except OSError as error:
            raise self._cannot_write(error) from None
        self._write(f'{{"meta": {json.dumps(self.meta)}, "results": {{')
        return self

    def add_entries(self, sample: str, entries: list[dict[str, object]]) -> None:
        """Append the boxes of one sample; a sample without boxes is written too, as the devkit demands.

        Raises:
            InputError: the sample was added before, or the disk is full.
        """
        if sample in self.tokens:
            raise InputError(f"{self.path}: sample {sample} is predicted twice; give each sample once")
        separator = ",\n" if self.tokens else "\n"
        self._write(f"{separator}{json.dumps(sample)}: {json.dumps(entries, allow_nan=False)}")
        self.tokens.add(sample)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self.file:  # closing flushes, so it too can find the disk full
                if kind is None:
                    self._write("\n}}\n")
                    self.file.flush()
                    os.fsync(self.file.fileno())
            if kind is None:
                os.replace(self.temporary, self.path)
        except OSError as full:
            if kind is None:
                raise self._cannot_write(full) from None
        finally:
            self.temporary.unlink(missing_ok=True)

    def _write(self, text: str) -> None:
        try:
            self.file.write(text)
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"{self.path}: cannot write the submission ({error.strerror}); choose another folder")


class SubmissionWriter(ResultsWriter):
    """Writes detections.

    with SubmissionWriter(path, sensors=("camera", "lidar")) as submission:
        submission.add(frame, prediction)
    """

    def add(self, frame: Frame, prediction: Prediction) -> None:
        """Append the detections of one sample.

        Raises:
            InputError: the sample was added before, a box is not finite, or the disk is full.
        """
        self.add_entries(frame.token, sample_results(frame, prediction.boxes))
