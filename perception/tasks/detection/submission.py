"""Writes and reads nuScenes detection submissions, the file that the official devkit scores. numpy only.

Format: https://www.nuscenes.org/object-detection. `meta` has the sensors used; `results` has for each sample token at
most 500 boxes in the global frame.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from perception.errors import InputError
from perception.frame import Boxes, Frame
from perception.geometry import quaternions
from perception.io.files import FrameFile, read_frame_file
from perception.taxonomy import Taxonomy

MOVING_SPEED = 0.2  # m/s; faster objects are moving


def fitting_attributes(
    labels: np.ndarray, attributes: np.ndarray, speeds: np.ndarray, taxonomy: Taxonomy
) -> np.ndarray:
    """(N,) the predicted attributes (-1: none) where the class can have them, else its default at this speed (N,) m/s.

    -1 for classes without any; a speed of NaN counts as at rest.
    """
    possible = np.array([[*taxonomy.possible_attributes(label), False] for label in range(len(taxonomy.classes))])
    default = np.array(taxonomy.default_attributes())
    return np.where(possible[labels, attributes], attributes, default[labels, (speeds > MOVING_SPEED).astype(int)])


MAX_BOXES = 500  # per sample; the devkit refuses more


def select_submitted(frame: Frame, boxes: Boxes, taxonomy: Taxonomy) -> Boxes:
    """The best 500 boxes in the global frame, best score first, with attributes that fit and without numbers of points.

    Unknown velocities (NaN) become zero, because the format has no value for unknown.
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
    attributes = fitting_attributes(boxes.labels, boxes.attributes, speeds, taxonomy)
    return replace(boxes, attributes=attributes, num_points=np.full(len(boxes), -1, np.int64))


def sample_results(frame: Frame, boxes: Boxes, taxonomy: Taxonomy) -> list[dict[str, object]]:
    """The entries of one sample; boxes and errors as in `select_submitted`."""
    boxes, classes = select_submitted(frame, boxes, taxonomy), taxonomy.class_names
    names = (*taxonomy.attributes, "")
    return [
        box
        | {
            "detection_name": classes[label],
            "detection_score": score,
            "attribute_name": names[attribute],
        }
        for box, label, score, attribute in zip(
            global_boxes(frame.token, boxes),
            boxes.labels.tolist(),
            boxes.scores.tolist(),
            boxes.attributes.tolist(),
            strict=True,
        )
    ]


def global_boxes(sample: str, boxes: Boxes) -> list[dict[str, object]]:
    """The fields that all tasks' entries have for boxes in the global frame: position, size, rotation, velocity."""
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
    """Writes a submission sample by sample, in bounded memory."""

    def __init__(self, file: FrameFile, taxonomy: Taxonomy) -> None:
        self._file, self._taxonomy = file, taxonomy

    @classmethod
    @contextmanager
    def open(cls: type[Writer], path: Path, sensors: Sequence[str], taxonomy: Taxonomy) -> Iterator[Writer]:
        """A writer of the JSON file `path`, which is written atomically when the block ends; sensors are the model's
        inputs."""
        meta = {f"use_{kind}": kind in sensors for kind in ("camera", "lidar", "radar", "map", "external")}
        with FrameFile.open(path, "the submission", {"meta": meta}, "results") as file:
            yield cls(file, taxonomy)

    def add_entries(self, sample: str, entries: list[dict[str, object]]) -> None:
        """Append the boxes of one sample; samples without boxes are written too, as the devkit requires."""
        self._file.add(sample, entries)


class SubmissionWriter(ResultsWriter):
    def add(self, frame: Frame, result: Boxes, state: object = None) -> None:
        self.add_entries(frame.token, sample_results(frame, result, self._taxonomy))


def read_samples(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Token and boxes of each sample in `wanted`, in the order of the file, which is read one sample at a time."""
    missing = set(wanted)
    for token, boxes in _samples(path):
        if token in wanted:
            missing.discard(token)
            if len(boxes) > MAX_BOXES:
                raise InputError(f"{path}: sample {token} has {len(boxes)} boxes; {MAX_BOXES} are allowed")
            yield token, boxes
    if missing:
        raise InputError(
            f"{path}: no prediction for {len(missing)} of {len(wanted)} samples, such as {min(missing)}; "
            "predict them (an empty list counts) or select fewer"
        )


def _samples(path: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    try:
        with path.open("rb") as file:
            is_ours = file.readline().endswith(b'"results": {\n')
        samples = read_frame_file(path) if is_ours else json.loads(path.read_bytes())["results"].items()
        for token, boxes in samples:
            if not isinstance(boxes, list):
                raise TypeError
            yield token, boxes
    except OSError as error:
        raise InputError(f"{path}: cannot read the submission ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path}: not a nuScenes submission: no JSON object with an object `results` of lists of boxes"
        ) from None
