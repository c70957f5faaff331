"""Annotated classes of LiDAR points: nuScenes-lidarseg's table and files, which T4 has too.

Fong et al., "Panoptic nuScenes", RA-L 2022. lidarseg.json names a file for the keyframe's sweep, which holds a byte for
each point, in the order of the sweep: the `index` of a row in category.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perception.datasets.nuscenes.tables import linked, rows
from perception.errors import InputError
from perception.taxonomy import Taxonomy

TABLE = "lidarseg"
NO_CLASS = -1
_UNKNOWN = -2  # number that is no category's index


@dataclass(frozen=True)
class Lidarseg:
    """The annotated sweeps of a dataroot."""

    dataroot: Path
    files: dict[str, str]  # file of a sweep -> file of its classes, both in the dataroot
    labels: np.ndarray  # (256,) int16 label of each number in a file

    @staticmethod
    def read(dataroot: Path, folder: Path, sweeps: Callable[[], Mapping[str, str]], taxonomy: Taxonomy) -> Lidarseg:
        """The table in a folder of tables; no annotated sweep without it.

        Args:
            sweeps: token of sample_data -> file; others that the table names are left out.

        Raises:
            InputError: the table is damaged, or category.json has no numbers.
        """
        labels = np.full(256, _UNKNOWN, np.int16)
        if not (folder / f"{TABLE}.json").exists():
            return Lidarseg(dataroot, {}, labels)
        with linked(folder, TABLE):
            file_of = sweeps()
            named = [(file_of.get(row["sample_data_token"]), row["filename"]) for row in rows(folder, TABLE)]
        files = {sweep: str(file) for sweep, file in named if sweep is not None}
        label_of = taxonomy.point_labels_of_categories()
        with linked(folder, "category"):
            for row in rows(folder, "category"):
                if not 0 <= (number := int(row["index"])) < len(labels):
                    raise ValueError(f"index {number} is no byte")
                labels[number] = label_of.get(row["name"], NO_CLASS)
        return Lidarseg(dataroot, files, labels)

    def classes(self, sweep: str, count: int) -> np.ndarray | None:
        """(count,) int16 label of the points in the file of a sweep; None if they are not annotated.

        Raises:
            InputError: its file is missing or damaged.
        """
        if sweep not in self.files:
            return None
        path = self.dataroot / self.files[sweep]
        try:
            numbers = np.frombuffer(path.read_bytes(), np.uint8)
        except OSError as error:
            raise InputError(
                f"{path}: cannot read the classes of points ({error.strerror}); copy {TABLE}/ from the data set, or "
                f"remove {TABLE}.json"
            ) from None
        if len(numbers) != count:
            raise InputError(f"{path}: has the classes of {len(numbers)} points, the sweep {count}; copy both again")
        found = self.labels[numbers]
        if (unknown := found == _UNKNOWN).any():
            raise InputError(
                f"{path}: the class {numbers[unknown.argmax()]} is no index of category.json; copy both again"
            )
        return found
