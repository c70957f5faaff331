"""Gates on a metric for which lower is better, beside one that is its mirror image."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from replays import gates, only, record
from rich.table import Table
from toy_task import Toy

from deploy.replay.gates import Gates
from deploy.replay.outcome import Case
from deploy.replay.verdict import judge
from perception.frame import Frame
from perception.tasks import TASKS
from perception.tasks.metric import Counts, GateMetric, Metric, Score, Weights

Errors = Sequence[float | None]  # of the one frame of each scene; None: not measured


class Deviation(Metric[np.ndarray]):
    """The mean error of the frames that were measured, and what it is less than 1."""

    gates: ClassVar[Mapping[str, GateMetric]] = {
        "error": GateMetric(ranged=False, lower_is_better=True),
        "gain": GateMetric(ranged=False),
    }

    def counts(self, frame: Frame, result: np.ndarray) -> dict[str, Any]:
        return {}

    def scores(self, counts: Sequence[Counts | None], weights: Weights) -> dict[str, Score]:
        by_scene = weights.sums(counts, lambda own: np.array([own["error"] or 0, own["error"] is not None, 1.0]))
        total, number = weights.drawn(by_scene)[:, :2].T
        error = np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)
        return {
            name: Score(values, (), by_scene[:, 2:], by_scene)
            for name, values in (("error", error), ("gain", 1 - error))
        }

    def report(self, counts: Sequence[Counts]) -> dict[str, Any]:
        return {}

    def tables(self, scores: Mapping[str, Any]) -> list[Table]:
        return []

    def list_usual_gates(self, counts: Sequence[Counts | None]) -> tuple[Sequence[str], Sequence[str]]:
        return ("error", "gain"), ()


class Measured(Toy):
    metric = Deviation


@pytest.fixture(scope="module", autouse=True)
def measured() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "toy", Measured)
        yield


def replay(out: Path, errors: Errors) -> Path:
    out.mkdir()
    line = {"ego": [0, 0], "conditions": ["clear"], "sensors": "", "blind": False, "not_finite": {}}
    lines = [
        line | {"token": f"t{i}", "scene": f"scene-{i}", "timestamp": 500_000 * i, "tasks": {"toy": {"error": error}}}
        for i, error in enumerate(errors)
    ]
    (out / "statistics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return record(out)


def judged(before: Errors, after: Errors, wanted: Gates | None) -> Sequence[Case]:
    with TemporaryDirectory() as folder:
        return judge(replay(Path(folder) / "run", after), replay(Path(folder) / "base", before), wanted).cases


def differences(margin: float) -> Gates:
    return gates(*({"metric": "difference", "of": of, "at_most": margin} for of in ("error", "gain")))


shares = st.floats(0, 1, width=16)


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=8), st.sampled_from([0, 0.01, 0.1, 0.5]))
def test_a_rising_error_is_judged_as_a_falling_score(pairs: list[tuple[float, float]], margin: float) -> None:
    error, gain = judged(*zip(*pairs, strict=True), differences(margin))
    assert error.outcome == gain.outcome
    assert error.value == pytest.approx(-gain.value)
    assert error.excludes == pytest.approx(gain.excludes)
    if error.interval is not None:
        low, high = error.interval
        assert gain.interval == pytest.approx((-high, -low))
        assert error.outcome == (
            "pass" if high <= margin + 1e-12 else "fail" if low > margin + 1e-12 else "inconclusive"
        )


GOOD, BAD = [0.1, 0.11, 0.12, 0.13, 0.14], [0.5, 0.52, 0.53, 0.53, 0.55]


@pytest.mark.parametrize("default", [False, True])
def test_a_reason_names_the_direction(default: bool) -> None:
    wanted = None if default else differences(0.01)
    worse, better = judged(GOOD, BAD, wanted), judged(BAD, GOOD, wanted)
    assert [(case.name, case.outcome) for case in worse[:2]] == [
        ("error against the baseline", "fail"),
        ("gain against the baseline", "fail"),
    ]
    assert worse[0].reason.endswith("of 5 scenes); it may rise by 0.01, and rose further")
    assert {case.outcome for case in better} == {"pass"}


def test_the_loss_that_is_excluded_is_of_the_upper_end() -> None:
    part = [*GOOD[:4], 0.2]
    case = judged(GOOD, part, differences(0.01))[0]
    assert case.outcome == "inconclusive"
    assert case.excludes == case.interval[1]
    said = float(case.reason.removesuffix(" or more").split()[-1])
    assert 0 <= said - case.excludes < 1e-4
    assert judged(GOOD, part, differences(case.excludes))[0].outcome == "pass"


def test_an_error_has_a_greatest_value(tmp_path: Path) -> None:
    run = replay(tmp_path / "run", [0.25, 0.75])
    for limit, outcome in ((0.5, "pass"), (0.49, "fail")):
        case = only(judge(run, None, gates({"metric": "error", "at_most": limit})))
        assert (case.outcome, case.reason) == (outcome, f"0.5000; at most {limit:g}")


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"metric": "error", "at_least": 0}, "a gate on error has one limit, `at_most`"),
        ({"metric": "gain", "at_most": 0}, "a gate on gain has one limit, `at_least`"),
        ({"metric": "error", "at_most": 1, "at_least": 0}, "a gate on error has one limit, `at_most`"),
        ({"metric": "difference", "of": "gain", "at_most": 3}, "gain is at most 1; give a margin"),
    ],
)
def test_a_limit_on_the_wrong_side_is_refused(gate: dict[str, Any], message: str) -> None:
    gates({"metric": "difference", "of": "error", "at_most": 3})  # such as m
    with pytest.raises(ValidationError, match=message):
        gates(gate)


def test_an_error_of_nothing_is_not_measured(tmp_path: Path) -> None:
    """It would be the best one as 0."""
    nothing = replay(tmp_path / "run", [None, None])
    case = only(judge(nothing, None, gates({"metric": "error", "at_most": 1})))
    assert (case.passed, case.reason) == (False, "not measured: there is no error")
    case = judged([0.1, None, None], [0.1, None, None][::-1], differences(1))[0]
    assert case.outcome == "inconclusive"
    assert case.reason.endswith("but these 3 scenes cannot exclude any loss: it is not defined without one of them")
