"""Simulate the coverage and the false passes of a verdict's interval, by number of scenes.

    python tools/coverage_table.py

`covers` is the share of 95 % intervals that contain the true change, and should be 0.95. `passes` is the share of
replays that pass although their loss is as large as the margin, and should be 0.025. Both are of the replays with an
interval; `decided` is their share. The last columns are for the percentile bootstrap over scenes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from drawn_scenes import Drawn, detection, gaussian, heavy_tails, iou, skewed
from rich.console import Console
from rich.table import Table

SCENES = (2, 3, 4, 5, 8, 12, 20, 40)
KINDS: dict[str, Callable[[np.random.Generator, int, int], Drawn]] = {
    "normal": gaussian,
    "t of 3 degrees": heavy_tails,
    "exponential losses": skewed,
    "mean IoU": iou,
}


def interval_shares(intervals: np.ndarray, truth: float) -> tuple[float, float, float]:
    """The share of samples with an interval, and of intervals that contain the truth or pass falsely."""
    given = intervals[~np.isnan(intervals[:, 0])]
    covered = (given[:, 0] <= truth) & (truth <= given[:, 1])
    share = len(given) / len(intervals)
    return (share, float(covered.mean()), float((given[:, 0] > truth).mean())) if len(given) else (0.0, np.nan, np.nan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4000, help="samples of scenes; of mAP and NDS a twentieth")
    parser.add_argument("--resamples", type=int, default=200, help="of the percentile bootstrap")
    arguments = parser.parse_args()
    table = Table(title=f"{arguments.repeats} samples, seed 0")
    for column in ("changes", "scenes", "decided", "covers", "passes", "percentile covers", "passes"):
        table.add_column(column, justify="left" if column == "changes" else "right")
    for name, draw in KINDS.items():
        for scenes in SCENES:
            rng = np.random.default_rng(0)
            drawn = draw(rng, arguments.repeats, scenes)
            old = interval_shares(drawn.percentile(arguments.resamples, rng), drawn.truth)[1:]
            table.add_row(*row(name, scenes, drawn), *(f"{share:.3f}" for share in old))
        table.add_section()
    for count in (40, 20):
        for scenes in SCENES[:-1]:  # without the bootstrap, which would have to score each resample
            both = detection(np.random.default_rng(0), max(1, arguments.repeats // 20), scenes, count)
            for name, drawn in zip(("mAP", "NDS"), both, strict=True):
                table.add_row(*row(f"{name} of {count} drives", scenes, drawn), "-", "-")
        table.add_section()
    Console(width=100).print(table)


def row(name: str, scenes: int, drawn: Drawn) -> list[str]:
    shares = interval_shares(drawn.jackknife(), drawn.truth)
    return [name, str(scenes), *("-" if np.isnan(share) else f"{share:.3f}" for share in shares)]


if __name__ == "__main__":
    main()
