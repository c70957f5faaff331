"""Drives to replay in several processes."""

import json
from pathlib import Path

from tiny import token, write_tiny


def write_scenes(root: Path, scenes: int, keyframes: int) -> None:
    """A dataroot with version v1.0-tiny: its one drive in as many scenes, one after the other."""
    write_tiny(root, scenes * keyframes)
    folder = root / "v1.0-tiny"
    samples, (scene,) = (json.loads((folder / f"{name}.json").read_text()) for name in ("sample", "scene"))
    for i, sample in enumerate(samples):
        own, place = divmod(i, keyframes)
        sample["scene_token"] = token("scene", own)
        sample["prev"] = "" if place == 0 else sample["prev"]
        sample["next"] = "" if place == keyframes - 1 else sample["next"]
    rows = [{**scene, "token": token("scene", i), "name": f"scene-{1 + i:04}"} for i in range(scenes)]
    (folder / "sample.json").write_text(json.dumps(samples))
    (folder / "scene.json").write_text(json.dumps(rows))
