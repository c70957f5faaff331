"""The tracker: association against brute force, ids that last and never return, time, bounded memory, equal bits."""

import itertools
import pickle
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from courses import courses
from devkit_tracks import devkit_scores
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tracking_scenes import (
    Moment,
    NaiveTracker,
    Scene,
    SingleStage,
    nuscenes_tracker,
    occluded,
    survival,
    tracked,
    with_errors,
    with_peaks,
)
from vocabulary import CLASSES, NUSCENES

from perception.frame import Boxes
from perception.simulate.scenario import build_world
from perception.simulate.world import World
from perception.tasks.association import associate, associate_in_stages
from perception.tasks.detection.tracker import LIFETIME, MAX_TRACKS, RULES, Tracker, Tracks

CAR, PEDESTRIAN = CLASSES.index("car"), CLASSES.index("pedestrian")
START = 1_500_000_000_000_000  # us
CATEGORIES = {"vehicle.bus.rigid": "bus", "vehicle.construction": "construction_vehicle"}


def boxes_at(places: list, label: int = CAR, velocities: list | None = None, yaws: list | None = None) -> Boxes:
    """Boxes of one class at (x, y) m; velocities unknown, or (vx, vy) m/s."""
    n = len(places)
    return Boxes.from_yaws(
        centers=np.column_stack([np.reshape(places, (n, 2)), np.ones(n)]),
        sizes=np.tile([2.0, 4.5, 1.6], (n, 1)),
        yaws=np.zeros(n) if yaws is None else np.array(yaws),
        velocities=np.full((n, 2), np.nan) if velocities is None else np.reshape(velocities, (n, 2)),
        labels=np.full(n, label),
        attributes=np.full(n, -1),
        scores=np.full(n, 0.9),
    )


def random_boxes(rng: np.random.Generator, n: int, spread: float = 50.0) -> Boxes:
    velocities = rng.normal(0, 5, (n, 2))
    velocities[rng.random((n, 2)) < 0.1] = np.nan
    return Boxes.from_yaws(
        centers=rng.normal(0, spread, (n, 3)),
        sizes=rng.uniform(0.3, 10, (n, 3)),
        yaws=rng.uniform(-np.pi, np.pi, n),
        velocities=velocities,
        labels=rng.integers(0, len(CLASSES), n),
        attributes=rng.integers(-1, 8, n),
        scores=rng.random(n),
    )


def to_bytes(tracks: Tracks) -> bytes:
    columns = [
        tracks.ids,
        tracks.age,
        tracks.unseen,
        tracks.confirmed,
        *(getattr(tracks.boxes, f.name) for f in fields(Boxes)),
    ]
    return b"".join(np.ascontiguousarray(column).tobytes() for column in columns)


coordinates = st.tuples(st.floats(-4, 4), st.floats(-4, 4))


@given(
    st.lists(coordinates, max_size=4),
    st.lists(coordinates, max_size=4),
    st.floats(0.1, 6),
    st.lists(st.floats(0, 8), min_size=4, max_size=4),
)
@example([(0.0, 0.0)], [(1.65e-252, 0.0)], 1.0, [1e-252, 1.0, 1.0, 1.0])  # squares of these underflow
def test_association_is_the_best_of_all(old: list, new: list, gate: float, reaches: list) -> None:
    tracks, detections = np.reshape(old, (-1, 2)), np.reshape(new, (-1, 2))
    reach = np.array(reaches[: len(tracks)])

    def gain(row: int, column: int) -> float:
        distance = float(np.hypot(*(tracks[row] - detections[column])))
        return gate - distance if distance < min(gate, reach[row]) else 0.0

    size = max(len(tracks), len(detections))
    best = max(
        sum(gain(row, column) for row, column in enumerate(order) if row < len(tracks) and column < len(detections))
        for order in itertools.permutations(range(size))
    )
    rows, columns = associate(tracks, detections, gate, reach)
    assert len(set(rows.tolist())) == len(rows) == len(set(columns.tolist())) == len(columns)
    gains = [gain(row, column) for row, column in zip(rows, columns, strict=True)]
    assert all(g > 0 for g in gains)
    assert sum(gains) == pytest.approx(best, abs=1e-9)


