"""Annotated bicycle racks: the detection metric ignores bicycles and motorcycles that stand in one."""

from __future__ import annotations

from pathlib import Path

from perception.datasets.nuscenes.tables import linked, rows, version_folder

CATEGORY = "static_object.bicycle_rack"


def read_bicycle_racks(dataroot: Path, version: str) -> dict[str, list[list[float]]]:
    """Bicycle racks by sample token, each x y z (m), width length height (m), rotation w x y z, in the global frame.

    Raises:
        InputError: a table is missing or damaged.
    """
    folder = version_folder(dataroot, version)
    with linked(folder, "category"):
        categories = {row["token"] for row in rows(folder, "category") if row["name"] == CATEGORY}
    with linked(folder, "instance"):
        instances = {row["token"] for row in rows(folder, "instance") if row["category_token"] in categories}
    by_sample: dict[str, list[list[float]]] = {}
    if instances:  # without any, the largest table is not read
        with linked(folder, "sample_annotation"):
            for row in rows(folder, "sample_annotation"):
                if row["instance_token"] in instances:
                    rack = [*row["translation"], *row["size"], *row["rotation"]]
                    by_sample.setdefault(row["sample_token"], []).append(rack)
    return by_sample
