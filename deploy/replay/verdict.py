"""Judge a finished replay by gates, alone or against a baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.replay.gates import (
    DEFAULT_COMMON,
    LEAST_FRAMES,
    Agreement,
    Difference,
    Dropped,
    Gate,
    Gates,
    LatencyLimit,
    Score,
    default_gates,
)
from deploy.replay.outcome import Case, Outcome, Verdict
from deploy.replay.provenance import ReplayProvenance
from deploy.replay.report import with_verdict
from deploy.replay.results import Measures, ReplayResults, metrics
from perception.errors import InputError
from perception.evaluation.interval import jackknife_interval, too_few
from perception.io.files import write_together
from perception.tasks.metric import Subject, Unmeasured, mean_shares


def common_frames(run: ReplayResults, baseline: ReplayResults, least: float) -> Sequence[str]:
    """The tokens of the frames that both replays have, at least this share of the run's, in the order of the run."""
    if run.folder.resolve() == baseline.folder.resolve():
        raise InputError(f"{baseline.folder}: is the replay that is judged; give another one's folder with --baseline")
    _require_same_settings(run.folder, baseline.folder)
    theirs = set(baseline.tokens)
    common = [token for token in run.tokens if token in theirs]
    if not common:
        raise InputError(f"{baseline.folder}: has no frame of this replay; give a replay of the same drives")
    if len(common) < least * len(run):
        raise InputError(
            f"{baseline.folder}: has {len(common)} of the {len(run)} frames of this replay "
            f"({len(common) / len(run):.0%}, at least {least:.0%} are needed); replay the same drives, or set a lower "
            "`common` in the gates"
        )
    _require_same_truth(run.only(common), baseline.only(common))
    return common


def _require_same_settings(run: Path, baseline: Path) -> None:
    ours, theirs = ReplayProvenance.load(run), ReplayProvenance.load(baseline)
    here, there = ({"topics": each.topics_sha256 or "none"} | each.brief() for each in (ours, theirs))
    for what in ("faults", "conditions", "evidence", "selection", "topics"):
        if here[what] != there[what]:
            raise InputError(
                f"{baseline}: was replayed with {what} {there[what]}, this replay with {here[what]}; replay the "
                "baseline with the same settings"
            )
    if ours.taxonomy.without_ros_classes() != theirs.taxonomy.without_ros_classes():
        raise InputError(f"{baseline}: its network has other classes or conditions; give a replay of a like network")


def _require_same_truth(run: ReplayResults, baseline: ReplayResults) -> None:
    names = {"scene": "scene", "timestamp": "time", "ego": "vehicle pose", "conditions": "condition"}
    names["sensors"] = "sweep or picture"  # last, because it also depends on the others
    for ours, theirs in zip(run.lines, baseline.lines, strict=True):
        different = [what for key, what in names.items() if ours[key] != theirs[key]]
        tasks = ours["tasks"].keys() & theirs["tasks"].keys()
        if any(ours["tasks"][name].get("truth") != theirs["tasks"][name].get("truth") for name in tasks):
            different.insert(0, "annotation")
        if different:
            raise InputError(
                f"{baseline.folder}: frame {ours['token']} has another {different[0]} than in this replay; "
                "replay the baseline on the same data set"
            )


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
    lower_is_better: bool

    @property
    def value(self) -> float:
        return self.after - self.before

    @property
    def losses(self) -> tuple[float, float] | None:
        """The interval of how much worse the score became."""
        if self.interval is None:
            return None
        low, high = self.interval
        return (low, high) if self.lower_is_better else (-high, -low)

    @property
    def excludes(self) -> float | None:
        """The smallest loss that the scenes exclude; None if they exclude none."""
        if self.same:
            return 0.0
        return None if self.losses is None else max(0.0, self.losses[1])

    def outcome(self, at_most: float) -> Outcome:
        """Pass: the scenes exclude a loss over `at_most`. Fail: they show one. Inconclusive: neither."""
        if self.excludes is None:
            return "inconclusive"
        if self.excludes <= at_most + _ROUNDING:
            return "pass"
        return "fail" if self.losses is not None and self.losses[0] > at_most + _ROUNDING else "inconclusive"

    def reason(self, at_most: float, confidence: float) -> str:
        numbers = f"{self.before:.4f} became {self.after:.4f} ({self.value:+.4f}"
        worsen, worsened = ("rise", "rose") if self.lower_is_better else ("fall", "fell")
        limit = f"it may {worsen} by {at_most:g}"
        here = "this scene" if self.scenes == 1 else f"these {self.scenes} scenes"
        if self.same:
            return f"{numbers}; both replays have the same results); {limit}"
        if self.interval is None or self.losses is None:
            return f"{numbers}); {limit}, but {here} cannot exclude any loss: {self.why}"
        low, high = self.interval
        judged = f"{numbers}, {confidence:.0%} interval {low:+.4f} to {high:+.4f} of {self.scenes} scenes); {limit}"
        outcome = self.outcome(at_most)
        if outcome == "fail":
            return f"{judged}, and {worsened} further"
        if outcome == "inconclusive":
            excluded = math.ceil(round(self.losses[1] * 1e4, 6)) / 1e4
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
        if np.isnan(scores).any():
            why = "it is not defined without one of them"
        else:
            low, high = jackknife_interval(scores, sizes, confidence).tolist()
            interval = low, high
    lower_is_better = metrics()[subject.metric].lower_is_better
    return Change(float(before.values[0]), float(after.values[0]), len(sizes), same, interval, why, lower_is_better)


