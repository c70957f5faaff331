"""The interval of a verdict covers what it says with few scenes; simulated, by the code that the verdict runs."""

import numpy as np
import pytest
from drawn_scenes import Draw, detection, gaussian, heavy_tails, iou, skewed
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from perception.evaluation.interval import LEAST_EFFECTIVE, delete_one, effective_number, jackknife_interval

COVERED, FALSE_PASSES = 0.93, 0.035  # what must hold, of a nominal 0.95 and 0.025
SCENES = (3, 4, 5, 8, 12, 20, 40)


def misses(intervals: np.ndarray, truth: float) -> tuple[int, int, int]:
    """How many intervals there are, how many lie beside the truth, and how many above: those pass falsely."""
    given = intervals[~np.isnan(intervals[:, 0])]
    above = int((given[:, 0] > truth).sum())
    return len(given), above + int((given[:, 1] < truth).sum()), above


def most(count: int, of: int) -> float:
    """The largest rate that the count leaves possible, with a confidence of 99 % (Clopper and Pearson, 1934)."""
    return float(stats.beta.ppf(0.99, count + 1, of - count))


@pytest.mark.parametrize("scenes", SCENES)
@pytest.mark.parametrize("draw", [gaussian, heavy_tails, iou])
def test_intervals_cover_and_pass_as_often_as_they_say(draw: Draw, scenes: int) -> None:
    drawn = draw(np.random.default_rng(scenes), 20_000 if draw is not iou else 8_000, scenes)
    intervals, missed, passed = misses(drawn.jackknife(), drawn.truth)
    assert intervals > 0.9 * len(drawn.sizes)
    assert most(missed, intervals) <= 1 - COVERED
    assert most(passed, intervals) <= FALSE_PASSES


@pytest.mark.parametrize("scenes", SCENES)
def test_the_percentile_bootstrap_covers_less(scenes: int) -> None:
    """So that the test above can fail: it finds what it replaced wanting."""
    rng = np.random.default_rng(scenes)
    drawn = gaussian(rng, 4000, scenes)
    intervals, missed, passed = misses(drawn.percentile(300, rng), drawn.truth)
    assert most(missed, intervals) > 1 - COVERED
    assert most(passed, intervals) > FALSE_PASSES


@pytest.mark.parametrize(("scenes", "repeats"), [(3, 250), (5, 150), (12, 80)])
def test_intervals_of_map_and_nds_cover_as_they_say(scenes: int, repeats: int) -> None:
    """Few draws, as each is scored as a replay is: they must not contradict the rates."""
    for drawn in detection(np.random.default_rng(scenes), repeats, scenes):
        intervals, missed, passed = misses(drawn.jackknife(), drawn.truth)
        assert intervals > 0.4 * repeats
        assert missed <= stats.binom.ppf(0.99, intervals, 1 - COVERED)
        assert passed <= stats.binom.ppf(0.99, intervals, FALSE_PASSES)


def test_losses_in_few_scenes_widen_the_interval_to_their_side() -> None:
    """Skewed changes: false passes get fewer than by Student's interval, of the same samples."""
    drawn = skewed(np.random.default_rng(8), 20_000, 12)
    changes = drawn.score(np.eye(12))
    students = np.array(stats.t.interval(0.95, 11, changes.mean(axis=1), stats.sem(changes, axis=1))).T
    _, missed, passed = misses(drawn.jackknife(), drawn.truth)
    _, students_missed, students_passed = misses(students, drawn.truth)
    count = len(students)
    assert most(missed, count) < stats.beta.ppf(0.01, students_missed, count - students_missed + 1)
    assert most(passed, count) < stats.beta.ppf(0.01, students_passed, count - students_passed + 1)


def test_means_of_equal_scenes_have_students_interval_where_they_are_symmetric() -> None:
    """Of which the coverage is exact (Student, 1908); where they are not, one end lies further out."""
    rng = np.random.default_rng(3)
    half = rng.normal(0, 1, (50, 4))
    scores = lambda changes: changes @ (delete_one(np.arange(8), 8).T / np.r_[8, np.full(8, 7)])  # noqa: E731
    symmetric, any_ = 0.1 + np.hstack([half, -half]), rng.normal(0.1, 1, (50, 8))
    for changes in (symmetric, any_):
        low, high = stats.t.interval(0.9, 7, changes.mean(axis=1), stats.sem(changes, axis=1))
        found = jackknife_interval(scores(changes), np.ones((50, 8)), 0.9)
        tail = stats.skew(changes, axis=1)
        if changes is symmetric:
            np.testing.assert_allclose(found.T, [low, high])
        else:
            np.testing.assert_allclose(found[tail > 0, 0], low[tail > 0])
            np.testing.assert_allclose(found[tail < 0, 1], high[tail < 0])
            assert (found[tail > 0, 1] > high[tail > 0]).all()
            assert (found[tail < 0, 0] < low[tail < 0]).all()


def test_few_scenes_and_one_that_outweighs_the_others_have_none() -> None:
    def none(*sizes: float) -> bool:
        scores = np.arange(len(sizes) + 1) / 10
        return bool(np.isnan(jackknife_interval(scores, np.array(sizes), 0.95)).all())

    assert none(1)
    assert none(1, 1)
    assert not none(1, 1, 1)
    assert none(1, 1, 0, 0, 0)  # where a class is in two scenes of five, its AP rests on two
    assert none(10, 1, 1)
    assert none(0, 0, 0)


sizes_of_scenes = st.lists(st.floats(0.1, 10), min_size=3, max_size=12)


@given(sizes_of_scenes, st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_the_order_and_the_unit_do_not_matter(sizes: list[float], seed: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    scores, order = rng.normal(0, 1, len(sizes) + 1), rng.permutation(len(sizes))
    interval = jackknife_interval(scores, np.array(sizes), 0.95)
    mixed = np.append(scores[0], scores[1:][order])
    np.testing.assert_allclose(jackknife_interval(mixed, unit * np.array(sizes)[order], 0.95), interval)
    np.testing.assert_allclose(jackknife_interval(unit * scores, np.array(sizes), 0.95), unit * interval)


@given(sizes_of_scenes)
def test_the_effective_number_is_that_of_equal_scenes_at_most(sizes: list[float]) -> None:
    number = effective_number(np.array(sizes))
    assert 1 <= number <= len(sizes) + 1e-9
    assert effective_number(np.full(len(sizes), sizes[0])) == pytest.approx(len(sizes))
    assert effective_number(np.append(sizes, 0.0)) == pytest.approx(number)  # an empty scene adds nothing
    assert np.isnan(jackknife_interval(np.zeros(len(sizes) + 1), np.array(sizes), 0.5)[0]) == (number < LEAST_EFFECTIVE)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8, unique=True))
def test_each_draw_leaves_one_scene_out(scenes: list[int]) -> None:
    draws = delete_one(np.array(scenes), 21)
    assert draws[0].nonzero()[0].tolist() == sorted(scenes)
    for draw, left in zip(draws[1:], scenes, strict=True):
        assert draw.nonzero()[0].tolist() == sorted(set(scenes) - {left})
