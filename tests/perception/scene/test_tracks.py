"""The tracker and its filter: association by brute force, the textbook's Kalman filter, ids, time, memory, bits."""

import itertools
import pickle
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up import make_boxes
from vocabulary import CLASSES, NUSCENES

from perception.frame import Boxes
from perception.tasks.association import associate, associate_in_stages
from perception.tasks.detection.motion import Motion, Noise
from perception.tasks.detection.tracker import BIRTH, FADED, FLOOR, LIFETIME, MAX_TRACKS, SURE, Tracker
from perception.tasks.detection.traffic import select_strongest
from perception.tasks.published import ScoreThresholds, Tracks

CAR, PEDESTRIAN = CLASSES.index("car"), CLASSES.index("pedestrian")
MOVING = [label for label, each in enumerate(NUSCENES.classes) if each.tracked]
START, HALF_SECOND = 1_500_000_000_000_000, 500_000  # us


def boxes_at(places: list, label: int = CAR, velocities: Any = np.nan, yaws: Any = 0.0, score: float = 0.9) -> Boxes:
    """Boxes of one class at (x, y) m; velocities unknown, or (vx, vy) m/s."""
    centers = [(*place, 1.0) for place in places]
    return make_boxes(centers, yaws=yaws, velocities=velocities, labels=label, scores=score)


def random_boxes(rng: np.random.Generator, n: int, spread: float = 50.0) -> Boxes:
    velocities = rng.normal(0, 5, (n, 2))
    velocities[rng.random((n, 2)) < 0.1] = np.nan
    return Boxes.from_yaws(
        rng.normal(0, spread, (n, 3)), rng.uniform(0.3, 10, (n, 3)), rng.uniform(-np.pi, np.pi, n), velocities,
        rng.integers(0, len(CLASSES), n), rng.integers(-1, 8, n), rng.random(n),
    )  # fmt: skip


def to_bytes(tracks: Tracks) -> bytes:
    columns = [tracks.ids, tracks.age, tracks.unseen, tracks.confirmed, tracks.variances]
    columns += [getattr(tracks.boxes, f.name) for f in fields(Boxes)]
    return b"".join(np.ascontiguousarray(column).tobytes() for column in columns)


def followed(*frames: Boxes, tracker: Tracker | None = None) -> list[Tracks]:
    """The tracks after each of these frames at 2 Hz."""
    tracker = tracker or Tracker(NUSCENES)
    return [tracker.update(boxes, START + HALF_SECOND * k) for k, boxes in enumerate(frames)]


coordinates = st.tuples(st.floats(-4, 4), st.floats(-4, 4))


@given(st.lists(coordinates, max_size=4), st.lists(coordinates, max_size=4), st.floats(0.1, 6))
@example([(0.0, 0.0)], [(1.65e-252, 0.0)], 1e-252)  # squares of these underflow
def test_association_is_the_best_of_all(old: list, new: list, gate: float) -> None:
    tracks, detections = np.reshape(old, (-1, 2)), np.reshape(new, (-1, 2))

    def gain(row: int, column: int) -> float:
        distance = float(np.hypot(*(tracks[row] - detections[column])))
        return gate - distance if distance < gate else 0.0

    size = max(len(tracks), len(detections))
    best = max(
        sum(gain(row, column) for row, column in enumerate(order) if row < len(tracks) and column < len(detections))
        for order in itertools.permutations(range(size))
    )
    rows, columns = associate(tracks, detections, gate)
    assert len(set(rows.tolist())) == len(rows) == len(set(columns.tolist())) == len(columns)
    gains = [gain(row, column) for row, column in zip(rows, columns, strict=True)]
    assert all(g > 0 for g in gains)
    assert sum(gains) == pytest.approx(best, abs=1e-9)


