"""Cars in traffic: simulated lanes, what a detector finds in them, id switches, and scores by the devkit."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.tracking.data_classes import TrackingBox
from nuscenes.eval.tracking.evaluate import TrackingEval
from nuscenes.eval.tracking.loaders import interpolate_tracks
from vocabulary import CLASSES, NUSCENES

from perception.frame import Boxes
from perception.tasks.association import associate
from perception.tasks.detection.devkit import PROTOCOL
from perception.tasks.detection.submission import global_boxes
from perception.tasks.published import Tracks

CAR = NUSCENES.label("car")
START = 1_500_000_000_000_000  # us
SEEN = 50.0  # m ahead and behind
Kind = Literal["flow", "jam", "stop_and_go", "queue"]


class AnyTracker(Protocol):
    def update(self, boxes_global: Boxes, timestamp: int) -> Tracks: ...


@dataclass(frozen=True)
class Moment:
    """One keyframe of a scene."""

    sample: str
    timestamp: int  # us
    truth: Boxes  # annotations with points, in the global frame
    boxes: Boxes  # detections, in the global frame


Scene = list[Moment]


def track(tracker: AnyTracker, scene: Scene) -> list[Tracks]:
    return [tracker.update(moment.boxes, moment.timestamp) for moment in scene]


def switches(scene: Scene, tracker: AnyTracker) -> tuple[int, int, int]:
    """How often an object's id changes; how often an object has one; how many objects there are."""
    latest: dict[str, int] = {}
    ids = found = 0
    for moment, tracks in zip(scene, track(tracker, scene), strict=True):
        now = ids_of_objects(moment, tracks)
        ids += sum(latest.get(name, number) != number for name, number in now.items())
        found += len(now)
        latest |= now
    return ids, found, sum(len(moment.truth) for moment in scene)


def ids_of_objects(moment: Moment, tracks: Tracks) -> dict[str, int]:
    """The id of the seen track of its class that is nearest to each object, within 2 m as in the devkit."""
    seen = tracks.unseen == 0
    found: dict[str, int] = {}
    for label in range(len(CLASSES)):
        own = np.flatnonzero(moment.truth.labels == label)
        theirs = np.flatnonzero(seen & (tracks.boxes.labels == label))
        rows, columns = associate(moment.truth.centers[own, :2], tracks.boxes.centers[theirs, :2], 2.0)
        found |= dict(zip(moment.truth.instances[own[rows]], tracks.ids[theirs[columns]].tolist(), strict=True))
    return found


def devkit_scores(scene: Scene, tracker: AnyTracker, classes: Sequence[str]) -> dict[str, Any]:
    """The devkit's summary of what a tracker makes of a scene that is in no dataroot, for some of the classes."""
    evaluation = object.__new__(TrackingEval)
    evaluation.cfg = config_factory(PROTOCOL)  # its boxes take the names of the latest configuration
    evaluation.cfg.class_names = list(classes)
    truth = {m.timestamp: _tracking_boxes(m.sample, m.truth, m.truth.instances) for m in scene}
    found, scores = {}, defaultdict(list)
    for moment, tracks in zip(scene, track(tracker, scene), strict=True):
        seen = tracks.select(tracks.unseen == 0)
        found[moment.timestamp] = _tracking_boxes(moment.sample, seen.boxes, seen.ids)
    for box in itertools.chain(*found.values()):
        scores[box.tracking_id].append(box.tracking_score)
    for box in itertools.chain(*found.values()):
        # The mean score of its track, as in the devkit's `create_tracks`, to a tenth, as each score takes it long.
        box.tracking_score = round(float(np.mean(scores[box.tracking_id])), 1)
    evaluation.output_dir, evaluation.verbose, evaluation.render_classes = "", False, None
    evaluation.tracks_gt, evaluation.tracks_pred = {"0": interpolate_tracks(truth)}, {"0": interpolate_tracks(found)}
    with contextlib.redirect_stdout(io.StringIO()):
        metrics, _ = evaluation.evaluate()
    summary: dict[str, Any] = metrics.serialize()
    return summary


def _tracking_boxes(sample: str, boxes: Boxes, ids: np.ndarray) -> list[Any]:
    return [
        TrackingBox(**box, tracking_id=str(ids[i]), tracking_name=CLASSES[boxes.labels[i]], tracking_score=score)
        for i, (box, score) in enumerate(zip(global_boxes(sample, boxes), boxes.scores.tolist(), strict=True))
        if NUSCENES.classes[boxes.labels[i]].tracked
    ]


