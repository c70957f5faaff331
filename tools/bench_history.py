"""What a head for training alone gains that finds the objects of the frame before in a memory (HoP)."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from bench_memory import CONDITIONS, KEYFRAMES, MEMORY, PERIOD, SPLIT, VERSION, _chosen, _config, _rig, _type

from perception.checkpoint import newest
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.predict import TorchPredictor

# What is changed of the memory in each training; None: there is none.
VARIANTS: dict[str, dict[str, Any] | None] = {
    "joint": {},
    "history": {"history": 0.5},
    "no_outages": {"outages": 0.0},
    "history_no_outages": {"history": 0.5, "outages": 0.0},
    "base": None,
}
SCORE, NEAR, MOVING = 0.2, 2.0, 1.0  # as in bench_memory


def history(
    out: Annotated[Path, typer.Option(help="Folder of the drives and runs.")] = Path("runs/history"),
    variants: Annotated[str, typer.Option(help=f"Of {', '.join(VARIANTS)}.")] = "joint,history",
    seed: Annotated[int, typer.Option(help="Of the trainings.")] = 0,
    drives: Annotated[int, typer.Option(help="A quarter is held out.")] = 40,
    steps: Annotated[int, typer.Option(help="Of each training.")] = 900,
) -> None:
    """Trains variants of the jointly trained network of `bench_memory.py` (LiDAR alone, one sweep), and scores them.

    Prints NDS, mAP, mAVE (m/s), processor-seconds of a training step with its start, the share of cars found, and the
    velocity errors (m/s) of the cars that all of these variants find. Parts that the folder has are not made again.
    """
    data, rig, names = out / "drives", out / "rig.yaml", variants.split(",")
    out.mkdir(parents=True, exist_ok=True)
    rig.write_text(yaml.safe_dump(_rig("lidar").model_dump(mode="json")))
    if not data.exists():
        options = ("--samples", KEYFRAMES, "--rate", round(1 / PERIOD), "--conditions", CONDITIONS, "--jobs", 1)
        _type("simulate", data, "--scenes", drives, *options, "--rig", rig)
    runs, scores = {name: out / f"{name}-{seed}" for name in names}, dict[str, Any]()
    for name, run in runs.items():
        scores[name] = _train_and_score(name, run, data, rig, seed, steps)
        print(json.dumps({name: scores[name]}), flush=True)
    found = {"scores": scores, "cars": _cars(runs, NuScenesTables(data, VERSION)), "seed": seed, "steps": steps}
    print(json.dumps(found, indent=1), flush=True)


def _train_and_score(name: str, run: Path, data: Path, rig: Path, seed: int, steps: int) -> dict[str, float]:
    """The scores of one variant, and the processor-seconds of a step of its training."""
    change = VARIANTS[name]
    content = _config("lidar", rig) | ({} if change is None else {"modules": [MEMORY | change]})
    file, timing = run.with_suffix(".yaml"), run.with_suffix(".json")
    file.write_text(yaml.safe_dump(content))
    if newest(run) is None:
        before = _processor_seconds()
        _type("train", file, f"seed={seed}", "--data", data, "--out", run, "--steps", steps)
        timing.write_text(json.dumps({"s_per_step": (_processor_seconds() - before) / steps}))
    if not (run / "scores" / "metrics.json").exists():
        _type("evaluate", run, "--data", data, "--out", run / "scores")
    return _chosen(json.loads((run / "scores" / "metrics.json").read_text())) | json.loads(timing.read_text())


def _processor_seconds() -> float:
    """Of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cars(runs: Mapping[str, Path], tables: NuScenesTables) -> dict[str, Any]:
    """As in bench_memory, for these variants."""
    every: dict[str, np.ndarray] = {}
    for name, run in runs.items():
        predictor = TorchPredictor.load(run)
        reads, rows = predictor.spec.reads._replace(annotations=True), list[tuple[float, float, float]]()
        car = tables.taxonomy.label("car")
        for frame, prediction in predictor.predictions(tables, reads, tables.samples(SPLIT)):
            found = prediction.results["detection"]
            found, truth = found.select((found.labels == car) & (found.scores > SCORE)), frame.boxes
            assert truth is not None
            for i in np.flatnonzero((truth.labels == car) & (truth.num_points > 0)):
                off = np.linalg.norm(found.centers[:, :2] - truth.centers[i, :2], axis=1)
                wrong = np.linalg.norm((found.velocities - truth.velocities[i])[:, :2], axis=1)
                near, speed = off.size and off.min() < NEAR, float(np.linalg.norm(truth.velocities[i, :2]))
                said = float(np.linalg.norm(found.velocities[off.argmin(), :2])) if near else np.nan
                rows.append((speed, wrong[off.argmin()] if near else np.nan, said))
        every[name] = np.array(rows)
    speed, by_all = next(iter(every.values()))[:, 0], np.isfinite(sum(each[:, 1] for each in every.values()))
    kinds = {"moving": speed > MOVING, "at_rest": speed <= MOVING}  # no car whose speed is unknown
    return {
        kind: {"number": int(of_kind.sum()), "found_by_all": int((of_kind & by_all).sum())}
        | {"true_speed": float(speed[of_kind & by_all].mean())}
        | {f"found_{name}": float(np.isfinite(each[of_kind, 1]).mean()) for name, each in every.items()}
        | {f"AVE_{name}": float(each[of_kind & by_all, 1].mean()) for name, each in every.items()}
        | {f"said_speed_{name}": float(each[of_kind & by_all, 2].mean()) for name, each in every.items()}
        for kind, of_kind in kinds.items()
    }


if __name__ == "__main__":
    typer.run(history)
