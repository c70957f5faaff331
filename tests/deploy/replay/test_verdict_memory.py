"""A verdict on a long drive: memory does not grow with what statistics.jsonl and results.json hold of each frame."""

import gc
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replays import gates, record
from vocabulary import CLASSES

from deploy.replay.verdict import judge
from perception.io.files import FrameFile
from perception.tasks.map.task import pack
from perception.tasks.points.task import pack as pack_points

FRAMES, SCENES, BOXES = 20, 4, 20
META = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)


def line(i: int, frames: int, rng: np.random.Generator) -> dict[str, Any]:
    """Statistics of a frame of a network with four tasks, as long as those of a real one."""
    boxes = [[n % 10, *rng.uniform(-40, 40, 2), 0, 2, 4, 2, *rng.normal(size=3), 5, 1, 9] for n in range(BOXES)]
    tasks = {
        "detection": {"truth": {"boxes": boxes, "bike_racks": []}},
        "map": {"cells": pack(rng.random((6, 40, 40)) < 0.1), "counts": rng.integers(1, 99, (3, 6, 8)).tolist()},
        "points": {
            "classes": pack_points(rng.integers(0, 16, 2000).astype(np.uint8)),
            "counts": rng.integers(1, 99, (3, 16, 20)).tolist(),
        },
        "occupancy": {
            "counts": rng.integers(1, 99, (6, 3, 17)).tolist(),
            "obstacles": None,
            "truth": None,
        },
    }
    return {
        "token": f"t{i:06d}", "scene": f"scene-{i * SCENES // frames}", "timestamp": 500_000 * i, "ego": [0.0, 0.0],
        "conditions": ["rain" if i % 3 else "clear"], "sensors": f"{i:064x}", "blind": False, "not_finite": {},
        "tasks": tasks,
    }  # fmt: skip


def replay(out: Path, frames: int, network: int) -> Path:
    """A finished replay of a drive of so many frames."""
    out.mkdir()
    rng, detected = np.random.default_rng(0), np.random.default_rng(network)
    with (out / "statistics.jsonl").open("w") as file:
        for i in range(frames):
            file.write(json.dumps(line(i, frames, rng)) + "\n")
    with FrameFile.open(out / "results.json", "the results", {"meta": META}, "results") as results:
        for i in range(frames):
            boxes = [
                {
                    "sample_token": f"t{i:06d}", "translation": [*detected.uniform(-40, 40, 2), 0.0],
                    "size": [2.0, 4.0, 2.0], "rotation": [1.0, 0.0, 0.0, 0.0], "velocity": [0.0, 0.0],
                    "detection_name": CLASSES[n % 10], "detection_score": detected.random(), "attribute_name": "",
                }
                for n in range(BOXES)
            ]  # fmt: skip
            results.add(f"t{i:06d}", boxes)
    return record(out)


def traced(call: Callable[[], Any]) -> int:
    """Bytes that a call takes at most."""
    gc.collect()
    tracemalloc.start()
    try:
        held = call()
        del held
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


COUNTED = gates(
    {"metric": "difference", "of": "IoU", "at_most": 1},
    {"metric": "difference", "of": "points", "condition": "rain", "at_most": 1},
    {"metric": "difference", "of": "occupancy_IoU", "at_most": 1},
    {"metric": "agreement", "of": "map", "at_least": 0},
    {"metric": "agreement", "of": "point_classes", "at_least": 0},
)
MATCHED = gates(
    {"metric": "difference", "of": "NDS", "at_most": 1},
    {"metric": "agreement", "of": "detections", "at_least": 0},
)


@pytest.mark.slow("verdicts over a long and a short drive, traced")
def test_a_verdict_does_not_hold_the_frames_of_a_long_drive(tmp_path: Path) -> None:
    """With a baseline. Counts are added up: of the JSON of further frames not a twentieth stays. Of boxes the columns
    stay, 14 numbers each, and as much again while they are scored."""
    few, more = ([replay(tmp_path / f"{n}-{i}", n, i) for i in (1, 2)] for n in (FRAMES, 4 * FRAMES))

    def growth(of: Callable[[Path, Path], Any]) -> int:
        return traced(lambda: of(*more)) - traced(lambda: of(*few))

    held = growth(lambda run, _: [json.loads(each) for each in (run / "statistics.jsonl").read_bytes().splitlines()])
    assert growth(lambda run, baseline: judge(run, baseline, COUNTED)) < held / 20
    columns = 2 * 2 * BOXES * 3 * FRAMES * 14 * 8  # annotations and detections of two replays
    assert growth(lambda run, baseline: judge(run, baseline, MATCHED)) < 2 * columns
