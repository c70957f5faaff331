"""Tracks as a submission, and their scores: the official evaluation's own; perfect, swapped and absent tracks."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.tracking.data_classes import TrackingBox
from nuscenes.eval.tracking.evaluate import TrackingEval
from tracking_scenes import NaiveTracker, Scene, annotated_scene, nuscenes_tracker, tracked
from vocabulary import CLASSES, NUSCENES

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Boxes
from perception.tasks.detection.devkit import boxes_to_compare, open_devkit
from perception.tasks.detection.tracker import Tracks
from perception.tasks.detection.tracking import PROTOCOL, TrackWriter, score_tracks


class KnownIds:
    """The tracker that cannot be beaten: an id for each annotated object."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def update(self, boxes_global: Boxes, timestamp: int) -> Tracks:
        ids = [self.ids.setdefault(instance, len(self.ids)) for instance in boxes_global.instances.tolist()]
        known = replace(boxes_global, velocities=np.nan_to_num(boxes_global.velocities))
        return Tracks(np.array(ids, int), known, np.zeros(len(ids)), np.zeros(len(ids)), np.ones(len(ids), bool))


def write(path: Path, samples: Iterable[tuple[str, Tracks]]) -> Path:
    with TrackWriter.open(path, ["lidar"], NUSCENES) as writer:
        for sample, tracks in samples:
            writer.add(sample, tracks)
    return path


def tracks_of(scenes: list[Scene], tracker: Callable) -> list[tuple[str, Tracks]]:
    return [
        (moment.sample, tracks)
        for scene in scenes
        for moment, tracks in zip(scene, tracked(tracker(), scene), strict=True)
    ]


@pytest.fixture(scope="module")
def simulated(sim_root: Path) -> tuple[list[Scene], NuScenes]:
    tables = NuScenesTables(sim_root, "v1.0-sim")
    return [annotated_scene(tables, name) for name in tables.scenes("sim_val")], open_devkit(sim_root, "v1.0-sim")


@pytest.fixture(scope="module")
def recorded(nuscenes_root: Path) -> tuple[list[Scene], NuScenes]:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    return [annotated_scene(tables, "scene-0103")], open_devkit(nuscenes_root, "v1.0-mini")


def samples_of(scenes: list[Scene]) -> list[str]:
    return [moment.sample for scene in scenes for moment in scene]


def some_tracks(n: int = 3) -> Tracks:
    boxes = Boxes.from_yaws(
        centers=np.arange(3.0 * n).reshape(n, 3),
        sizes=np.ones((n, 3)),
        yaws=np.zeros(n),
        velocities=np.ones((n, 2)),
        labels=np.arange(n) % len(CLASSES),
        attributes=np.full(n, -1),
        scores=(np.arange(n) + 1) / n,
    )
    return Tracks(np.arange(n) + 7, boxes, np.ones(n), np.zeros(n), np.arange(n) % 2 == 0)


def test_perfect_detections_of_a_simulated_drive_have_perfect_tracks(
    simulated: tuple[list[Scene], NuScenes], tmp_path: Path
) -> None:
    scenes, nusc = simulated
    path = write(tmp_path / "tracks.json", tracks_of(scenes, nuscenes_tracker))
    scores = score_tracks(path, nusc, samples_of(scenes))
    # Not always 1: a car that appears 5 m from where another vanished a second before can be taken for it, and the
    # devkit puts a box into the gap.
    assert scores["amota"] > 0.99
    assert scores["recall"] == 1
    assert scores["ids"] == scores["fn"] == 0
    assert scores["amotp"] < 0.1
    assert scores == json.loads(json.dumps(scores, allow_nan=False))


def test_the_scores_are_the_official_evaluations(
    simulated: tuple[list[Scene], NuScenes], sim_root: Path, tmp_path: Path
) -> None:
    scenes, nusc = simulated
    rng = np.random.default_rng(0)
    tracks = []
    for sample, perfect in tracks_of(scenes, nuscenes_tracker):
        kept = np.flatnonzero(rng.random(len(perfect.ids)) < 0.8)
        boxes = perfect.boxes.select(kept)
        centers = boxes.centers + rng.normal(0, 0.8, boxes.centers.shape)
        scores = np.where(perfect.ids[kept] % 2, 0.5, 0.9)  # few thresholds, which take the devkit long
        ids = perfect.ids[kept] + 10_000 * (rng.random(len(kept)) < 0.1)
        noisy = replace(boxes, centers=centers, scores=scores)
        tracks.append((sample, replace(perfect.select(kept), ids=ids, boxes=noisy)))
    path = write(tmp_path / "tracks.json", tracks)
    scores = score_tracks(path, nusc, samples_of(scenes))
    official = TrackingEval(
        config_factory(PROTOCOL), str(path), "sim_val", str(tmp_path / "out"), "v1.0-sim", str(sim_root), verbose=False
    )
    summary = official.main(render_curves=False)
    assert 0 < scores["amota"] < 1
    for name, value in scores.items():
        if name == "label_metrics":
            for metric, classes in value.items():
                for label, of_class in classes.items():
                    expected = summary["label_metrics"][metric][label]
                    assert np.isclose(np.nan if of_class is None else of_class, expected, rtol=0, equal_nan=True)
        else:
            assert value == pytest.approx(summary[name], abs=1e-12)


