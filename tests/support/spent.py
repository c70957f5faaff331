"""Processor time of each test: the sum of the suite, the slowest, and those that need the marker `slow`.

A machine under load takes longer, so nothing fails by these numbers; they are printed so that growth is seen.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

LIMIT = 3.0  # s of processor time, above which a test carries `slow` with its reason
SHOWN = 20

_seconds: dict[str, float] = defaultdict(float)
_reasons: dict[str, str] = {}
_start = 0.0


def processor_seconds() -> float:
    """Of this process, the children that ended, and the commands that the command server ran for it."""
    spent = os.times()
    commands: Any = sys.modules.get("commands")
    own = spent.user + spent.system + spent.children_user + spent.children_system
    return own + (commands.spent.seconds if commands else 0.0)


def pytest_collection_finish() -> None:
    """What came before is of no test."""
    global _start  # noqa: PLW0603 - processor time has one clock for the process
    _start = processor_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    """Runs after each phase of a test; what passed since the last phase, of any test, is this phase's."""
    global _start
    report: Any = yield
    now = processor_seconds()
    report.processor_seconds, _start = now - _start, now
    marker = item.get_closest_marker("slow")
    report.slow = "" if marker is None else marker.args[0]
    return report


def pytest_runtest_logreport(report: Any) -> None:
    _seconds[report.nodeid] += report.processor_seconds
    if report.slow:
        _reasons[report.nodeid] = report.slow


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _seconds:
        return
    slowest = sorted(_seconds, key=lambda test: -_seconds[test])
    terminalreporter.section(f"{sum(_seconds.values()):.0f} processor-seconds, the slowest {SHOWN} tests")
    for test in slowest[:SHOWN]:
        terminalreporter.write_line(f"{_seconds[test]:6.1f} s {test}  {_reasons.get(test, '')}")
    for test in slowest:
        if _seconds[test] > LIMIT and test not in _reasons:
            terminalreporter.write_line(f'{test}: {_seconds[test]:.1f} s; make it faster, or say why: slow("reason")')


def require_reasons(items: list[pytest.Item]) -> None:
    """Raise UsageError for a `slow` that does not say why."""
    for item in items:
        marker = item.get_closest_marker("slow")
        if marker is not None and not (len(marker.args) == 1 and isinstance(marker.args[0], str)):
            raise pytest.UsageError(f"{item.nodeid}: the marker slow needs its reason, as slow('...')")
