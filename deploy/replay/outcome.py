"""A verdict, in which each gate passes, fails or is inconclusive; as JSON, JUnit XML and a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree as xml

from rich.table import Table

Outcome = Literal["pass", "fail", "inconclusive"]
EXIT_CODES: Mapping[Outcome, int] = {"pass": 0, "fail": 1, "inconclusive": 3}  # 2 is invalid input
_COLOURS: Mapping[Outcome, str] = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


@dataclass(frozen=True)
class Case:
    """The outcome of one gate, or of one class of it."""

    name: str
    metric: str
    passed: bool
    value: float | None  # None: not measured, which fails
    limit: float
    reason: str  # the numbers and, if it did not pass, why
    interval: tuple[float, float] | None = None  # of the value
    excludes: float | None = None  # the smallest loss that the scenes exclude, if any
    inconclusive: bool = False  # did not pass because there are too few scenes

    @property
    def outcome(self) -> Outcome:
        return "pass" if self.passed else "inconclusive" if self.inconclusive else "fail"

    def as_dict(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            **{name: value for name, value in vars(self).items() if name != "inconclusive"},
        }


@dataclass(frozen=True)
class Verdict:
    """The outcome of a replay. With a baseline, `frames` and `scenes` are those that both replays have."""

    cases: tuple[Case, ...]
    frames: int
    scenes: int
    baseline: str | None
    replayed: int | None = None  # frames of this replay; None: all were judged

    @property
    def outcome(self) -> Outcome:
        outcomes = {case.outcome for case in self.cases}
        return "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"

    @property
    def passed(self) -> bool:
        return self.outcome == "pass"

    @property
    def common(self) -> float | None:
        """The share of this replay's frames that the baseline has; None without a baseline."""
        return None if self.baseline is None else self.frames / (self.replayed or self.frames)

    def as_dict(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "passed": self.passed,
            "frames": self.frames,
            "scenes": self.scenes,
            "baseline": self.baseline,
            "replayed": self.replayed or self.frames,
            "common": self.common,
            "cases": [case.as_dict() for case in self.cases],
        }

    def junit(self) -> bytes:
        """JUnit XML for Jenkins, GitLab and GitHub, with a test case per gate.

        A gate that was not measured or is inconclusive becomes an <error>, because CI systems let <skipped> pass.
        """
        return junit(
            (
                case.metric,
                case.name,
                _junit_kind(case),
                "inconclusive" if case.inconclusive else case.metric,
                case.reason,
            )
            for case in self.cases
        )

    def table(self) -> Table:
        title = f"{self.outcome.upper()}: {self.frames} frames of {self.scenes} scene{'s' * (self.scenes != 1)}"
        if self.common is not None:
            title += f", common with the baseline ({self.common:.0%} of this replay's {self.replayed or self.frames})"
        table = Table(title=title)
        for column in ("", "gate", "because"):
            table.add_column(column)
        for case in self.cases:
            table.add_row(f"[{_COLOURS[case.outcome]}]{case.outcome}", case.name, case.reason)
        return table


def junit(cases: Iterable[tuple[str, str, str | None, str, str]]) -> bytes:
    """JUnit XML of cases: metric, name, `failure` or `error` (None: it passed), its type, and a text."""
    every = list(cases)
    kinds = [kind for _, _, kind, _, _ in every]
    counts = {"tests": str(len(every)), "failures": str(kinds.count("failure")), "errors": str(kinds.count("error"))}
    counts["time"] = "0"
    root = xml.Element("testsuites", {"name": "perception replay", **counts})
    suite = xml.SubElement(root, "testsuite", {"name": "verdict", "skipped": "0", **counts})
    for metric, name, kind, type_, text in every:
        test = xml.SubElement(suite, "testcase", {"classname": f"verdict.{metric}", "name": name, "time": "0"})
        if kind is not None:
            xml.SubElement(test, kind, {"message": text, "type": type_}).text = text
        xml.SubElement(test, "system-out").text = text
    xml.indent(root)
    return bytes(xml.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _junit_kind(case: Case) -> str | None:
    if case.passed:
        return None
    return "error" if case.value is None or case.inconclusive else "failure"
