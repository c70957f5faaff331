"""Benchmarks. Each alternates between all variants in one run, and reports medians.

python tools/bench.py adapt --evidence runs/evidence --json
python tools/bench.py ceiling --data ../shared/data/nuscenes --json
python tools/bench.py conditions --checkpoint runs/demo/run --json
python tools/bench.py depth --json
python tools/bench.py evaluator --data runs/demo/drives --json
python tools/bench.py mmdet3d --data ../shared/data/nuscenes --json
python tools/bench.py modular --config tiny
python tools/bench.py occupancy --data ../shared/data/pandaset --json
python tools/bench.py pandaset --json
python tools/bench.py pillars --json
python tools/bench.py points --base runs/demo/run --json
python tools/bench.py replay --bundle runs/demo/bundle --data runs/demo/drives --json
python tools/bench.py runtime --frames 10000 --json
python tools/bench.py tasks --json
python tools/bench.py precision --checkpoint runs/evidence/base --data runs/evidence/drives --json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # like the `perception` command

import torch
from bench_ceiling import add_options as add_options_of_ceiling
from bench_conditions import add_options as add_options_of_conditions
from bench_depth import add_options as add_options_of_depth
from bench_evaluator import add_options as add_options_of_evaluator
from bench_mmdet3d import mmdet3d
from bench_modular import modular
from bench_occupancy import add_options as add_options_of_occupancy
from bench_pandaset import add_options
from bench_pillars import pillars
from bench_points import add_options as add_options_of_points
from bench_precision import precision
from bench_replay import replay_speed
from bench_runtime import runtime
from bench_tasks import add_options as add_options_of_tasks
from evidence_models import Models
from evidence_plan import STEPS, WAYS

from perception.training import trainable
from perception.training.loader import FrameDataset, collate


def adapt(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds per training step of each way to adapt, on the evidence's base and rainy drives.

    A step takes two frames from memory, augments and prepares them, and runs forward, backward, clipping and optimizer.
    The first two rounds are discarded.
    """
    evidence = Models(arguments.evidence)
    models = {way: evidence.prepared(0, "rain", way) for way in WAYS}
    for model in models.values():
        model.to(memory_format=torch.channels_last)  # like the training loop
    optimizers = {way: trainable.optimizer_of(model, 1e-4, 0.01) for way, model in models.items()}
    dataset = FrameDataset(evidence.tables, evidence.tokens("sim_train", "rain"), evidence.config(0, steps=STEPS))
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    loading: list[float] = []
    for sample in range(2):
        dataset[sample]
    for _ in range(arguments.rounds + 2):
        for way, model in models.items():
            start = time.perf_counter()
            batch = collate([dataset[0], dataset[1]])
            loading.append(time.perf_counter() - start)
            with torch.autocast("cpu", torch.bfloat16):
                dense = model(batch.inputs, batch.conditions)
            terms = model.losses({k: v.float() for k, v in dense.items()}, batch.labels)
            torch.stack([term.mean() for term in terms.values()]).sum().backward()
            torch.nn.utils.clip_grad_norm_([p for _, p in trainable.parameters(model)], 35.0)
            optimizers[way].step()
            optimizers[way].zero_grad()
            seconds[way].append(time.perf_counter() - start)
    medians = {way: statistics.median(values[2:]) for way, values in seconds.items()}
    return {
        "seconds_per_step": medians,
        "ratio_to_full": {way: value / medians["full fine-tune"] for way, value in medians.items()},
        "of_which_loading": statistics.median(loading),
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("adapt", help="time per step of every way to adapt")
    command.add_argument("--evidence", type=Path, default=Path("runs/evidence"), help="folder of tools/evidence.py")
    command.add_argument("--rounds", type=int, default=15)
    command.set_defaults(run=adapt)
    add_options_of_ceiling(commands.add_parser("ceiling", help="recall of a perfect network on annotated keyframes"))
    add_options_of_conditions(commands.add_parser("conditions", help="what is recognised, and when it is unknown"))
    add_options_of_depth(commands.add_parser("depth", help="error of the cameras' depth with and without supervision"))
    command = commands.add_parser(
        "mmdet3d", help="speed compared with mmdet3d, CenterPoint from points to boxes on a CPU"
    )
    command.add_argument("--data", type=Path, default=Path("../shared/data/nuscenes"), help="real keyframes, v1.0-mini")
    command.add_argument("--scenes", default="scene-0103:0-4", help="keyframes")
    command.add_argument("--rounds", type=int, default=5)
    command.set_defaults(run=mmdet3d)
    command = commands.add_parser("modular", help="latency and memory of two tasks and four domains in one graph")
    command.add_argument("--config", default="tiny")
    command.add_argument("--rounds", type=int, default=30)
    command.set_defaults(run=modular)
    add_options_of_occupancy(commands.add_parser("occupancy", help="annotated occupancy against later LiDAR returns"))
    add_options(commands.add_parser("pandaset", help="a KITTI network on PandaSet: zero-shot, adapted, fine-tuned"))
    command = commands.add_parser("pillars", help="time to group ten LiDAR sweeps into pillars, on one core")
    command.add_argument("--config", default="nuscenes/fusion")
    command.add_argument("--rounds", type=int, default=50)
    command.set_defaults(run=pillars)
    add_options_of_points(
        commands.add_parser("points", help="classes of PandaSet's points, by a head on a trained base")
    )
    command = commands.add_parser("precision", help="speed of INT8 on a CPU, and scores lost in FP16 and INT8")
    command.add_argument("--config", default="nuscenes/centerpoint", help="for the speed")
    command.add_argument("--rounds", type=int, default=15)
    command.add_argument("--checkpoint", type=Path, help="for the scores; without it only the speed is measured")
    command.add_argument("--data", type=Path, default=Path("runs/evidence/drives"), help="simulated drives to score on")
    command.add_argument("--version", default="v1.0-sim")
    command.add_argument("--conditions", default="clear,day,boston", help="of the drives")
    command.add_argument("--frames", type=int, help="score only this many keyframes, evenly spread")
    command.set_defaults(run=precision)
    add_options_of_evaluator(
        commands.add_parser("evaluator", help="speed and memory of scoring a submission, compared with the devkit")
    )
    add_options_of_tasks(commands.add_parser("tasks", help="what further tasks cost a network that is deployed"))
    command = commands.add_parser("runtime", help="memory of the runtime during a long drive")
    command.add_argument("--frames", type=int, default=10_000)
    command.set_defaults(run=runtime)
    command = commands.add_parser("replay", help="speed of a replay with all its files")
    command.add_argument("--bundle", type=Path, default=Path("runs/demo/bundle"))
    command.add_argument("--data", type=Path, default=Path("runs/demo/drives"))
    command.add_argument("--version", default="v1.0-sim")
    command.add_argument("--scenes", type=int, default=16, help="at most this many")
    command.add_argument("--rounds", type=int, default=3)
    command.set_defaults(run=replay_speed)
    for each in commands.choices.values():
        each.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    result = arguments.run(arguments)
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
