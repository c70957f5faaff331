"""Benchmarks: variants alternate, README's figures are theirs, and labelled frames are spread."""

import json
from pathlib import Path

import bench
import figures
import pytest
from bench_ceiling import recalls
from bench_pandaset import summary
from benchmark import median_seconds
from tiny import write_tiny


def test_every_benchmark_is_there_and_says_what_it_measures() -> None:
    """Those of mmdet3d are not imported."""
    for name, (file, _) in bench.BENCHMARKS.items():
        source = Path(bench.__file__).with_name(f"{file}.py").read_text()
        assert f'def {name}(quick: bool) -> dict[str, Any]:\n    """' in source


def test_a_figure_of_readme_that_is_not_printed_is_named() -> None:
    whole = json.dumps(json.loads(figures.RECORD.read_text())["pillars"]["figures"])
    assert list(bench.lost_figures("pillars", f"first\n{whole}\n")) == []
    (lost,) = bench.lost_figures("pillars", '{"points": 3}')
    assert "'ms'" in lost


def test_variants_alternate_and_the_first_rounds_do_not_count() -> None:
    now, called = [0.0], list[tuple[str, int]]()

    def variant(name: str, seconds: float):
        def run(given: int) -> None:
            called.append((name, given))
            now[0] += seconds * given if len(called) > 4 else 100

        return run

    variants = {"a": variant("a", 1), "b": variant("b", 10)}
    assert median_seconds(variants, 2, lambda: now[0], inputs=[1, 3], discarded=1) == {"a": 2, "b": 20}
    assert called == 3 * [("a", 1), ("b", 1), ("a", 3), ("b", 3)]


def test_the_ceiling_names_the_classes_that_occur(tmp_path: Path) -> None:
    """The drive has a car and a pedestrian, far apart."""
    write_tiny(tmp_path)
    found = {"car": 1.0, "pedestrian": 1.0}
    assert recalls(tmp_path, ["tiny"]) == {**found, "keyframes": 3, "configs": {"tiny": found}}


def test_of_the_seeds_the_median_and_the_range_are_told():
    """Half of the gap from 0.7 to 0.9 is closed at 0.8, a quarter at 0.75; at 0.6 it is wider."""
    rows = [
        {"car": {"ap": ap}, "trained_share": 0.03, "kept": kept, "cpu_seconds_per_step": 2.0}
        for ap, kept in ((0.8, 0.5), (0.6, 0.9), (0.75, 0.8))
    ]
    found = summary(rows, 0.7, 0.9)
    assert found["closed"] == pytest.approx(0.25)
    assert found["range"]["closed"] == pytest.approx([-0.5, 0.5])
    assert (found["source_kept"], found["range"]["source_kept"]) == (0.8, [0.5, 0.9])
    assert (found["share"], found["cpu_seconds_per_step"]) == (pytest.approx(0.03), 2.0)
