"""Tracks as a nuScenes tracking submission, and its scores by the official devkit: AMOTA, AMOTP, id switches, recall.

Format and metrics: https://www.nuscenes.org/tracking.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from perception.tasks.detection.devkit import boxes_to_compare, strict
from perception.tasks.detection.submission import MAX_BOXES, ResultsWriter, global_boxes
from perception.tasks.detection.tracker import Tracks

if TYPE_CHECKING:  # the devkit takes a second to import
    from nuscenes import NuScenes

PROTOCOL = "tracking_nips_2019"
# Over all classes: the first six are means over those that occur, the others sums.
SCORES = ("amota", "amotp", "recall", "motar", "mota", "motp", "ids", "frag", "tp", "fp", "fn", "mt", "ml")


class TrackWriter(ResultsWriter):
    """Writes tracks.

    with TrackWriter.open(path, sensors=("camera", "lidar"), taxonomy) as submission:
        submission.add(frame.token, tracker.update(boxes, frame.timestamp))
    """

    def add(self, sample: str, tracks: Tracks) -> None:
        """Append the detected tracks of one sample, of the classes that are `tracked`.

        Predicted but undetected tracks are omitted, because the devkit interpolates gaps itself. Unconfirmed tracks are
        written, because AMOTA ranks tracks by their scores, and their objects would be missed.

        Raises:
            InputError: the sample was added before, or the disk is full.
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
    """Score the tracks of `samples` with the devkit's TrackingEval, as if there were no other samples.

    Args:
        submission: the JSON file; tracks of other samples are ignored.
        samples: keyframes of any scenes, without gaps within a scene.

    Returns:
        A dict for strict JSON, with None for undefined values. Under the devkit's names its summary: `amota`, `amotp`
        (m), `recall`, `ids` (switches), ... over all classes, and its scores per class in `label_metrics`.

    Raises:
        InputError: the file is no submission, or some of the samples have no entry in it.
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
