"""Classes, cities, a weather and a kind of condition that no line of code names go the whole way, by YAML alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from networks import config as small_config
from pages import page_data
from toy_command import command
from vocabulary import RIG

from deploy.bundle import Bundle
from deploy.runtime import Runtime
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Conditions
from perception.rig import load_rig
from perception.taxonomy import load_taxonomy
from perception.training.checkpoint import trained_config

TAXONOMY = {
    "name": "alps",
    "classes": [
        {
            "name": "motor_vehicle",
            "categories": ["vehicle.car", "vehicle.truck", "vehicle.bus.rigid", "vehicle.construction"],
            "range": 60.0,
            "attributes": ["motor.still", "motor.moves"],
        },
        {"name": "person", "categories": ["human.pedestrian.adult", "human.pedestrian.child"], "range": 20.0},
        {"name": "cone", "categories": ["movable_object.trafficcone"], "heading": "none", "static": True},
    ],
    "attributes": ["motor.moves", "motor.still"],
    "map_layers": [{"name": "walkway", "share": 0.1}, {"name": "drivable_area", "share": 0.3}],
    "conditions": {"weather": ["dry", "sleet"], "season": ["summer", "winter"], "city": ["munich", "oslo"]},
}
WORLDS = {
    "dry": {"kind": "weather"},
    "sleet": {"kind": "weather", "air": {"rain": [1.0, 3.0], "snow": [1.0, 3.0]}, "ground": {"wet": 0.8, "snow": 0.1}},
    "summer": {"kind": "season"},
    "winter": {
        "kind": "season",
        "vegetation": {"leaves": ["#6b5c4a"]},
        "agents": {"cycles": 0.02},
        "ground": {"snow": [0.3, 0.6], "grass": "#8a8468"},
    },
    "munich": {
        "kind": "city",
        "location": "munich-west",
        "streets": {"columns": [2, 1, 2], "rows": [2, 1, 2], "lane_width": 3.2, "parking": 2.5, "speed": 12.0},
        "buildings": {"heights": [12, 22], "facades": ["#e6d7a8", "#d9c9a0"]},
        "agents": {"cycles": 0.2, "mix": {"bicycle": 0.15}},
    },
    "oslo": {"kind": "city", "location": "oslo-sentrum", "streets": {"columns": [1, 2, 1], "rows": [1, 2, 1]}},
}


def small_pictures() -> dict[str, Any]:
    """nuScenes' car with pictures of a fifth of the size, which render faster."""
    rig = RIG.model_dump(mode="json")
    for camera in rig["cameras"]:
        camera["size"] = [edge // 5 for edge in camera["size"]]
        camera["lens"] |= {name: [x / 5 for x in camera["lens"][name]] for name in ("focal", "center")}
    return rig


@pytest.fixture(scope="module")
def alps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated drives in two worlds of their own; taxonomy.yaml, worlds and run.yaml beside them."""
    folder = tmp_path_factory.mktemp("alps")
    (folder / "worlds").mkdir()
    for name, world in WORLDS.items():
        (folder / "worlds" / f"{name}.yaml").write_text(yaml.safe_dump(world))
    (folder / "taxonomy.yaml").write_text(yaml.safe_dump(TAXONOMY, sort_keys=False))
    (folder / "rig.yaml").write_text(yaml.safe_dump(small_pictures()))
    command(
        "simulate", folder / "drives", "--taxonomy", folder / "taxonomy.yaml", "--worlds", folder / "worlds", "--rig",
        folder / "rig.yaml", "--conditions", "sleet-winter-munich,dry-summer-oslo", "--scenes", 2, "--samples", 3,
        "--sweeps", 2,
    )  # fmt: skip
    modules = [{"name": "sleet", "kind": "film", "slots": ["trunk.*"], "when": ["sleet", "winter"]}]
    content = small_config().model_dump(mode="json")
    content["train"] |= {"steps": 20, "batch": 1, "learning_rate": 0.01}
    content |= {"name": "alps", "taxonomy": str(folder / "taxonomy.yaml"), "rig": str(folder / "rig.yaml")}
    content["modules"] = modules
    content["tasks"] |= {"conditions": {"added": False}}
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    command("train", folder / "run.yaml", "--data", folder / "drives", "--split", "all", "--out", folder / "run")
    return folder


@pytest.fixture(scope="module")
def bundle(alps: Path) -> Path:
    """With a module for a city, trained after the fact."""
    command(
        "adapt", alps / "run", "--data", alps / "drives", "--split", "all", "--add", "low_rank:town", "--conditions",
        "oslo", "--steps", 2, "--out", alps / "adapted",
    )  # fmt: skip
    command("export", alps / "adapted", "--out", alps / "bundle", "--routes", "base,sleet+winter,oslo")
    command("verify", alps / "bundle")
    return alps / "bundle"


def test_the_drives_are_of_those_worlds(alps: Path) -> None:
    taxonomy = load_taxonomy(alps / "taxonomy.yaml")
    tables = NuScenesTables(alps / "drives", "v1.0-sim", load_rig(alps / "rig.yaml"), taxonomy)
    sleet, dry = (tables.frame(tables.samples(selectors=[scene])[0]) for scene in tables.scenes())
    assert sleet.conditions == Conditions(weather="sleet", season="winter", city="munich")
    assert dry.conditions == Conditions(weather="dry", season="summer", city="oslo")
    assert (sleet.location, dry.location) == ("munich-west", "oslo-sentrum")
    near = [(np.linalg.norm(frame.points[:, :3] - [0, 0, 1.84], axis=1) < 3.5).sum() for frame in (sleet, dry)]
    assert near[0] > near[1] + 1000  # flakes and drops


def test_the_checkpoint_and_the_bundle_hold_the_names(alps: Path, bundle: Path) -> None:
    (alps / "taxonomy.yaml").rename(alps / "moved.yaml")  # neither needs the file
    taxonomy = trained_config(alps / "adapted").taxonomy
    manifest = Bundle.load(bundle).manifest
    assert taxonomy == manifest.taxonomy
    assert taxonomy.condition_values == manifest.taxonomy.condition_values == (
        "dry", "sleet", "summer", "winter", "munich", "oslo",
    )  # fmt: skip
    assert taxonomy.class_names == ("motor_vehicle", "person", "cone")
    shapes = {each.name: each.shape for each in manifest.outputs}
    assert shapes["map/probabilities"][1] == 2
    assert shapes["conditions/probabilities"][1] == 6
    assert manifest.routes == ("base", "sleet+winter", "oslo")
    assert {each.name: each.asks for each in manifest.banked} == {"sleet": ("sleet", "winter"), "town": ("oslo",)}


def test_it_is_scored_by_its_own_conditions(alps: Path, bundle: Path, tmp_path: Path) -> None:
    scores = []
    for model, out in ((alps / "adapted", tmp_path / "torch"), (bundle, tmp_path / "engine")):
        command(
            "evaluate", model, "--data", alps / "drives", "--split", "all", "--by", "season,condition", "--out", out
        )
        scores.append(json.loads((out / "metrics.json").read_text()))
    for metrics in scores:
        assert [*metrics["slices"]["season"]] == ["summer", "winter"]
        assert [*metrics["slices"]["condition"]] == ["dry", "sleet", "summer", "winter", "munich", "oslo"]
        assert {*metrics["mean_dist_aps"]} == {"motor_vehicle", "person", "cone"}
        assert {*metrics["map"]["iou_max"]} == {"walkway", "drivable_area", "mean"}
        assert metrics["label_tp_errors"]["cone"]["orient_err"] is None
        assert metrics["label_tp_errors"]["person"]["attr_err"] is None
    assert scores[0]["ground_truth"] == scores[1]["ground_truth"]
    results = json.loads((tmp_path / "engine" / "results_nusc.json").read_text())["results"]
    boxes = [box for sample in results.values() for box in sample]
    assert {box["detection_name"] for box in boxes} <= {"motor_vehicle", "person", "cone"}
    attributes = {box["attribute_name"] for box in boxes if box["detection_name"] == "motor_vehicle"}
    assert attributes <= {"motor.moves", "motor.still"}


def test_it_is_routed_replayed_and_judged(alps: Path, bundle: Path, tmp_path: Path) -> None:
    gates = tmp_path / "gates.yaml"
    gates.write_text(
        "gates: [{metric: AP, class: motor_vehicle, condition: winter, at_least: 0}, {metric: mAP, at_least: 0}]"
    )
    command("replay", alps / "drives", "--bundle", bundle, "--out", tmp_path / "replay", "--gates", gates)
    verdict = json.loads((tmp_path / "replay" / "verdict.json").read_text())
    assert verdict["outcome"] == "pass"
    lanes = {(lane["kind"], lane["name"]) for lane in page_data(tmp_path / "replay" / "report.html")["lanes"]}
    assert {("conditions", kind) for kind in ("weather", "season", "city")} <= lanes
    tables, runtime = (
        NuScenesTables(alps / "drives", "v1.0-sim", load_rig(alps / "rig.yaml"), Bundle.load(bundle).manifest.taxonomy),
        Runtime(bundle),
    )
    for scene, active in zip(tables.scenes(), ({"sleet": 1.0, "town": 0.0}, {"sleet": 0.0, "town": 1.0}), strict=True):
        token = tables.samples(selectors=[scene])[0]
        seen = runtime.step(tables.frame(token, "ego", runtime.bundle.spec.sweeps))
        assert {name: routed.weight for name, routed in seen.route.items()} == active
    assert seen.conditions == Conditions(weather="dry", season="summer", city="oslo")


@pytest.mark.parametrize("arguments", [("--conditions", "fog"), ("--conditions", "sleet,dry")])
def test_names_that_it_lacks_are_refused(
    alps: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(AssertionError):  # exit code 2
        command("replay", alps / "drives", "--bundle", bundle, "--out", tmp_path / "replay", *arguments)
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert "fog: unknown condition; choose from dry, sleet" in line or "contradicts" in line
