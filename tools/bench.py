"""Benchmarks. Each alternates between all variants in one run, and reports medians.

python tools/bench.py adapt --evidence runs/evidence --json
python tools/bench.py ceiling --data ../shared/data/nuscenes --json
python tools/bench.py conditions --checkpoint runs/demo/run --json
python tools/bench.py depth --json
python tools/bench.py evaluator --json
python tools/bench.py fleet --json
python tools/bench.py loader --data ../shared/data/nuscenes --json
python tools/bench.py mmdet3d --data ../shared/data/nuscenes --json
python tools/bench.py modular --config tiny
python tools/bench.py occupancy --data ../shared/data/pandaset --json
python tools/bench.py pandaset --json
python tools/bench.py pillars --json
python tools/bench.py points --base runs/demo/run --json
python tools/bench.py replay --bundle runs/demo/bundle --json
python tools/bench.py runtime --frames 10000 --json
python tools/bench.py simulated --json
python tools/bench.py tables --json
python tools/bench.py tasks --json
python tools/bench.py precision --checkpoint runs/evidence/base --data runs/evidence/drives --json
"""

from __future__ import annotations

import argparse
import json
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # like the `perception` command

import bench_adapt
import bench_ceiling
import bench_conditions
import bench_depth
import bench_evaluator
import bench_fleet
import bench_loader
import bench_mmdet3d
import bench_modular
import bench_occupancy
import bench_pandaset
import bench_pillars
import bench_points
import bench_precision
import bench_replay
import bench_runtime
import bench_simulated
import bench_tables
import bench_tasks

SUBJECTS = (
    bench_adapt,
    bench_ceiling,
    bench_conditions,
    bench_depth,
    bench_evaluator,
    bench_fleet,
    bench_loader,
    bench_mmdet3d,
    bench_modular,
    bench_occupancy,
    bench_pandaset,
    bench_pillars,
    bench_points,
    bench_precision,
    bench_replay,
    bench_runtime,
    bench_simulated,
    bench_tables,
    bench_tasks,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for module in SUBJECTS:
        what = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(module.__name__.removeprefix("bench_"), help=what, description=what)
        module.add_options(command)
        command.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    result = arguments.run(arguments)
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
