"""Benchmarks: `bench.py NAME [--quick] [--json]`. Each alternates between its variants and prints medians.

--quick takes few frames, rounds and steps: its figures mean nothing, it shows that the benchmark works. Without NAME,
`bench.py --quick` runs all of them so, goes on after a failure and ends with what failed (`make bench-quick`).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmark import DEMO, KEYFRAMES, KITTI_WEIGHTS, PANDASET, QUICK
from figures import QUOTED, fill

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # like the `perception` command

MMDET3D = Path(".venv-mmdet3d/bin/python")
LIBRARY = Path(os.environ.get("TESSERA_LIBRARY", "runs/cpp/release/libtessera.so"))
BUNDLE, CHECKPOINTS, CONDITIONS, DRIVES, CHANGING = (
    DEMO / name for name in ("bundle", "run", "conditions", "drives", "changing")
)
MADE_BY = {MMDET3D: "make install-mmdet3d", LIBRARY: "make cpp"}
RECORDED = (KEYFRAMES, PANDASET, KITTI_WEIGHTS)


# Name, which is that of the function -> file, and what it needs.
BENCHMARKS: dict[str, tuple[str, tuple[Path, ...]]] = {
    "ceiling": ("bench_ceiling", (KEYFRAMES,)),
    "cpp": ("bench_cpp", (LIBRARY, BUNDLE, CHANGING)),
    "drive": ("bench_drive", (BUNDLE,)),
    "evaluator": ("bench_evaluator", (KEYFRAMES,)),
    "fleet": ("bench_replay", (BUNDLE,)),
    "labels": ("bench_pandaset", (PANDASET, KITTI_WEIGHTS)),
    "loader": ("bench_loader", (MMDET3D, KEYFRAMES)),
    "map": ("bench_map", (CONDITIONS, DRIVES, CHANGING)),
    "mmdet3d": ("bench_mmdet3d", (MMDET3D, KEYFRAMES)),
    "modular": ("bench_networks", ()),
    "pandaset": ("bench_pandaset", (PANDASET, KITTI_WEIGHTS)),
    "pillars": ("bench_networks", ()),
    "precision": ("bench_precision", (CHECKPOINTS, DRIVES)),
    "replay": ("bench_replay", (BUNDLE,)),
    "tasks": ("bench_networks", ()),
    "train": ("bench_train", (DRIVES, PANDASET, KITTI_WEIGHTS)),
}


def missing(name: str) -> str:
    """Name what a benchmark lacks here, or nothing."""
    return ", ".join(
        f"{path} is not there ({MADE_BY.get(path, 'recorded data' if path in RECORDED else 'make demo')})"
        for path in BENCHMARKS[name][1]
        if not path.exists()
    )


def all_quick() -> int:
    """Exit code 1 if a benchmark ended otherwise than with its figures; what cannot run here is only named."""
    shutil.rmtree(QUICK, ignore_errors=True)
    lacking, failed = {name: missing(name) for name in BENCHMARKS}, []
    for name in (name for name, text in lacking.items() if not text):
        start = time.perf_counter()
        python = MMDET3D if MMDET3D in BENCHMARKS[name][1] else sys.executable
        done = subprocess.run(
            [python, __file__, name, "--quick", "--json"], stdout=subprocess.PIPE, text=True, check=False
        )
        wrong = [f"exit code {done.returncode}"] if done.returncode else list(lost_figures(name, done.stdout))
        failed += [f"{name}: {each}" for each in wrong]
        print(f"{time.perf_counter() - start:6.1f} s  {name}{': FAILED' if wrong else ''}", flush=True)
    print(*(f"not run: {name}: {text}" for name, text in lacking.items() if text), sep="\n")
    print(*(f"FAILED: {each}" for each in failed), sep="\n")
    return int(bool(failed))


def lost_figures(name: str, printed: str) -> Iterator[str]:
    """What README quotes of a benchmark and it does not print."""
    record = {name: {"figures": json.loads(printed.splitlines()[-1])}}
    for text in (text for text in QUOTED.values() if f"{{{name}." in text):
        try:
            fill(text, record)
        except (KeyError, TypeError) as error:
            yield f"README quotes a figure that it does not print: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=BENCHMARKS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.name is None:
        return all_quick() if arguments.quick else parser.error("give a NAME, or --quick for all")
    if text := missing(arguments.name):
        parser.error(text)
    # The others are not imported, because processes that a benchmark starts import this file again.
    module = importlib.import_module(BENCHMARKS[arguments.name][0])
    result = getattr(module, arguments.name)(arguments.quick)
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
