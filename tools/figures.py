"""Measure the figures that README quotes, and write docs/figures.md and README's table.

    python tools/figures.py            # all sections; `make figures` first runs what they need
    python tools/figures.py replay     # only one section
    python tools/figures.py --write    # measure nothing: write page and README again from docs/figures.json

docs/figures.json stores each section with its command, commit, date and machine; a section without a command here was a
study (CONTRIBUTING), whose command names its commit. tools/check_repository.py checks that page and README agree.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from perception.io.files import write_atomically

ROOT = Path(__file__).parents[1]
RECORD, PAGE, README = (ROOT / name for name in ("docs/figures.json", "docs/figures.md", "README.md"))
BENCHMARKS = (*("ceiling", "cpp", "evaluator", "modular", "pandaset", "pillars", "precision", "replay", "tasks"),)
# Section -> the command that prints its figures as a JSON object. `python` is that of this environment.
COMMANDS = {
    **{name: f"python tools/check_figures.py {name} --json" for name in ("demo", "overfit", "real")},
    **{name: f"python tools/bench.py {name} --json" for name in BENCHMARKS},
    **{name: f".venv-mmdet3d/bin/python tools/bench.py {name} --json" for name in ("loader", "mmdet3d")},
    "compile": "python tools/compile_matrix.py --json",
}
# What README quotes: description, and the figures in it as {section.key:format}.
QUOTED = {
    "demo, held-out simulated drives in clear weather, in streets of the training": "car AP {demo.car_ap:.3f}, mAP "
    "{demo.mAP:.3f}, NDS {demo.NDS:.3f}, drivable area IoU {demo.iou_drivable_area:.3f}",
    "demo, held-out drives without and with the module for their domain": "NDS in another city "
    "{demo.modules.singapore.base:.3f} to {demo.modules.singapore.with_module:.3f}, in fog "
    "{demo.modules.fog.base:.3f} to {demo.modules.fog.with_module:.3f}; the base keeps every bit",
    "four real keyframes, fitted from random weights": "car AP {overfit.fusion.car_ap:.3f} with LiDAR + cameras, "
    "{overfit.lidar.car_ap:.3f} with LiDAR, {overfit.camera.car_ap:.3f} with cameras; pedestrian AP "
    "{overfit.fusion.pedestrian_ap:.3f}, {overfit.lidar.pedestrian_ap:.3f}, {overfit.camera.pedestrian_ap:.3f}",
    "upper bound by grid and decoder: found of all objects in 81 real keyframes, from perfect outputs": "recall of "
    "pedestrians {ceiling.pedestrian:.3f}, motorcycles {ceiling.motorcycle:.3f}, bicycles {ceiling.bicycle:.3f}, cones "
    "{ceiling.traffic_cone:.3f}, cars {ceiling.car:.3f}, trucks {ceiling.truck:.3f}, buses {ceiling.bus:.3f}",
    "a module carries the demo's base to real keyframes": "car AP {real.before.car_ap:.3f} to "
    "{real.after.car_ap:.3f}, mAP of the classes present {real.before.mAP_present:.3f} to {real.after.mAP_present:.3f}",
    "a module carries a network for KITTI to PandaSet's car": "car AP {pandaset.zero_shot.car.ap:.3f} to "
    "{pandaset.adapted.car.ap:.3f}, recall at 1 m "
    "{pandaset.zero_shot.car.recall:.3f} to {pandaset.adapted.car.recall:.3f}, with "
    "{pandaset.adapted.trained_share:.1%} of the parameters",
    "depth of cameras on two real keyframes, trained on two others": "median relative error against the LiDAR with "
    "supervision: most likely depth {depth.without.most_likely:.2f} to {depth.with.most_likely:.2f}, expected depth "
    "{depth.without.expected:.2f} to {depth.with.expected:.2f}",
    "replay with all that it writes": "{replay.realtime_factor:.1f} times as fast as driven in FP32; the network alone "
    "{replay.network_alone_factor:.1f} times",
    "INT8 on a CPU: a frame of `nuscenes/centerpoint`; scores of the demo's network": "{precision.int8_speedup:.2f} "
    "times as fast as FP32; NDS lost: {precision.int8_nds_loss:.4f} in INT8, {precision.fp16_nds_loss:.4f} in FP16",
    "four modules on board, two tasks": "time x {modular.latency_ratio_banked:.2f}, memory x "
    "{modular.memory_ratio_banked:.2f}; folded x {modular.latency_ratio_folded:.2f}; a network for each instead x "
    "{modular.latency_ratio_separate:.2f}",
    "classes of points and occupancy besides detection and map, folded": "operations of `nuscenes/fusion` x "
    "{tasks.sized_operations.all:.3f}, time of `tiny` on a CPU x {tasks.cpu.all:.2f}",
    "both added to a frozen network, held-out simulated drives": "points mIoU {simulated.added.points_mIoU:.2f}; "
    "RayIoU {simulated.added.RayIoU:.2f}; unknown obstacles that the scene finds at one false alarm per 100 m "
    "{simulated.scene_obstacles.recall:.2f}; detection and map keep every digit",
    "CenterPoint, imported and exported, against mmdet3d": "{mmdet3d.fp32_speedup:.2f} times as fast in FP32, "
    "{mmdet3d.int8_speedup:.2f} in INT8, {mmdet3d.torch_speedup:.2f} in torch",
    "training samples of ten LiDAR sweeps and six pictures, against mmdet3d": "{loader.speedup:.1f} times as fast, "
    "{loader.speedup_cached:.1f} with decoded frames from the cache; where mmdet3d keeps pictures as bytes, "
    "{loader.against_mmdet3d_uint8.complete_reduced:.1f} and {loader.against_mmdet3d_uint8.complete_cached:.1f}",
    "scores without the devkit": "{evaluator.speedup:.1f} times as fast, the same to "
    "{evaluator.max_abs_difference:.0e}; as many samples as nuScenes' val in {evaluator.val_size_seconds:.0f} s",
    "tables of the size of v1.0-trainval": "open in {tables.first.open_seconds:.0f} s the first time, then in "
    "{tables.later.open_seconds:.1f} s",
    "ten LiDAR sweeps into pillars": "{pillars.points:,} points in {pillars.ms:.0f} ms of one core",
    "the demo's bundle in C++ beside Python, without the network": "a step takes "
    "{cpp.step_without_network_ratio:.2f} of the time, 300,000 points become pillars in {cpp.pillars_ms:.0f} instead "
    "of {cpp.pillars_python_ms:.0f} ms",
}
BEGIN, END = "<!-- figures: written by tools/figures.py -->\n", "<!-- /figures -->\n"

Record = dict[str, dict[str, Any]]


def measure(section: str, commit: str) -> dict[str, Any]:
    """Run a section's command; returns its figures with command, commit of the tree, date and machine."""
    command = COMMANDS[section]
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    print(f"{section}: {command}", file=sys.stderr, flush=True)
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{section}: `{command}` ended with {done.returncode}; the other sections stay as they were")
    return {
        "command": command,
        "commit": commit,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": machine(),
        "figures": json.loads(done.stdout.splitlines()[-1]),
    }