@given(
    st.lists(coordinates, max_size=6), st.lists(coordinates, max_size=6), st.lists(coordinates, max_size=6), st.data()
)
def test_unsure_detections_change_nothing_of_what_sure_ones_get(old, sure, unsure, data):
    tracks, detections = np.reshape(old, (-1, 2)), np.reshape(sure + unsure, (-1, 2))
    confirmed = np.array(data.draw(st.lists(st.booleans(), min_size=len(old), max_size=len(old))), bool)
    is_sure = np.arange(len(detections)) < len(sure)
    distance = np.hypot(*(tracks[:, None] - detections).transpose(2, 0, 1))
    rows, columns = associate_in_stages(2 - distance, distance < 2, confirmed, is_sure)
    assert len(set(rows.tolist())) == len(rows) == len(set(columns.tolist())) == len(columns)
    assert (np.hypot(*(tracks[rows] - detections[columns]).T) < 2).all()

    alone_rows, alone_columns = associate(tracks[confirmed], detections[is_sure], 2.0)
    first = confirmed[rows] & is_sure[columns]
    expected = set(zip(np.flatnonzero(confirmed)[alone_rows].tolist(), alone_columns.tolist(), strict=True))
    assert set(zip(rows[first].tolist(), columns[first].tolist(), strict=True)) == expected

    # Whoever is left over has no one left over within reach.
    free, left = np.setdiff1d(np.arange(len(old)), rows), np.setdiff1d(np.arange(len(detections)), columns)
    assert (np.hypot(*(tracks[free][:, None] - detections[left]).transpose(2, 0, 1)) >= 2).all()


def tracker_after(frames: int) -> Tracker:
    """One that follows a car at 8 m/s."""
    tracker = Tracker(NUSCENES)
    followed(*(boxes_at([(4.0 * k, 0)], velocities=[(8, 0)]) for k in range(frames)), tracker=tracker)
    return tracker


@given(st.floats(0, SURE, exclude_max=True), st.floats(0, 0.2), st.floats(0, 2 * np.pi))
@example(0.05, 0.1, 0.0)
@settings(max_examples=25, deadline=None)
def test_a_side_peak_that_is_nearer_takes_no_track_over(score: float, nearer: float, direction: float) -> None:
    """The detection of a car is 0.2 m off, a side peak of a lower score is that much nearer to the expected place."""
    expected = tracker_after(4).update(Boxes.none(), START + 2_000_000).boxes.centers[0, :2]
    towards = np.array([np.cos(direction), np.sin(direction)])
    side = boxes_at([(expected + (0.2 - nearer) * towards).tolist()], velocities=[(8, 0)], score=score)
    car = boxes_at([(expected + 0.2 * towards).tolist()], velocities=[(8, 0)])
    alone = tracker_after(4).update(car, START + 2_000_000)
    both = tracker_after(4).update(Boxes.joined(side, car), START + 2_000_000)
    assert both.ids[0] == alone.ids[0] == 1
    np.testing.assert_array_equal(both.boxes.centers[0], alone.boxes.centers[0])
    assert both.boxes.scores[0] == alone.boxes.scores[0] > 0.7
    assert both.confirmed.sum() == 1


@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.floats(0, BIRTH, exclude_max=True))
@example(0, 12, 0.02)
@settings(max_examples=20, deadline=None)
def test_junk_begins_no_track_and_keeps_none(seed: int, cars: int, score: float) -> None:
    """200 detections a frame that score too low to begin a track, among cars that stand still and then are gone."""
    rng, tracker = np.random.default_rng(seed), Tracker(NUSCENES)
    places = np.stack(np.meshgrid(np.arange(-50, 50, 12.0), np.arange(-50, 50, 12.0)), axis=-1).reshape(-1, 2)
    real = boxes_at(rng.permutation(places)[:cars].tolist())
    for k in range(11):
        junk = boxes_at(rng.uniform(-60, 60, (200, 2)).tolist(), score=score)
        there = real if k < 6 else Boxes.none()
        tracks = tracker.update(Boxes.joined(junk, there), START + HALF_SECOND * k)
        assert len(tracks.ids) <= cars
        assert k >= 6 or len(tracks.ids) == cars
    assert len(tracker.update(junk, START + 2_500_000 + round(1e6 * LIFETIME) + 1).ids) == 0


