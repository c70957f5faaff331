"""The report of an evaluation, and that of a comparison: single HTML files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perception.evaluation.slices import Evaluated, numbers
from perception.io.files import format_number
from perception.page import single_file
from perception.tasks.metric import CountedFrames

if TYPE_CHECKING:
    from rich.table import Table

REPORT = "report.html"  # in the folder of an evaluation
WORST = 24  # frames of each task


def report_page(scores: Mapping[str, Any], evaluated: Evaluated) -> str:
    """The page of an evaluation."""
    metrics, whole = evaluated.metrics, numbers(evaluated.part())
    scenes = len({each.scene for each in evaluated.known})
    return single_file(
        "perception.evaluation",
        "Evaluation",
        {
            "about": f"{evaluated.tables.version}, {scores['split']}: {scores['samples']} keyframes of {scenes} scenes",
            "whole": whole,
            "amounts": [name for name, value in whole.items() if isinstance(value, int)],
            "main": [metric.main for metric in metrics if metric.main],
            "lowerIsBetter": [name for metric in metrics for name in metric.lower_is_better],
            "slices": {
                axis: {name: numbers(part) for name, part in parts.items()}
                for axis, parts in scores.get("slices", {}).items()
            },
            "curves": _curves(evaluated.counted.values()),
            "corruptions": scores.get("robustness", {}).get("corruptions", {}),
            "worst": [
                {"task": task, "samples": _list_worst(own, evaluated)} for task, own in evaluated.counted.items()
            ],
            "tables": [_table(table) for metric in metrics for table in metric.tables(scores)],
        },
    )


def is_report(path: Path) -> bool:
    """Whether a file is the page of an evaluation; a replay's has the same name."""
    return path.is_file() and b"<title>Evaluation</title>" in path.read_bytes()[:400]


def comparison_page(found: Mapping[str, Any]) -> str:
    """The page of a comparison, the result of `comparison.compare`."""
    about = f"{found['after']} against {found['before']}: {found['keyframes']} keyframes of {found['scenes']} scenes"
    return single_file("perception.evaluation", "Comparison", {"about": about, "comparison": found})


def _curves(counted: Iterable[CountedFrames[Any]]) -> list[dict[str, Any]]:
    diagrams: dict[str, dict[str, Any]] = {}
    for curve in (curve for each in counted for curve in each.metric.curves(each.counts)):
        own = diagrams.setdefault(curve.diagram, {"title": curve.diagram, "axes": curve.axes, "lines": []})
        points = np.column_stack([curve.x, curve.y]).round(5).tolist()
        own["lines"].append({"name": curve.name, "points": points})
    return [*diagrams.values()]


def _list_worst(counted: CountedFrames[Any], evaluated: Evaluated) -> list[dict[str, Any]]:
    return [
        {
            "token": evaluated.tokens[sample.frame],
            "scene": (known := evaluated.known[sample.frame]).scene,
            "conditions": ", ".join(known.conditions.known()),
            "values": sample.values,
            "text": ", ".join(f"{name} {format_number(value)}" for name, value in sample.values.items()),
            "outlines": [
                {"kind": each.kind, "name": each.name, "corners": each.corners.round(2).tolist()}
                for each in sample.outlines
            ],
        }
        for sample in counted.metric.find_worst(counted.counts, WORST)
    ]


def _table(table: Table) -> dict[str, Any]:
    rows = [*zip(*(column.cells for column in table.columns), strict=True)]
    return {
        "title": str(table.title or ""),
        "head": [str(column.header) for column in table.columns],
        "rows": [[str(cell) for cell in row] for row in rows],
        "foot": [str(column.footer) for column in table.columns] if table.show_footer else [],
    }
