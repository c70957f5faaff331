"""The report of an evaluation, and that of a comparison: single HTML files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perception.evaluation.evaluated import Evaluated
from perception.evaluation.slices import numbers, part_scores
from perception.page.single_file import single_file
from perception.strict_json import shown
from perception.tasks.metric import Metric, Sample

if TYPE_CHECKING:
    from rich.table import Table

REPORT = "report.html"  # in the folder of an evaluation
WORST = 24  # frames of each task


def report_page(scores: Mapping[str, Any], evaluated: Evaluated) -> str:
    """The page of an evaluation.

    Args:
        scores: as `evaluate` returns them.
    """
    metrics = evaluated.metrics.values()
    whole = numbers(part_scores(evaluated.metrics, np.ones(len(evaluated.known), bool)))
    scenes = len({each.scene for each in evaluated.known})
    return single_file(
        "perception.evaluation",
        {
            "title": "Evaluation",
            "about": f"{evaluated.tables.version}, {scores['split']}: {scores['samples']} keyframes of {scenes} scenes",
            "whole": whole,
            "amounts": [name for name, value in whole.items() if isinstance(value, int)],
            "main": [metric.main for metric in metrics if metric.main],
            "lowerIsBetter": [name for metric in metrics for name in metric.lower_is_better],
            "slices": {
                axis: {name: numbers(part) for name, part in parts.items()}
                for axis, parts in scores.get("slices", {}).items()
            },
            "curves": _curves(metrics),
            "corruptions": scores.get("robustness", {}).get("corruptions", {}),
            "worst": [
                {"task": task, "samples": [_worst(sample, evaluated) for sample in metric.worst(WORST)]}
                for task, metric in evaluated.metrics.items()
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
    return single_file("perception.evaluation", {"title": "Comparison", "about": about, "comparison": found})


def _curves(metrics: Iterable[Metric[Any]]) -> list[dict[str, Any]]:
    """Diagrams with their lines; (P, 2) points each."""
    diagrams: dict[str, dict[str, Any]] = {}
    for curve in (curve for metric in metrics for curve in metric.curves()):
        own = diagrams.setdefault(curve.diagram, {"title": curve.diagram, "axes": curve.axes, "lines": []})
        points = np.column_stack([curve.x, curve.y]).round(5).tolist()
        own["lines"].append({"name": curve.name, "points": points})
    return [*diagrams.values()]


def _worst(sample: Sample, evaluated: Evaluated) -> dict[str, Any]:
    known = evaluated.known[sample.frame]
    return {
        "token": evaluated.tokens[sample.frame],
        "scene": known.scene,
        "conditions": ", ".join(known.conditions.known()),
        "values": sample.values,
        "text": ", ".join(f"{name} {shown(value)}" for name, value in sample.values.items()),
        "outlines": [
            {"kind": each.kind, "name": each.name, "corners": each.corners.round(2).tolist()}
            for each in sample.outlines
        ],
    }


def _table(table: Table) -> dict[str, Any]:
    """A table of the console as text."""
    rows = [*zip(*(column.cells for column in table.columns), strict=True)]
    return {
        "title": str(table.title or ""),
        "head": [str(column.header) for column in table.columns],
        "rows": [[str(cell) for cell in row] for row in rows],
        "foot": [str(column.footer) for column in table.columns] if table.show_footer else [],
    }
