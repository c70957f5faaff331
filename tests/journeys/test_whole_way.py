"""Whole ways: drives, training or import, module, export, verify, evaluation by torch and by the engine, replay.

Each is of another user: own names, another make of vehicle, infos files, a network from mmdet3d.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from commands import command, refuses, score_and_replay, succeeds
from exported import QUIET, bundles_of
from infos import new_infos, old_infos, write_infos
from mmdet3d_networks import files
from networks import config as small_config
from networks import small
from nuscenes import NuScenes
from pages import page_data
from safetensors.torch import load_file
from simulated import with_pictures
from vehicles import shuttle_root
from vocabulary import RIG

from deploy.build import build
from deploy.bundle import Bundle
from deploy.golden import synthetic_frame
from deploy.precision.calibrate import Drives
from deploy.runtime import Runtime
from perception.checkpoint import provenance, read_config
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Conditions, Frame
from perception.mmdet3d.importing import import_checkpoint
from perception.predict import TorchPredictor
from perception.rig import load_rig
from perception.taxonomy import load_taxonomy
from perception.training.adapt import adapt


@dataclass(frozen=True)
class Way:
    bundle: Bundle
    torch: dict[str, Any]  # metrics
    engine: dict[str, Any]
    out: Path  # of the replay

    @property
    def page(self) -> Any:
        return page_data(self.out / "report.html")


def to_a_replay(
    run: Path,
    data: Path,
    out: Path,
    call: Callable[..., object] = succeeds,
    routes: str = "base",
    scored: tuple[object, ...] = (),
    replayed: tuple[object, ...] = (),
) -> Way:
    """The commands from a trained run on, each with its options."""
    call("export", run, "--out", out / "bundle", "--routes", routes)
    call("verify", out / "bundle")
    for model, name in ((run, "torch"), (out / "bundle", "engine")):
        call("evaluate", model, "--data", data, "--split", "all", "--out", out / name, *scored)
    call("replay", data, "--bundle", out / "bundle", "--out", out / "replay", *replayed)
    metrics = [json.loads((out / name / "metrics.json").read_text()) for name in ("torch", "engine")]
    assert metrics[0]["ground_truth"] == metrics[1]["ground_truth"]
    return Way(Bundle.load(out / "bundle"), *metrics, out / "replay")


# ---- names that no line of code knows, by YAML alone

TAXONOMY = """
name: alps
classes:
  - name: motor_vehicle
    categories: [vehicle.car, vehicle.truck, vehicle.bus.rigid, vehicle.construction]
    range: 60.0
    attributes: [motor.still, motor.moves]
  - {name: person, categories: [human.pedestrian.adult, human.pedestrian.child], range: 20.0}
  - {name: cone, categories: [movable_object.trafficcone], heading: none, static: true}
