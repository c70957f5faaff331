"""Halves of simulated and recorded drives against the whole ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import one_line_error, succeeds
from mmdet3d_networks import trained_kitti
from pandaset_drive import FRAMES, Object, write_drive
from repository import ROOT
from rich.console import Console
from vocabulary import NUSCENES, RIG

from perception.datasets.halves import TURNS, Halves
from perception.datasets.keyframes import Keyframes, Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.pandaset import PandaSet
from perception.evaluation.evaluate import evaluate
from perception.frame import Frame, Prediction
from perception.grid import BevGrid, Reference
from perception.mmdet3d.importing import import_pointpillars
from perception.sensors.inputs import InputSpec
from perception.sensors.lidar.config import Lidar

SPEC = InputSpec(BevGrid((0.0, 60.0), (-60.0, 60.0)), {"lidar": Lidar(sweeps=0)}, RIG, truth=("boxes", "bicycle_racks"))


@pytest.fixture(scope="module")
def halves(sim_root: Path) -> Halves:
    return Halves(sim_root, None, None, None)


@pytest.mark.parametrize("reference", ["ego", "lidar"])
@pytest.mark.parametrize("half", TURNS)
def test_a_half_is_what_is_ahead_of_the_turned_vehicle(
    tables: NuScenesTables, halves: Halves, half: str, reference: Reference
) -> None:
    token, sign = tables.samples()[0], {"front": 1, "rear": -1}[half]
    whole = tables.frame(token, Reads(reference, sweeps=1, truth=("boxes",)))
    found = halves.frame(f"{token}-{half}", Reads(reference, sweeps=1, truth=("boxes", "points")))
    assert (found.token, found.scene, found.timestamp) == (f"{token}-{half}", f"{whole.scene}-{half}", whole.timestamp)
    assert found.conditions == whole.conditions
    assert {*found.truth} == {"boxes"}
    x = (np.linalg.inv(whole.global_from_ego) @ whole.global_from_reference)[0]
    np.testing.assert_allclose(found.global_from_ego[:3, :3], whole.global_from_ego[:3, :3] * [sign, sign, 1])
    np.testing.assert_allclose(found.global_from_reference[:3, 3], whole.global_from_reference[:3, 3], atol=1e-9)
    ahead = sign * (whole.points[:, :3] @ x[:3] + x[3]) >= 0
    assert 0 < ahead.sum() < len(ahead)
    np.testing.assert_allclose(found.points, whole.points[ahead] * [sign, sign, 1, 1, 1], atol=2e-4)
    np.testing.assert_array_equal(found.sweep_of_point, whole.sweep_of_point[ahead])
    boxes = whole.boxes.select(sign * (whole.boxes.centers @ x[:3] + x[3]) >= 0)
    assert 0 < len(boxes) < len(whole.boxes)
    np.testing.assert_array_equal(found.boxes.instances, boxes.instances)
    np.testing.assert_allclose(found.boxes.centers, boxes.centers * [sign, sign, 1], atol=1e-9)
    np.testing.assert_allclose(found.boxes.velocities, boxes.velocities * [sign, sign, 1], atol=1e-9)
    np.testing.assert_allclose(found.boxes.headings, sign * boxes.headings, atol=1e-9)
    np.testing.assert_array_equal(found.truth["boxes"].instances, boxes.instances)
    there, here = (np.column_stack([each.centers, np.ones(len(each))]) for each in (found.boxes, boxes))
    for name in whole.cameras:
        pixels = here @ whole.image_from_reference(name).T
        np.testing.assert_allclose(there @ found.image_from_reference(name).T, pixels, rtol=1e-9, atol=1e-6)


def test_halves_are_drives_of_their_own(tables: NuScenesTables, halves: Halves, tmp_path: Path) -> None:
    assert halves.scenes() == [f"{scene}-{half}" for scene in tables.scenes() for half in TURNS]
    scene = tables.scenes()[0]
    tokens = halves.samples(selectors=[f"{scene}-rear:0-2"])
    assert tokens == [f"{token}-rear" for token in tables.samples(selectors=[f"{scene}:0-2"])]
    assert halves.scene(tokens[0]) == f"{scene}-rear"
    assert [*halves.moments(tokens[0])] == halves.samples(selectors=[f"{scene}-rear"])
    with one_line_error(at=scene, says="no such scene"):
        halves.samples(selectors=[scene])
    with one_line_error("no frame"):
        halves.frame(tables.samples()[0])
    car = Object("Car", "a", (3.0, 20.0, 0.3))
    write_drive(tmp_path, [car], {0: np.array([[3.0, 20, 0.3, 7, 0, 0], [-3.0, -20, 0.3, 9, 0, 1]])})
    recorded = Halves(tmp_path, None, None, None)
    assert [len(recorded.frame(f"007-00-{half}").points) for half in TURNS] == [1, 1]
    assert [len(recorded.frame(f"007-00-{half}").boxes) for half in TURNS] == [1, 0]
    assert len(recorded.samples()) == 2 * FRAMES
    assert PandaSet(tmp_path).scenes() == ["007"]  # halves are there by their name alone


def perfect(frame: Frame) -> Prediction:
    """What is annotated ahead of the vehicle and was hit."""
    boxes = frame.truth["boxes"].transformed(np.linalg.inv(frame.global_from_reference))
    return Prediction({"detection": boxes.select((boxes.centers[:, 0] >= 0) & (boxes.num_points != 0))})


def test_each_object_is_scored_in_one_half(tables: NuScenesTables, halves: Halves, tmp_path: Path) -> None:
    def score(source: Keyframes, name: str) -> dict:
        return evaluate(perfect, source, "all", (), tmp_path / name, SPEC, Console(quiet=True))

    whole, both = score(tables, "whole"), score(halves, "halves")
    assert both["ground_truth"] == whole["ground_truth"]
    assert sum(both["ground_truth"].values()) > 10
    assert both["mAP_present"] == pytest.approx(1)
    assert whole["mAP_present"] < 0.9
    assert both["samples"] == 2 * whole["samples"]


def test_the_cars_behind_a_recorded_vehicle_are_found(tmp_path: Path, pandaset_root: Path) -> None:
    """By the network for KITTI, which sees only what is ahead."""
    import_pointpillars(ROOT / "configs" / "kitti" / "pointpillars.yaml", trained_kitti(), tmp_path / "run")
    data = ("--data", f"perception.datasets.halves:Halves={pandaset_root}", "--scenes", "002-rear:24-25")
    succeeds("evaluate", tmp_path / "run", *data, "--out", tmp_path / "evaluation")
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert found["ground_truth"]["car"] > 10
    assert found["mean_dist_aps"]["car"] > 0.6


def test_halves_are_opened_for_a_taxonomy_and_a_rig(sim_root: Path) -> None:
    only = NUSCENES.model_copy(update={"classes": NUSCENES.classes[:1]})
    rig = RIG.model_copy(update={"cameras": RIG.cameras[:1]})
    opened = Halves(sim_root, "v1.0-sim", rig, only)
    assert (opened.taxonomy, opened.rig) == (only, rig)
    assert {*opened.frame(opened.samples()[0]).boxes.labels.tolist()} <= {0}