def test_a_second_detection_confirms_a_track_and_a_weak_one_continues_it() -> None:
    found = followed(boxes_at([(0, 0)]), Boxes.none(), boxes_at([(0, 0), (30, 0)]))
    assert [each.confirmed.tolist() for each in found] == [[False], [False], [True, False]]
    weak = boxes_at([(16.0, 0.3)], velocities=[(8, 0)], score=(FLOOR + BIRTH) / 2)
    tracks = tracker_after(4).update(weak, START + 2_000_000)
    assert (tracks.ids.tolist(), tracks.unseen.tolist()) == ([1], [0])


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0.16, 1), st.sampled_from([CAR, PEDESTRIAN])), max_size=6))
def test_detections_with_the_score_of_their_class_and_range_confirm(objects: list) -> None:
    """By distances from the vehicle, which is far from where the frame of reference begins."""
    given = ScoreThresholds(default=0.3, upper_bounds=(20.0, 40.0), thresholds={"pedestrian": (0.6, 0.2)})
    place, tracker = np.array([700.0, -300.0]), Tracker(NUSCENES, given)
    rows = [
        boxes_at([place + np.array([x, 30.0 * i])], label, score=score) for i, (x, score, label) in enumerate(objects)
    ]
    for k in range(4):
        tracks = tracker.update(Boxes.joined(Boxes.none(), *rows), START + HALF_SECOND * k, place)
    expected = [
        score >= (0.3 if label == CAR else 0.6 if np.hypot(x, 30.0 * i) < 20.0 else 0.2)
        for i, (x, score, label) in enumerate(objects)
    ]
    assert tracks.confirmed.tolist() == expected


def test_weak_detections_continue_a_confirmed_track_until_its_score_has_faded() -> None:
    strong, weak, none = boxes_at([(0, 0)], score=0.6), boxes_at([(0, 0)], score=0.2), Boxes.none()
    found = followed(weak, weak, strong, weak, strong, weak, weak, none, none, none, none)
    assert [each.confirmed.tolist() for each in found[:7]] == [[False]] * 4 + [[True]] * 3
    scores = [each.boxes.scores[0] for each in found[7:]]
    assert [bool(each.confirmed[0]) for each in found[7:]] == [score >= FADED * 0.3 for score in scores]
    assert scores[-1] < FADED * 0.3 < scores[0]


@pytest.mark.parametrize(
    ("label", "speed", "confirmed"), [(PEDESTRIAN, 8, True), (PEDESTRIAN, 14, False), (CAR, 14, True)]
)
def test_a_track_that_is_faster_than_its_class_can_be_is_not_confirmed(
    label: int, speed: float, confirmed: bool
) -> None:
    xs = 0.1 * speed * np.arange(10)
    tracker = Tracker(NUSCENES)
    for k, x in enumerate(xs):
        tracks = tracker.update(boxes_at([(x, 0)], label, velocities=[(speed, 0)]), START + 100_000 * k)
    assert tracks.boxes.velocities[0, 0] == pytest.approx(speed, rel=0.2)
    assert tracks.confirmed.tolist() == [confirmed]


def test_the_score_of_a_track_grows_with_its_detections_and_fades_without() -> None:
    frames = [boxes_at([(0, 0)], score=score) for score in (0.9, 0.3, 0.6, 0.6)]
    *scores, last, first, second = (tracks.boxes.scores[0] for tracks in followed(*frames, Boxes.none(), Boxes.none()))
    np.testing.assert_allclose([*scores, last], [0.9 / 2, 1.2 / 3, 1.8 / 4, 2.4 / 5])
    assert last > first > second > 0


def test_two_cars_that_pass_each_other_keep_their_ids_and_classes_do_not_mix() -> None:
    xs = 5.0 * np.arange(20) - 50
    found = followed(*(boxes_at([(x, 0), (-x, 1.5)], velocities=[(10, 0), (-10, 0)]) for x in xs))
    ids = [tracks.ids[np.argsort(tracks.boxes.centers[:, 1])].tolist() for tracks in found]
    assert ids == [ids[0]] * 20
    _, tracks = followed(boxes_at([(0, 0)]), boxes_at([(0, 0)], PEDESTRIAN))
    assert tracks.ids.tolist() == [1, 2]
    assert tracks.boxes.labels.tolist() == [CAR, PEDESTRIAN]
    assert tracks.unseen.tolist() == [0.5, 0]


