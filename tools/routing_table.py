"""Scores of three ways to route on drives whose conditions change: fixed to clear, by tags, by recognition.

make demo                                                   # a base and a module for rain
perception simulate runs/routing/drives --scenes 48 --samples 5 --seed 1 \\
  --conditions clear-day-boston,rain-day-boston,clear-night-boston,rain-night-boston
perception adapt runs/demo/run --add low_rank:night --slots 'trunk.*' --data runs/routing/drives --conditions night \\
  --out runs/routing/night
perception adapt runs/routing/night --task conditions --steps 600 --data runs/routing/drives \\
  --out runs/routing/recognised
perception export runs/routing/recognised --routes base,rain,night,rain+night --out runs/routing/bundle
perception simulate runs/routing/changing --scenes 2 --samples 36 --seed 2 \\
  --conditions clear-day-boston/rain-day-boston/rain-night-boston
python tools/routing_table.py --bundle runs/routing/bundle --data runs/routing/changing --out runs/routing/table
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.runtime import Runtime
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.tables import only_version
from perception.errors import InputError
from perception.evaluation.evaluate import evaluate
from perception.frame import Conditions, Frame, Prediction

ROUTING = {
    "fixed to clear": Conditions(weather="clear", light="day"),
    "by tags": None,
    "by what is recognised": Conditions(),
}
# As tagged: share of frames whose believed weather and light are those of the tags. Delay: longest time from a change
# of the tags until it is believed; none if it never is. Switches: changes of the belief.
COLUMNS = ("mAP", "NDS", "mIoU", "as tagged", "delay, s", "switches", "changes")


class Driven:
    """A predictor that runs the runtime with given conditions, and records what it believes.

    Args:
        conditions: for every frame instead of its tags; None: the tags.
    """

    def __init__(self, runtime: Runtime, conditions: Conditions | None) -> None:
        self.runtime, self.conditions = runtime, conditions
        self.driven: list[tuple[Frame, Conditions]] = []  # frames, and the believed conditions

    def __call__(self, frame: Frame) -> Prediction:
        seen = self.runtime.step(frame if self.conditions is None else replace(frame, conditions=self.conditions))
        self.driven.append((replace(frame, points=None, cameras={}), seen.conditions))
        return seen.prediction

    def summary(self) -> dict[str, Any]:
        """How the believed weather and light, which select the modules, followed the tags."""
        delays: list[float | None] = []
        switches = changes = right = 0
        for kind in ("weather", "light"):
            for (before, was), (frame, believed) in zip(self.driven, self.driven[1:], strict=False):
                if before.scene != frame.scene:
                    continue
                old, new = (each.get(kind) for each in (was, believed))
                switches += old is not None and old != new
                if before.conditions.get(kind) != frame.conditions.get(kind):
                    changes += 1
                    delays.append(self._delay(frame, kind))
        for frame, believed in self.driven:
            right += all(frame.conditions.get(kind) == believed.get(kind) for kind in ("weather", "light"))
        longest = None if None in delays or not delays else max(each for each in delays if each is not None)
        return {
            "as tagged": right / len(self.driven),
            "delay, s": longest,
            "switches": switches,
            "changes": changes,
        }

    def _delay(self, first: Frame, kind: str) -> float | None:
        """The time (s) from the first frame under a new condition until it is believed; None: never."""
        tag = first.conditions.get(kind)
        for frame, believed in self.driven:
            if frame.scene == first.scene and frame.timestamp >= first.timestamp:
                if frame.conditions.get(kind) != tag:
                    return None
                if believed.get(kind) == tag:
                    return 1e-6 * (frame.timestamp - first.timestamp)
        return None


def measured(
    bundle: Path, tables: NuScenesTables, split: str, out: Path, conditions: Conditions | None
) -> dict[str, Any]:
    """One row of the table."""
    runtime = Runtime(bundle)  # a new one, since the drives are repeated
    driven = Driven(runtime, conditions)
    metrics = evaluate(driven, tables, split, (), out, runtime.bundle.spec, Console(quiet=True))
    iou = metrics["map"]["iou_max"]["mean"] if metrics.get("map") else None
    return {"mAP": metrics["mAP"], "NDS": metrics["NDS"], "mIoU": iou, **driven.summary()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="exported with --routes, with a recogniser")
    parser.add_argument("--data", type=Path, required=True, help="dataroot of annotated drives")
    parser.add_argument("--out", type=Path, required=True, help="folder for the submissions and metrics")
    parser.add_argument("--version", help="default: the only one")
    parser.add_argument("--split", default="all")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        tables = NuScenesTables(arguments.data, arguments.version or only_version(arguments.data))
        found = {
            name: measured(
                arguments.bundle, tables, arguments.split, arguments.out / name.replace(" ", "_"), conditions
            )
            for name, conditions in ROUTING.items()
        }
    except InputError as error:
        parser.exit(2, f"{error}\n")
    if arguments.json:
        print(json.dumps(found))
        return
    frames = len(tables.samples(arguments.split))
    table = Table(title=f"{frames} keyframes of {arguments.data}, {arguments.bundle}")
    table.add_column("route", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, line in found.items():
        table.add_row(name, *map(_shown, (line[column] for column in COLUMNS)))
    Console().print(table)


def _shown(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}" if isinstance(number, float) else str(number)


if __name__ == "__main__":
    main()
