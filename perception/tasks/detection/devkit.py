"""Files of detections and tracks, and their scores by the official devkits."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console

from perception.datasets.keyframes import Keyframes
from perception.errors import InputError, install_hint
from perception.frame import Boxes, Frame
from perception.io.files import strict, write_atomically
from perception.tasks.detection.submission import (
    MAX_BOXES,
    ResultsWriter,
    SubmissionWriter,
    global_boxes,
    read_samples,
)
from perception.tasks.published import Tracks
from perception.taxonomy import Taxonomy

if TYPE_CHECKING:
    from nuscenes import NuScenes


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
                f"the official devkit is not installed; {install_hint('devkit')}, then `pip install --no-deps "
                f"--ignore-requires-python {self.distribution} motmetrics`, which works beside any numpy"
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
    """The devkit's tables; takes seconds for the mini set, a minute for the full data set."""
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

    Returns the names and numbers of `DetectionMetric.report`, as strict JSON, without the recalls.
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
    """Predictions and annotations of `samples` after the devkit's filter by range, points inside and bicycle racks."""
    loaders = devkit.module("common.loaders")
    predictions = _load(submission, samples, box_type, devkit)
    load_annotations = getattr(loaders, "load_gt_of_sample_tokens", None) or partial(_annotations, devkit)
    with contextlib.redirect_stderr(io.StringIO()):  # for a progress bar that `verbose` does not disable
        annotations = load_annotations(tables, list(samples), box_type)
    try:
        return _filter(loaders, tables, predictions, config), _filter(loaders, tables, annotations, config)
    except KeyError as error:
        raise InputError(
            f"{tables.dataroot}: {devkit.distribution} measures distances from the sensor {error}, which these drives "
            "do not have; leave out --official"
        ) from None


def _filter(loaders: Any, tables: Any, boxes: Any, config: Any) -> Any:
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


PROTOCOL = "tracking_nips_2019"
# Over all classes: the first six are means over those that occur, the others sums.
SCORES = ("amota", "amotp", "recall", "motar", "mota", "motp", "ids", "frag", "tp", "fp", "fn", "mt", "ml")


class TrackWriter(ResultsWriter):
    def add(self, sample: str, tracks: Tracks) -> None:
        """Append the detected tracks of one sample, of the classes that are `tracked`.

        Predicted but undetected tracks are omitted, because the devkit interpolates gaps itself. Unconfirmed tracks are
        written, because AMOTA ranks tracks by their scores, and their objects would be missed.
        """
        counts = np.array([each.tracked for each in self._taxonomy.classes])[tracks.boxes.labels]
        index = np.flatnonzero((tracks.unseen == 0) & counts)
        index = index[np.argsort(-tracks.boxes.scores[index], kind="stable")[:MAX_BOXES]]
        boxes, names = tracks.boxes.select(index), self._taxonomy.class_names
        entries = [
            box | {"tracking_id": str(track), "tracking_name": names[label], "tracking_score": score}
            for box, track, label, score in zip(
                global_boxes(sample, boxes),
                tracks.ids[index].tolist(),
                boxes.labels.tolist(),
                boxes.scores.tolist(),
                strict=True,
            )
        ]
        self.add_entries(sample, entries)


def score_tracks(submission: Path, nusc: NuScenes, samples: Sequence[str]) -> dict[str, Any]:
    """Score the tracks of `samples`, which have no gaps in a scene, with the devkit's TrackingEval.

    Returns SCORES over all classes, and those of each class in `label_metrics`, as strict JSON.
    """
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.tracking.data_classes import TrackingBox
    from nuscenes.eval.tracking.evaluate import TrackingEval
    from nuscenes.eval.tracking.loaders import create_tracks

    class SampleEval(TrackingEval):
        """TrackingEval on given samples, without its folder of plots."""

        def __init__(self) -> None:
            self.cfg = config_factory(PROTOCOL)
            self.output_dir, self.verbose, self.render_classes = "", False, None
            predictions, annotations = boxes_to_compare(submission, nusc, samples, self.cfg, TrackingBox)
            with TemporaryDirectory() as folder:
                scenes = _only_split(nusc, samples, Path(folder))
                self.tracks_gt = create_tracks(annotations, scenes, _SPLIT, gt=True)
                self.tracks_pred = create_tracks(predictions, scenes, _SPLIT, gt=False)

    metrics, _ = SampleEval().evaluate()
    summary = metrics.serialize()
    return strict({name: summary[name] for name in (*SCORES, "label_metrics")})