def test_a_track_that_took_the_detection_of_the_next_car_goes_on_with_it() -> None:
    """It seems to stand, and 7 m are further than its gate; with a known velocity nothing is in doubt."""
    frames = [boxes_at([place]) for place in ((0, 0), (0, 0), (7, 0), (14, 0))]
    assert [each.ids[each.unseen == 0].tolist() for each in followed(*frames)] == [[1], [1], [1], [1]]
    known = [boxes_at([place], velocities=[(speed, 0)]) for place, speed in (((0, 0), 0), ((0, 0), 0), ((7, 0), 14))]
    assert followed(*known)[-1].ids.tolist() == [1, 2]


def test_a_car_whose_velocity_nobody_measured_moves_like_its_lane() -> None:
    places = [[(6.0 * k + 15 * n, 0) for n in range(3)] for k in range(5)]
    moving = [boxes_at(each, velocities=[(12, 0)] * 3) for each in places]
    new = Boxes.joined(moving[-1], boxes_at([(10, 0)]))  # behind them
    tracks = followed(*moving[:-1], new)[-1]
    assert tracks.boxes.velocities[3, 0] == pytest.approx(tracks.boxes.velocities[0, 0], rel=0.2)
    assert followed(boxes_at([(10, 0)]))[-1].boxes.velocities[0, 0] == 0


def test_a_second_track_of_a_car_ends_when_the_car_covers_it() -> None:
    twice = boxes_at([(0, 0), (2.6, 0)])  # not in the box, 4.5 m long
    assert followed(*[boxes_at([(0, 0)])] * 3, twice)[-1].ids.tolist() == [1, 2]
    assert followed(*[boxes_at([(0, 0)])] * 3, twice, boxes_at([(1.0, 0)]))[-1].ids.tolist() == [1]


def test_a_car_that_is_not_seen_goes_on_along_its_line_and_ends() -> None:
    tracker = Tracker(NUSCENES)
    *_, tracks = followed(*(boxes_at([(5.0 * k, 0)], velocities=[(10, 0)]) for k in range(10)), tracker=tracker)
    last, velocity, seen = tracks.boxes.centers[0], tracks.boxes.velocities[0], START + 9 * HALF_SECOND
    for seconds in np.arange(0.1, LIFETIME, 0.1):
        tracks = tracker.update(Boxes.none(), seen + round(1e6 * seconds))
        np.testing.assert_allclose(tracks.boxes.centers[0], last + velocity * seconds, atol=1e-5)
        np.testing.assert_allclose([*tracks.unseen, *tracks.age], [seconds, 4.5 + seconds], atol=1e-6)
    assert len(tracker.update(Boxes.none(), seen + round(1e6 * LIFETIME)).ids) == 1
    assert len(tracker.update(Boxes.none(), seen + round(1e6 * LIFETIME) + 1).ids) == 0
    assert tracker.update(boxes_at([(0, 0)]), seen + 9_000_000).ids.tolist() == [2]


@given(st.sampled_from(MOVING), st.floats(0, 12), st.floats(0, 2 * np.pi), st.sampled_from([0.1, 0.5]))
@settings(max_examples=25, deadline=None)
def test_an_object_keeps_its_id_through_a_second_without_detections(label, speed, direction, period):
    """The detector is wrong by 0.2 m, to the left and to the right in turn."""
    velocity = min(speed, 2 if label == PEDESTRIAN else 12) * np.array([np.cos(direction), np.sin(direction)])
    tracker, error = Tracker(NUSCENES), 0.2 * np.array([-np.sin(direction), np.cos(direction)])
    for k in range(round(5 / period)):
        there = [] if 2 < k * period < 3 else [velocity * k * period + (-1) ** k * error]
        tracks = tracker.update(boxes_at(there, label, velocity), START + round(1e6 * k * period))
        assert tracks.ids.tolist() == [1]


