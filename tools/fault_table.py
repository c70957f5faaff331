"""The loss of score by each sensor fault, alone or in pairs, and whether health detects it.

Scores are mAP, NDS and IoU. Health is tested on drives with the faults from second START on; the table has the longest
delay.

python tools/fault_table.py --bundle runs/demo/bundle --data runs/demo/drives --split sim_val
python tools/fault_table.py --bundle runs/demo/bundle --data runs/demo/drives --split sim_val --frames 3 --pairs
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from deploy.replay.fault_detection import FaultDetections
from deploy.replay.faults import Fault, inject
from deploy.runtime import Runtime
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.tables import versions
from perception.evaluation.slices import part_scores
from perception.frame import Frame
from perception.rig import Sensors
from perception.scene.health.monitor import HealthMonitor

FAULTS = (  # {camera}: the rig's first
    "drop:lidar",
    "drop:{camera}",
    "drop:cameras",
    "drop:all",
    "freeze:lidar",
    "freeze:cameras",
    "delay:lidar,seconds=0.5",
    "delay:cameras,seconds=0.5",
    "blackout:lidar",
    "blackout:{camera}",
    "blackout:cameras",
    "blur:cameras,pixels=8",
    "noise:lidar,metres=0.2",
    "noise:cameras,levels=40",
    "miscalibration:lidar,degrees=3,metres=0.2",
    "miscalibration:cameras,degrees=3,metres=0.2",
    "points:lidar,share=0.5",
    "points:lidar,share=0.9",
    "corruption:lidar,share=0.2",
    "corruption:cameras,share=0.2",
)
START, END = 1.0, 1e6  # s


def scores(runtime: Runtime, frames: Sequence[Frame], tables: NuScenesTables, faults: Sequence[str]) -> dict[str, Any]:
    """mAP, NDS and mean IoU of frames with the faults."""
    metrics = {
        name: task.metric(tables, runtime.bundle.spec.grid) for name, task in runtime.bundle.manifest.heads.items()
    }
    for frame in inject(frames, [Fault.parse(text, runtime.bundle.manifest.rig.sensors) for text in faults]):
        results = runtime(frame).results
        for name, metric in metrics.items():
            metric.add(frame, results[name])
    part = part_scores(metrics, np.ones(len(frames), bool))
    return {"fault": " + ".join(faults) or "none"} | {name: part.get(name) for name in ("mAP", "NDS", "mIoU")}


def health_findings(frames: Sequence[Frame], faults: Sequence[str], sensors: Sensors) -> str:
    """The health statuses of each fault's sensors and their delay, such as 'dark 0.0 s (6 of 6)'."""
    parsed = [Fault.parse(f"{text}@{START}-{END}", sensors) for text in faults]
    detections, monitors = (
        FaultDetections(parsed),
        defaultdict[str, HealthMonitor](lambda: HealthMonitor(sensors)),
    )
    for frame in inject(detections.record_starts(frames), parsed):
        detections.add(frame, monitors[frame.scene].update(frame))
    texts = []
    for fault in parsed:
        rows = [each["delays"] for each in detections.listed() if each["fault"] == fault.text]
        delays = {
            name: [row[name] for row in rows if name in row] for name in dict.fromkeys(n for row in rows for n in row)
        }
        texts.append(
            ", ".join(f"{name} {max(s):.1f} s ({len(s)} of {len(rows)})" for name, s in delays.items()) or "nothing"
        )
    return "; ".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="dataroot of annotated drives")
    parser.add_argument("--version", help="default: the only one")
    parser.add_argument("--split", default="all")
    parser.add_argument("--frames", type=int, default=5, help="number of keyframes from the start of each drive")
    parser.add_argument("--pairs", action="store_true", help="all pairs of faults")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    runtime = Runtime(arguments.bundle)
    spec = runtime.bundle.spec
    sensors = spec.rig.sensors
    tables = NuScenesTables(arguments.data, arguments.version or versions(arguments.data)[0], spec.rig)
    tokens = [
        t for scene in tables.scenes(arguments.split) for t in tables.samples(selectors=[scene])[: arguments.frames]
    ]
    frames = [tables.frame(token, Reads(spec.grid.reference, spec.sweeps)) for token in tokens]
    faults = [text.format(camera=sensors.cameras[0]) for text in FAULTS]
    alone: list[tuple[str, ...]] = [(), *((fault,) for fault in faults)]
    chosen = [(), *combinations(faults, 2)] if arguments.pairs else alone
    console = Console(stderr=arguments.json)
    found = [
        scores(runtime, frames, tables, each) | {"health": health_findings(frames, each, sensors)}
        for each in track(chosen, "Faults", console=Console(stderr=True))
    ]
    if arguments.json:
        json.dump({"frames": len(frames), "faults": found}, sys.stdout)
        return
    table = Table(title=f"{len(frames)} keyframes of {arguments.data}, {arguments.bundle}")
    table.add_column("fault", overflow="fold")
    for column in ("mAP", "NDS", "mIoU"):
        table.add_column(column, justify="right", min_width=5)
    table.add_column("health says, after (sensors)", overflow="fold")
    for row in found:
        numbers = (row["mAP"], row["NDS"], row["mIoU"])
        table.add_row(row["fault"], *("-" if number is None else f"{number:.3f}" for number in numbers), row["health"])
    console.print(table)


if __name__ == "__main__":
    main()
