"""Runs a predictor over a split and scores it by the metrics of its tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.evaluation.comparison import LEFT_OUT, leave_scenes_out
from perception.evaluation.predictions import Predicted, Predictor, predictions
from perception.evaluation.report import REPORT, is_report, report_page
from perception.evaluation.robustness import (
    Level,
    apply_corruption,
    choose_corruptions,
    levels_of,
    robustness,
    robustness_table,
)
from perception.evaluation.slices import Evaluated, Known, check_axes, slice_scores, slice_table
from perception.io.files import make_folder, write_together
from perception.sensors.inputs import InputSpec
from perception.tasks import TASKS
from perception.tasks.metric import CountedFrames, Unmeasured
from perception.tasks.task import FrameWriter


class Breakdown(NamedTuple):
    """Scores besides those of the whole split."""

    by: Sequence[str] = ()  # axes to slice by, see `slices.AXES`
    corruptions: Sequence[str] = ()  # see `robustness.CORRUPTIONS`; `all` for those of the model's sensors
    left_out: bool = False  # also write `left_out.json`, by which evaluations are compared
    report: bool = False  # also write `report.html`


def evaluate(
    predictor: Predictor,
    tables: Keyframes,
    split: str | None,
    selectors: Sequence[str],
    out: Path,
    spec: InputSpec,
    console: Console | None = None,
    breakdown: Breakdown = Breakdown(),  # noqa: B008 - it is immutable
) -> dict[str, Any]:
    """Score `predictor` on the samples of a split.

    Frames are read one at a time or in the batches of the predictor. Samples without any sensor file are scored as
    well, as frames with all sensors missing.

    Args:
        split: official or custom split; None or "all" for all samples of the tables.
        selectors: scenes or keyframes of the split (see NuScenesTables.samples); empty for all.
        out: folder for `metrics.json`, the returned scores, and the tasks' submissions, such as `results_nusc.json`.
            What an earlier evaluation wrote there for comparisons and as a report is replaced or removed.
        spec: inputs of the model, and the truth that its tasks are scored by; nothing else is read.

    Returns:
        `split`, `selectors`, `samples` (their number), the scores of each task (`Metric.report`) and, if requested,
        `slices` as returned by `slice_scores` and `robustness` as returned by `robustness`; all strict JSON.
    """
    check_axes(breakdown.by, tables.taxonomy.conditions)
    console = console or Console()
    samples = tables.samples(split, selectors)
    corruptions = choose_corruptions(breakdown.corruptions, tuple(spec.configs))
    reads, cameras = spec.reads._replace(truth=spec.truth), spec.rig.sensors.cameras
    frames = _show_progress(predictions(predictor, tables, reads, samples), samples, "Evaluating", console)
    evaluated = _count(frames, tables, spec, samples, make_folder(out))
    scores: dict[str, Any] = {"split": split or "all", "selectors": list(selectors), "samples": len(samples)}
    with console.status("Scoring"):
        try:
            for counted in evaluated.counted.values():
                scores |= counted.report()
        except Unmeasured as why:
            raise InputError(f"{tables.dataroot}: {tables.version} has {why}") from None
    if breakdown.by:
        scores["slices"] = slice_scores(evaluated, breakdown.by)
    if corruptions:
        parts: dict[Level, dict[str, Any]] = {}
        for each in levels_of(corruptions, cameras):
            changed = reads._replace(
                change=partial(apply_corruption, name=each.name, level=each.level, cameras=cameras)
            )
            frames = _show_progress(predictions(predictor, tables, changed, samples), samples, each.title, console)
            parts[each] = _count(frames, tables, spec, samples).part()
        main = next((metric.main for metric in evaluated.metrics if metric.main), None)
        scores["robustness"] = robustness(main, evaluated.part(), parts)
    _write(out, scores, evaluated, breakdown)
    _print(scores, evaluated, console)
    return scores


def _show_progress(predicted: Predicted, samples: Sequence[str], what: str, console: Console) -> Predicted:
    return iter(track(predicted, what, total=len(samples), console=console, transient=True))


def _count(
    predicted: Predicted, tables: Keyframes, spec: InputSpec, samples: Sequence[str], out: Path | None = None
) -> Evaluated:
    """Count the frames by the metrics of the tasks that were predicted in them."""
    known, counted, writers = list[Known](), dict[str, CountedFrames[Any]](), dict[str, FrameWriter]()
    with ExitStack() as files:
        for frame, prediction in predicted:
            for task, result in prediction.results.items():
                if task not in counted:
                    counted[task] = CountedFrames(TASKS[task].metric(tables.taxonomy, spec.grid))
                    submission = (
                        None if out is None else TASKS[task].submission(out, tuple(spec.configs), tables.taxonomy)
                    )
                    if submission is not None:
                        writers[task] = files.enter_context(submission)
                counted[task].add(frame, result)
                if task in writers:
                    writers[task].add(frame, result, None)
            known.append(Known(frame.scene, frame.conditions))
    return Evaluated(tables, samples, known, counted)


def _write(out: Path, scores: dict[str, Any], evaluated: Evaluated, breakdown: Breakdown) -> None:
    """Write metrics.json and the other files of the evaluation; those of an earlier one do not stay beside them."""
    files = {out / "metrics.json": json.dumps(scores, indent=2, allow_nan=False).encode()}
    if breakdown.left_out:
        files[out / LEFT_OUT] = leave_scenes_out(evaluated, breakdown.by).model_dump_json().encode()
    if breakdown.report:
        files[out / REPORT] = report_page(scores, evaluated).encode()
    write_together(files)
    for name, task in TASKS.items():
        if task.submitted is not None and name not in evaluated.counted:
            (out / task.submitted).unlink(missing_ok=True)
    if not breakdown.left_out:
        (out / LEFT_OUT).unlink(missing_ok=True)
    if not breakdown.report and is_report(out / REPORT):
        (out / REPORT).unlink()


def _print(scores: dict[str, Any], evaluated: Evaluated, console: Console) -> None:
    tables = evaluated.tables
    console.print(f"{scores['split']}, {scores['samples']} samples")
    for metric in evaluated.metrics:
        for table in metric.tables(scores):
            console.print(table)
    if tables.taxonomy.attributes and not tables.has_attributes:
        console.print(f"{tables.version} knows no attributes: their error (AAE) counts as 1, up to 0.1 of NDS")
    if "slices" in scores:
        console.print(slice_table(scores["slices"]))
    if "robustness" in scores:
        console.print(robustness_table(scores["robustness"]))
