"""All of it on simulated drives: simulate, train, evaluate, export, compile, replay."""

from __future__ import annotations

import json
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from deploy.build import build
from deploy.export import export
from deploy.replay.player import replay
from deploy.replay.settings import Source
from perception.atomic import write_atomically
from perception.config import find_config, load_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.evaluation.evaluate import evaluate
from perception.predict import TorchPredictor
from perception.simulate.simulate import simulate
from perception.training.loop import train

VERSION = "v1.0-sim"
CONDITIONS = ("clear-day-boston", "rain-day-boston")


def demo(out: Path) -> dict[str, object]:
    """Perceive held-out simulated drives with a model that was trained, exported and compiled here.

    Writes to the folder `out`: drives/, run/, evaluation/, bundle/, replay/report.html and summary.json.

    Raises:
        InputError: `out` is there already and was not written by a demo.
    """
    start, console = time.perf_counter(), Console()
    if out.exists() and any(out.iterdir()) and not (out / "drives").exists():
        raise InputError(f"{out}: holds something else than a demo; choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    drives = out / "drives"

    console.rule("1  simulate")
    with Progress(console=console) as progress:
        bar = progress.add_task("keyframes")
        simulate(
            drives, scenes=16, samples=10, seed=0, condition_names=CONDITIONS,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )  # fmt: skip
    tables = NuScenesTables(drives, VERSION)

    console.rule("2  train")
    checkpoint = train(load_config(find_config("tiny")), tables, "sim_train", out / "run")

    console.rule("3  evaluate on held-out drives")
    predictor = TorchPredictor.load(checkpoint)
    metrics = evaluate(predictor, tables, "sim_val", (), out / "evaluation", predictor.spec)

    console.rule("4  export and compile")
    bundle = export(checkpoint, out / "bundle").path
    build(bundle, "cpu")
    if find_spec("tensorrt_rtx"):
        build(bundle, "rtx-ampere")

    console.rule("5  replay")
    report = replay(Source(drives, VERSION, tables.scenes("sim_val")), bundle, out / "replay")["report"]

    summary = {
        "car_ap": metrics["mean_dist_aps"]["car"],
        "mAP": metrics["mAP"],
        "NDS": metrics["NDS"],
        "iou_drivable_area": metrics["map"]["iou_max"]["drivable_area"],
        "seconds": round(time.perf_counter() - start, 1),
        "report": str(report),
        "checkpoint": str(checkpoint),
        "bundle": str(bundle),
    }
    write_atomically(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    console.print_json(data=summary)
    console.print(f"Open {Path(report).resolve()}")
    return summary
