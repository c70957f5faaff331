"""The real drives cut into shorter ones, so that there are enough scenes to compare evaluations by."""

import json
from pathlib import Path

import numpy as np

VERSION = "v1.0-mini"
PIECES = 5  # of a drive


def write_split(nuscenes_root: Path, root: Path) -> None:
    """A dataroot with the annotations of the real keyframes, in five scenes of each city; every other one in rain."""
    source, folder = nuscenes_root / VERSION, root / VERSION
    folder.mkdir(parents=True)
    for name in ("maps", "samples", "sweeps"):
        (root / name).symlink_to(nuscenes_root / name)
    for table in source.glob("*.json"):
        if table.name not in ("scene.json", "sample.json"):
            (folder / table.name).symlink_to(table)
    samples = sorted(json.loads((source / "sample.json").read_text()), key=lambda row: row["timestamp"])
    scenes, kept = [], []
    for drive in json.loads((source / "scene.json").read_text()):
        own = [row for row in samples if row["scene_token"] == drive["token"]]
        for index in np.array_split(np.arange(len(own)), PIECES):
            piece = [own[i] for i in index]
            token = f"{drive['name']}-{index[0]}"
            for i, row in enumerate(piece):
                before, after = piece[i - 1 : i], piece[i + 1 : i + 2]
                linked = {"prev": before[0]["token"] if before else "", "next": after[0]["token"] if after else ""}
                kept.append(row | {"scene_token": token} | linked)
            scenes.append(
                drive
                | {"token": token, "name": f"scene-{len(scenes):04}", "description": ("Rain", "Clear")[len(scenes) % 2]}
                | {"first_sample_token": piece[0]["token"], "last_sample_token": piece[-1]["token"]}
                | {"nbr_samples": len(piece)}
            )
    (folder / "scene.json").write_text(json.dumps(scenes))
    (folder / "sample.json").write_text(json.dumps(kept))
