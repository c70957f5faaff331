"""Judge a finished replay by gates, alone or against a baseline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.replay.change import change
from deploy.replay.comparable import common_frames
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
from deploy.replay.latency import VEHICLE
from deploy.replay.measures import Measures, metrics
from deploy.replay.outcome import Case, Verdict
from deploy.replay.report import with_verdict
from deploy.replay.results import ReplayResults
from perception.errors import InputError
from perception.files import write_together
from perception.tasks.metric import Unmeasured


def judge(out: Path, baseline: Path | None = None, gates: Gates | None = None) -> Verdict:
    """Judge the replay in the folder `out`; writes verdict.json and junit.xml there, and updates report.html.

    Args:
        baseline: folder of another replay of the same drives; the frames that both have are compared.
        gates: by default `default_gates` against the baseline.

    Raises:
        InputError: a folder has no finished replay, the baseline is not comparable or has too few of the frames, there
            is neither a baseline nor a gate, or a gate needs a baseline.
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
    """Check, before a long replay, that there is a baseline if a gate needs one.

    Raises:
        InputError: a gate needs a baseline, or its folder has no finished replay.
    """
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
            self.pair = Measures(self.judged), Measures(other.only(common))
        self.gates = gates or default_gates(self.pair[0] if self.pair else self.run)

    def verdict(self) -> Verdict:
        cases = tuple(case for gate in self.gates.gates for case in self._cases(gate)) + self._finite()
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
        if measured.get("mode") != VEHICLE:
            return _unmeasured(name, gate.metric, gate.at_most, Unmeasured("measure with --latency"))
        if (frames := measured["frames"]) < LEAST_FRAMES:
            few = Unmeasured(f"{frames} frames are too few, {LEAST_FRAMES} are needed")
            return _unmeasured(name, gate.metric, gate.at_most, few)
        value = measured["stages"][gate.stage][gate.quantile]
        reason = f"{value:.1f} ms; at most {gate.at_most:g} ms"
        return Case(name, gate.metric, value <= gate.at_most, value, gate.at_most, reason)

    def _finite(self) -> tuple[Case, ...]:
        """A failing case if any output was not finite, whatever the gates are; otherwise ()."""
        tokens, frames = self.finished.not_finite, len(self.finished)
        reason = f"{len(tokens)} of {frames} frames not finite, first {tokens[0]}" if tokens else ""
        return (Case("finite", "finite", False, len(tokens) / frames, 0.0, reason),) if tokens else ()

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
        name, limit = f"{gate.metric}{gate.where}", gate.at_least
        try:
            value = float(self.run.score(gate.subject(gate.metric)).values[0])
        except Unmeasured as why:
            return _unmeasured(name, gate.metric, limit, why)
        return Case(name, gate.metric, value >= limit, value, limit, f"{value:.4f}; at least {limit:g}")

    def _difference(self, gate: Difference) -> Case:
        assert self.pair is not None
        name = f"{gate.of}{gate.where} against the baseline"
        run, baseline = self.pair
        try:
            found = change(run, baseline, gate.subject(gate.of), gate.confidence)
        except Unmeasured as why:
            return _unmeasured(name, gate.metric, gate.at_most, why)
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
            return _unmeasured(name, gate.metric, gate.at_least, why)
        reason = f"{value:.4f}{words}; at least {gate.at_least:g}"
        return Case(name, gate.metric, value >= gate.at_least, value, gate.at_least, reason)


def _unmeasured(name: str, metric: str, limit: float, why: Unmeasured) -> Case:
    return Case(name, metric, False, None, limit, f"not measured: {why}")
