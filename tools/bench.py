"""Benchmarks: `bench.py NAME [OPTIONS] [--json]`. Each alternates between its variants and reports medians.

python tools/bench.py ceiling --data ../shared/data/nuscenes --json
python tools/bench.py modular --help
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from typing import Any

import typer

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # like the `perception` command

# Name -> file and function, whose parameters are the options.
SUBJECTS = {
    "ceiling": "bench_ceiling:ceiling",
    "cpp": "bench_cpp:cpp",
    "depth": "bench_training:depth",
    "drive": "bench_drive:drive",
    "evaluator": "bench_evaluator:evaluator",
    "flakes": "bench_snow:flakes",
    "fleet": "bench_replay:fleet",
    "labels": "bench_labels:labels",
    "loader": "bench_loader:loader",
    "memory": "bench_memory:memory",
    "mmdet3d": "bench_mmdet3d:mmdet3d",
    "modular": "bench_networks:modular",
    "pandaset": "bench_pandaset:pandaset",
    "pillars": "bench_networks:pillars",
    "points": "bench_points:points",
    "precision": "bench_precision:precision",
    "recogniser": "bench_recogniser:recogniser",
    "remembering": "bench_networks:remembering",
    "replay": "bench_replay:replay",
    "simulated": "bench_simulated:simulated",
    "snow": "bench_snow:snow",
    "tables": "bench_tables:tables",
    "tasks": "bench_networks:tasks",
    "time": "bench_time:time",
    "tracking": "bench_tracking:tracking",
    "train": "bench_training:train",
}


def command(name: str, as_json: bool) -> typer.Typer:
    """The command of a benchmark, whose options are the parameters of its function; it prints the result."""
    # The others are not imported, because processes that a benchmark starts import this file again.
    file, _, function = SUBJECTS[name].partition(":")
    measure = getattr(importlib.import_module(file), function)

    @functools.wraps(measure)
    def printed(**options: Any) -> None:
        result = measure(**options)
        print(json.dumps(result) if as_json else "\n".join(f"{key}: {value}" for key, value in result.items()))

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog="--json prints one JSON object.")(printed)
    return app


def main() -> None:
    name, *arguments = [argument for argument in sys.argv[1:] if argument != "--json"] or ["--help"]
    if name not in SUBJECTS:
        print(f"{__doc__}\nNAME: {', '.join(SUBJECTS)}")
        sys.exit(0 if name == "--help" else 2)
    command(name, "--json" in sys.argv)(arguments, prog_name=f"bench.py {name}")


if __name__ == "__main__":
    main()
