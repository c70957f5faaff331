"""Predictions of drives as files: JSON, and a page to step through the frames."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from deploy.network import Network
from deploy.plot import PredictedFrames
from deploy.recordings.drives import Drive
from perception.errors import InputError
from perception.io.files import atomic_file, make_folder
from perception.io.stores import with_addresses

PREDICTIONS, REPORT = "predictions.json", "report.html"


def predict(network: Network, drives: Sequence[Drive], out: Path, console: Console) -> dict[str, Any]:
    """Write what a network perceives in drives to the folder `out`, and return a summary.

    Raises:
        InputError: no frame has data of the network's sensors.
    """
    make_folder(out)
    pages, counts = PredictedFrames(network, sum(map(len, drives))), Counter[str]()
    with atomic_file(out / PREDICTIONS, "the predictions") as file:
        head = {"network": network.facts["network"], "reference": network.spec.grid.reference}
        file.write((json.dumps(head)[:-1] + ', "frames": [').encode())
        for drive in track(drives, "Predicting", console=console, transient=True):
            for frame, result in network.follow(drive):
                found = result.to_dict()
                file.write(((",\n" if counts["frames"] else "\n") + json.dumps(found)).encode())
                counts.update(frames=1, detections=len(found["detections"]), unplaced=not frame.placed)
                counts.update(kind for kind, sensor in network.spec.sensors.items() if sensor.sees(frame))
                pages.add(frame, result)
        file.write(b"\n]}\n")
        if not any(counts[kind] for kind in network.spec.sensors):
            raise InputError(_why_nothing(network, drives))
    notes = _notes(network, drives, counts)
    pages.page("; ".join(notes)).save(out / REPORT)
    for line in (*notes, with_addresses(f"report: {out / REPORT}")):
        console.print(line, highlight=False, soft_wrap=True)
    return {
        "frames": counts["frames"],
        "detections": counts["detections"],
        "without_pose": counts["unplaced"],
        "predictions": str(out / PREDICTIONS),
        "report": str(out / REPORT),
    }


def _why_nothing(network: Network, drives: Sequence[Drive]) -> str:
    damage = [line for drive in drives for line in drive.counts.summary()["damage"]]
    read = ", ".join(network.spec.named_sensors.names)
    return damage[0] if damage else f"{drives[0].name}: no frame has data of the network's sensors, {read}"


def _notes(network: Network, drives: Sequence[Drive], counts: Counter[str]) -> list[str]:
    """Return lines that a user must know: counts, missing sensors, unknown poses, damaged files."""
    frames = counts["frames"]
    notes = [f"{counts['detections']} detections in {frames} frames"]
    for kind in network.spec.sensors:
        if missing := frames - counts[kind]:
            notes.append(f"{kind}: nothing in {'any frame' if missing == frames else f'{missing} frames'}")
    if unplaced := counts["unplaced"]:
        rigs = sorted({each.tables.rig.name for each in drives if each.tables is not None})
        notes.append(
            f"poses and times of {unplaced} frames are not known, so each is perceived alone; sensors are taken to be "
            f"mounted as on the rig {', '.join(rigs)}"
        )
    summaries = [each.counts.summary() for each in drives]
    if damaged := sum(each["damaged_places"] for each in summaries):
        notes.append(
            f"damaged in {damaged} places, such as {next(line for each in summaries for line in each['damage'])}"
        )
    return notes + [each.counts.line() for each in drives if each.tables is None]
