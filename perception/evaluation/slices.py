"""Scores by condition, city, scene and range: where a model is good, and where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from perception.errors import InputError
from perception.evaluation.annotated import Annotated
from perception.frame import CLASSES, CONDITIONS, MAP_CLASSES
from perception.tasks.detection.columns import BoxColumns
from perception.tasks.detection.scores import DetectionScores
from perception.tasks.map.counts import ious, rings

RANGES = ((0.0, 20.0), (20.0, 30.0), (30.0, 50.0))  # m from the vehicle
AXES = ("condition", "city", "scene", "range")


def check_axes(by: Sequence[str]) -> None:
    """Raises InputError where there is nothing of that name to slice by."""
    for axis in by:
        if axis not in AXES:
            raise InputError(f"--by {axis}: cannot slice by it; one or more of {','.join(AXES)}")


def slice_scores(
    annotated: Annotated, detections: BoxColumns, counts: Mapping[int, np.ndarray], by: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores of each part of the frames, or of all frames within a range, as if that part were all there is.

    Args:
        detections: those that count.
        counts: by frame (3, 6, rings) of the map's cells, see count_rings; of frames that have a map.
        by: which of AXES. `condition` is weather and light; a frame of which one is not known is in no part of it.

    Returns:
        By axis and part: `samples`, `boxes` (annotated ones that count), and as the devkit computes them `mAP`, `NDS`,
        `mAP_present` (mean over the classes that are annotated there) and `AP` by class; `iou` of the map at 0.5 by
        class and `mean`. None where nothing is annotated.

    Raises:
        InputError: the frames have no annotations.
    """
    truth = annotated.truth()
    every = np.ones(len(annotated.tokens), bool)
    cells = np.zeros((len(every), *next(iter(counts.values()), np.zeros((3, 6, 1))).shape), np.int64)
    for frame, each in counts.items():
        cells[frame] = each
    slices: dict[str, dict[str, dict[str, Any]]] = {}
    for axis in by:
        if axis != "range":
            slices[axis] = {name: _scores(truth, detections, cells, part) for name, part in _parts(annotated, axis)}
            continue
        slices[axis] = {}
        for bounds in RANGES:
            near, found = (boxes.select(boxes.within(bounds, annotated.egos)) for boxes in (truth, detections))
            name = "{:g}-{:g} m".format(*bounds)
            slices[axis][name] = _scores(near, found, cells[..., rings(bounds)], every)
    return slices


def _parts(annotated: Annotated, axis: str) -> Iterator[tuple[str, np.ndarray]]:
    """Name and frames (F,) bool of each part that there is."""
    if axis == "scene":
        scenes = np.array(annotated.scenes)
        yield from ((str(name), scenes == name) for name in np.unique(scenes))
        return
    for kind in ("city",) if axis == "city" else ("weather", "light"):
        known = np.array([getattr(conditions, kind) for conditions in annotated.conditions])
        yield from ((value, known == value) for value in CONDITIONS[kind] if (known == value).any())


def _scores(truth: BoxColumns, detections: BoxColumns, cells: np.ndarray, frames: np.ndarray) -> dict[str, Any]:
    truth, detections = (boxes.select(frames[boxes.frames]) for boxes in (truth, detections))
    matched = DetectionScores(truth, detections, np.zeros(len(frames), np.int64))
    scored, present = matched.scored(), matched.annotated.any(axis=0)
    aps = scored.class_aps[0]
    shares = ious(cells[frames].sum(axis=(0, 3)))
    iou = {name: None if np.isnan(share) else float(share) for name, share in zip(MAP_CLASSES, shares, strict=True)}
    return {
        "samples": int(frames.sum()),
        "boxes": len(truth),
        "mAP": float(scored.mean_ap[0]) if present.any() else None,
        "NDS": float(scored.nds[0]) if present.any() else None,
        "mAP_present": float(aps[present].mean()) if present.any() else None,
        "AP": {name: float(ap) if there else None for name, ap, there in zip(CLASSES, aps, present, strict=True)},
        "iou": iou | {"mean": None if np.isnan(shares).all() else float(np.nanmean(shares))},
    }


def slice_table(slices: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """A row for each part."""
    table = Table(title="by " + ", ".join(slices))
    table.add_column("part")
    for column in ("samples", "boxes", "mAP", "NDS", "mAP_present", "map IoU 0.5"):
        table.add_column(column, justify="right")
    for parts in slices.values():
        for name, part in parts.items():
            numbers = (part["mAP"], part["NDS"], part["mAP_present"], part["iou"]["mean"])
            shown = ("-" if number is None else f"{number:.3f}" for number in numbers)
            table.add_row(name, str(part["samples"]), str(part["boxes"]), *shown)
        table.add_section()
    return table
