"""Compare what a run reached with what the README promises: `check_figures.py demo`, `overfit` or `real`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

RUNS = Path("runs")


def demo() -> dict[str, bool]:
    """The demo's figures, from runs/demo/summary.json."""
    summary = json.loads((RUNS / "demo" / "summary.json").read_text())
    return {
        f"car AP {summary['car_ap']:.3f} >= 0.5": summary["car_ap"] >= 0.5,
        f"drivable area IoU {summary['iou_drivable_area']:.3f} >= 0.6": summary["iou_drivable_area"] >= 0.6,
        f"{summary['seconds']:.0f} s <= 720 s": summary["seconds"] <= 720,
        f"{summary['report']} is there": Path(summary["report"]).stat().st_size > 100_000,
    }


def overfit() -> dict[str, bool]:
    """The figures of `make overfit`, from each run's evaluation/metrics.json."""
    figures = {}
    for sensors, car, present in (("fusion", 0.9, 0.75), ("lidar", 0.9, 0.0), ("camera", 0.6, 0.0)):
        metrics = json.loads((RUNS / f"overfit_{sensors}" / "evaluation" / "metrics.json").read_text())
        ap, mean = metrics["mean_dist_aps"]["car"], metrics["mAP_present"]
        figures[f"{sensors}: car AP {ap:.3f} >= {car}"] = ap >= car
        figures[f"{sensors}: mAP over present classes {mean:.3f} >= {present}"] = mean >= present
    latency = json.loads((RUNS / "overfit_fusion" / "replay" / "latency.json").read_text())
    figures[f"{latency['frames']} keyframes of scene-0103 replayed"] = latency["frames"] == 40
    return figures


def real() -> dict[str, bool]:
    """What `make real` gained on keyframes that the module was not trained on, and that the base is as it was."""
    before, after = (json.loads((RUNS / "real" / when / "metrics.json").read_text()) for when in ("before", "after"))
    car = [metrics["mean_dist_aps"]["car"] for metrics in (before, after)]
    present = [metrics["mAP_present"] for metrics in (before, after)]
    base, adapted = (
        load_file(sorted((RUNS / run / "checkpoints").iterdir())[-1] / "model.safetensors")
        for run in ("demo/run", "real/adapted")
    )
    same = all(np.array_equal(adapted[name], tensor) for name, tensor in base.items())
    return {
        f"car AP {car[0]:.3f} -> {car[1]:.3f}": car[1] > car[0],
        f"mAP over present classes {present[0]:.3f} -> {present[1]:.3f}": present[1] > present[0],
        f"all {len(base)} tensors of the base are as they were": same,
    }


def main() -> None:
    """Print each figure; exit with 1 if one falls short."""
    figures = {"demo": demo, "overfit": overfit, "real": real}[sys.argv[1]]()
    for text, reached in figures.items():
        print(f"{'ok     ' if reached else 'MISSED '} {text}")
    sys.exit(0 if all(figures.values()) else 1)


if __name__ == "__main__":
    main()
