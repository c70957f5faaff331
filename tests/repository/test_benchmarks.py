"""Benchmarks: each has a command, variants alternate, which frames are labelled, and what a memory sees before."""

from pathlib import Path

import pytest
import typer
from bench import SUBJECTS, command
from bench_ceiling import ceiling
from bench_labels import LABELLED, _numbers, _summary, _ways, choose
from bench_memory import EachFrame, _chosen, _config, _rig, without_lidar
from bench_time import gains
from benchmark import measure_times, medians
from networks import disturb, small
from tiny import write_tiny
from typer.testing import CliRunner

from perception.config import parse_config
from perception.model import PerceptionModel
from perception.predict import TorchPredictor


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


SPACINGS = {1: 16, 2: 8, 4: 4, 8: 2, 16: 1}


@pytest.mark.parametrize("count", SPACINGS)
def test_labelled_frames_are_spread_over_the_drive_and_a_seed_moves_them(count):
    chosen = [choose(count, seed) for seed in range(3)]
    for frames in chosen:
        after = [*frames[1:], frames[0] + LABELLED]
        assert {b - a for a, b in zip(frames, after, strict=True)} == {SPACINGS[count]}
        assert len(frames) == len(set(frames) & set(range(LABELLED))) == count
    assert len(set(map(tuple, chosen))) == min(3, SPACINGS[count])


def test_numbers_that_do_not_divide_the_drive_are_spread_too():
    assert choose(3, 0) == [2, 7, 12]
    assert all(len(set(choose(count, seed))) == count for count in range(1, LABELLED + 1) for seed in range(9))


def test_of_the_seeds_the_median_and_the_range_are_told():
    """Half of the gap from 0.7 to 0.9 is closed at 0.8, a quarter at 0.75; at 0.6 it is wider."""
    rows = [
        {"ap": ap, "share": 0.03, "source_kept": kept, "base_unchanged": ap > 0.7}
        for ap, kept in ((0.8, 0.5), (0.6, 0.9), (0.75, 0.8))
    ]
    summary = _summary(rows, 0.7, 0.9)
    assert summary["closed"] == pytest.approx(0.25)
    assert summary["range"]["closed"] == pytest.approx([-0.5, 0.5])
    assert (summary["source_kept"], summary["range"]["source_kept"]) == (0.8, [0.5, 0.9])
    assert summary["base_unchanged"] is False
    assert summary["share"] == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("read", "text"), [(_numbers, "1,17"), (_numbers, "0,2"), (_numbers, "1-4"), (_ways, "module,heads")]
)
def test_what_it_cannot_measure_is_named(read, text):
    with pytest.raises(typer.BadParameter, match=text):
        read(text)


@pytest.mark.parametrize("remembers", [True, False])
def test_a_network_with_a_memory_sees_the_frames_before_those_that_are_asked_for(tables, remembers):
    """They matter to it alone; frames without LiDAR are the given ones."""
    content = small().model_dump(mode="json") | {"modules": [{"name": "m", "kind": "memory"}] if remembers else []}
    content["model"]["camera"] = None
    network = PerceptionModel(parse_config(content, "test"))
    if remembers:
        disturb(network, "m", 0.5)
    predictor = TorchPredictor(network)
    drive = tables.samples(None, tables.scenes()[:1])
    reads = predictor.spec.reads
    whole = dict(zip(drive, (p for _, p in predictor.predictions(tables, reads, drive)), strict=True))
    for lost in ((), drive[-1:], drive[:1]):
        ((frame, found),) = EachFrame(predictor, change=without_lidar(lost)).predictions(tables, reads, drive[-1:])
        assert frame.token == drive[-1]
        assert (frame.points is None) == (frame.token in lost)
        same = found.results["detection"].scores.tolist() == whole[drive[-1]].results["detection"].scores.tolist()
        assert same == (not lost or (lost == drive[:1] and not remembers))


@pytest.mark.parametrize("sensors", ["lidar", "camera", "both"])
def test_its_networks_are_of_these_sensors(tmp_path: Path, sensors):
    rig = _rig(sensors)
    assert bool(rig.cameras) == (sensors != "lidar")
    assert all(camera.size == (176, 99) for camera in rig.cameras)
    (tmp_path / "rig.yaml").write_text(rig.model_dump_json())
    model = parse_config(_config(sensors, tmp_path / "rig.yaml"), "test").model
    assert (model.lidar is not None, model.camera is not None) == (sensors != "camera", sensors != "lidar")


def test_nds_of_cars_alone_is_its_definition_with_one_class() -> None:
    errors = {"trans_err": 0.5, "scale_err": 0.1, "orient_err": 0.2, "vel_err": 1.5, "attr_err": 0.3}
    scores = {"NDS": 0.1, "mAP": 0.1, "tp_errors": {"vel_err": 0.9}}
    of_cars = {"label_tp_errors": {"car": errors}, "mean_dist_aps": {"car": 0.5}}
    assert _chosen(scores | of_cars)["car_NDS"] == pytest.approx(0.1 * (5 * 0.5 + 0.5 + 0.9 + 0.8 + 0.0 + 0.7))


def test_what_a_memory_gains_is_relative_to_the_base_and_of_the_seed_with_the_widest_spread() -> None:
    seeds = [{"spacings": {"0.1 s": {"NDS": 0.42}, "0.5 s": {"NDS": each}}} for each in (0.41, 0.45)]
    of_lidar = {"base": {"NDS": 0.4}, "memory": {"NDS": 0.41}, "joint": {"NDS": 0.45}, "by_seed": seeds}
    of_camera = {
        "base": {"NDS": 0.1, "car_NDS": 0.3, "mAVE": 0.8},
        "joint": {"NDS": 0.15, "car_NDS": 0.37, "mAVE": 0.6},
    }
    found = gains(of_lidar | {"outages": {"1 s": {"kept": {"bridge": 0.5, "joint": 0.1}}}}, of_camera)
    assert found == pytest.approx(
        {
            "nds_gain_camera": 0.05,
            "car_nds_gain_camera": 0.07,
            "velocity_error_ratio_camera": 0.75,
            "kept_without_lidar_1s": 0.5,
            "nds_spread_over_spacing": 0.03,
            "post_hoc_share": 0.2,
        }
    )
