"""Benchmarks. Each alternates between all variants in one run, and reports medians.

python tools/bench.py ceiling --data ../shared/data/nuscenes --json
python tools/bench.py depth --json
python tools/bench.py evaluator --json
python tools/bench.py fleet --json
python tools/bench.py loader --data ../shared/data/nuscenes --json
python tools/bench.py mmdet3d --data ../shared/data/nuscenes --json
python tools/bench.py modular --config tiny
python tools/bench.py pandaset --json
python tools/bench.py pillars --json
python tools/bench.py replay --bundle runs/demo/bundle --json
python tools/bench.py runtime --frames 10000 --json
python tools/bench.py simulated --json
python tools/bench.py tables --json
python tools/bench.py tasks --json
python tools/bench.py precision --checkpoint runs/demo/run --json
python tools/bench.py train --json
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # like the `perception` command

SUBJECTS = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the subject; --help lists them")
    given = parser.parse_args()
    # The others are not imported, because processes that a benchmark starts import this file again.
    module = importlib.import_module(f"bench_{given.subject}")
    what = (module.__doc__ or "").partition("\n")[0]
    command = argparse.ArgumentParser(prog=f"bench.py {given.subject}", description=what)
    module.add_options(command)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = command.parse_args(given.options)
    result = arguments.run(arguments)
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
