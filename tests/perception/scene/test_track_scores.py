"""Tracks as a submission and their scores by the devkit: perfect, swapped, absent; how far the tracker is better."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from made_up import make_boxes
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.tracking.data_classes import TrackingBox
from nuscenes.eval.tracking.evaluate import TrackingEval
from traffic import Kind, Moment, Scene, detect, devkit_scores, lanes, switches, track
from vocabulary import CLASSES, NUSCENES

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Boxes
from perception.tasks.association import associate
from perception.tasks.detection.devkit import PROTOCOL, TrackWriter, boxes_to_compare, open_devkit, score_tracks
from perception.tasks.detection.tracker import LIFETIME, Tracker
from perception.tasks.published import Tracks

Simulated = tuple[list[Scene], NuScenes]


def nuscenes_tracker() -> Tracker:
    return Tracker(NUSCENES)


class NaiveTracker:
    """Assigns a detection to the nearest track of its class, within 4 m and LIFETIME, without a motion model."""

    def __init__(self) -> None:
        self.boxes, self.ids, self.seen, self.next = Boxes.none(), np.zeros(0, int), np.zeros(0, int), 1

    def update(self, boxes_global: Boxes, timestamp: int) -> Tracks:
        boxes = replace(boxes_global, velocities=np.zeros((len(boxes_global), 3)))
        ids = np.zeros(len(boxes), int)
        recent = self.seen >= timestamp - 1e6 * LIFETIME
        for label in range(len(CLASSES)):
            old, new = np.flatnonzero(recent & (self.boxes.labels == label)), np.flatnonzero(boxes.labels == label)
            rows, columns = associate(self.boxes.centers[old, :2], boxes.centers[new, :2], 4.0)
            ids[new[columns]] = self.ids[old[rows]]
        born = ids == 0
        ids[born] = self.next + np.arange(born.sum())
        self.next += born.sum()
        gone = recent & ~np.isin(self.ids, ids)
        self.boxes = Boxes.joined(boxes, self.boxes.select(gone))
        self.ids = np.concatenate([ids, self.ids[gone]])
        self.seen = np.concatenate([np.full(len(ids), timestamp), self.seen[gone]])
        unseen = 1e-6 * (timestamp - self.seen)
        return Tracks(
            self.ids,
            self.boxes,
            np.zeros(len(self.ids)),
            unseen,
            np.ones(len(self.ids), bool),
            np.ones((len(self.ids), 3)),
        )


def scene_of_annotations(tables: NuScenesTables, scene: str) -> Scene:
    """A scene whose detections are the annotations themselves."""
    moments = []
    for sample in tables.samples(selectors=[scene]):
        boxes, time = tables.recording(sample).annotated("boxes"), tables.recording(sample).timestamp
        boxes = boxes.select(boxes.num_points > 0)
        moments.append(Moment(sample, time, boxes, boxes))
    return moments


def write(path: Path, samples: Iterable[tuple[str, Tracks]]) -> Path:
    with TrackWriter.open(path, ["lidar"], NUSCENES) as writer:
        for sample, tracks in samples:
            writer.add(sample, tracks)
    return path


def tracks_of(scenes: list[Scene], tracker: Callable) -> list[tuple[str, Tracks]]:
    return [(m.sample, t) for scene in scenes for m, t in zip(scene, track(tracker(), scene), strict=True)]


@pytest.fixture(scope="module")
def simulated(sim_root: Path) -> Simulated:
    tables = NuScenesTables(sim_root, "v1.0-sim")
    return [scene_of_annotations(tables, name) for name in tables.scenes("sim_val")], open_devkit(sim_root, "v1.0-sim")


def samples_of(scenes: list[Scene]) -> list[str]:
    return [moment.sample for scene in scenes for moment in scene]


def some_tracks(n: int) -> Tracks:
    places, labels, scores = np.arange(3.0 * n).reshape(n, 3), np.arange(n) % len(CLASSES), (np.arange(n) + 1) / n
    boxes = make_boxes(places, 1.0, velocities=1.0, labels=labels, scores=scores)
    return Tracks(np.arange(n) + 7, boxes, np.ones(n), np.zeros(n), np.arange(n) % 2 == 0, np.ones((n, 3)))


def test_the_scores_are_the_official_ones(simulated: Simulated, sim_root: Path, tmp_path: Path) -> None:
    scenes, nusc = simulated
    rng, tracks = np.random.default_rng(0), []
    for sample, perfect in tracks_of(scenes, nuscenes_tracker):
        kept = np.flatnonzero(rng.random(len(perfect.ids)) < 0.8)
        boxes = perfect.boxes.select(kept)
        centers = boxes.centers + rng.normal(0, 0.8, boxes.centers.shape)
        scores = np.where(perfect.ids[kept] % 2, 0.5, 0.9)  # few thresholds, which take the devkit long
        ids = perfect.ids[kept] + 10_000 * (rng.random(len(kept)) < 0.1)
        noisy = replace(boxes, centers=centers, scores=scores)
        tracks.append((sample, replace(perfect.select(kept), ids=ids, boxes=noisy)))
    path, out = write(tmp_path / "tracks.json", tracks), str(tmp_path / "out")
    scores = score_tracks(path, nusc, samples_of(scenes))
    assert 0 < scores["amota"] < 1
    assert scores == json.loads(json.dumps(scores, allow_nan=False))
    config = config_factory(PROTOCOL)
    official = TrackingEval(config, str(path), "sim_val", out, "v1.0-sim", str(sim_root), verbose=False)
    summary = official.main(render_curves=False)
    for metric, classes in scores.pop("label_metrics").items():
        theirs = {label: summary["label_metrics"][metric][label] for label in classes}
        ours = {label: np.nan if value is None else value for label, value in classes.items()}
        assert ours == pytest.approx(theirs, abs=1e-8, nan_ok=True)
    for name, value in scores.items():
        assert value == pytest.approx(summary[name], abs=1e-12)


def test_every_change_of_an_id_is_counted(simulated: Simulated, tmp_path: Path) -> None:
    """Also where only some keyframes of a scene are scored."""
    scenes, nusc = simulated
    *tracks, (sample, last) = tracks_of(scenes[:1], nuscenes_tracker)
    changed = replace(last, ids=last.ids + 1000 * (last.boxes.labels == CLASSES.index("car")))
    path = write(tmp_path / "tracks.json", [*tracks, (sample, changed)])
    for samples in (samples_of(scenes[:1]), samples_of(scenes[:1])[1:]):
        _, truth = boxes_to_compare(path, nusc, samples, config_factory(PROTOCOL), TrackingBox)
        cars = [{box.tracking_id for box in truth[sample] if box.tracking_name == "car"} for sample in samples]
        expected = len(cars[-1] & set.union(*cars[:-1]))
        scores = score_tracks(path, nusc, samples)
        assert scores["ids"] == expected > 0
        assert scores["label_metrics"]["gt"]["car"] == sum(map(len, cars))


def test_no_tracks_score_nothing_and_no_samples_are_refused(simulated: Simulated, tmp_path: Path) -> None:
    scenes, nusc = simulated
    path = write(tmp_path / "tracks.json", ((sample, some_tracks(0)) for sample in samples_of(scenes)))
    scores = score_tracks(path, nusc, samples_of(scenes))
    assert scores["amota"] == scores["recall"] == 0
    with pytest.raises(InputError, match="no prediction for"):
        score_tracks(write(path, []), nusc, samples_of(scenes))


def test_seen_tracks_of_the_seven_classes_are_written_best_first(tmp_path: Path) -> None:
    tracks, path = some_tracks(20), tmp_path / "tracks.json"
    tracks.unseen[1] = 0.5
    content = json.loads(write(path, [("a", tracks), ("b", some_tracks(0)), ("c", some_tracks(900))]).read_text())
    assert content["meta"]["use_lidar"] is True
    assert content["results"]["b"] == []
    assert len(content["results"]["c"]) == config_factory(PROTOCOL).max_boxes_per_sample
    expected = [k for k in reversed(range(20)) if NUSCENES.classes[k % 10].tracked and k != 1]
    for entry, k in zip(content["results"]["a"], expected, strict=True):
        assert (entry["tracking_id"], entry["tracking_name"]) == (str(k + 7), CLASSES[k % 10])
        assert entry["translation"] == tracks.boxes.centers[k].tolist()
        TrackingBox.deserialize(entry)  # raises where the devkit takes no such box


@pytest.mark.slow("the devkit's AMOTA of two trackers and two classes")
def test_on_recorded_objects_the_tracker_is_near_the_annotated_tracks(nuscenes_root: Path) -> None:
    scene = scene_of_annotations(NuScenesTables(nuscenes_root, "v1.0-mini"), "scene-0103")
    ours, naive = (devkit_scores(scene, each(), ["car", "pedestrian"]) for each in (nuscenes_tracker, NaiveTracker))
    assert ours["amota"] > 0.9
    assert ours["amota"] > naive["amota"]
    assert ours["ids"] < naive["ids"] / 2


def with_velocities(scene: Scene, value: float) -> Scene:
    return [replace(m, boxes=replace(m.boxes, velocities=np.full_like(m.boxes.velocities, value))) for m in scene]


@pytest.mark.parametrize("kind", ["flow", "jam", "queue"])
def test_cars_in_a_row_keep_their_ids_without_measured_velocities(kind: Kind) -> None:
    """Nothing is missed: after the first second, in which nobody knows who moves, no id changes."""
    for seed in range(3):
        scene = lanes(kind, seed, seconds=12.0)
        unknown = with_velocities(scene, np.nan)
        begun = nuscenes_tracker()
        track(begun, unknown[:2])
        assert switches(unknown[2:], begun) == (0, *2 * [sum(len(m.truth) for m in scene[2:])])


@pytest.mark.parametrize("kind", get_args(Kind))
def test_errors_change_few_ids_in_traffic(kind: Kind) -> None:
    """Whether velocities are measured or not; and those of moving cars are better unknown than called 0."""
    ids: dict[str, int] = defaultdict(int)
    for seed in range(3):
        known, unknown = (detect(lanes(kind, seed), seed, measured) for measured in (True, False))
        for name, scene in (("known", known), ("unknown", unknown), ("zero", with_velocities(unknown, 0.0))):
            ids[name] += switches(scene, nuscenes_tracker())[0]
        ids["naive"] += switches(unknown, NaiveTracker())[0]
    assert ids["known"] < ids["naive"] / 4
    assert ids["unknown"] < ids["naive"] / 4
    if kind in ("flow", "stop_and_go"):  # elsewhere 0 is nearly true
        assert ids["unknown"] < ids["zero"]