@given(
    st.lists(coordinates, max_size=6), st.lists(coordinates, max_size=6), st.lists(coordinates, max_size=6), st.data()
)
def test_detections_that_are_not_sure_change_nothing_of_what_the_sure_ones_get(
    old: list, sure: list, unsure: list, data: st.DataObject
) -> None:
    tracks, detections = np.reshape(old, (-1, 2)), np.reshape(sure + unsure, (-1, 2))
    confirmed = np.array(data.draw(st.lists(st.booleans(), min_size=len(old), max_size=len(old))), bool)
    is_sure, reach = np.arange(len(detections)) < len(sure), np.full(len(old), 3.0)
    rows, columns = associate_in_stages(tracks, confirmed, detections, is_sure, 2.0, reach)
    assert len(set(rows.tolist())) == len(rows) == len(set(columns.tolist())) == len(columns)
    assert (np.hypot(*(tracks[rows] - detections[columns]).T) < 2).all()

    alone_rows, alone_columns = associate(tracks[confirmed], detections[is_sure], 2.0)
    first = confirmed[rows] & is_sure[columns]
    expected = set(zip(np.flatnonzero(confirmed)[alone_rows].tolist(), alone_columns.tolist(), strict=True))
    assert set(zip(rows[first].tolist(), columns[first].tolist(), strict=True)) == expected

    # Whoever is left over has no one left over within reach.
    free, left = np.setdiff1d(np.arange(len(old)), rows), np.setdiff1d(np.arange(len(detections)), columns)
    assert (np.hypot(*(tracks[free][:, None] - detections[left]).transpose(2, 0, 1)) >= 2).all()


def scored(boxes: Boxes, score: float) -> Boxes:
    return replace(boxes, scores=np.full(len(boxes), score))


@given(st.floats(0, RULES.sure, exclude_max=True), st.floats(0, 0.2), st.floats(0, 2 * np.pi))
@example(0.05, 0.1, 0.0)
@settings(max_examples=25, deadline=None)
def test_a_side_peak_that_is_nearer_takes_no_track_over(score: float, nearer: float, direction: float) -> None:
    """The detection of a car is 0.2 m off, a side peak of a lower score is that much nearer to the expected place."""
    expected = tracker_after(4).update(Boxes.none(), START + 2_000_000).boxes.centers[0, :2]
    towards = np.array([np.cos(direction), np.sin(direction)])
    off = (expected + 0.2 * towards).tolist()
    side = (expected + (0.2 - nearer) * towards).tolist()
    detections = Boxes.joined(
        scored(boxes_at([side], velocities=[(8, 0)]), score), boxes_at([off], velocities=[(8, 0)])
    )
    alone = tracker_after(4).update(detections.select(np.array([1])), START + 2_000_000)
    both = tracker_after(4).update(detections, START + 2_000_000)
    assert both.ids[0] == alone.ids[0] == 1
    np.testing.assert_array_equal(both.boxes.centers[0], alone.boxes.centers[0])
    assert both.boxes.scores[0] == alone.boxes.scores[0] > 0.7
    assert both.confirmed.sum() == 1


def tracker_after(frames: int) -> Tracker:
    """One that follows a car at 8 m/s."""
    tracker = Tracker(NUSCENES)
    for k in range(frames):
        tracker.update(boxes_at([(4.0 * k, 0)], velocities=[(8, 0)]), START + 500_000 * k)
    return tracker


@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.floats(0, RULES.birth, exclude_max=True))
@example(0, 12, 0.02)
@settings(max_examples=20, deadline=None)
def test_junk_begins_no_track_and_keeps_none(seed: int, cars: int, score: float) -> None:
    """200 detections a frame that score too low to begin a track, among cars that stand still and then are gone."""
    rng, tracker = np.random.default_rng(seed), Tracker(NUSCENES)
    real = boxes_at((rng.uniform(-50, 50, (cars, 2))).tolist())
    for k in range(11):
        junk = scored(boxes_at(rng.uniform(-60, 60, (200, 2)).tolist()), score)
        there = real if k < 6 else Boxes.none()
        tracks = tracker.update(Boxes.joined(junk, there), START + 500_000 * k)
        assert len(tracks.ids) <= cars
        assert k >= 6 or len(tracks.ids) == cars
    assert len(tracker.update(junk, START + 2_500_000 + round(1e6 * LIFETIME) + 1).ids) == 0


def test_a_second_detection_confirms_a_track() -> None:
    tracker = Tracker(NUSCENES)
    assert tracker.update(boxes_at([(0, 0)]), START).confirmed.tolist() == [False]
    assert tracker.update(Boxes.none(), START + 500_000).confirmed.tolist() == [False]
    assert tracker.update(boxes_at([(0, 0), (30, 0)]), START + 1_000_000).confirmed.tolist() == [True, False]


