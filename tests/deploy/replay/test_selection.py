"""Which frames are replayed, and when."""

import math
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.replay import real_time
from deploy.replay.real_time import RealTime
from deploy.replay.selection import Selection
from perception.errors import InputError
from perception.frame import Frame

selections = st.builds(
    lambda start, length, every: Selection(start, start + length, every),
    st.sampled_from([0.0, 0.5, 1.25, 7.0]),
    st.sampled_from([0.5, 2.0, 3.75, math.inf]),
    st.integers(1, 4),
)


@given(selections, st.lists(st.lists(st.integers(0, 10_000_000), min_size=1), min_size=1, max_size=3))
def test_selection(selection: Selection, drives: list[list[int]]) -> None:
    """Against a loop over each drive, at any rate of frames."""
    given = [
        [Frame(f"{i}-{k}", t, "ego", np.eye(4), np.eye(4), None, {}, scene=str(i)) for k, t in enumerate(sorted(each))]
        for i, each in enumerate(drives)
    ]
    expected = []
    for each in given:
        inside = [f for f in each if selection.start <= (f.timestamp - each[0].timestamp) * 1e-6 < selection.end]
        expected += inside[:: selection.every]
    chosen = selection.select(frame for each in given for frame in selection.before_end(each))
    if expected:
        assert [frame.token for frame in chosen] == [frame.token for frame in expected]
    else:
        with pytest.raises(InputError, match="start earlier"):
            list(chosen)


def test_after_the_end_one_frame_is_read() -> None:
    times = iter(range(0, 10_000_000, 500_000))
    drive = (Frame(str(t), t, "ego", np.eye(4), np.eye(4), None, {}) for t in times)
    assert len(list(Selection(end=2.0).before_end(drive))) == 4
    assert next(times) == 2_500_000


@pytest.mark.parametrize("wrong", [(-1.0, 2.0, 1), (2.0, 2.0, 1), (math.nan, 2.0, 1), (0.0, math.nan, 1), (0, 1, 0)])
def test_impossible_selections_are_one_line(wrong: tuple[float, float, int]) -> None:
    with pytest.raises(InputError, match=r"--start|--every"):
        Selection(*wrong)


class Clock:
    """A clock that goes on only while someone sleeps."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(real_time, "time", clock)
    return clock


def test_real_time(now: Clock) -> None:
    """Frames come when they were taken; a jump of the clock is not waited for."""
    steps = [0, 100, 100, 3_600_000, 100, -7_200_000, 100]  # ms
    clock, came = RealTime(), []
    start = now.monotonic()
    for i, ms in enumerate(accumulate(steps)):
        clock.wait_for(Frame(str(i), 1000 * ms, "ego", np.eye(4), np.eye(4), None, {}, scene="a"))
        came.append(now.monotonic() - start)
    assert came == pytest.approx([0, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4])
    assert clock.behind == pytest.approx(0, abs=1e-6)


def test_real_time_says_how_late_a_frame_was(now: Clock) -> None:
    clock = RealTime()
    for i in range(2):
        clock.wait_for(Frame(str(i), 10_000 * i, "ego", np.eye(4), np.eye(4), None, {}))
        now.sleep(0.2 if i == 0 else 0)
    assert clock.behind == pytest.approx(0.19)