_SPLIT = "selected"


def _only_split(nusc: NuScenes, samples: Sequence[str], folder: Path) -> NuScenes:
    """The same tables with one custom split, the scenes of `samples`, because the devkit builds tracks for a split."""
    scenes = {nusc.get("sample", sample)["scene_token"]: None for sample in samples}
    names = [nusc.get("scene", scene)["name"] for scene in scenes]
    (folder / nusc.version).mkdir()
    (folder / nusc.version / "splits.json").write_text(json.dumps({_SPLIT: names}))
    view = copy.copy(nusc)
    view.dataroot = str(folder)
    return view


RESULTS, TRACKS, TRACKING = "results.json", "tracks.json", "tracking_metrics.json"
SUBMISSION = "results_nusc.json"


class ResultFiles(NamedTuple):
    results: SubmissionWriter
    tracks: TrackWriter

    @classmethod
    @contextmanager
    def open(cls, folder: Path, sensors: Sequence[str], taxonomy: Taxonomy) -> Iterator[ResultFiles]:
        """Writers of both files, which appear atomically when the block ends; errors as in `ResultsWriter.open`."""
        with (
            SubmissionWriter.open(folder / RESULTS, sensors, taxonomy) as results,
            TrackWriter.open(folder / TRACKS, sensors, taxonomy) as tracks,
        ):
            yield cls(results, tracks)

    def add(self, frame: Frame, result: Boxes, state: Tracks) -> None:
        self.results.add(frame, result)
        self.tracks.add(frame.token, state)


SCORED = ("mAP", "NDS", "label_aps", "mean_dist_aps", "label_tp_errors", "tp_errors", "tp_scores")


def require_official(tables: Keyframes) -> None:
    """Raise InputError, before a long evaluation, unless the devkit is installed and can read these drives."""
    _devkit_of(tables).require()
    if not (tables.dataroot / tables.version).is_dir():
        raise InputError(f"{tables.dataroot}: the devkit reads the tables of one dataroot; leave out --official")


def _devkit_of(tables: Keyframes) -> Devkit:
    if tables.taxonomy.devkit is None:
        raise InputError(f"the taxonomy {tables.taxonomy.name} names no `devkit` that scores it; leave out --official")
    return DEVKITS[tables.taxonomy.devkit]


def compare(out: Path, tables: Keyframes, metrics: dict[str, Any], console: Console) -> dict[str, Any]:
    """Score the submission in the folder `out` with the devkit as well, and add its scores to metrics.json.

    Returns the metrics with `official`: the devkit's `version`, its scores under the same keys, and
    `largest_difference` to ours: NaN, written as None, if only one of them defines a score.
    """
    devkit, samples = _devkit_of(tables), tables.samples(metrics["split"], metrics["selectors"])
    with console.status(f"Scoring with {devkit.distribution}"):
        official_tables = open_devkit(tables.dataroot, tables.version, devkit)
        scores = score_submission(out / SUBMISSION, official_tables, samples, devkit)
    largest = float(np.max([_difference(*pair) for key in SCORED for pair in _pairs(metrics[key], scores[key])]))
    official = {"version": devkit.version, **scores, "largest_difference": strict(largest)}
    metrics = metrics | {"official": official}
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False).encode())
    console.print(
        f"{devkit.distribution} {devkit.version}: mAP {scores['mAP']:.4f}, NDS {scores['NDS']:.4f}; "
        f"our scores differ from it by at most {largest:.1e}"
    )
    return metrics


def _pairs(ours: Any, theirs: Any) -> list[tuple[float | None, float | None]]:
    """Each number of a nested dict of scores with its counterpart in another one with the same keys."""
    if isinstance(theirs, dict):
        return [pair for key in theirs for pair in _pairs(ours[key], theirs[key])]
    return [(ours, theirs)]


def _difference(ours: float | None, theirs: float | None) -> float:
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else math.nan
    return abs(ours - theirs)
