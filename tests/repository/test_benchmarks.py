"""Benchmarks: each has a command, and variants alternate."""

from pathlib import Path

import pytest
from bench import SUBJECTS, command
from bench_ceiling import ceiling
from benchmark import measure_times, medians
from tiny import write_tiny
from typer.testing import CliRunner


@pytest.mark.parametrize("name", SUBJECTS)
def test_each_benchmark_is_a_command_that_is_explained(name: str) -> None:
    shown = CliRunner().invoke(command(name, as_json=True), ["--help"])
    assert shown.exit_code == 0, shown.output
    assert "--json prints one JSON object" in shown.output
    assert CliRunner().invoke(command(name, as_json=True), ["--nonsense"]).exit_code == 2


def test_variants_alternate_and_the_first_rounds_do_not_count() -> None:
    now, called = [0.0], list[tuple[str, int]]()

    def variant(name: str, seconds: float):
        def run(given: int) -> None:
            called.append((name, given))
            now[0] += seconds * given if len(called) > 4 else 100

        return run

    clocks = [lambda: now[0], lambda: -now[0]]
    seconds = measure_times({"a": variant("a", 1), "b": variant("b", 10)}, 2, clocks, inputs=[1, 3], discarded=1)
    assert called == 3 * [("a", 1), ("b", 1), ("a", 3), ("b", 3)]
    assert (medians(seconds), medians(seconds, clock=1)) == ({"a": 2, "b": 20}, {"a": -2, "b": -20})
    assert seconds["b"].tolist() == [[10, 30, 10, 30], [-10, -30, -10, -30]]


def test_the_ceiling_names_the_classes_that_occur(tmp_path: Path) -> None:
    """The drive has a car and a pedestrian, far apart."""
    write_tiny(tmp_path)
    found = {"car": 1.0, "pedestrian": 1.0}
    assert ceiling(tmp_path, configs="tiny") == {**found, "keyframes": 3, "configs": {"tiny": found}}
