"""The change of a score against a baseline, with a confidence interval over scenes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deploy.replay.measures import Measures
from deploy.replay.outcome import Outcome
from perception.evaluation.interval import jackknife_interval, too_few
from perception.tasks.metric import Subject, mean_shares

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Change:
    """A score of a baseline and of the judged replay."""

    before: float
    after: float
    scenes: int  # with frames under the condition
    same: bool  # whether both replays have the same results
    interval: tuple[float, float] | None  # of after - before; None if there are too few scenes
    why: str  # there is no interval

    @property
    def value(self) -> float:
        return self.after - self.before

    @property
    def excludes(self) -> float | None:
        """The smallest loss that the scenes exclude; None if they exclude none."""
        if self.same:
            return 0.0
        return None if self.interval is None else max(0.0, -self.interval[0])

    def outcome(self, at_most: float) -> Outcome:
        """Pass: the scenes exclude a loss over `at_most`. Fail: they show one. Inconclusive: neither."""
        if self.excludes is None:
            return "inconclusive"
        if self.excludes <= at_most + _ROUNDING:
            return "pass"
        return "fail" if self.interval is not None and self.interval[1] < -at_most - _ROUNDING else "inconclusive"

    def reason(self, at_most: float, confidence: float) -> str:
        numbers = f"{self.before:.4f} became {self.after:.4f} ({self.value:+.4f}"
        limit = f"it may fall by {at_most:g}"
        here = "this scene" if self.scenes == 1 else f"these {self.scenes} scenes"
        if self.same:
            return f"{numbers}; both replays have the same results); {limit}"
        if self.interval is None:
            return f"{numbers}); {limit}, but {here} cannot exclude any loss: {self.why}"
        low, high = self.interval
        judged = f"{numbers}, {confidence:.0%} interval {low:+.4f} to {high:+.4f} of {self.scenes} scenes); {limit}"
        outcome = self.outcome(at_most)
        if outcome == "fail":
            return f"{judged}, and fell further"
        if outcome == "inconclusive":
            excluded = math.ceil(round(-low * 1e4, 6)) / 1e4
            return f"{judged}, but {here} can only exclude a loss of {excluded:.4f} or more"
        return judged


def change(run: Measures, baseline: Measures, subject: Subject, confidence: float) -> Change:
    """Compare a score of two replays of the same frames, scene by scene.

    Raises:
        Unmeasured: the frames have nothing to measure it on.
    """
    after, before = run.score(subject), baseline.score(subject)
    assert after.sizes is not None
    same, sizes = after.same(before), mean_shares(after.sizes)
    interval, why = None, "" if same else too_few(sizes)
    if not same and not why:
        scores = run.score(subject, leaving_out=True).values - baseline.score(subject, leaving_out=True).values
        low, high = jackknife_interval(scores, sizes, confidence).tolist()
        interval = low, high
    return Change(float(before.values[0]), float(after.values[0]), len(sizes), same, interval, why)
