"""Check the figures of a run against its targets: `check_figures.py demo`, `overfit` or `real`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

RUNS = Path("runs")

Checks = dict[str, bool]


def demo(_: list[str]) -> tuple[dict[str, Any], Checks]:
    """The demo's figures, from runs/demo/summary.json."""
    summary = json.loads((RUNS / "demo" / "summary.json").read_text())
    figures = {key: summary[key] for key in ("car_ap", "mAP", "NDS", "iou_drivable_area", "modules", "seconds")}
    gains = {}
    for name, each in summary["modules"].items():
        lost, gained = summary["NDS"] - each["base"], each["with_module"] - each["base"]
        text = f"module {name}: NDS {each['base']:.3f} -> {each['with_module']:.3f}, of {summary['NDS']:.3f}"
        gains[text] = lost >= summary["NDS"] / 10 and gained > 0
    return figures, gains | {
        "the base is unchanged": summary["base_unchanged"] and summary["clear_unchanged"],
        f"NDS {summary['NDS']:.3f} >= 0.45": summary["NDS"] >= 0.45,
        f"car AP {summary['car_ap']:.3f} >= 0.7": summary["car_ap"] >= 0.7,
        f"drivable area IoU {summary['iou_drivable_area']:.3f} >= 0.6": summary["iou_drivable_area"] >= 0.6,
        f"{summary['report']} exists": Path(summary["report"]).stat().st_size > 100_000,
    }


def overfit(runs: list[str]) -> tuple[dict[str, Any], Checks]:
    """The figures of `make overfit`, from each run's evaluation/metrics.json."""
    figures, checks = {}, {}
    for sensors in runs or ("fusion", "lidar", "camera"):
        figures[sensors] = _scores(RUNS / f"overfit_{sensors}" / "evaluation")
        for score, least in (("car_ap", 0.98), ("pedestrian_ap", 0.95)):
            value = figures[sensors][score]
            checks[f"{sensors}: {score} {value:.3f} >= {least}"] = value >= least
    if "fusion" not in figures:
        return figures, checks
    latency = json.loads((RUNS / "overfit_fusion" / "replay" / "latency.json").read_text())
    checks[f"{latency['frames']} keyframes of scene-0103 replayed"] = latency["frames"] == 40
    return figures, checks


def real(_: list[str]) -> tuple[dict[str, Any], Checks]:
    """The gains of `make real` on keyframes that the module was not trained on, and whether the base is unchanged."""
    before, after = (_scores(RUNS / "real" / when) for when in ("before", "after"))
    base, adapted = (
        load_file(sorted((RUNS / run / "checkpoints").iterdir())[-1] / "model.safetensors")
        for run in ("demo/run", "real/adapted")
    )
    gained = ("car_ap", "mAP_present")
    checks = {f"{key} {before[key]:.3f} -> {after[key]:.3f}": after[key] > before[key] for key in gained}
    same = all(np.array_equal(adapted[name], tensor) for name, tensor in base.items())
    checks[f"all {len(base)} tensors of the base are unchanged"] = same
    return {"before": before, "after": after}, checks


def _scores(evaluation: Path) -> dict[str, float]:
    metrics = json.loads((evaluation / "metrics.json").read_text())
    present = (name for name, boxes in metrics["ground_truth"].items() if boxes)
    aps = {name: metrics["mean_dist_aps"][name] for name in present}
    return {"car_ap": aps["car"], "pedestrian_ap": aps["pedestrian"], "mAP_present": metrics["mAP_present"]}


def main() -> None:
    """Print each check; exit code 1 if one fails."""
    parts: dict[str, Callable[[list[str]], tuple[dict[str, Any], Checks]]]
    parts = {"demo": demo, "overfit": overfit, "real": real}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=parts)
    parser.add_argument("runs", nargs="*", help="of overfit: fusion, lidar, camera; all without")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    arguments = parser.parse_args()
    figures, checks = parts[arguments.part](arguments.runs)
    for text, reached in checks.items():
        print(f"{'ok     ' if reached else 'MISSED '} {text}", file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps(figures))
    sys.exit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
