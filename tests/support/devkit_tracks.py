"""The devkit's tracking scores of scenes that are in no dataroot: its own matching, thresholds and means."""

import contextlib
import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.tracking.data_classes import TrackingBox
from nuscenes.eval.tracking.evaluate import TrackingEval
from nuscenes.eval.tracking.loaders import interpolate_tracks
from tracking_scenes import Scene
from vocabulary import CLASSES, NUSCENES

from perception.frame import Boxes
from perception.tasks.detection.submission import global_boxes
from perception.tasks.detection.tracker import Tracks
from perception.tasks.detection.tracking import PROTOCOL


def devkit_scores(
    scenes: Sequence[Scene], histories: Sequence[Sequence[Tracks]], classes: Sequence[str]
) -> dict[str, Any]:
    """The devkit's summary of what a tracker made of scenes, for some of the benchmark's classes.

    Args:
        histories: the tracks after each moment of each scene.
    """

    class SceneEval(TrackingEval):
        def __init__(self) -> None:
            self.cfg = config_factory(PROTOCOL)
            self.cfg.class_names = list(classes)
            self.output_dir, self.verbose, self.render_classes = "", False, None
            self.tracks_gt, self.tracks_pred = {}, {}
            for number, (scene, history) in enumerate(zip(scenes, histories, strict=True)):
                truth = {m.timestamp: _boxes(m.sample, m.truth, m.truth.instances) for m in scene}
                found = {m.timestamp: _seen(m.sample, tracks) for m, tracks in zip(scene, history, strict=True)}
                self.tracks_gt[str(number)] = interpolate_tracks(truth)
                self.tracks_pred[str(number)] = interpolate_tracks(_averaged(found))

    with contextlib.redirect_stdout(io.StringIO()):
        metrics, _ = SceneEval().evaluate()
    return metrics.serialize()


def _seen(sample: str, tracks: Tracks) -> list[TrackingBox]:
    seen = tracks.select(tracks.unseen == 0)
    return _boxes(sample, seen.boxes, seen.ids)


def _boxes(sample: str, boxes: Boxes, ids: np.ndarray) -> list[TrackingBox]:
    return [
        TrackingBox(**box, tracking_id=str(ids[i]), tracking_name=CLASSES[boxes.labels[i]], tracking_score=score)
        for i, (box, score) in enumerate(zip(global_boxes(sample, boxes), boxes.scores.tolist(), strict=True))
        if NUSCENES.classes[boxes.labels[i]].tracked
    ]


def _averaged(found: dict[int, list[TrackingBox]]) -> dict[int, list[TrackingBox]]:
    """With the mean score of its track for each box, as the devkit's `create_tracks` does."""
    scores = defaultdict(list)
    for boxes in found.values():
        for box in boxes:
            scores[box.tracking_id].append(box.tracking_score)
    for boxes in found.values():
        for box in boxes:
            box.tracking_score = float(np.mean(scores[box.tracking_id]))
    return found
