"""Scenes for trackers: annotations, also with errors of a detector or occlusions; and simpler trackers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from bench_tracking import CLASSES, NUSCENES, Moment, Scene, ids_of_objects

from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Boxes
from perception.tasks.association import associate
from perception.tasks.detection.tracker import FADING, LIFETIME, Rules, Tracker, Tracks

GATE = 4.0  # m, of the naive tracker, for all classes
OCCLUDED = 1.0  # s
MISSED = 0.2  # share of the objects that a detector misses, or finds with a low score
CLUTTER = 5.0  # false detections per keyframe
# For a decoder that reports every peak of its heatmap.
LOST = 0.25  # share of the missed objects without any peak
SIDES = 0.3  # share of the detections with a side peak
JUNK = 100  # false peaks per keyframe


def nuscenes_tracker() -> Tracker:
    return Tracker(NUSCENES)


class NaiveTracker:
    """Assigns a detection to the nearest track of its class, within GATE and LIFETIME, without a motion model."""

    def __init__(self) -> None:
        self.boxes, self.ids, self.seen, self.next = Boxes.none(), np.zeros(0, int), np.zeros(0, int), 1

    def update(self, boxes_global: Boxes, timestamp: int) -> Tracks:
        boxes = replace(boxes_global, velocities=np.zeros((len(boxes_global), 3)))
        ids = np.zeros(len(boxes), int)
        recent = self.seen >= timestamp - 1e6 * LIFETIME
        for label in range(len(CLASSES)):
            old, new = np.flatnonzero(recent & (self.boxes.labels == label)), np.flatnonzero(boxes.labels == label)
            rows, columns = associate(self.boxes.centers[old, :2], boxes.centers[new, :2], GATE)
            ids[new[columns]] = self.ids[old[rows]]
        born = ids == 0
        ids[born] = self.next + np.arange(born.sum())
        self.next += born.sum()
        gone = recent & ~np.isin(self.ids, ids)
        self.boxes = Boxes.joined(boxes, self.boxes.select(gone))
        self.ids = np.concatenate([ids, self.ids[gone]])
        self.seen = np.concatenate([np.full(len(ids), timestamp), self.seen[gone]])
        unseen = 1e-6 * (timestamp - self.seen)
        return Tracks(self.ids, self.boxes, np.zeros(len(self.ids)), unseen, np.ones(len(self.ids), bool))


class SingleStage:
    """`Tracker` without its use of scores: detections are assigned whatever their score, each unassigned one starts a
    track, and a track has the fading score of its latest detection.
    """

    def __init__(self) -> None:
        self.tracker = Tracker(NUSCENES, Rules(floor=0.0, birth=0.0, sure=0.0, hits=1))
        self.latest: dict[int, float] = {}

    def update(self, boxes_global: Boxes, timestamp: int) -> Tracks:
        # A track takes over the attribute of its latest detection; here it is the index of the detection.
        tracks = self.tracker.update(replace(boxes_global, attributes=np.arange(len(boxes_global))), timestamp)
        seen = tracks.unseen == 0
        scores = boxes_global.scores[tracks.boxes.attributes[seen]]
        self.latest |= dict(zip(tracks.ids[seen].tolist(), scores.tolist(), strict=True))
        latest = np.array([self.latest[track] for track in tracks.ids.tolist()]) * np.exp(-tracks.unseen / FADING)
        attributes = np.full(len(tracks.ids), -1)
        return replace(tracks, boxes=replace(tracks.boxes, scores=latest, attributes=attributes))


def scene_of_annotations(tables: NuScenesTables, scene: str) -> Scene:
    """A scene whose detections are the annotations themselves."""
    moments = []
    for sample in tables.samples(selectors=[scene]):
        frame = tables.frame(sample, Reads(annotations=False, lidar=False, cameras=False))
        boxes = tables.recording(sample).annotated("boxes")
        assert boxes is not None, f"{scene} has no annotations"
        boxes = boxes.select(boxes.num_points > 0)
        moments.append(Moment(sample, frame.timestamp, boxes, boxes))
    return moments


def with_errors(scene: Scene, seed: int = 0, missed: float = MISSED) -> Scene:
    """The scene with missed objects, errors of a detector, and false detections."""
    rng = np.random.default_rng(seed)
    moments = []
    for moment in scene:
        boxes = moment.boxes.select(rng.random(len(moment.boxes)) >= missed)
        n = len(boxes)
        found = Boxes.from_yaws(
            boxes.centers + rng.normal(0, [0.2, 0.2, 0.1], (n, 3)),
            boxes.sizes * np.exp(rng.normal(0, 0.05, (n, 3))),
            boxes.yaws + rng.normal(0, 0.1, n),
            np.nan_to_num(boxes.velocities[:, :2]) + rng.normal(0, 0.5, (n, 2)),
            boxes.labels,
            boxes.attributes,
            rng.beta(6, 3, n),
        )
        false = moment.truth.select(rng.integers(0, len(moment.truth), rng.poisson(CLUTTER) if n else 0))
        shift = np.column_stack([rng.uniform(-15, 15, (len(false), 2)), np.zeros(len(false))])
        false = replace(false, centers=false.centers + shift, scores=rng.beta(3, 6, len(false)))
        moments.append(replace(moment, boxes=Boxes.joined(found, false)))
    return moments


def with_peaks(scene: Scene, seed: int = 0) -> Scene:
    """Like `with_errors`, for a decoder that reports every peak: most missed objects with low scores and larger errors,
    side peaks with a part of a detection's score, and junk with scores near 0.
    """
    moments = []
    for k, moment in enumerate(scene):
        rng = np.random.default_rng([seed, k])
        missed = rng.random(len(moment.boxes)) < MISSED
        clear = replace(moment, boxes=moment.boxes.select(~missed))
        (detected,) = with_errors([clear], 1000 * seed + k, missed=0)
        found, drawn = detected.boxes, rng.random(len(missed))
        weak, sides = moment.boxes.select(missed & (drawn > LOST)), found.select(rng.random(len(found)) < SIDES)
        junk = moment.truth.select(rng.integers(0, len(moment.truth), JUNK if len(moment.boxes) else 0))
        boxes = Boxes.joined(found, _displace(weak, 0.4, rng.beta(2, 12, len(weak)), rng))
        boxes = Boxes.joined(boxes, _displace(sides, 0.6, sides.scores * rng.uniform(0.05, 0.5, len(sides)), rng))
        moments.append(
            replace(moment, boxes=Boxes.joined(boxes, _displace(junk, 20, rng.beta(1.2, 30, len(junk)), rng)))
        )
    return moments


def _displace(boxes: Boxes, metres: float, scores: np.ndarray, rng: np.random.Generator) -> Boxes:
    """The boxes, displaced by about `metres`."""
    shift = np.column_stack([rng.normal(0, metres, (len(boxes), 2)), np.zeros(len(boxes))])
    return replace(boxes, centers=boxes.centers + shift, scores=scores)


def occlude(scene: Scene, seed: int = 0) -> tuple[Scene, dict[str, tuple[int, int]]]:
    """The scene without the detections of each object for OCCLUDED, from a random moment on.

    Returns:
        The scene, and for each hidden object the last keyframe before and the first one after. An object is hidden only
        if it is annotated in two keyframes before, in all between and in one after.
    """
    rng = np.random.default_rng(seed)
    times = np.array([moment.timestamp for moment in scene])
    appearances: dict[str, list[int]] = {}
    for k, moment in enumerate(scene):
        for instance in moment.truth.instances:
            appearances.setdefault(instance, []).append(k)
    hidden: dict[str, tuple[int, int]] = {}
    for instance, at in appearances.items():
        ends = {k: int(np.searchsorted(times, times[k] + 1e6 * OCCLUDED)) for k in at}
        starts = [(k, end) for k, end in ends.items() if set(range(k - 2, end + 1)) <= set(at)]
        if starts:
            start, end = starts[rng.integers(len(starts))]
            hidden[instance] = start - 1, end
    moments = []
    for k, moment in enumerate(scene):
        gone = [instance for instance, (before, after) in hidden.items() if before < k < after]
        moments.append(replace(moment, boxes=moment.boxes.select(~np.isin(moment.boxes.instances, gone))))
    return moments, hidden


def survival(scene: Scene, hidden: dict[str, tuple[int, int]], history: list[Tracks]) -> dict[str, bool]:
    """Whether each hidden object has the same id before and after the occlusion.

    An object has the id of the nearest seen track of its class within 2 m, as in the devkit. Objects that were not
    found before or after are left out.
    """
    ids = [ids_of_objects(moment, tracks) for moment, tracks in zip(scene, history, strict=True)]
    survived = {}
    for instance, (before, after) in hidden.items():
        earlier = [found[instance] for found in ids[: before + 1] if instance in found]
        later = [found[instance] for found in ids[after:] if instance in found]
        if earlier and later:
            survived[instance] = earlier[-1] == later[0]
    return survived