def test_a_weak_detection_continues_a_confirmed_track() -> None:
    tracker = tracker_after(4)
    weak = scored(boxes_at([(16.0, 0.3)], velocities=[(8, 0)]), (RULES.floor + RULES.birth) / 2)
    tracks = tracker.update(weak, START + 2_000_000)
    assert tracks.ids.tolist() == [1]
    assert tracks.unseen.tolist() == [0]


def test_the_score_of_a_track_grows_with_its_detections_and_fades_without() -> None:
    tracker, scores = Tracker(NUSCENES), []
    for k, score in enumerate([0.9, 0.3, 0.6, 0.6]):
        tracks = tracker.update(scored(boxes_at([(0, 0)]), score), START + 500_000 * k)
        scores.append(tracks.boxes.scores[0])
    np.testing.assert_allclose(scores, [0.9 / 2, 1.2 / 3, 1.8 / 4, 2.4 / 5])
    unseen = [tracker.update(Boxes.none(), START + 1_500_000 + t).boxes.scores[0] for t in (500_000, 1_000_000)]
    assert scores[-1] > unseen[0] > unseen[1] > 0


def test_two_cars_that_pass_each_other_keep_their_ids() -> None:
    tracker, ids = Tracker(NUSCENES), []
    for k in range(20):
        x = 10.0 * 0.5 * k - 50
        tracks = tracker.update(boxes_at([(x, 0), (-x, 1.5)], velocities=[(10, 0), (-10, 0)]), START + k * 500_000)
        ids.append(tracks.ids[np.argsort(tracks.boxes.centers[:, 1])].tolist())
    assert ids == [ids[0]] * 20


def test_classes_do_not_mix() -> None:
    tracker = Tracker(NUSCENES)
    tracker.update(boxes_at([(0, 0)]), START)
    tracks = tracker.update(boxes_at([(0, 0)], PEDESTRIAN), START + 500_000)
    assert tracks.ids.tolist() == [1, 2]
    assert tracks.boxes.labels.tolist() == [CAR, PEDESTRIAN]
    assert tracks.unseen.tolist() == [0.5, 0]


@pytest.mark.parametrize("times", [np.arange(0, 6, 0.5), np.arange(0, 6, 0.05), np.array([0, 0, 0.9, 0.95, 2, 2, 3.4])])
def test_a_car_has_one_id_at_any_rate(times: np.ndarray) -> None:
    tracker = Tracker(NUSCENES)
    for time in times:
        here = (8 * time, -3 * time)
        tracks = tracker.update(boxes_at([here], velocities=[(8, -3)]), START + round(1e6 * time))
        assert tracks.ids.tolist() == [1]
        np.testing.assert_allclose(tracks.boxes.centers[0, :2], here, atol=0.5)
        np.testing.assert_allclose(tracks.age, time, atol=1e-6)
    np.testing.assert_allclose(tracks.boxes.velocities[0], [8, -3, 0], atol=0.6)


def test_a_car_that_is_not_seen_goes_on_along_its_line_and_ends() -> None:
    tracker = Tracker(NUSCENES)
    for k in range(10):
        tracks = tracker.update(boxes_at([(5.0 * k, 0)], velocities=[(10, 0)]), START + k * 500_000)
    last, velocity = tracks.boxes.centers[0], tracks.boxes.velocities[0]
    seen = START + 9 * 500_000
    for seconds in np.arange(0.1, LIFETIME, 0.1):
        tracks = tracker.update(Boxes.none(), seen + round(1e6 * seconds))
        np.testing.assert_allclose(tracks.boxes.centers[0], last + velocity * seconds, atol=1e-5)
        np.testing.assert_allclose(tracks.unseen, seconds, atol=1e-6)
    assert len(tracker.update(Boxes.none(), seen + round(1e6 * LIFETIME)).ids) == 1
    assert len(tracker.update(Boxes.none(), seen + round(1e6 * LIFETIME) + 1).ids) == 0
    assert tracker.update(boxes_at([(0, 0)]), seen + 9_000_000).ids.tolist() == [2]


