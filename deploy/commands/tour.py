"""The quick demo: a drive that changes, and the shipped network whose modules follow it. It trains nothing."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from deploy.networks import FOLDER
from deploy.recordings.drives import open_drives
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from perception.errors import InputError
from perception.frame import Conditions
from perception.io.files import make_folder, write_atomically
from perception.simulate.nuscenes_writer import VERSION
from perception.simulate.simulate import Run, simulate

BASE = "clear"
# Each module is named after the condition that it runs under.
DOMAINS = {BASE: "clear-day-boston", "singapore": "clear-day-singapore", "fog": "fog-day-boston"}
MODULES = tuple(name for name in DOMAINS if name != BASE)
CHANGING = "/".join((DOMAINS[BASE], DOMAINS["fog"], DOMAINS[BASE]))  # into fog and out of it
KEYFRAMES = 24  # of the changing drive
SUMMARY = "summary.json"
# What a demo writes, and all that it removes of an earlier one.
WRITTEN = ("drives", "changing", "run", *MODULES, "conditions", "before", "after", "bundle", "replay", SUMMARY)
MARK = "demo"  # key of `SUMMARY`, in no other summary: which demo it is


def tour(out: Path) -> dict[str, Any]:
    """Simulate a drive that changes, and replay it through the shipped network `demo`.

    changing/  the drive
    replay/    the replay, with report.html
    summary.json
    """
    console, start = Console(), time.perf_counter()
    bundle, drives = FOLDER / "demo", out / "changing"
    clear(out, "quick")
    console.rule("1  simulate a drive from clear weather into fog and out of it")
    simulate_shown(drives, 1, KEYFRAMES, 1, [CHANGING], console)
    console.rule("2  perceive it: the network recognises the weather and switches its modules")
    switches = _switches(bundle, drives)
    for seconds, modules in switches.items():
        console.print(f"{seconds:>7}  {modules}")
    console.rule("3  replay it, with latencies and a report")
    only_recognised = Settings(conditions=Conditions())
    replayed = replay(Source(drives, VERSION), bundle, out / "replay", only_recognised, console=console)
    summary = {
        MARK: "quick",
        "frames": replayed["frames"],
        "modules": switches,
        "seconds": round(time.perf_counter() - start, 1),
        "report": replayed["report"],
        "bundle": str(bundle),
    }
    write_atomically(out / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
    console.print(f"Open {Path(summary['report']).resolve()}", soft_wrap=True)
    return summary


def _switches(bundle: Path, drives: Path) -> dict[str, str]:
    """Time in the drive -> the modules that run from then on, as the network recognises the conditions."""
    runtime = Runtime(bundle)
    (drive,) = open_drives(drives, VERSION, (), runtime.bundle.spec, None)
    switches: dict[str, str] = {}
    start, latest = None, ""
    for frame in drive.frames():
        start = frame.timestamp if start is None else start
        route = runtime.step(replace(frame, conditions=Conditions())).route
        modules = ", ".join(name for name, module in route.items() if module.weight > 0) or "base"
        if modules != latest:
            switches[f"{1e-6 * (frame.timestamp - start):.1f} s"] = latest = modules
    return switches


def simulate_shown(out: Path, scenes: int, samples: int, seed: int, conditions: list[str], console: Console) -> None:
    """Call `simulate`, and show a progress bar of the keyframes."""
    with Progress(console=console) as progress:
        bar = progress.add_task("keyframes", total=scenes * samples)
        simulate(out, scenes, samples, seed, conditions, run=Run(progress=partial(progress.advance, bar)))


def clear(out: Path, mark: str) -> None:
    """Prepare `out` for a demo: remove an earlier one from it, and nothing else.

    Runs and drives of the user may have the same names, so a folder with any of them must say that it is a demo's. It
    says so by `SUMMARY`, which is written first for this reason.
    """
    existing = [out / name for name in WRITTEN if os.path.lexists(out / name)]
    if existing and not _is_demo(out / SUMMARY):
        raise InputError(f"{existing[0]}: is not of a demo, which would replace it; choose another --out")
    make_folder(out)
    write_atomically(out / SUMMARY, json.dumps({MARK: mark}).encode())
    for path in existing:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != SUMMARY:
                path.unlink()
        except OSError as error:
            raise InputError(f"{path}: cannot be removed ({error.strerror}); choose another --out") from None


def _is_demo(summary: Path) -> bool:
    try:
        content = json.loads(summary.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and MARK in content