def test_a_late_frame_is_of_the_latest_time_and_a_clock_set_back_begins_anew() -> None:
    tracker, back = Tracker(NUSCENES), START - round(1e6 * LIFETIME)
    tracker.update(boxes_at([(0, 0)]), START)
    tracks = tracker.update(boxes_at([(0.1, 0)]), back)
    assert (tracks.ids.tolist(), tracks.age.tolist()) == ([1], [0])
    assert tracker.update(boxes_at([(0, 0)]), back - 1).ids.tolist() == [2]
    assert tracker.update(Boxes.none(), back - 1 + HALF_SECOND).unseen.tolist() == [0.5]


def test_a_heading_is_smoothed_and_one_that_points_backwards_does_not_turn_the_car() -> None:
    """A car that was first seen backwards turns round once most detections say so."""
    errors = np.random.default_rng(0).normal(0, 0.2, 60)
    yaws = 3.0 + errors + np.where(np.arange(60) % 3 == 1, np.pi, 0)
    found = np.array([tracks.boxes.yaws[0] for tracks in followed(*(boxes_at([(0, 0)], yaws=[yaw]) for yaw in yaws))])
    difference = (found - 3.0 + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(difference).max() < 0.6
    assert np.sqrt(np.mean(difference[10:] ** 2)) < 0.8 * np.sqrt(np.mean(errors[10:] ** 2))
    turned = followed(*(boxes_at([(0, 0)], yaws=[yaw]) for yaw in (np.pi, 0, 0)))
    np.testing.assert_allclose([np.cos(tracks.boxes.yaws[0]) for tracks in turned], [-1, -1, 1])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_whatever_comes_tracks_are_sound(seed: int) -> None:
    rng, tracker = np.random.default_rng(seed), Tracker(NUSCENES)
    time, latest, seen_once, gone = START, 0, set(), set()
    for _ in range(30):
        time += int(rng.choice([0, 1, 50_000, 500_000, 900_000, 10_000_000, -400_000, -20_000_000]))
        boxes = random_boxes(rng, int(rng.integers(0, 12)), spread=rng.choice([0.0, 1.0, 20.0]))
        boxes.centers[rng.random(boxes.centers.shape) < 0.02] = rng.choice([np.nan, np.inf])
        boxes.sizes[rng.random(boxes.sizes.shape) < 0.02] = rng.choice([np.nan, np.inf])
        tracks = tracker.update(boxes, time)
        usable = np.isfinite(boxes.centers).all(axis=1) & np.isfinite(boxes.sizes).all(axis=1)
        ids = set(tracks.ids.tolist())
        assert (np.diff(tracks.ids) > 0).all()
        assert not ids & gone
        # Each detection that may begin a track is in one, of the others some are; frames of one time add up.
        usable[usable] = np.isin(boxes.scores[usable], select_strongest(boxes.select(usable)).scores)
        seen, births = (tracks.unseen == 0).sum(), usable & (boxes.scores >= BIRTH)
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
    assert tracks.boxes.scores.min() > 0.8 / 2  # of 9000, the best; seen once each


def test_the_same_frames_give_the_same_bits_wherever_they_lie_in_memory_and_after_a_pause() -> None:
    """And tracks that were given out do not change."""
    rng = np.random.default_rng(5)
    first, second, given = Tracker(NUSCENES), Tracker(NUSCENES), []

    def copied(column: np.ndarray, offset: int) -> np.ndarray:
        """The same values at another address."""
        place = np.empty(column.size + offset, column.dtype)[offset:].reshape(column.shape)
        place[:] = column
        return place

    for k in range(40):
        boxes = random_boxes(rng, 40, spread=15)
        elsewhere = Boxes(**{f.name: copied(getattr(boxes, f.name), 1 + k % 7) for f in fields(Boxes)})
        tracks = first.update(boxes, START + 300_000 * k)
        given.append((tracks, to_bytes(tracks)))
        assert given[-1][1] == to_bytes(second.update(elsewhere, START + 300_000 * k))
        second = pickle.loads(pickle.dumps(second))
    assert all(to_bytes(tracks) == before for tracks, before in given)


def noise_of(n: int, rng: np.random.Generator) -> Noise:
    return Noise(*(rng.uniform(0.1, 3, n) for _ in fields(Noise)))


class Textbook:
    """One object in float64 matrices: x' = F x with noise Q, z = H x with noise R, gain K, Joseph's form."""

    def __init__(
        self, center: np.ndarray, velocity: np.ndarray, noise: Noise, expected: tuple[np.ndarray, np.ndarray], i: int
    ) -> None:
        self.noise = {f.name: float(getattr(noise, f.name)[i]) for f in fields(Noise)}
        self.x = np.array([*center, *expected[0][i]])
        self.p = np.diag([self.noise["position"] ** 2] * 3 + [expected[1][i]] * 2)
        self.update(np.full(3, np.nan), velocity)

    def predict(self, seconds: float) -> None:
        move, q = np.eye(5), np.zeros((5, 5))
        for place, speed in ((0, 3), (1, 4)):
            move[place, speed] = seconds
            q[place, place], q[speed, speed] = seconds**3 / 3, seconds
            q[place, speed] = q[speed, place] = seconds**2 / 2
        q *= self.noise["acceleration"] ** 2
        q[2, 2] = self.noise["climb"] ** 2 * seconds
        self.x, self.p = move @ self.x, move @ self.p @ move.T + q

    def update(self, center: np.ndarray, velocity: np.ndarray) -> None:
        """What is measured is the state itself, but for what is NaN."""
        z = np.array([*center, *(velocity if np.isfinite(velocity).all() else [np.nan] * 2)])
        measured = np.isfinite(z)
        h, r = np.eye(5)[measured], np.diag([self.noise["position"] ** 2] * 3 + [self.noise["velocity"] ** 2] * 2)
        r = r[np.ix_(measured, measured)]
        k = self.p @ h.T @ np.linalg.inv(h @ self.p @ h.T + r)
        rest = np.eye(5) - k @ h
        self.x, self.p = self.x + k @ (z[measured] - h @ self.x), rest @ self.p @ rest.T + k @ r @ k.T


def assert_equal(motion: Motion, books: list[Textbook]) -> None:
    place, speed = [0, 1], [3, 4]
    for i, book in enumerate(books):
        covariance = np.zeros((5, 5))
        covariance[place, place], covariance[place, speed], covariance[speed, speed] = motion.covariances[i]
        covariance[speed, place], covariance[2, 2] = covariance[place, speed], motion.height_variances[i]
        found = np.concatenate([motion.centers[i], motion.velocities[i], covariance.ravel()])
        np.testing.assert_allclose(found, np.concatenate([book.x, book.p.ravel()]), rtol=1e-9, atol=1e-9)


@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from([0.0, 1e-6, 0.05, 0.5, 0.51, 3.0]), max_size=20))
@settings(max_examples=60, deadline=None)
def test_the_filter_is_the_textbooks(seed: int, steps: list[float]) -> None:
    rng, n = np.random.default_rng(seed), 4
    noise = noise_of(n, rng)

    def measurement() -> tuple[np.ndarray, np.ndarray]:
        velocities = rng.normal(0, 10, (n, 2))
        velocities[rng.random((n, 2)) < 0.2] = np.nan
        return rng.normal(0, 50, (n, 3)), velocities

    centers, velocities = measurement()
    expected = rng.normal(0, 10, (n, 2)), rng.uniform(0.1, 30, n)
    motion = Motion.begin(centers, velocities, noise, expected)
    books = [Textbook(centers[i], velocities[i], noise, expected, i) for i in range(n)]
    assert_equal(motion, books)
    for seconds in steps:
        motion = motion.predict(seconds, noise)
        for book in books:
            book.predict(seconds)
        assert_equal(motion, books)
        if rng.random() < 0.7:
            centers, velocities = measurement()
            motion = motion.update(centers, velocities, noise)
            for i, book in enumerate(books):
                book.update(centers[i], velocities[i])
            assert_equal(motion, books)
