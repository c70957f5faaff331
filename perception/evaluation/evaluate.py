"""Run a predictor over a split and score it: a nuScenes submission, nuScenes' metrics, IoU of the map."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from perception.atomic import write_atomically
from perception.datasets.keyframes import Keyframes
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.evaluation.annotated import Annotated
from perception.evaluation.robustness import chosen_corruptions, robustness, robustness_table
from perception.evaluation.slices import check_axes, slice_scores, slice_table
from perception.frame import CLASSES, MAP_CLASSES, Frame, Prediction
from perception.sensors.inputs import InputSpec
from perception.tasks.detection.columns import read_submission
from perception.tasks.detection.own_scores import score
from perception.tasks.detection.submission import SubmissionWriter
from perception.tasks.map.iou import MapIou

ERRORS = {"trans_err": "ATE", "scale_err": "ASE", "orient_err": "AOE", "vel_err": "AVE", "attr_err": "AAE"}


def evaluate(
    predictor: Callable[[Frame], Prediction],
    tables: Keyframes,
    split: str | None,
    selectors: Sequence[str],
    out: Path,
    spec: InputSpec,
    console: Console | None = None,
    by: Sequence[str] = (),
    corruptions: Sequence[str] = (),
) -> dict[str, Any]:
    """Score `predictor` on the samples of a split.

    One frame at a time is held, and read without its annotations. Samples without any sensor file are scored
    as well: the predictor gets a frame whose sensors are all missing.

    Args:
        split: official or custom split; None or "all" for every sample of the tables.
        selectors: of the split only these scenes or keyframes (see NuScenesTables.samples); empty for all.
        out: folder for `results_nusc.json`, the submission, and `metrics.json`, what is returned.
        spec: what the model sees; sensors that it lacks are not read.
        console: where progress and tables go; standard output by default.
        by: also score the parts of these axes, see `slices.AXES`.
        corruptions: also score under these, see `robustness.CORRUPTIONS`, or `all` of the model's sensors.

    Returns:
        `split`, `selectors`, `samples` (their number), the keys of `own_scores.score`, and `map`: what
        `MapIou.result` gives, None where there is no map or no map head; `slices` as `slice_scores` and `robustness`
        as the function of that name, where asked for. All of it is strict JSON.

    Raises:
        InputError: an unknown split, scene, axis or corruption, a damaged file, or a folder that cannot be written.
    """
    check_axes(by)
    console = console or Console()
    samples = tables.samples(split, selectors)
    submission = _folder(out) / "results_nusc.json"
    sensors = [name for name, part in (("lidar", spec.lidar), ("camera", spec.camera)) if part is not None]
    corruptions = chosen_corruptions(corruptions, sensors)
    iou, annotated = MapIou(), Annotated(tables, spec.grid)
    counts: dict[int, np.ndarray] = {}  # of the map's cells, by frame

    def frames(what: str) -> Iterator[Frame]:
        for token in track(samples, what, console=console, transient=True):
            yield tables.frame(
                token,
                spec.grid.reference,
                spec.sweeps,
                annotations=False,
                lidar="lidar" in sensors,
                cameras="camera" in sensors,
            )

    with SubmissionWriter(submission, sensors) as writer:
        for frame in frames("Evaluating"):
            prediction = predictor(frame)
            writer.add(frame, prediction)
            if (truth := annotated.map_truth(frame, prediction)) is not None:
                assert prediction.map_probabilities is not None
                iou.add(prediction.map_probabilities, truth)
                counts[len(annotated.tokens)] = annotated.map_counts(prediction, truth)
            annotated.add(frame)
    detections = annotated.counted(read_submission(submission, {token: i for i, token in enumerate(samples)}))
    with console.status("Scoring"):
        scores = score(annotated.truth(), detections, len(samples))
    metrics = {
        "split": split or "all",
        "selectors": list(selectors),
        "samples": len(samples),
        **scores,
        "map": iou.result(),
    }
    if by:
        metrics["slices"] = slice_scores(annotated, detections, counts, by)
    if corruptions:
        metrics["robustness"] = robustness(predictor, frames, annotated, corruptions, metrics["NDS"])
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False).encode())
    console.print(detection_table(metrics))
    if not isinstance(tables, NuScenesTables):
        console.print(f"{tables.version} knows no attributes: their error (AAE) counts as 1, up to 0.1 of NDS")
    if metrics["map"] is not None:
        console.print(map_table(metrics["map"]))
    if by:
        console.print(slice_table(metrics["slices"]))
    if corruptions:
        console.print(robustness_table(metrics["robustness"]))
    return metrics


def detection_table(metrics: dict[str, Any]) -> Table:
    """AP and true-positive errors per class, with mAP, NDS and mAP_present in the title."""
    summary = "  ".join(f"{key} {_number(metrics[key])}" for key in ("mAP", "NDS", "mAP_present"))
    table = Table(title=f"{metrics['split']}, {metrics['samples']} samples: {summary}", show_footer=True)
    table.add_column("class", footer="mean")
    table.add_column("boxes", str(sum(metrics["ground_truth"].values())), justify="right")
    table.add_column("AP", _number(metrics["mAP"]), justify="right")
    for error, short in ERRORS.items():
        table.add_column(short, _number(metrics["tp_errors"][error]), justify="right")
    for name in CLASSES:
        errors = metrics["label_tp_errors"][name]
        table.add_row(
            name,
            str(metrics["ground_truth"][name]),
            _number(metrics["mean_dist_aps"][name]),
            *(_number(errors[error]) for error in ERRORS),
        )
    return table


def map_table(ious: dict[str, dict[str, float | None]]) -> Table:
    """IoU per map class: the best over BEVFusion's thresholds, and at 0.5."""
    table = Table(title="map", show_footer=True)
    table.add_column("class", footer="mean")
    table.add_column("IoU max", _number(ious["iou_max"]["mean"]), justify="right")
    table.add_column("IoU 0.5", _number(ious["iou_0.5"]["mean"]), justify="right")
    for name in MAP_CLASSES:
        table.add_row(name, _number(ious["iou_max"][name]), _number(ious["iou_0.5"][name]))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot make the folder ({error.strerror}); choose another --out") from None
    return out
