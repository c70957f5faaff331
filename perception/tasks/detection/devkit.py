"""Scores of a submission by an official devkit: mAP, NDS, true-positive errors, AP per class."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from perception.errors import InputError
from perception.io.files import strict
from perception.tasks.detection.submission_reader import read_samples


@dataclass(frozen=True)
class Devkit:
    """An official devkit: nuScenes', or one that was made of it and has the same modules."""

    package: str
    tables: str  # class of its tables
    distribution: str
    protocol: str  # of its detection task
    tracking: bool  # whether it scores tracks

    @property
    def version(self) -> str:
        return version(self.distribution)

    def require(self) -> None:
        """Raise InputError with instructions if it is not installed; only its own scores need it."""
        if find_spec(self.package) is None:
            raise InputError(
                f"the official devkit is not installed; `pip install 'tessera-perception[devkit]' && pip install "
                f"--no-deps --ignore-requires-python {self.distribution} motmetrics` installs it beside any numpy"
            )

    def module(self, name: str) -> Any:
        """Its module eval.NAME; importing takes a second."""
        return import_module(f"{self.package}.eval.{name}")


DEVKITS = {
    "nuscenes": Devkit("nuscenes", "NuScenes", "nuscenes-devkit", "detection_cvpr_2019", tracking=True),
    "truckscenes": Devkit("truckscenes", "TruckScenes", "truckscenes-devkit", "detection_cvpr_2024", tracking=False),
}
NUSCENES = DEVKITS["nuscenes"]


def open_devkit(dataroot: Path, version: str, devkit: Devkit = NUSCENES) -> Any:
    """The devkit's tables; takes seconds for the mini set, a minute for the full data set.

    Raises:
        InputError: the devkit is not installed, or does not accept the dataroot.
    """
    devkit.require()
    tables = getattr(import_module(devkit.package), devkit.tables)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TruckScenes' names what it does not draw with
            return tables(version=version, dataroot=str(dataroot), verbose=False)
    except (AssertionError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()) or error.__class__.__name__
        raise InputError(f"{dataroot}: {devkit.distribution} cannot load {version}: {reason}") from None


def score_submission(
    submission: Path, tables: Any, samples: Sequence[str], devkit: Devkit = NUSCENES
) -> dict[str, Any]:
    """Score the predictions for `samples` with the devkit's DetectionEval, as if there were no other samples.

    Predictions for other samples are ignored.

    Args:
        tables: the devkit's.

    Returns:
        A dict for strict JSON, with None for undefined values such as a cone's velocity error.
        `mAP`, `NDS`; `mAP_present`: mean AP over the classes with at least one annotated box after the devkit's filter,
        None without any; `ground_truth`: number of boxes per class; and under the devkit's names `label_aps` (per class
        and matching distance), `mean_dist_aps` (AP per class), `label_tp_errors`, `tp_errors`, `tp_scores`. Errors are
        metres, 1 - IoU, radians, m/s and 1 - accuracy.

    Raises:
        InputError: the file is no submission, or some of the samples have no entry in it.
    """
    evaluation = object.__new__(devkit.module("detection.evaluate").DetectionEval)  # without its folder of plots
    evaluation.cfg = devkit.module("common.config").config_factory(devkit.protocol)
    evaluation.verbose = False
    box_type = devkit.module("detection.data_classes").DetectionBox
    boxes = boxes_to_compare(submission, tables, samples, evaluation.cfg, box_type, devkit)
    evaluation.pred_boxes, evaluation.gt_boxes = boxes
    evaluation.pred_boxes_masks = evaluation.gt_boxes_masks = {}  # TruckScenes': by tags of scenes
    metrics, _ = evaluation.evaluate()
    summary = metrics.serialize()
    summary = summary.get("all", summary)  # TruckScenes': of all tags
    counts = Counter(box.detection_name for box in evaluation.gt_boxes.all)
    present = [ap for name, ap in summary["mean_dist_aps"].items() if counts[name]]
    return strict(
        {
            "mAP": summary["mean_ap"],
            "NDS": summary["nd_score"],
            "mAP_present": sum(present) / len(present) if present else None,
            "ground_truth": {name: counts[name] for name in summary["mean_dist_aps"]},
        }
        | {key: summary[key] for key in ("label_aps", "mean_dist_aps", "label_tp_errors", "tp_errors", "tp_scores")}
    )


def boxes_to_compare(
    submission: Path, tables: Any, samples: Sequence[str], config: Any, box_type: Any, devkit: Devkit = NUSCENES
) -> tuple[Any, Any]:
    """Predictions and annotations of `samples` after the devkit's filter by range, points inside and bicycle racks.

    Args:
        tables: the devkit's.
        config: of the devkit, for the task.
        box_type: DetectionBox or TrackingBox of the devkit.

    Raises:
        InputError: the file is no submission, some of the samples have no entry in it, or the drives are of a vehicle
            without the sensor from which the devkit measures distances.
    """
    loaders = devkit.module("common.loaders")
    predictions = _load(submission, samples, box_type, devkit)
    load_annotations = getattr(loaders, "load_gt_of_sample_tokens", None) or partial(_annotations, devkit)
    with contextlib.redirect_stderr(io.StringIO()):  # for a progress bar that `verbose` does not disable
        annotations = load_annotations(tables, list(samples), box_type)
    try:
        return _filtered(loaders, tables, predictions, config), _filtered(loaders, tables, annotations, config)
    except KeyError as error:
        raise InputError(
            f"{tables.dataroot}: {devkit.distribution} measures distances from the sensor {error}, which these drives "
            "do not have; leave out --official"
        ) from None


def _filtered(loaders: Any, tables: Any, boxes: Any, config: Any) -> Any:
    """The devkit's filter by class range, points inside and bicycle racks."""
    if not boxes.all:  # filter_eval_boxes raises without any box
        return boxes
    return loaders.filter_eval_boxes(tables, loaders.add_center_dist(tables, boxes), config.class_range)


def _load(submission: Path, samples: Sequence[str], box_type: Any, devkit: Devkit) -> Any:
    """The predictions for `samples` in the order of the file, by which the devkit breaks ties of scores."""
    selected = dict(read_samples(submission, set(samples)))
    try:
        return devkit.module("common.data_classes").EvalBoxes.deserialize(selected, box_type)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{submission}: a box is malformed: {error!r}") from None


def _annotations(devkit: Devkit, tables: Any, samples: Sequence[str], box_type: Any) -> Any:
    """As load_gt of a devkit that loads the annotations of its own splits only."""
    name_of = devkit.module("detection.utils").category_to_detection_name
    attributes = {row["token"]: row["name"] for row in tables.attribute}
    boxes = devkit.module("common.data_classes").EvalBoxes()
    for sample in samples:
        rows = [tables.get("sample_annotation", token) for token in tables.get("sample", sample)["anns"]]
        found = [
            box_type(
                sample_token=sample,
                translation=row["translation"],
                size=row["size"],
                rotation=row["rotation"],
                velocity=tables.box_velocity(row["token"])[:2],
                num_pts=row["num_lidar_pts"] + row["num_radar_pts"],
                detection_name=name_of(row["category_name"]),
                attribute_name=next((attributes[token] for token in row["attribute_tokens"]), ""),
            )
            for row in rows
            if name_of(row["category_name"]) is not None
        ]
        boxes.add_boxes(sample, found)
    return boxes
