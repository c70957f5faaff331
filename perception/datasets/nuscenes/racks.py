"""Bicycle racks: no detection class, but what stands in one is not scored."""

from __future__ import annotations

from pathlib import Path

from perception.datasets.nuscenes.tables import linked, rows, version_folder

CATEGORY = "static_object.bicycle_rack"


def read_racks(dataroot: Path, version: str) -> dict[str, list[list[float]]]:
    """By sample token the annotated racks, each x y z (m), width length height (m), rotation w x y z; all global.

    Raises:
        InputError: a table is missing or damaged.
    """
    folder = version_folder(dataroot, version)
    with linked(folder, "category"):
        categories = {row["token"] for row in rows(folder, "category") if row["name"] == CATEGORY}
    with linked(folder, "instance"):
        racks = {row["token"] for row in rows(folder, "instance") if row["category_token"] in categories}
    found: dict[str, list[list[float]]] = {}
    if racks:  # else the largest table need not be read
        with linked(folder, "sample_annotation"):
            for row in rows(folder, "sample_annotation"):
                if row["instance_token"] in racks:
                    rack = [*row["translation"], *row["size"], *row["rotation"]]
                    found.setdefault(row["sample_token"], []).append(rack)
    return found
