"""The tracks of a finished replay scored by the official devkit, where that is installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from deploy.replay.results import TRACKING, Finished
from perception.atomic import write_atomically
from perception.datasets.nuscenes.dataset import NuScenesTables


def score_tracking(out: Path, tables: NuScenesTables) -> bool:
    """Write tracking_metrics.json into the folder of a replay: what the devkit says of its tracks.json.

    Args:
        tables: with the annotations; every keyframe of each scene has been replayed, from the first that was to the
            last.

    Returns:
        Whether it could: the devkit belongs to the workshop, and a vehicle does not have it.
    """
    if any(find_spec(name) is None for name in ("nuscenes", "motmetrics")):
        return False
    from perception.tasks.detection.devkit import open_devkit
    from perception.tasks.detection.tracking import score_tracks

    nusc = open_devkit(tables.dataroot, tables.version)
    metrics = score_tracks(out / "tracks.json", nusc, Finished.load(out).tokens)
    write_atomically(out / TRACKING, json.dumps(metrics, indent=2).encode())
    return True
