"""The benchmark of how few labels are enough: which frames are labelled, and what is said of the seeds."""

from __future__ import annotations

import pytest
import typer
from bench_labels import LABELLED, _numbers, _summary, _ways, choose

SPACINGS = {1: 16, 2: 8, 4: 4, 8: 2, 16: 1}


@pytest.mark.parametrize("count", SPACINGS)
def test_labelled_frames_are_spread_over_the_drive_and_a_seed_moves_them(count):
    chosen = [choose(count, seed) for seed in range(3)]
    for frames in chosen:
        after = [*frames[1:], frames[0] + LABELLED]
        assert {b - a for a, b in zip(frames, after, strict=True)} == {SPACINGS[count]}
        assert len(frames) == len(set(frames) & set(range(LABELLED))) == count
    assert len(set(map(tuple, chosen))) == min(3, SPACINGS[count])


def test_numbers_that_do_not_divide_the_drive_are_spread_too():
    assert choose(3, 0) == [2, 7, 12]
    assert all(len(set(choose(count, seed))) == count for count in range(1, LABELLED + 1) for seed in range(9))


def test_of_the_seeds_the_median_and_the_range_are_told():
    """Half of the gap from 0.7 to 0.9 is closed at 0.8, a quarter at 0.75; at 0.6 it is wider."""
    rows = [
        {"ap": ap, "share": 0.03, "source_kept": kept, "base_unchanged": ap > 0.7}
        for ap, kept in ((0.8, 0.5), (0.6, 0.9), (0.75, 0.8))
    ]
    summary = _summary(rows, 0.7, 0.9)
    assert summary["closed"] == pytest.approx(0.25)
    assert summary["range"]["closed"] == pytest.approx([-0.5, 0.5])
    assert (summary["source_kept"], summary["range"]["source_kept"]) == (0.8, [0.5, 0.9])
    assert summary["base_unchanged"] is False
    assert summary["share"] == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("read", "text"), [(_numbers, "1,17"), (_numbers, "0,2"), (_numbers, "1-4"), (_ways, "module,heads")]
)
def test_what_it_cannot_measure_is_named(read, text):
    with pytest.raises(typer.BadParameter, match=text):
        read(text)