attributes: [motor.moves, motor.still]
map_layers: [{name: walkway, share: 0.1}, {name: drivable_area, share: 0.3}]
conditions: {weather: [dry, sleet], season: [summer, winter], city: [munich, oslo]}
"""
WORLDS = {
    "dry": "{kind: weather}",
    "sleet": "{kind: weather, air: {rain: [1.0, 3.0], snow: [1.0, 3.0]}, ground: {wet: 0.8, snow: 0.1}}",
    "summer": "{kind: season}",
    "winter": """
        {kind: season, vegetation: {leaves: ["#6b5c4a"]}, agents: {cycles: 0.02},
         ground: {snow: [0.3, 0.6], grass: "#8a8468"}}""",
    "munich": """
        {kind: city, location: munich-west,
         streets: {columns: [2, 1, 2], rows: [2, 1, 2], lane_width: 3.2, parking: 2.5, speed: 12.0},
         buildings: {heights: [12, 22], facades: ["#e6d7a8", "#d9c9a0"]},
         agents: {cycles: 0.2, mix: {bicycle: 0.15}}}""",
    "oslo": "{kind: city, location: oslo-sentrum, streets: {columns: [1, 2, 1], rows: [1, 2, 1]}}",
}
GATES = "gates: [{metric: AP, class: motor_vehicle, condition: winter, at_least: 0}, {metric: mAP, at_least: 0}]"


def simulate_alps(folder: Path) -> tuple[NuScenesTables, Frame]:
    """Drives in two worlds of their own; returns the first frame of the last."""
    (folder / "worlds").mkdir()
    for name, world in WORLDS.items():
        (folder / "worlds" / f"{name}.yaml").write_text(world)
    drives, names, rig = folder / "drives", folder / "taxonomy.yaml", folder / "rig.yaml"
    names.write_text(TAXONOMY)
    rig.write_text(yaml.safe_dump(with_pictures(5).model_dump(mode="json")))
    conditions = ("--conditions", "sleet-winter-munich,dry-summer-oslo", "--scenes", 2, "--samples", 3, "--sweeps", 2)
    command("simulate", drives, "--taxonomy", names, "--worlds", folder / "worlds", "--rig", rig, *conditions)
    taxonomy = load_taxonomy(names)
    tables = NuScenesTables(drives, "v1.0-sim", load_rig(rig), taxonomy)
    sleet, dry = (tables.frame(tables.samples(selectors=[scene])[0]) for scene in tables.scenes())
    assert sleet.conditions == Conditions(weather="sleet", season="winter", city="munich")
    assert dry.conditions == Conditions(weather="dry", season="summer", city="oslo")
    assert (sleet.location, dry.location) == ("munich-west", "oslo-sentrum")
    near = [(np.linalg.norm(frame.points[:, :3] - [0, 0, 1.84], axis=1) < 3.5).sum() for frame in (sleet, dry)]
    assert near[0] > near[1] + 1000  # flakes and drops
    return tables, dry


def train_alps(folder: Path) -> Path:
    """A network with a module for a season, and one for a city that is trained after the fact."""
    content = small_config().model_dump(mode="json")
    content["train"] |= {"steps": 20, "batch": 1, "learning_rate": 0.01}
    content["modules"] = [{"name": "sleet", "kind": "film", "slots": ["trunk.*"], "when": ["sleet", "winter"]}]
    content |= {"name": "alps", "taxonomy": str(folder / "taxonomy.yaml"), "rig": str(folder / "rig.yaml")}
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    given = ("--data", folder / "drives", "--split", "all")
    command("train", folder / "run.yaml", *given, "--out", folder / "run")
    added = ("--add", "low_rank:town", "--conditions", "oslo", "--steps", 2)
    command("adapt", folder / "run", *given, *added, "--out", folder / "adapted")
    return folder / "adapted"


@pytest.mark.slow("simulates, trains, adapts and exports by commands")
def test_names_of_ones_own_go_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Classes, cities, a weather and a kind of condition."""
    tables, dry = simulate_alps(tmp_path)
    run, taxonomy = train_alps(tmp_path), tables.taxonomy
    (tmp_path / "taxonomy.yaml").rename(tmp_path / "moved.yaml")  # neither run nor bundle needs the file
    (tmp_path / "gates.yaml").write_text(GATES)
    by, gates = ("--by", "season,condition"), ("--gates", tmp_path / "gates.yaml")
    way = to_a_replay(run, tables.dataroot, tmp_path, command, "base,sleet+winter,oslo", by, gates)

    manifest = way.bundle.manifest
    assert read_config(run).taxonomy == manifest.taxonomy == taxonomy
    assert taxonomy.condition_values == ("dry", "sleet", "summer", "winter", "munich", "oslo")
    assert taxonomy.class_names == ("motor_vehicle", "person", "cone")
    shapes = {each.name: each.shape for each in manifest.outputs}
    assert shapes["map/probabilities"][1] == 2
    assert manifest.routes == ("base", "sleet+winter", "oslo")
    assert {each.name: each.asks for each in manifest.banked} == {"sleet": ("sleet", "winter"), "town": ("oslo",)}
    for metrics in (way.torch, way.engine):
        assert [*metrics["slices"]["season"]] == ["summer", "winter"]
        assert [*metrics["slices"]["condition"]] == [*taxonomy.condition_values]
        assert {*metrics["mean_dist_aps"]} == {*taxonomy.class_names}
        assert {*metrics["map"]["iou_max"]} == {"walkway", "drivable_area", "mean"}
        assert metrics["label_tp_errors"]["cone"]["orient_err"] is None
        assert metrics["label_tp_errors"]["person"]["attr_err"] is None
    results = json.loads((tmp_path / "engine" / "results_nusc.json").read_text())["results"]
    boxes = [box for sample in results.values() for box in sample]
    assert {box["detection_name"] for box in boxes} <= {*taxonomy.class_names}
    attributes = {box["attribute_name"] for box in boxes if box["detection_name"] == "motor_vehicle"}
    assert attributes <= {"motor.moves", "motor.still"}
    assert json.loads((way.out / "verdict.json").read_text())["outcome"] == "pass"
    lanes = {(lane["kind"], lane["name"]) for lane in way.page["lanes"]}
    assert {("conditions", kind) for kind in ("weather", "season", "city")} <= lanes
    runtime = Runtime(way.bundle.path)
    for scene, active in zip(tables.scenes(), ({"sleet": 1.0, "town": 0.0}, {"sleet": 0.0, "town": 1.0}), strict=True):
        token = tables.samples(selectors=[scene])[0]
        seen = runtime.step(tables.frame(token, Reads("ego", runtime.bundle.spec.sweeps)))
        assert {name: routed.weight for name, routed in seen.route.items()} == active
    assert seen.conditions == dry.conditions
    for told, says in (("fog", "fog: unknown condition; choose from dry, sleet"), ("sleet,dry", "contradicts")):
        capsys.readouterr()
        config = tmp_path / "told.yaml"
        config.write_text(f"conditions: [{told}]\n")
        given = ("--bundle", way.bundle.path, "--out", tmp_path / "no", "--config", config)
        with pytest.raises(AssertionError):  # exit code 2
            command("replay", tables.dataroot, *given)
        line = capsys.readouterr().err.strip()
        assert says in line
        assert "\n" not in line


