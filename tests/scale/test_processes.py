"""Predictions by several processes: the same bytes for any number of them, and none lost with a process."""

from functools import partial
from pathlib import Path

import pytest
from commands import one_line_error, refuses, succeeds
from exported import checkpoint
from processes import SPEC, open_predictor
from tiny import write_tiny

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.evaluation.predictions import Processes
from perception.frame import Frame, Prediction
from perception.io.workers import ATTEMPTS, open_pool


def test_the_files_are_the_same_for_any_number_of_processes(sim_root: Path, tmp_path: Path) -> None:
    options = ("--split", "all", "--scenes", "scene-0001", "--corruptions", "lidar_missing", "--by", "condition")
    for name, jobs in (("none", ()), ("one", ("--jobs", 1)), ("two", ("--jobs", 2))):
        succeeds("evaluate", checkpoint(), "--data", sim_root, *options, *jobs, "--out", tmp_path / name)
    expected = {file.name: file.read_bytes() for file in (tmp_path / "none").iterdir()}
    assert {"metrics.json", "results_nusc.json"} <= {*expected}
    for name in ("one", "two"):
        assert {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} == expected
    given = ("evaluate", checkpoint(), "--data", sim_root, "--out", tmp_path / "e", "--jobs", 2, "--batch", 2)
    assert "--jobs and --batch" in refuses(*given)


@pytest.fixture
def tables(tmp_path: Path) -> NuScenesTables:
    write_tiny(tmp_path, keyframes=12)
    return NuScenesTables(tmp_path, "v1.0-tiny")


def predicted(tables: NuScenesTables, deaths: int) -> list[tuple[Frame, Prediction]]:
    samples = tables.samples()
    with open_pool(partial(open_predictor, tables.dataroot, samples[5], deaths), 2) as workers:
        return list(Processes(workers).predictions(tables, SPEC.reads, samples))


def test_no_keyframe_is_lost_with_a_process(tables: NuScenesTables) -> None:
    found = predicted(tables, deaths=ATTEMPTS - 1)
    assert len(list(tables.dataroot.glob("death-*"))) == ATTEMPTS - 1
    assert [frame.token for frame, _ in found] == tables.samples()
    assert [int(prediction.results["time"]) for _, prediction in found] == [
        tables.recording(each).timestamp for each in tables.samples()
    ]


@pytest.mark.parametrize(
    ("deaths", "says"), [(99, f"{ATTEMPTS} workers died .* use fewer --jobs"), (-1, "cannot be predicted")]
)
def test_a_keyframe_that_kills_every_process_or_is_refused_is_named(
    tables: NuScenesTables, deaths: int, says: str
) -> None:
    with one_line_error(f"{tables.samples()[5]}: {says}"):
        predicted(tables, deaths)
