"""Tracks as a submission and their scores by the devkit: perfect, swapped, absent; how far the tracker is better."""

import contextlib
import io
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.tracking.data_classes import TrackingBox
from nuscenes.eval.tracking.evaluate import TrackingEval
from nuscenes.eval.tracking.loaders import interpolate_tracks
from simulated import courses
from tracking_scenes import (
    Moment,
    NaiveTracker,
    Scene,
    SingleStage,
    annotated_scene,
    nuscenes_tracker,
    occluded,
    survival,
    tracked,
    with_errors,
    with_peaks,
)
from vocabulary import CLASSES, NUSCENES

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Boxes
from perception.simulate.scenario import build_world
from perception.simulate.world import World
from perception.tasks.detection.devkit import PROTOCOL, TrackWriter, boxes_to_compare, open_devkit, score_tracks
from perception.tasks.detection.submission import global_boxes
from perception.tasks.detection.tracker import Tracks

Simulated = tuple[list[Scene], NuScenes]
START = 1_500_000_000_000_000  # us
CATEGORIES = {"vehicle.bus.rigid": "bus", "vehicle.construction": "construction_vehicle"}


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
    return [(m.sample, t) for scene in scenes for m, t in zip(scene, tracked(tracker(), scene), strict=True)]


@pytest.fixture(scope="module")
def simulated(sim_root: Path) -> Simulated:
    tables = NuScenesTables(sim_root, "v1.0-sim")
    return [annotated_scene(tables, name) for name in tables.scenes("sim_val")], open_devkit(sim_root, "v1.0-sim")


def samples_of(scenes: list[Scene]) -> list[str]:
    return [moment.sample for scene in scenes for moment in scene]


def some_tracks(n: int) -> Tracks:
    boxes = Boxes.from_yaws(
        np.arange(3.0 * n).reshape(n, 3), np.ones((n, 3)), np.zeros(n), np.ones((n, 2)), np.arange(n) % len(CLASSES),
        np.full(n, -1), (np.arange(n) + 1) / n,
    )  # fmt: skip
    return Tracks(np.arange(n) + 7, boxes, np.ones(n), np.zeros(n), np.arange(n) % 2 == 0)


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


def devkit_scores(scene: Scene, tracker: Callable, classes: Sequence[str]) -> dict[str, Any]:
    """The devkit's summary of what a tracker makes of a scene that is in no dataroot, for some of the classes."""
    evaluation = object.__new__(TrackingEval)
    evaluation.cfg = config_factory(PROTOCOL)  # its boxes take the names of the latest configuration
    evaluation.cfg.class_names = list(classes)
    truth = {m.timestamp: _boxes(m.sample, m.truth, m.truth.instances) for m in scene}
    found, scores = {}, defaultdict(list)
    for moment, tracks in zip(scene, tracked(tracker(), scene), strict=True):
        seen = tracks.select(tracks.unseen == 0)
        found[moment.timestamp] = _boxes(moment.sample, seen.boxes, seen.ids)
    for box in itertools.chain(*found.values()):
        scores[box.tracking_id].append(box.tracking_score)
    for box in itertools.chain(*found.values()):
        # The mean score of its track, as in the devkit's `create_tracks`, to a tenth, as each score takes it long.
        box.tracking_score = round(float(np.mean(scores[box.tracking_id])), 1)
    evaluation.output_dir, evaluation.verbose, evaluation.render_classes = "", False, None
    evaluation.tracks_gt, evaluation.tracks_pred = {"0": interpolate_tracks(truth)}, {"0": interpolate_tracks(found)}
    with contextlib.redirect_stdout(io.StringIO()):
        metrics, _ = evaluation.evaluate()
    return metrics.serialize()


def _boxes(sample: str, boxes: Boxes, ids: np.ndarray) -> list[TrackingBox]:
    return [
        TrackingBox(**box, tracking_id=str(ids[i]), tracking_name=CLASSES[boxes.labels[i]], tracking_score=score)
        for i, (box, score) in enumerate(zip(global_boxes(sample, boxes), boxes.scores.tolist(), strict=True))
        if NUSCENES.classes[boxes.labels[i]].tracked
    ]


@pytest.mark.slow("the devkit's AMOTA of several trackers")
def test_on_recorded_objects_the_tracker_is_near_the_best(nuscenes_root: Path) -> None:
    scene, classes = annotated_scene(NuScenesTables(nuscenes_root, "v1.0-mini"), "scene-0103"), ["car", "pedestrian"]
    best, ours, naive = (devkit_scores(scene, each, classes) for each in (KnownIds, nuscenes_tracker, NaiveTracker))
    assert (best["amota"], best["ids"]) == (1, 0)
    assert ours["amota"] > 0.9
    assert ours["amota"] > naive["amota"]
    assert ours["ids"] < naive["ids"] / 2


@pytest.fixture(scope="module")
def world() -> World:
    rng, (course,) = np.random.default_rng([3, 1]), courses("clear-day-boston")
    return build_world(course.place, course.phases[0].surroundings.draw(rng), 12.0, rng)


def traffic(world: World, period: float) -> Scene:
    """All that is within 50 m of the vehicle, every `period` seconds."""
    names = [CATEGORIES.get(a.category) or a.category.replace("trafficcone", "traffic_cone") for a in world.agents]
    labels = np.array([next(k for k, c in enumerate(CLASSES) if c in name.split(".")) for name in names])
    sizes, n, moments = np.array([agent.size for agent in world.agents]), len(labels), []
    for k in range(int(12 / period)):
        xy, yaws, velocities = world.agents_at(k * period)
        near = np.linalg.norm(xy - world.global_from_ego_at(k * period)[:2, 3], axis=1) < 50
        centers = np.column_stack([xy, sizes[:, 2] / 2])
        truth = Boxes.from_yaws(centers, sizes, yaws, velocities, labels, np.full(n, -1), np.ones(n))
        truth = replace(truth, instances=np.arange(n).astype("U32")).select(near)
        moments.append(Moment(str(k), START + round(1e6 * k * period), truth, truth))
    return moments


@pytest.mark.parametrize(("period", "seeds"), [(0.5, 3), (0.1, 1)])
def test_ids_survive_a_second_without_detections(world: World, period: float, seeds: int) -> None:
    scene = traffic(world, period)
    same: dict[Any, list[bool]] = {nuscenes_tracker: [], NaiveTracker: []}
    for seed in range(seeds):
        hidden_scene, hidden = occluded(scene, seed)
        found = with_errors(hidden_scene, seed, missed=0)
        for tracker, survived in same.items():
            survived += survival(found, hidden, tracked(tracker(), found)).values()
    share, naive = np.mean(same[nuscenes_tracker]), np.mean(same[NaiveTracker])
    assert len(same[nuscenes_tracker]) > 70 * seeds
    assert share > 0.93
    assert share > naive + 0.03


def test_the_devkit_finds_higher_amota_and_fewer_id_switches_than_with_a_single_stage(world: World) -> None:
    scene = with_peaks(traffic(world, 0.5))
    ours, single = (devkit_scores(scene, each, ["car"]) for each in (nuscenes_tracker, SingleStage))
    assert ours["amota"] > single["amota"]
    assert ours["ids"] < single["ids"]