def judge(out: Path, baseline: Path | None = None, gates: Gates | None = None) -> Verdict:
    """Judge the replay in the folder `out`; writes verdict.json and junit.xml there, and updates report.html.

    The frames that the baseline has too are compared; without gates by `default_gates`.
    """
    if baseline is None and gates is None:
        raise InputError("there is nothing to judge by; give --gates, --baseline or both")
    require_comparable(baseline, gates)
    verdict = _Judge(ReplayResults.load(out), baseline, gates).verdict()
    content = json.dumps(verdict.as_dict(), indent=2, allow_nan=False) + "\n"
    files = {out / "verdict.json": content.encode(), out / "junit.xml": verdict.junit()}
    report = out / "report.html"
    if report.exists():
        files[report] = with_verdict(report.read_text(encoding="utf-8"), verdict.as_dict()).encode()
    write_together(files)
    return verdict


def require_comparable(baseline: Path | None, gates: Gates | None) -> None:
    """Check, before a long replay, that there is a baseline if a gate needs one."""
    if baseline is not None:
        ReplayResults.load(baseline)
    elif gates is not None:
        for gate in gates.gates:
            if isinstance(gate, Difference | Agreement):
                raise InputError(f"the gate {gate.metric!r} needs another replay; give its folder with --baseline")