def test_a_late_frame_is_of_the_latest_time_and_a_clock_set_back_begins_anew() -> None:
    tracker = Tracker(NUSCENES)
    tracker.update(boxes_at([(0, 0)]), START)
    tracks = tracker.update(boxes_at([(0.1, 0)]), START - 300_000)
    assert tracks.ids.tolist() == [1]
    assert tracks.age.tolist() == [0]
    tracks = tracker.update(boxes_at([(0, 0)]), START - 3_600_000_000)
    assert tracks.ids.tolist() == [2]
    assert tracker.update(Boxes.none(), START - 3_600_000_000 + 500_000).unseen.tolist() == [0.5]


def test_boxes_that_are_not_finite_are_left_out() -> None:
    boxes = boxes_at([(0, 0), (20, 0), (40, 0)])
    boxes.centers[0, 2], boxes.sizes[1, 0] = np.nan, np.inf
    tracks = Tracker(NUSCENES).update(boxes, START)
    np.testing.assert_array_equal(tracks.boxes.centers, boxes.centers[2:])


def test_a_heading_is_smoothed_and_one_that_points_backwards_does_not_turn_the_car() -> None:
    tracker, rng = Tracker(NUSCENES), np.random.default_rng(0)
    errors = rng.normal(0, 0.2, 60)
    backwards = np.where(np.arange(60) % 3 == 1, np.pi, 0)
    found = []
    for k in range(60):
        yaw = 3.0 + errors[k] + backwards[k]
        found.append(tracker.update(boxes_at([(0, 0)], yaws=[yaw]), START + k * 500_000).boxes.yaws[0])
    difference = (np.array(found) - 3.0 + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(difference).max() < 0.6
    assert np.sqrt(np.mean(difference[10:] ** 2)) < 0.8 * np.sqrt(np.mean(errors[10:] ** 2))


def test_a_car_first_seen_backwards_turns_round_once_most_detections_say_so() -> None:
    tracker = Tracker(NUSCENES)
    yaws = []
    for k, yaw in enumerate([np.pi, 0, 0]):
        yaws.append(tracker.update(boxes_at([(0, 0)], yaws=[yaw]), START + k * 500_000).boxes.yaws[0])
    np.testing.assert_allclose(np.cos(yaws), [-1, -1, 1])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_whatever_comes_tracks_are_sound(seed: int) -> None:
    rng, tracker = np.random.default_rng(seed), Tracker(NUSCENES)
    time, latest, seen_once, gone = START, 0, set(), set()
    for _ in range(30):
        time += int(rng.choice([0, 1, 50_000, 500_000, 900_000, 10_000_000, -400_000, -20_000_000]))
        boxes = random_boxes(rng, int(rng.integers(0, 12)), spread=rng.choice([0.0, 1.0, 20.0]))
        boxes.centers[rng.random(boxes.centers.shape) < 0.02] = rng.choice([np.nan, np.inf])
        tracks = tracker.update(boxes, time)
        usable = np.isfinite(boxes.centers).all(axis=1)
        ids = set(tracks.ids.tolist())
        assert (np.diff(tracks.ids) > 0).all()
        assert not ids & gone
        # Each detection that may begin a track is in one, of the others some are; frames of one time add up.
        seen, births = (tracks.unseen == 0).sum(), usable & (boxes.scores >= RULES.birth)
        assert births.sum() <= seen
        assert seen <= usable.sum() or time <= latest
        latest = time if time < latest - 1e6 * LIFETIME else max(time, latest)
        assert ((tracks.unseen >= 0) & (tracks.unseen <= LIFETIME + 1e-9) & (tracks.age >= tracks.unseen)).all()
        for name in ("centers", "sizes", "rotations", "velocities", "scores"):
            assert np.isfinite(getattr(tracks.boxes, name)).all()
        np.testing.assert_allclose(np.linalg.det(tracks.boxes.rotations), 1)
        gone |= seen_once - ids
        seen_once |= ids


def test_memory_is_bounded_even_if_the_clock_stands_still() -> None:
    tracker, rng = Tracker(NUSCENES), np.random.default_rng(0)
    for _ in range(30):
        tracks = tracker.update(random_boxes(rng, 300, spread=1000), START)
    assert len(tracks.ids) == MAX_TRACKS
    kept = tracks.boxes.scores
    assert kept.min() > 0.8 / 2  # of 9000, the best; seen once each


def test_the_same_frames_give_the_same_bits_wherever_they_lie_in_memory_and_after_a_pause() -> None:
    rng = np.random.default_rng(5)
    frames = [random_boxes(rng, 40, spread=15) for _ in range(40)]

    def moved(boxes: Boxes, offset: int) -> Boxes:
        """The same values at another address."""

        def copied(column: np.ndarray) -> np.ndarray:
            memory = np.empty(column.size + offset, column.dtype)
            place = memory[offset:].reshape(column.shape)
            place[:] = column
            return place

        return Boxes(**{f.name: copied(getattr(boxes, f.name)) for f in fields(Boxes)})

    first, second = Tracker(NUSCENES), Tracker(NUSCENES)
    for k, boxes in enumerate(frames):
        expected = first.update(boxes, START + 300_000 * k)
        assert to_bytes(expected) == to_bytes(second.update(moved(boxes, 1 + k % 7), START + 300_000 * k))
        second = pickle.loads(pickle.dumps(second))


def test_tracks_that_were_given_out_do_not_change() -> None:
    tracker = Tracker(NUSCENES)
    tracks = tracker.update(boxes_at([(0, 0), (9, 9)]), START)
    before = to_bytes(tracks)
    for k in range(1, 9):
        tracker.update(boxes_at([(k, 0)]), START + 500_000 * k)
    assert to_bytes(tracks) == before


@pytest.fixture(scope="module")
def world() -> World:
    rng, (course,) = np.random.default_rng([3, 1]), courses("clear-day-boston")
    return build_world(course.place, course.phases[0].surroundings.draw(rng), 12.0, rng)


def traffic(world: World, period: float) -> Scene:
    """All that is within 50 m of the vehicle, every `period` seconds."""
    names = [CATEGORIES.get(a.category) or a.category.replace("trafficcone", "traffic_cone") for a in world.agents]
    labels = np.array([next(k for k, c in enumerate(CLASSES) if c in name.split(".")) for name in names])
    moments = []
    for k in range(int(12 / period)):
        xy, yaws, velocities = world.agents_at(k * period)
        near = np.linalg.norm(xy - world.global_from_ego_at(k * period)[:2, 3], axis=1) < 50
        sizes = np.array([agent.size for agent in world.agents])
        n = len(sizes)
        centers = np.column_stack([xy, sizes[:, 2] / 2])
        truth = Boxes.from_yaws(centers, sizes, yaws, velocities, labels, np.full(n, -1), np.ones(n))
        truth = replace(truth, instances=np.arange(n).astype("U32")).select(near)
        moments.append(Moment(str(k), START + round(1e6 * k * period), truth, truth))
    return moments


@pytest.mark.parametrize("period", [0.5, 0.1])
def test_ids_survive_a_second_without_detections(world: World, period: float) -> None:
    scene = traffic(world, period)
    same: dict[Any, list[bool]] = {nuscenes_tracker: [], NaiveTracker: []}
    for seed in range(3):
        hidden_scene, hidden = occluded(scene, seed)
        found = with_errors(hidden_scene, seed, missed=0)
        for tracker, survived in same.items():
            survived += survival(found, hidden, tracked(tracker(), found)).values()
    share, naive = np.mean(same[nuscenes_tracker]), np.mean(same[NaiveTracker])
    assert len(same[nuscenes_tracker]) > 200
    assert share > 0.93
    assert share > naive + 0.03


def with_few_scores(history: list[Tracks]) -> list[Tracks]:
    """The same with the mean score of each track to a tenth: the devkit takes a tenth of a second for each score."""
    scores: dict[int, list[float]] = {}
    for tracks in history:
        for track, score in zip(tracks.ids.tolist(), tracks.boxes.scores.tolist(), strict=True):
            scores.setdefault(track, []).append(score)
    few = {track: round(float(np.mean(each)), 1) for track, each in scores.items()}
    return [
        replace(tracks, boxes=replace(tracks.boxes, scores=np.array([few[track] for track in tracks.ids.tolist()])))
        for tracks in history
    ]


def test_the_devkit_finds_higher_amota_and_fewer_id_switches_than_with_a_single_stage(world: World) -> None:
    scene = with_peaks(traffic(world, 0.5))
    scores = {
        tracker: devkit_scores([scene], [with_few_scores(tracked(tracker(), scene))], ["car"])
        for tracker in (nuscenes_tracker, SingleStage)
    }
    assert scores[nuscenes_tracker]["amota"] > scores[SingleStage]["amota"]
    assert scores[nuscenes_tracker]["ids"] < scores[SingleStage]["ids"]