def lanes(kind: Kind, seed: int, period: float = 0.5, seconds: float = 20.0) -> Scene:
    """Four lanes of cars, two each way, of which those within SEEN of the middle are seen; detections are the truth.

    flow: 6 to 16 m/s, 0.9 to 2 s and 5 m apart; jam: 1.5 to 5 m/s, 6.5 to 9 m apart; stop_and_go: 0 to 10 m/s in waves
    of 12 s; queue: standing, 6 to 7.5 m apart.
    """
    rng, wave = np.random.default_rng(seed), 2 * np.pi / 12
    rows: list[tuple[float, float, float, np.ndarray, float]] = []
    for y, way in ((0.0, 1.0), (3.5, 1.0), (-8.0, -1.0), (-11.5, -1.0)):
        low, high = {"flow": (6, 16), "jam": (1.5, 5), "stop_and_go": (2.5, 5), "queue": (0, 0)}[kind]
        speed = rng.uniform(low, high)
        near, far = {
            "flow": (5 + 0.9 * speed, 5 + 2 * speed),
            "jam": (6.5, 9),
            "stop_and_go": (7, 12),
            "queue": (6, 7.5),
        }[kind]
        rows.append((y, way, speed, 250 - np.cumsum(rng.uniform(near, far, 70)), rng.uniform(0, 12) * wave))
    moments = []
    for k in range(round(seconds / period)):
        time, parts = k * period, []
        for row, (y, way, mean, places, phase) in enumerate(rows):
            way_gone, speed = mean * time, mean
            if kind == "stop_and_go":
                way_gone += mean * (np.sin(phase) - np.sin(wave * time + phase)) / wave
                speed *= 1 - np.cos(wave * time + phase)
            x = way * (places + way_gone)
            names = [f"{row}-{i}" for i in np.flatnonzero(np.abs(x) < SEEN)]
            x = x[np.abs(x) < SEEN]
            n = len(x)
            boxes = Boxes.from_yaws(
                np.column_stack([x, np.full(n, y), np.full(n, 0.8)]), np.tile([1.9, 4.6, 1.6], (n, 1)),
                np.full(n, 0.0 if way > 0 else np.pi), np.tile([way * speed, 0.0], (n, 1)),
                np.full(n, CAR), np.full(n, -1), np.ones(n),
            )  # fmt: skip
            parts.append(replace(boxes, instances=np.array(names, "U32")))
        boxes = Boxes.joined(*parts)
        moments.append(Moment(str(k), START + round(1e6 * time), boxes, boxes))
    return moments


def detect(scene: Scene, seed: int, known: bool = False) -> Scene:
    """The scene as a detector sees it: a tenth of the objects missed, noise, a second box on 15 %, five false ones.

    Args:
        known: velocities with an error of 0.5 m/s, else NaN.
    """
    moments = []
    for k, moment in enumerate(scene):
        rng = np.random.default_rng([seed, k])
        boxes = moment.truth.select(rng.random(len(moment.truth)) >= 0.1)
        boxes = _displace(boxes, 0.2, rng.beta(6, 3, len(boxes)), rng)
        second = boxes.select(rng.random(len(boxes)) < 0.15)
        second = _displace(second, 0.6, second.scores * rng.uniform(0.3, 0.95, len(second)), rng)
        false = moment.truth.select(rng.integers(0, len(moment.truth), rng.poisson(5)))
        false = _displace(false, 8.0, rng.beta(3, 6, len(false)), rng)
        boxes = Boxes.joined(boxes, second, false)
        velocities = boxes.velocities + rng.normal(0, 0.5, boxes.velocities.shape) if known else np.nan
        moments.append(replace(moment, boxes=replace(boxes, velocities=np.broadcast_to(velocities, (len(boxes), 3)))))
    return moments


def _displace(boxes: Boxes, metres: float, scores: np.ndarray, rng: np.random.Generator) -> Boxes:
    shift = np.column_stack([rng.normal(0, metres, (len(boxes), 2)), np.zeros(len(boxes))])
    return replace(boxes, centers=boxes.centers + shift, scores=scores)