def machine() -> str:
    """Processor, cores and Python; the commit's locks say which packages."""
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    name = " ".join(processor[1].split()) if processor else platform.machine()
    return f"{name}, {os.cpu_count()} cores; Python {platform.python_version()}"


def page(record: Record) -> str:
    """docs/figures.md."""
    parts = ["# Figures\n\nWritten by `make figures`, from docs/figures.json. Ratios are medians of alternated runs.\n"]
    for section in sorted(record):
        entry = record[section]
        parts.append(
            f"## {section}\n\n    {entry['command']}\n\n"
            f"Commit {entry['commit']}, {entry['date']}. {entry['machine']}.\n\n{_table(entry['figures'])}"
        )
    return "\n".join(parts)


def _table(figures: Any) -> str:
    """A table with a row for each figure, or for each dict of a list of dicts with the same names."""
    head, rows = ["figure", "value"], [list(pair) for pair in flat(figures)]
    if isinstance(figures, list):
        head, rows = list(figures[0]), [list(each.values()) for each in figures]
    shown = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |\n" for row in shown]
    return lines[0] + "|---" * len(head) + "|\n" + "".join(lines[1:])


def quote(record: Record) -> str:
    """README's table of what was measured."""
    rows = []
    for what, text in QUOTED.items():
        section = text.partition("{")[2].partition(".")[0]
        if section in record:
            command = record[section]["command"].removesuffix(" --json")
            rows.append(f"| {what} | {fill(text, record)} | `{command}` |\n")
    return "| what | figures | command |\n|---|---|---|\n" + "".join(rows)


def with_block(readme: str, block: str) -> str:
    """README's text with the block between its two comments replaced."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + block + END + rest.split(END)[1]


def flat(figures: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name and value of every number and word in nested dicts and lists: `before.car_ap`, `rounds.0`."""
    if isinstance(figures, dict | list):
        for name, value in figures.items() if isinstance(figures, dict) else enumerate(figures):
            yield from flat(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, figures


def fill(text: str, record: Record) -> str:
    """The text with its figures."""

    def value_of(match: re.Match[str]) -> str:
        section, *keys = match[1].split(".")
        value = record[section]["figures"]
        for key in keys:
            value = value[key]
        return format(value, match[2])

    return re.sub(r"\{([\w.]+):([^}]*)\}", value_of, text)


def commit() -> str:
    """The commit of the tree, with `-dirty` if it has changes."""
    words = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=[], help=f"default: all of {', '.join(COMMANDS)}")
    parser.add_argument("--write", action="store_true", help="measure nothing, only write page and README")
    arguments = parser.parse_args()
    if unknown := sorted({*arguments.sections} - {*COMMANDS}):
        parser.error(f"no section {unknown[0]}; there are {', '.join(COMMANDS)}")
    record: Record = json.loads(RECORD.read_text())
    before = commit()
    for section in () if arguments.write else arguments.sections or COMMANDS:
        record[section] = measure(section, before)
        write_atomically(RECORD, (json.dumps(record, indent=1) + "\n").encode())
    write_atomically(PAGE, page(record).encode())
    write_atomically(README, with_block(README.read_text(), quote(record)).encode())


if __name__ == "__main__":
    main()