def test_every_change_of_an_id_is_counted(simulated: tuple[list[Scene], NuScenes], tmp_path: Path) -> None:
    scenes, nusc = simulated
    tracks = tracks_of(scenes[:1], nuscenes_tracker)
    sample, last = tracks[-1]
    changed = replace(last, ids=last.ids + 1000 * (last.boxes.labels == CLASSES.index("car")))
    path = write(tmp_path / "tracks.json", [*tracks[:-1], (sample, changed)])
    samples = samples_of(scenes[:1])
    _, truth = boxes_to_compare(path, nusc, samples, config_factory(PROTOCOL), TrackingBox)
    cars = [{box.tracking_id for box in truth[sample] if box.tracking_name == "car"} for sample in samples]
    expected = len(cars[-1] & set.union(*cars[:-1]))
    assert expected > 0
    assert score_tracks(path, nusc, samples)["ids"] == expected


def test_on_recorded_objects_the_tracker_is_near_the_best_and_better_than_one_without_motion(
    recorded: tuple[list[Scene], NuScenes], tmp_path: Path
) -> None:
    scenes, nusc = recorded
    scores = {
        tracker: score_tracks(write(tmp_path / "tracks.json", tracks_of(scenes, tracker)), nusc, samples_of(scenes))
        for tracker in (KnownIds, nuscenes_tracker, NaiveTracker)
    }
    assert scores[KnownIds]["amota"] == 1
    assert scores[KnownIds]["ids"] == 0
    assert scores[nuscenes_tracker]["amota"] > 0.9
    assert scores[nuscenes_tracker]["amota"] > scores[NaiveTracker]["amota"]
    assert scores[nuscenes_tracker]["ids"] < scores[NaiveTracker]["ids"] / 2


def test_some_keyframes_of_a_scene_are_scored_alone(recorded: tuple[list[Scene], NuScenes], tmp_path: Path) -> None:
    (scene,), nusc = recorded
    path = write(tmp_path / "tracks.json", tracks_of([scene], nuscenes_tracker))
    part = samples_of([scene[3:6]])
    scores = score_tracks(path, nusc, part)
    _, truth = boxes_to_compare(path, nusc, part, config_factory(PROTOCOL), TrackingBox)
    cars = sum(box.tracking_name == "car" for box in truth.all)
    assert scores["label_metrics"]["gt"]["car"] == cars > 0
    assert scores["amota"] == 1


def test_no_tracks_score_nothing(simulated: tuple[list[Scene], NuScenes], tmp_path: Path) -> None:
    scenes, nusc = simulated
    path = write(tmp_path / "tracks.json", ((sample, some_tracks(0)) for sample in samples_of(scenes)))
    scores = score_tracks(path, nusc, samples_of(scenes))
    assert scores["amota"] == 0
    assert scores["recall"] == 0


def test_a_submission_lacks_samples(simulated: tuple[list[Scene], NuScenes], tmp_path: Path) -> None:
    scenes, nusc = simulated
    path = write(tmp_path / "tracks.json", [])
    with pytest.raises(InputError, match="no prediction for"):
        score_tracks(path, nusc, samples_of(scenes))


def test_only_seen_tracks_of_the_seven_classes_are_written_best_first(tmp_path: Path) -> None:
    tracks = some_tracks(20)
    tracks.unseen[1] = 0.5
    content = json.loads(write(tmp_path / "tracks.json", [("a", tracks), ("b", some_tracks(0))]).read_text())
    assert content["meta"]["use_lidar"] is True
    assert content["results"]["b"] == []
    entries = content["results"]["a"]
    expected = [k for k in reversed(range(20)) if NUSCENES.classes[k % 10].tracked and k != 1]
    assert [entry["tracking_id"] for entry in entries] == [str(k + 7) for k in expected]
    assert [entry["tracking_name"] for entry in entries] == [CLASSES[k % 10] for k in expected]
    for entry, k in zip(entries, expected, strict=True):
        assert entry["translation"] == tracks.boxes.centers[k].tolist()
        TrackingBox.deserialize(entry)  # raises where the devkit takes no such box


def test_no_sample_holds_more_tracks_than_the_devkit_takes(tmp_path: Path) -> None:
    path = write(tmp_path / "tracks.json", [("a", some_tracks(900))])
    assert len(json.loads(path.read_text())["results"]["a"]) == config_factory(PROTOCOL).max_boxes_per_sample


def test_a_sample_given_twice_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = write(tmp_path / "tracks.json", [("a", some_tracks())])
    before = path.read_bytes()
    with pytest.raises(InputError, match="twice"):
        write(path, [("a", some_tracks()), ("a", some_tracks())])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
