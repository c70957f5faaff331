"""Speed and memory of scoring a submission, compared with the official devkit.

Each evaluator runs in a fresh process: it reads tables, annotations and submission, filters, matches and scores.
Seconds are processor time, so other processes do not count.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from bench_tables import VERSION as GENERATED
from bench_tables import generate, peak_megabytes
from benchmark import drives

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
VAL_DRIVES = 151  # of 40 keyframes; val has 6,019


def evaluator(quick: bool) -> dict[str, Any]:
    """Median seconds and peak memory of both evaluators, and the largest difference between their numbers."""
    tables, rounds = drives(quick), 1 if quick else 3
    with tempfile.TemporaryDirectory() as folder:
        submission = Path(folder) / "results.json"
        samples = _write(tables, submission)
        runs: dict[str, list[dict[str, Any]]] = {"devkit": [], "numpy": []}
        for _ in range(rounds):
            for side, results in runs.items():
                results.append(_run(tables.dataroot, tables.version, submission, side))
    seconds = {side: statistics.median(run["seconds"] for run in each) for side, each in runs.items()}
    megabytes = {side: statistics.median(run["megabytes"] for run in each) for side, each in runs.items()}
    numbers = [np.array(runs[side][0]["numbers"], np.float64) for side in runs]
    return {
        **_val_size(1 if quick else VAL_DRIVES),
        "speedup": seconds["devkit"] / seconds["numpy"],
        "memory_ratio": megabytes["numpy"] / megabytes["devkit"],
        "max_abs_difference": float(np.nanmax(np.abs(numbers[0] - numbers[1]))),
        "seconds": seconds,
        "megabytes": megabytes,
        "samples": samples,
        "detections": samples * BOXES,
        "rounds": rounds,
    }


def _run(data: Path, version: str, submission: Path, side: str, **environment: str) -> dict[str, Any]:
    command = [sys.executable, __file__, str(data), version, str(submission), side]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    return dict(json.loads(done.stdout))


def _val_size(count: int) -> dict[str, Any]:
    """Seconds and peak memory of ours on as many generated samples as nuScenes' val has, without stored tables."""
    with tempfile.TemporaryDirectory() as folder:
        data, submission = Path(folder) / "data", Path(folder) / "results.json"
        generate(data, count)
        with patch.dict(os.environ, XDG_CACHE_HOME=str(Path(folder) / "cache")):
            samples = _write(NuScenesTables(data, GENERATED), submission)
        run = _run(data, GENERATED, submission, "numpy", XDG_CACHE_HOME=str(Path(folder) / "empty"))
    return {f"val_size_{name}": run[name] for name in ("seconds", "megabytes")} | {"val_size_samples": samples}


def _write(tables: NuScenesTables, path: Path) -> int:
    """Write a submission of displaced annotations, some of them far from any object; returns the number of samples."""
    rng, samples = np.random.default_rng(0), tables.samples()
    with SubmissionWriter.open(path, ["lidar"], NUSCENES) as writer:
        for token in samples:
            frame = tables.frame(token, Reads(lidar=False, cameras=False))
            boxes = frame.boxes or Boxes.none()
            boxes = boxes.select(rng.integers(0, len(boxes), BOXES)) if len(boxes) else boxes
            spread = np.where(rng.random((len(boxes), 1)) < 0.3, 0.5, 8.0)
            centers = boxes.centers + spread * rng.normal(0, 1, boxes.centers.shape)
            writer.add(frame, replace(boxes, centers=centers, scores=rng.uniform(0.01, 1, len(boxes))))
    return len(samples)


def _numpy(dataroot: Path, version: str, submission: Path) -> list[Any]:
    tables = NuScenesTables(dataroot, version)
    samples, rows = tables.samples(), []
    frames = [tables.frame(token, Reads(lidar=False, cameras=False, annotations=False)) for token in samples]
    for i, token in enumerate(samples):
        boxes = tables.recording(token).annotated("boxes") or Boxes.none()
        columns = [
            np.full(len(boxes), i), boxes.labels, boxes.centers, boxes.sizes, boxes.yaws, boxes.velocities[:, :2],
            boxes.attributes, boxes.scores, boxes.num_points,
        ]  # fmt: skip
        rows.append(np.column_stack(columns))
    egos = np.array([frame.global_from_ego[:2, 3] for frame in frames])
    by_frame = enumerate(tables.recording(token).annotated("bicycle_racks") for token in samples)
    racks = np.array([[i, *rack] for i, own in by_frame for rack in own]).reshape(-1, 11)
    scenes = np.unique([frame.scene for frame in frames], return_inverse=True)[1]
    numbers = {token: i for i, token in enumerate(samples)}
    detections = BoxColumns.joined(read_submission(submission, numbers, NUSCENES))
    truth = BoxColumns(np.concatenate(rows)).counted(egos, racks, NUSCENES)
    scores = DetectionScores(truth, detections.counted(egos, racks, NUSCENES), scenes, NUSCENES).score()
    every = [scores.mean_ap[0], scores.nds[0], *scores.aps[0].ravel(), *scores.errors[0].ravel()]
    return [None if np.isnan(number) else float(number) for number in every]


def _devkit(dataroot: Path, version: str, submission: Path) -> list[Any]:
    from perception.tasks.detection.devkit import open_devkit, score_submission

    nusc = open_devkit(dataroot, version)
    scores = score_submission(submission, nusc, [sample["token"] for sample in nusc.sample])
    aps = [scores["label_aps"][name][str(threshold)] for name in CLASSES for threshold in THRESHOLDS]
    return [scores["mAP"], scores["NDS"], *aps, *(scores["label_tp_errors"][n][e] for n in CLASSES for e in ERRORS)]


def _side(dataroot: str, version: str, submission: str, side: str) -> None:
    if side == "devkit":
        import nuscenes.eval.detection.evaluate  # noqa: F401 - imports are not measured
    run = _devkit if side == "devkit" else _numpy
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before, start = peak_megabytes(), time.process_time()
    numbers = run(Path(dataroot), version, Path(submission))
    seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "megabytes": peak_megabytes() - before, "numbers": numbers}))


if __name__ == "__main__":
    _side(*sys.argv[1:])
