"""Pass or fail of a replay, with the reasons, for people and for a CI system."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import numpy as np
from rich.table import Table

from deploy.replay.finished import Finished
from deploy.replay.gates import (
    Agreement,
    Difference,
    Dropped,
    Gate,
    Gates,
    LatencyLimit,
    Score,
    Tracking,
    usual_gates,
)
from deploy.replay.measure import Measures, Subject, Unmeasured, detection_agreement, map_agreement
from perception.atomic import write_together
from perception.errors import InputError


@dataclass(frozen=True)
class Case:
    """One gate, or one class of it."""

    name: str
    metric: str
    passed: bool
    value: float | None  # None: not measured, which does not pass
    limit: float
    reason: str  # the numbers, and where it fails what is wrong
    interval: tuple[float, float] | None = None  # of the value


@dataclass(frozen=True)
class Verdict:
    cases: tuple[Case, ...]
    frames: int  # that were judged
    scenes: int
    baseline: str | None

    @property
    def passed(self) -> bool:
        return all(case.passed for case in self.cases)

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed} | asdict(self)

    def junit(self) -> bytes:
        """JUnit XML as Jenkins, GitLab and GitHub's reporters read it: a test case for each gate."""
        failed = [case for case in self.cases if not case.passed]
        counts = {
            "tests": str(len(self.cases)),
            "failures": str(sum(case.value is not None for case in failed)),
            "errors": str(sum(case.value is None for case in failed)),
            "time": "0",
        }
        root = xml.Element("testsuites", {"name": "perception replay", **counts})
        suite = xml.SubElement(root, "testsuite", {"name": "verdict", "skipped": "0", **counts})
        for case in self.cases:
            test = xml.SubElement(suite, "testcase", {"classname": f"verdict.{case.metric}", "name": case.name})
            test.set("time", "0")
            if not case.passed:
                kind = "error" if case.value is None else "failure"
                xml.SubElement(test, kind, {"message": case.reason, "type": case.metric}).text = case.reason
            xml.SubElement(test, "system-out").text = case.reason
        xml.indent(root)
        return bytes(xml.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"

    def table(self) -> Table:
        table = Table(title=f"{'PASS' if self.passed else 'FAIL'}: {self.frames} frames of {self.scenes} scenes")
        for column in ("", "gate", "because"):
            table.add_column(column)
        for case in self.cases:
            table.add_row("[green]pass" if case.passed else "[red]fail", case.name, case.reason)
        return table


def judge(out: Path, baseline: Path | None = None, gates: Gates | None = None) -> Verdict:
    """Judge the replay in the folder `out`; writes verdict.json and junit.xml there.

    Args:
        baseline: the folder of another replay of the same drives; the frames that both have are compared.
        gates: what must be reached; without them the usual ones against the baseline.

    Raises:
        InputError: a folder holds no finished replay, no frame is in both, or a gate needs a baseline.
    """
    require_comparable(baseline, gates)
    verdict = _Judge(Finished.load(out), baseline).verdict(gates)
    content = json.dumps(verdict.as_dict(), indent=2, allow_nan=False) + "\n"
    write_together({out / "verdict.json": content.encode(), out / "junit.xml": verdict.junit()})
    return verdict


def require_comparable(baseline: Path | None, gates: Gates | None) -> None:
    """Before a long replay: there is a baseline where a gate needs one.

    Raises:
        InputError: a gate needs a baseline, or its folder holds no finished replay.
    """
    if baseline is not None:
        Finished.load(baseline)
    elif gates is not None:
        for gate in gates.gates:
            if isinstance(gate, Difference | Agreement):
                raise InputError(f"the gate {gate.metric!r} compares with a replay; give its folder with --baseline")


class _Judge:
    def __init__(self, finished: Finished, baseline: Path | None) -> None:
        self.finished, self.baseline = finished, baseline
        self.run = Measures(finished)
        self.pair: tuple[Measures, Measures] | None = None  # the frames that both have: this run, the baseline
        if baseline is not None:
            other = Finished.load(baseline)
            theirs = set(other.tokens)
            common = [token for token in finished.tokens if token in theirs]
            if not common:
                raise InputError(f"{baseline}: has no frame of this replay; give a replay of the same drives")
            self.pair = Measures(finished.only(common)), Measures(other.only(common))

    def verdict(self, gates: Gates | None) -> Verdict:
        if gates is None:
            gates = usual_gates(self.finished.truth is not None, self.finished.conditions)
        self.gates = gates
        cases = tuple(case for gate in gates.gates for case in self._cases(gate)) + self._finite()
        scenes = int(self.finished.scenes.max()) + 1
        return Verdict(cases, len(self.finished), scenes, None if self.baseline is None else str(self.baseline))

    def _cases(self, gate: Gate) -> Iterator[Case]:
        match gate:
            case Score():
                for each in self._expanded(gate, gate.metric, self.run):
                    yield self._score(each)
            case Difference():
                assert self.pair is not None
                for each in self._expanded(gate, gate.of, self.pair[0]):
                    yield self._difference(each)
            case Agreement():
                yield self._agreement(gate)
            case Tracking():
                yield _measured("AMOTA", "AMOTA", gate.at_least, self._amota)
            case LatencyLimit():
                name = f"latency {gate.stage} {gate.quantile}"
                if not self.finished.as_a_vehicle:
                    yield _unmeasured(name, gate.metric, gate.at_most, Unmeasured("measure with --latency"))
                    return
                value = self.finished.latency[gate.stage][gate.quantile]
                passed, limit = value <= gate.at_most, f"at most {gate.at_most:g} ms"
                yield Case(name, gate.metric, passed, value, gate.at_most, f"{value:.1f} ms; {limit}")
            case Dropped():
                lacking, blind = self.finished.dropped
                reason = f"{lacking} keyframes lack and {blind} are without any sensor; at most {gate.at_most}"
                passed = lacking + blind <= gate.at_most
                yield Case("dropped frames", gate.metric, passed, lacking + blind, gate.at_most, reason)

    def _finite(self) -> tuple[Case, ...]:
        """A case that fails where outputs were not finite, whatever the gates are; none where all were."""
        tokens, frames = self.finished.not_finite, len(self.finished)
        reason = f"{len(tokens)} of {frames} frames not finite, first {tokens[0]}" if tokens else ""
        return (Case("finite", "finite", False, len(tokens) / frames, 0.0, reason),) if tokens else ()

    def _expanded(self, gate: Any, metric: str, measures: Measures) -> Iterator[Any]:
        """AP without a class is that of each class that is annotated."""
        if metric != "AP" or gate.class_ is not None:
            yield gate
            return
        try:
            classes = measures.classes(gate.condition, gate.range)
        except Unmeasured:
            classes = []
        for name in classes:
            yield gate.model_copy(update={"class_": name})
        if not classes:
            yield gate

    def _score(self, gate: Score) -> Case:
        def measure() -> float:
            return float(self.run.score(Subject(gate.metric, gate.class_, gate.condition, gate.range))[0])

        return _measured(f"{gate.metric}{gate.where}", gate.metric, gate.at_least, measure)

    def _amota(self) -> float:
        value = self.finished.amota
        if value is None:
            raise Unmeasured("AMOTA takes annotations, every keyframe and nuscenes-devkit with motmetrics")
        return value

    def _difference(self, gate: Difference) -> Case:
        assert self.pair is not None
        name = f"{gate.of}{gate.where} against the baseline"
        subject = Subject(gate.of, gate.class_, gate.condition, gate.range)
        try:
            value, before = (float(each.score(subject)[0]) for each in self.pair)
            interval = self._interval(subject, gate.confidence)
        except Unmeasured as why:
            return _unmeasured(name, gate.metric, gate.at_most, why)
        change = value - before
        worst = change if interval is None else interval[0]
        passed = worst >= -gate.at_most - 1e-12
        reason = f"{before:.4f} became {value:.4f} ({change:+.4f}"
        if interval is None:
            reason += "; one scene: no interval)"
        else:
            reason += f", {gate.confidence:.0%} interval {interval[0]:+.4f} to {interval[1]:+.4f})"
        reason += f"; it may fall by {gate.at_most:g}"
        if not passed and change >= -gate.at_most:
            reason += ", and that it fell further is not ruled out"
        return Case(name, gate.metric, passed, change, gate.at_most, reason, interval)

    def _interval(self, subject: Subject, confidence: float) -> tuple[float, float] | None:
        """Of the difference to the baseline; see gates.Difference."""
        assert self.pair is not None
        frames = self.pair[0].finished
        scenes = int(frames.scenes.max()) + 1
        used = frames.scenes if subject.condition is None else frames.scenes[frames.known(subject.condition)]
        drawn_from = np.unique(used)  # a scene without a frame that counts is none of the sample
        if len(drawn_from) < 2:
            return None
        rng = np.random.default_rng(self.gates.seed)
        draws = np.zeros((self.gates.resamples, scenes), np.int64)
        shares = np.full(len(drawn_from), 1 / len(drawn_from))
        draws[:, drawn_from] = rng.multinomial(len(drawn_from), shares, size=len(draws))
        changes = self.pair[0].score(subject, draws) - self.pair[1].score(subject, draws)
        low, high = np.quantile(changes, [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)

    def _agreement(self, gate: Agreement) -> Case:
        assert self.pair is not None
        run, other = (each.finished for each in self.pair)
        name = f"agreement of {gate.of}{gate.where} with the baseline"
        if gate.of == "map":
            measure = lambda: map_agreement(run, other, gate.class_, gate.condition)  # noqa: E731
            return _measured(name, gate.metric, gate.at_least, measure)
        try:
            value, here, there = detection_agreement(
                run, other, gate.class_, gate.condition, gate.range, gate.score, gate.metres
            )
        except Unmeasured as why:
            return _unmeasured(name, gate.metric, gate.at_least, why)
        reason = f"{value:.4f} of {here} detections and the baseline's {there}; at least {gate.at_least:g}"
        return Case(name, gate.metric, value >= gate.at_least, value, gate.at_least, reason)


def _measured(name: str, metric: str, limit: float, measure: Callable[[], float]) -> Case:
    try:
        value = measure()
    except Unmeasured as why:
        return _unmeasured(name, metric, limit, why)
    return Case(name, metric, value >= limit, value, limit, f"{value:.4f}; at least {limit:g}")


def _unmeasured(name: str, metric: str, limit: float, why: Unmeasured) -> Case:
    return Case(name, metric, False, None, limit, f"not measured: {why}")
