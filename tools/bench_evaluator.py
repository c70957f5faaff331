"""Speed and memory of scoring a submission, compared with the official devkit.

Each evaluator runs in a fresh process: it reads tables, annotations and submission, filters, matches and scores.
Seconds are processor time, so other processes do not count.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmark import KEYFRAMES

from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Boxes
from perception.tasks.detection.columns import BoxColumns, read_submission
from perception.tasks.detection.scores import ERRORS, THRESHOLDS, DetectionScores
from perception.tasks.detection.submission import SubmissionWriter
from perception.taxonomy import load_taxonomy

NUSCENES = load_taxonomy("nuscenes")
CLASSES = NUSCENES.class_names
BOXES = 200  # detections in each sample
VERSION = "v1.0-mini"  # of the real tables, which have two drives of 20 s and files of keyframes alone
COPIES, VAL_COPIES = 8, 75  # of the two drives; with 75 copies 6,075 samples, val has 6,019
BETWEEN = 10  # further rows for each row of these tables, as many as there are of files between nuScenes' keyframes
OF_FILES = ("sample_data", "ego_pose")
SHARED = ("sensor", "category", "attribute", "visibility", "log", "map")  # tables that stay as they are
KEPT = {f"{name}_token{s}" for name in SHARED for s in ("", "s")}


def evaluator(quick: bool) -> dict[str, Any]:
    """Median seconds and peak memory of both evaluators, and the largest difference between their numbers.

    `val_size`: of ours on as many samples as nuScenes' val has. Tables are read from their files.
    """
    rounds, copies, many = (1, 1, 2) if quick else (3, COPIES, VAL_COPIES)
    with tempfile.TemporaryDirectory() as folder:
        some, val = (_multiply(Path(folder) / str(i), count) for i, count in enumerate((copies, many)))
        runs: dict[str, list[dict[str, Any]]] = {"devkit": [], "numpy": []}
        for _ in range(rounds):
            for side, results in runs.items():
                results.append(_run(some, side))
        large = _run(val, "numpy")
    seconds = {side: statistics.median(run["seconds"] for run in each) for side, each in runs.items()}
    megabytes = {side: statistics.median(run["megabytes"] for run in each) for side, each in runs.items()}
    numbers = [np.array(runs[side][0]["numbers"], np.float64) for side in runs]
    return {
        "speedup": seconds["devkit"] / seconds["numpy"],
        "memory_ratio": megabytes["numpy"] / megabytes["devkit"],
        "max_abs_difference": float(np.nanmax(np.abs(numbers[0] - numbers[1]))),
        **{f"val_size_{name}": large[name] for name in ("seconds", "megabytes")},
        "seconds": seconds,
        "megabytes": megabytes,
        "rounds": rounds,
    }


def _multiply(root: Path, copies: int) -> Path:
    """Writes tables with so many copies of the real drives, and a submission."""
    (root / VERSION).mkdir(parents=True)
    (root / "maps").symlink_to((KEYFRAMES / "maps").resolve())
    for path in (KEYFRAMES / VERSION).glob("*.json"):
        rows, name = json.loads(path.read_text()), path.stem
        every = rows if name in SHARED else list(_copies(name, rows, copies))
        (root / VERSION / path.name).write_text(json.dumps(every))
    _submit(NuScenesTables(root, VERSION), root / "results.json")
    return root


def _copies(name: str, rows: list[dict[str, Any]], copies: int) -> Iterator[dict[str, Any]]:
    """The rows of a table, each copy with names of its own."""
    for i in range(copies):
        for row in rows:
            own = [key for key in row if (key.endswith("token") and key not in KEPT) or key in ("prev", "next", "name")]
            copied = row | {key: f"{row[key]}-{i}" for key in own if row[key]}
            yield copied
            for j in range(BETWEEN if name in OF_FILES else 0):
                between = {"is_key_frame": False} if name == "sample_data" else {}
                yield copied | {"token": f"{copied['token']}-{j}"} | between


def _submit(tables: NuScenesTables, path: Path) -> None:
    """Writes displaced annotations, some of them far from any object."""
    rng = np.random.default_rng(0)
    with SubmissionWriter.open(path, ["lidar"], NUSCENES) as writer:
        for token in tables.samples():
            frame = tables.frame(token, Reads(lidar=False, cameras=False))
            boxes = frame.boxes or Boxes.none()
            boxes = boxes.select(rng.integers(0, len(boxes), BOXES)) if len(boxes) else boxes
            spread = np.where(rng.random((len(boxes), 1)) < 0.3, 0.5, 8.0)
            centers = boxes.centers + spread * rng.normal(0, 1, boxes.centers.shape)
            writer.add(frame, replace(boxes, centers=centers, scores=rng.uniform(0.01, 1, len(boxes))))


def _run(data: Path, side: str) -> dict[str, Any]:
    environment = os.environ | {"XDG_CACHE_HOME": str(data / "no tables stored")}
    command = [sys.executable, __file__, str(data), side]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    shutil.rmtree(data / "no tables stored", ignore_errors=True)
    return dict(json.loads(done.stdout))


def _numpy(data: Path) -> list[Any]:
    tables = NuScenesTables(data, VERSION)
    samples, rows = tables.samples(), []
    frames = [tables.frame(token, Reads(lidar=False, cameras=False, annotations=False)) for token in samples]
    for i, token in enumerate(samples):
        boxes = tables.recording(token).annotated("boxes") or Boxes.none()
        columns = (np.full(len(boxes), i), boxes.labels, boxes.centers, boxes.sizes, boxes.yaws)
        more = (boxes.velocities[:, :2], boxes.attributes, boxes.scores, boxes.num_points)
        rows.append(np.column_stack([*columns, *more]))
    egos = np.array([frame.global_from_ego[:2, 3] for frame in frames])
    by_frame = enumerate(tables.recording(token).annotated("bicycle_racks") for token in samples)
    racks = np.array([[i, *rack] for i, own in by_frame for rack in own]).reshape(-1, 11)
    scenes = np.unique([frame.scene for frame in frames], return_inverse=True)[1]
    numbers = {token: i for i, token in enumerate(samples)}
    detections = BoxColumns.joined(read_submission(data / "results.json", numbers, NUSCENES))
    truth = BoxColumns(np.concatenate(rows)).counted(egos, racks, NUSCENES)
    scores = DetectionScores(truth, detections.counted(egos, racks, NUSCENES), scenes, NUSCENES).score()
    every = [scores.mean_ap[0], scores.nds[0], *scores.aps[0].ravel(), *scores.errors[0].ravel()]
    return [None if np.isnan(number) else float(number) for number in every]


def _devkit(data: Path) -> list[Any]:
    from perception.tasks.detection.devkit import open_devkit, score_submission

    nusc = open_devkit(data, VERSION)
    scores = score_submission(data / "results.json", nusc, [sample["token"] for sample in nusc.sample])
    aps = [scores["label_aps"][name][str(threshold)] for name in CLASSES for threshold in THRESHOLDS]
    return [scores["mAP"], scores["NDS"], *aps, *(scores["label_tp_errors"][n][e] for n in CLASSES for e in ERRORS)]


def _side(data: str, side: str) -> None:
    if side == "devkit":
        import nuscenes.eval.detection.evaluate  # noqa: F401 - imports are not measured
    run = _devkit if side == "devkit" else _numpy
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before, start = _peak_megabytes(), time.process_time()
    numbers = run(Path(data))
    seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "megabytes": _peak_megabytes() - before, "numbers": numbers}))


def _peak_megabytes() -> float:
    """Of this process; getrusage would include that of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1e3


if __name__ == "__main__":
    _side(*sys.argv[1:])