# ---- another make of vehicle


@pytest.mark.slow("trains and exports by commands")
def test_a_truck_goes_the_whole_way(truck_root: Path, recorded_root: Path, tmp_path: Path) -> None:
    rig, taxonomy = load_rig("truck"), load_taxonomy("truckscenes")
    content = small_config().model_dump(mode="json") | {"name": "truck", "rig": "truck", "taxonomy": taxonomy.name}
    del content["tasks"]["map"]
    content["train"] |= {"steps": 40, "batch": 1, "learning_rate": 0.02}  # until the scores do not tie
    (tmp_path / "truck.yaml").write_text(yaml.safe_dump(content))
    run, (first, lidar) = tmp_path / "run", (rig.sensors.cameras[0], rig.sensors.lidars[-1])
    succeeds("train", tmp_path / "truck.yaml", "--data", truck_root, "--split", "all", "--out", run)
    lost = ("--fault", f"drop:{first}@0.4-0.6", "--fault", f"drop:{lidar}@0.4-0.6")
    way = to_a_replay(run, truck_root, tmp_path, scored=("--official",), replayed=lost)
    assert read_config(run).rig == way.bundle.manifest.rig == rig
    assert way.bundle.manifest.taxonomy == taxonomy
    shapes = way.bundle.manifest.input_shapes
    assert shapes["images"][1] == shapes["image_from_reference"][1] == len(rig.cameras)
    for scores in (way.torch, way.engine):
        assert {*scores["official"]["mean_dist_aps"]} == {*taxonomy.class_names}
        assert scores["official"]["largest_difference"] <= 1e-9
        assert scores["samples"] == 3
    data = way.page
    assert sorted(camera for row in data["cameras"] for camera in row) == sorted(rig.sensors.cameras)
    assert data["lidars"] == list(rig.sensors.lidars)
    for camera in rig.cameras:
        picture = data["frames"][0]["cameras"][camera.name].split(",")[1]
        height, width = cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), 1).shape[:2]
        assert (width, height) == (data["cameraWidth"], data["cameraHeights"][camera.name])
        assert height == round(width * camera.size[1] / camera.size[0])
    for sensor in rig.sensors.names:
        found = [frame["health"][sensor][0] for frame in data["frames"]]
        assert found == ["ok", "missing" if sensor in (first, lidar) else "ok", "ok"], sensor

    # Vehicles do not mix, but weights carry over to one with another number of cameras of other sizes.
    shuttle = shuttle_root()
    for other in (shuttle, recorded_root):
        says = refuses("replay", other, "--bundle", way.bundle.path, "--out", tmp_path / "no")
        assert "these drives are of another vehicle than the rig truck: they have no LIDAR_LEFT, but" in says
        assert not (tmp_path / "no" / "report.html").exists()
    tables = NuScenesTables(shuttle, "v1.0-sim", load_rig("shuttle"))
    with pytest.raises(Exception, match=r"^frame \w+: front is no camera of the rig truck; it has CAMERA_LEFT_FRONT,"):
        Runtime(way.bundle.path)(tables.frame(tables.samples()[0]))
    given, told = ("--data", shuttle, "--split", "all"), ("--rig", "shuttle")
    says = refuses("evaluate", run, *given, "--out", tmp_path / "f")
    assert "these drives are of another vehicle than the rig truck" in says
    assert json.loads(succeeds("evaluate", run, *given, *told, "--out", tmp_path / "e", "--json"))["samples"] == 3
    added = ("--add", "low_rank:shuttle", "--steps", "2")
    succeeds("adapt", run, *given, *told, *added, "--out", tmp_path / "adapted")
    assert read_config(tmp_path / "adapted").rig == load_rig("shuttle")


# ---- infos files where others have a dataroot


