"""Scores of a submission by the official nuScenes devkit: mAP, NDS, true-positive errors, AP per class."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perception.errors import InputError
from perception.strict_json import strict
from perception.tasks.detection.submission_reader import read_samples

if TYPE_CHECKING:  # the devkit takes a second to import
    from nuscenes import NuScenes
    from nuscenes.eval.common.data_classes import EvalBoxes

PROTOCOL = "detection_cvpr_2019"


def require_devkit() -> None:
    """Raise InputError with instructions if the devkit is not installed; only its own scores need it."""
    if find_spec("nuscenes") is None:
        raise InputError(
            "the official nuScenes devkit is not installed; `pip install 'tessera-perception[devkit]' && "
            "pip install --no-deps nuscenes-devkit motmetrics` installs it beside any numpy"
        )


def open_devkit(dataroot: Path, version: str) -> NuScenes:
    """The devkit's tables; takes seconds for the mini set, a minute for the full data set.

    Raises:
        InputError: the devkit is not installed, or does not accept the dataroot.
    """
    require_devkit()
    from nuscenes import NuScenes

    try:
        return NuScenes(version=version, dataroot=str(dataroot), verbose=False)
    except (AssertionError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()) or error.__class__.__name__
        raise InputError(f"{dataroot}: the nuScenes devkit cannot load {version}: {reason}") from None


def score_submission(submission: Path, nusc: NuScenes, samples: Sequence[str]) -> dict[str, Any]:
    """Score the predictions for `samples` with the devkit's DetectionEval, as if there were no other samples.

    Predictions for other samples are ignored.

    Returns:
        A dict for strict JSON, with None for undefined values such as a cone's velocity error.
        `mAP`, `NDS`; `mAP_present`: mean AP over the classes with at least one annotated box after the devkit's filter,
        None without any; `ground_truth`: number of boxes per class; and under the devkit's names `label_aps` (per class
        and matching distance), `mean_dist_aps` (AP per class), `label_tp_errors`, `tp_errors`, `tp_scores`. Errors are
        metres, 1 - IoU, radians, m/s and 1 - accuracy.

    Raises:
        InputError: the file is no submission, or some of the samples have no entry in it.
    """
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval

    class SampleEval(DetectionEval):
        """DetectionEval on given samples, without its folder of plots."""

        def __init__(self) -> None:
            self.cfg = config_factory(PROTOCOL)
            self.verbose = False
            self.pred_boxes, self.gt_boxes = boxes_to_compare(submission, nusc, samples, self.cfg, DetectionBox)

    evaluation = SampleEval()
    metrics, _ = evaluation.evaluate()
    summary = metrics.serialize()
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
    submission: Path, nusc: NuScenes, samples: Sequence[str], config: Any, box_type: Any
) -> tuple[EvalBoxes, EvalBoxes]:
    """Predictions and annotations of `samples` after the devkit's filter by range, points inside and bicycle racks.

    Args:
        config: of the devkit, for the task.
        box_type: DetectionBox or TrackingBox of the devkit.

    Raises:
        InputError: the file is no submission, or some of the samples have no entry in it.
    """
    from nuscenes.eval.common.loaders import load_gt_of_sample_tokens

    predictions = _load(submission, samples, box_type)
    with contextlib.redirect_stderr(io.StringIO()):  # for a progress bar that `verbose` does not disable
        annotations = load_gt_of_sample_tokens(nusc, list(samples), box_type)
    return _filtered(nusc, predictions, config), _filtered(nusc, annotations, config)


def _load(submission: Path, samples: Sequence[str], box_type: Any) -> EvalBoxes:
    """The predictions for `samples` in the order of the file, by which the devkit breaks ties of scores."""
    from nuscenes.eval.common.data_classes import EvalBoxes

    selected = dict(read_samples(submission, set(samples)))
    try:
        boxes = EvalBoxes.deserialize(selected, box_type)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{submission}: a box is malformed: {error!r}") from None
    return boxes


def _filtered(nusc: NuScenes, boxes: EvalBoxes, config: Any) -> EvalBoxes:
    """The devkit's filter by class range, points inside and bicycle racks."""
    from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes

    if not boxes.all:  # filter_eval_boxes raises without any box
        return boxes
    return filter_eval_boxes(nusc, add_center_dist(nusc, boxes), config.class_range)
