"""A run on its way to the vehicle: exported in FP32 and INT8, compiled, verified, and PandaSet replayed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from deploy.build import build
from deploy.export import export
from deploy.precision.calibrate import Drives
from deploy.replay.run import replay
from deploy.replay.settings import Source
from deploy.runtime import Runtime
from deploy.tolerances import Precision
from deploy.verify import verify
from perception.frame import Frame, Prediction

QUIET = Console(quiet=True)
TARGET = "rtx-ampere"  # compiles without a GPU


def on_the_vehicle(
    run: Path, data: Path, out: Path, calibrate: str, score: Callable[[Callable[[Frame], Prediction]], dict[str, Any]]
) -> dict[str, Any]:
    """Scores and size of the plan in both precisions, and of the whole drive's replay in INT8 its number of frames.

    Args:
        calibrate: selector of the frames for INT8.
        score: of a predictor.
    """
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    result: dict[str, Any] = {}
    for precision in precisions:
        drives = Drives(data, scenes=[calibrate]) if precision == "int8" else None
        bundle = export(run, out / precision, console=QUIET, precision=precision, calibration=drives)
        plan = build(bundle.path, TARGET, QUIET)
        verify(bundle.path)
        result[precision] = {**score(Runtime(bundle.path)), "plan_megabytes": plan.plan_bytes / 1e6}
    summary = replay(Source(data), out / "int8", out / "replay", console=QUIET)
    return {**result, "replayed_frames": summary["frames"]}