class _Judge:
    def __init__(self, finished: ReplayResults, baseline: Path | None, gates: Gates | None) -> None:
        self.finished, self.baseline = finished, baseline
        if gates is not None:
            gates.require_taxonomy(finished.taxonomy)
        self.run, self.judged = Measures(finished), finished
        self.pair: tuple[Measures, Measures] | None = None  # common frames of this run and of the baseline
        if baseline is not None:
            other = ReplayResults.load(baseline)
            common = common_frames(finished, other, DEFAULT_COMMON if gates is None else gates.common)
            self.judged = finished.only(common)
            ours = self.run if self.judged is finished else Measures(self.judged)
            self.pair = ours, Measures(other.only(common))
        self.gates = gates or default_gates(self.pair[0] if self.pair else self.run)

    def verdict(self) -> Verdict:
        cases = tuple(case for gate in self.gates.gates for case in self._cases(gate))
        cases += self._finite() + self._faults()
        scenes = int(self.judged.scenes.max()) + 1
        baseline = None if self.baseline is None else str(self.baseline)
        return Verdict(cases, len(self.judged), scenes, baseline, len(self.finished))

    def _cases(self, gate: Gate) -> Iterator[Case]:
        match gate:
            case Score():
                for each in self._per_class(gate, gate.metric, self.run):
                    yield self._score(each)
            case Difference():
                assert self.pair is not None
                for each in self._per_class(gate, gate.of, self.pair[0]):
                    yield self._difference(each)
            case Agreement():
                yield self._agreement(gate)
            case LatencyLimit():
                yield self._latency(gate)
            case Dropped():
                lacking, blind = self.finished.dropped
                reason = f"{lacking} keyframes are missing and {blind} have no sensor data; at most {gate.at_most}"
                passed = lacking + blind <= gate.at_most
                yield Case("dropped frames", gate.metric, passed, lacking + blind, gate.at_most, reason)

    def _latency(self, gate: LatencyLimit) -> Case:
        measured, name = self.finished.latency, f"latency {gate.stage} {gate.quantile}"
        if (frames := measured["frames"]) < LEAST_FRAMES:
            few = Unmeasured(f"{frames} frames are too few, {LEAST_FRAMES} are needed")
            return _unmeasured_case(name, gate.metric, gate.at_most, few)
        value = measured["stages"][gate.stage][gate.quantile]
        reason = f"{value:.1f} ms; at most {gate.at_most:g} ms"
        return Case(name, gate.metric, value <= gate.at_most, value, gate.at_most, reason)

    def _finite(self) -> tuple[Case, ...]:
        """A failing case if any output was not finite, whatever the gates are; otherwise ()."""
        tokens, frames = self.finished.not_finite, len(self.finished)
        reason = f"{len(tokens)} of {frames} frames not finite, first {tokens[0]}" if tokens else ""
        return (Case("finite", "finite", False, len(tokens) / frames, 0.0, reason),) if tokens else ()

    def _faults(self) -> tuple[Case, ...]:
        """A failing case for each fault that was in no frame: nothing was measured with it."""
        absent = ReplayProvenance.load(self.finished.folder).absent_faults
        return tuple(Case(f"fault {fault}", "faults", False, 0, 1, "in no frame of the replay") for fault in absent)

    def _per_class(self, gate: Any, metric: str, measures: Measures) -> Iterator[Any]:
        """Yield a gate for each annotated class, if the metric is one per class and the gate names no class."""
        if not metrics()[metric].each or gate.class_ is not None:
            yield gate
            return
        classes = measures.annotated_classes(gate.subject(metric))
        for name in classes:
            yield gate.model_copy(update={"class_": name})
        if not classes:
            yield gate

    def _score(self, gate: Score) -> Case:
        name, metric = f"{gate.metric}{gate.where}", metrics()[gate.metric]
        limit = getattr(gate, metric.bound)
        try:
            value = float(self.run.score(gate.subject(gate.metric)).values[0])
        except Unmeasured as why:
            return _unmeasured_case(name, gate.metric, limit, why)
        passed = value <= limit if metric.lower_is_better else value >= limit
        return Case(name, gate.metric, passed, value, limit, f"{value:.4f}; {metric.bound.replace('_', ' ')} {limit:g}")

    def _difference(self, gate: Difference) -> Case:
        assert self.pair is not None
        name = f"{gate.of}{gate.where} against the baseline"
        run, baseline = self.pair
        try:
            found = change(run, baseline, gate.subject(gate.of), gate.confidence)
        except Unmeasured as why:
            return _unmeasured_case(name, gate.metric, gate.at_most, why)
        outcome, reason = found.outcome(gate.at_most), found.reason(gate.at_most, gate.confidence)
        return Case(
            name, gate.metric, outcome == "pass", found.value, gate.at_most, reason, found.interval, found.excludes,
            outcome == "inconclusive",
        )  # fmt: skip

    def _agreement(self, gate: Agreement) -> Case:
        assert self.pair is not None
        run, baseline = self.pair
        name = f"agreement of {gate.of}{gate.where} with the baseline"
        try:
            value, words = run.agreement(baseline, gate.subject(gate.of)._replace(score=gate.score, metres=gate.metres))
        except Unmeasured as why:
            return _unmeasured_case(name, gate.metric, gate.at_least, why)
        reason = f"{value:.4f}{words}; at least {gate.at_least:g}"
        return Case(name, gate.metric, value >= gate.at_least, value, gate.at_least, reason)


def _unmeasured_case(name: str, metric: str, limit: float, why: Unmeasured) -> Case:
    return Case(name, metric, False, None, limit, f"not measured: {why}")