@pytest.mark.slow("trains and exports by commands")
def test_infos_files_go_from_training_to_an_int8_bundle(sim_root: Path, tmp_path: Path) -> None:
    """Of both layouts, beside links to the files of a simulated dataroot, without its tables."""
    for name in ("samples", "sweeps"):
        (tmp_path / name).symlink_to(sim_root / name)
    old = partial(old_infos, NuScenes("v1.0-sim", str(sim_root), verbose=False))
    train = write_infos(tmp_path / "nuscenes_infos_train.pkl", old())
    val = write_infos(tmp_path / "nuscenes_infos_val.pkl", new_infos(old(old_boxes=False)))
    config, base, night, bundle = (tmp_path / name for name in ("small.yaml", "base", "night", "bundle"))
    config.write_text(yaml.safe_dump(small(steps=9, checkpoint_every=2).model_dump(mode="json")))
    succeeds("train", config, "--data", train, "--steps", 2, "--out", base)
    assert [step.name for step in (base / "checkpoints").iterdir()] == ["step-000002"]
    assert provenance(base).data == ("nuscenes_infos_train.pkl: 6 keyframes of 2 scenes",)

    succeeds("evaluate", base, "--data", val, "--scenes", "drive-0002:0-2", "--out", tmp_path / "e")
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["samples"] == 2
    assert metrics["ground_truth"]["car"] > 0
    assert metrics["map"] is None

    add = ("adapt", base, "--add", "low_rank:night", "--data", train, "--steps", 1)
    succeeds(*add, "--scenes", "drive-0001", "--out", night)
    assert provenance(night).data[-1] == "nuscenes_infos_train.pkl: 3 keyframes of 1 scenes"
    succeeds("modules", night, "--frame", "drive-0001:1", "--data", val)
    says = refuses(*add, "--conditions", "rain", "--out", tmp_path / "wet")
    assert "no keyframe of the split is known to have rain" in says

    succeeds("export", base, "--out", bundle, "--precision", "int8", "--calibrate", val)
    calibration = json.loads((bundle / "calibration.json").read_text())
    assert calibration["data"] == "nuscenes_infos_val.pkl"
    assert len(calibration["frames"]) == 6


# ---- an imported network

RAIN = {"name": "rain", "kind": "low_rank", "slots": ["lidar.*", "trunk.*", "heads.*"], "rank": 2, "when": ["rain"]}


def test_a_module_is_trained_beside_the_base_from_mmdet3d(tables: NuScenesTables, tmp_path: Path) -> None:
    run = tmp_path / "run"
    import_checkpoint(*files(tmp_path, "centerpoint"), run)
    adapted = adapt(run, RAIN, tables, "all", [], tmp_path / "rain", steps=2, batch=1, learning_rate=0.05)
    base, both = (load_file(folder / "model.safetensors") for folder in (run, adapted))
    assert all(torch.equal(both[name], tensor) for name, tensor in base.items())
    deltas = [name for name in both if ".computations.rain." in name]
    places = {name.split(".computations")[0] for name in deltas}
    assert {"lidar.layers.0.points", "trunk.lifts.0.conv", "heads.detection.branches.group5_heatmap.1"} <= places
    begun_at_zero = [name for name in deltas if name.endswith(".b.weight")]
    assert len(begun_at_zero) == len(places)
    still = {name for name in begun_at_zero if not both[name].any()}  # no gradient came there
    absent = {name.split("_")[0] for name in still}  # groups of classes of which no object was there
    assert all(name.startswith("heads.detection.branches.group") and "heatmap" not in name for name in still)
    assert len(absent) < 6


@pytest.mark.slow("exports, compiles and replays a network with six heads")
def test_a_network_from_mmdet3d_gives_its_boxes_at_every_precision(sim_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    import_checkpoint(*files(tmp_path, "centerpoint"), run)
    bundles = bundles_of(run, tmp_path, ("fp32", "fp16", "int8"), Drives(sim_root, "v1.0-sim"))
    frame = synthetic_frame("lidar", RIG, seed=3)
    expected = TorchPredictor.load(run)(frame).results["detection"]
    assert len(expected) > 20
    found = {}
    for precision, bundle in bundles.items():
        assert bundle.manifest.heads["detection"].config.nms is not None
        assert {t.name: t.shape for t in bundle.manifest.outputs}["detection/boxes"] == (1, 6, 40, 10)
        found[precision] = Runtime(bundle.path)(frame).results["detection"]
    np.testing.assert_array_equal(found["fp32"].labels, expected.labels)
    np.testing.assert_allclose(found["fp32"].centers, expected.centers, atol=1e-4)
    np.testing.assert_allclose(found["fp32"].corners(), expected.corners(), atol=1e-3)
    assert abs(len(found["fp16"]) - len(expected)) <= 0.05 * len(expected)  # a few are on the edge of being suppressed
    metrics, tracks = score_and_replay(bundles["fp32"].path, sim_root, tmp_path)
    assert 0 <= metrics["mAP"] < 0.2  # random weights
    assert len(tracks["results"]) == 3
    assert np.mean([len(boxes) for boxes in tracks["results"].values()]) > 1
    pytest.importorskip("tensorrt_rtx")
    record = build(bundles["int8"].path, "rtx-ampere", QUIET)
    assert len(Bundle.load(bundles["int8"].path).plan("rtx-ampere").data) == record.plan_bytes
