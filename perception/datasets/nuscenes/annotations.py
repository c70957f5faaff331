"""The annotations of a nuScenes dataroot, as columns."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from perception.cache import cached_arrays
from perception.datasets.nuscenes.tables import linked, rows, stamps
from perception.taxonomy import Taxonomy


@dataclass(frozen=True)
class Annotations:
    """The boxes of all categories, as columns in the global frame."""

    centers: np.ndarray  # (N, 3) m
    sizes: np.ndarray  # (N, 3) m: width, length, height
    quaternions: np.ndarray  # (N, 4) w x y z
    velocities: np.ndarray  # (N, 3) m/s; NaN where unknown
    labels: np.ndarray  # (N,) index of the class; -1 for none of the detection classes
    attributes: np.ndarray  # (N,) index of the attribute; -1 for none
    num_points: np.ndarray  # (N,) LiDAR + radar points
    instances: np.ndarray  # (N,) row of instance_tokens
    instance_tokens: np.ndarray  # (I,) str
    samples: np.ndarray  # (S,) str, tokens
    starts: np.ndarray  # (S + 1,) place in `order` of each sample's first row
    order: np.ndarray  # (N,) rows by sample, and of a sample in the order of the table

    @staticmethod
    def read(folder: Path, timestamps: Mapping[str, int], taxonomy: Taxonomy) -> Annotations:
        """The annotations in a folder of tables; timestamps: sample token -> us, for velocities."""
        tables = stamps(folder, ("sample", "category", "attribute", "instance", "sample_annotation"))
        about = taxonomy.model_dump(mode="json")
        return Annotations(**cached_arrays("annotations", tables, about, lambda: _read(folder, timestamps, taxonomy)))

    @cached_property
    def _place(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.samples.tolist())}

    def rows(self, sample: str) -> np.ndarray:
        """Rows of the boxes of a sample, in the order of the table."""
        i = self._place.get(sample)
        return self.order[:0] if i is None else self.order[self.starts[i] : self.starts[i + 1]]


def _read(folder: Path, timestamps: Mapping[str, int], taxonomy: Taxonomy) -> dict[str, np.ndarray]:
    """The fields of `Annotations`."""
    instance_tokens, labels_of = _instances(folder, taxonomy)
    with linked(folder, "attribute"):
        attribute_of = {
            row["token"]: taxonomy.attributes.index(row["name"])
            for row in rows(folder, "attribute")
            if row["name"] in taxonomy.attributes
        }
    instance_row = {token: i for i, token in enumerate(instance_tokens.tolist())}
    place = {token: i for i, token in enumerate(timestamps)}
    row_of: dict[str, int] = {}
    links: list[tuple[str, str]] = []
    real, whole = array("d"), array("q")
    with linked(folder, "sample_annotation"):
        for row in rows(folder, "sample_annotation"):
            row_of[row["token"]] = len(row_of)
            links.append((row["prev"], row["next"]))
            real.extend((*row["translation"], *row["size"], *row["rotation"]))
            attribute = next((attribute_of[t] for t in row["attribute_tokens"] if t in attribute_of), -1)
            points = row["num_lidar_pts"] + row["num_radar_pts"]
            whole.extend((place[row["sample_token"]], attribute, points, instance_row[row["instance_token"]]))
        linked_rows = np.array([(row_of[a] if a else -1, row_of[b] if b else -1) for a, b in links], np.int64).reshape(
            -1, 2
        )
    floats = np.frombuffer(real, np.float64).reshape(-1, 10)
    integers = np.frombuffer(whole, np.int64).reshape(-1, 4)
    times = np.array([*timestamps.values()], np.int64)[integers[:, 0]]
    return {
        "centers": floats[:, :3],
        "sizes": floats[:, 3:6],
        "quaternions": floats[:, 6:],
        "velocities": _velocities(floats[:, :3], times, linked_rows),
        "labels": labels_of[integers[:, 3]],
        "attributes": integers[:, 1],
        "num_points": integers[:, 2],
        "instances": integers[:, 3],
        "instance_tokens": instance_tokens,
        "samples": np.array([*timestamps], np.str_),
        "starts": np.concatenate([[0], np.bincount(integers[:, 0], minlength=len(timestamps)).cumsum()]),
        "order": np.argsort(integers[:, 0], kind="stable"),
    }


def _instances(folder: Path, taxonomy: Taxonomy) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (I,) of all instances, and their labels (I,); -1 for those of none of the classes."""
    label = taxonomy.labels_of_categories()
    with linked(folder, "category"):
        labels = {row["token"]: label.get(row["name"], -1) for row in rows(folder, "category")}
    with linked(folder, "instance"):
        instances = [(row["token"], labels[row["category_token"]]) for row in rows(folder, "instance")]
    return np.array([token for token, _ in instances], np.str_), np.array([label for _, label in instances], np.int64)


def _velocities(centers: np.ndarray, timestamps: np.ndarray, links: np.ndarray) -> np.ndarray:
    """(N, 3) m/s between the previous and the next annotation of the instance, as NuScenes.box_velocity.

    The annotation itself replaces a missing one. NaN if both are missing, or if they are more than 1.5 s apart (3 s
    with both). NaN also between keyframes whose times do not grow.
    """
    current = np.arange(len(centers))
    first = np.where(links[:, 0] >= 0, links[:, 0], current)
    last = np.where(links[:, 1] >= 0, links[:, 1], current)
    seconds = 1e-6 * timestamps
    elapsed = seconds[last] - seconds[first]
    allowed = np.where((links >= 0).all(axis=1), 3.0, 1.5)
    known = (elapsed > 0) & (elapsed <= allowed)
    return (centers[last] - centers[first]) / np.where(known, elapsed, np.nan)[:, None]
