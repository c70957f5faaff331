"""Tasks that are added to a finished model: trained on it, deleted, saved and loaded; all else keeps every bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import refuses, succeeds
from refusals import one_line_error
from routed import assert_same, frame_inputs
from training_runs import small
from unchanged import EVERY, assert_kept

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.training.adapt import MODULE_RATE, add_task, read_task
from perception.training.checkpoint import load_model, save_model


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that detects alone, with a module for rain, and random weights."""
    whole = small()
    config = whole.model_copy(update={"tasks": {"detection": whole.tasks["detection"]}})
    torch.manual_seed(0)
    model = PerceptionModel(config).eval()
    for name, parameter in model.named_parameters():
        if ".computations." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    run = tmp_path_factory.mktemp("finished") / "run"
    save_model(run, config, model)
    return run


GROUND = {
    "tasks": {"map": {"channels": 8}},
    "modules": [{"name": "ground", "kind": "low_rank", "slots": ["trunk.*"], "rank": 1, "when": ["boston"]}],
}


@pytest.fixture(scope="module")
def mapped(finished: Path, tables: NuScenesTables) -> Path:
    """The finished model with the task map, and a module of its own."""
    run = finished.parent / "map"
    add_task(finished, "map", GROUND, tables, "all", (), run, steps=2)
    return run


def test_an_added_task_leaves_every_bit_and_every_output(
    finished: Path, mapped: Path, tables: NuScenesTables, tmp_path: Path
) -> None:
    before, after = load_model(finished)[0], load_model(mapped)[0]
    assert_kept(before, after)
    assert after.tasks.keys() == {"detection", "map"}
    assert after.tasks["map"].config.added
    assert {name.split(".")[0] for name in after.state_dict().keys() - before.state_dict().keys()} == {
        "added", "trunk",
    }  # fmt: skip
    # Its own module runs for it alone, and both have learned.
    assert after.bank.modules["ground"].when == ("boston", "map")
    assert all(computation.b.weight.any() for computation in after.bank.at("ground").values())
    inputs, boston = frame_inputs(after, 1), [Conditions(city="boston")]
    with torch.no_grad():
        maps = [after.predict(inputs, tags)["map/probabilities"] for tags in ([], boston)]
    assert not torch.equal(*maps)

    # A second task keeps the first one's head, and its module.
    add_task(mapped, "conditions", {}, tables, "all", (), tmp_path / "both", steps=2)
    both = load_model(tmp_path / "both")[0]
    assert_kept(after, both)
    assert [*both.tasks] == ["detection", "map", "conditions"]

    # Trained again, it learns anew, and the others still keep every bit.
    add_task(tmp_path / "both", "conditions", {}, tables, "all", (), tmp_path / "again", steps=3)
    again = load_model(tmp_path / "again")[0]
    assert_kept(after, again)
    key = "added.conditions.kinds.weather.weight"
    assert not torch.equal(again.state_dict()[key], both.state_dict()[key])


def test_its_own_module_learns_at_a_smaller_rate_than_the_head(
    finished: Path, tables: NuScenesTables, tmp_path: Path
) -> None:
    """Adam's first step moves what starts at 0 by the rate; the rates are not those of a later training."""
    everywhere = GROUND | {"modules": [{**GROUND["modules"][0], "when": []}]}
    add_task(finished, "map", everywhere, tables, "all", (), tmp_path / "map", steps=1)
    model, config = load_model(tmp_path / "map")
    moved = max(float(each.b.weight.abs().max()) for each in model.bank.at("ground").values())
    head = float(model.added["map"].shared.norm.layer.bias.abs().max())
    assert moved == pytest.approx(MODULE_RATE * head, rel=1e-3)
    assert config.train.rates == {"*.computations.ground.*": MODULE_RATE}
    add_task(tmp_path / "map", "conditions", {}, tables, "all", (), tmp_path / "both", steps=1)
    assert load_model(tmp_path / "both")[1].train.rates == {}


@torch.no_grad()
def assert_equal(a: PerceptionModel, b: PerceptionModel) -> None:
    """Tensors, and outputs whatever the conditions."""
    assert_same(a.state_dict(), b.state_dict())
    for conditions in EVERY:
        assert_same(*(model.predict(frame_inputs(a, 1, 2), [conditions] * 2) for model in (a, b)))


def test_an_added_head_is_deleted_and_comes_back_from_its_file(finished: Path, mapped: Path, tmp_path: Path) -> None:
    base, model = load_model(finished)[0], load_model(mapped)[0]
    rain = list(base.bank.at("rain"))
    assert list(model.bank.at("rain")) == rain  # though its patterns fit slots of the new head
    model.bank.activate("ground")
    with pytest.raises(InputError, match="'ground' is active"):
        model.bank.delete("map")
    model.bank.activate(None)
    model.bank.delete("map")
    assert_equal(base, model)
    assert [*model.bank.modules] == ["rain"]
    save_model(tmp_path / "without", model.config, model)
    without = load_model(tmp_path / "without")[0]
    assert_equal(base, without)
    assert without.bank.load(mapped / "modules" / "map") == ["map"]
    assert_equal(load_model(mapped)[0], without)
    assert list(without.bank.at("rain")) == rain
    with pytest.raises(InputError, match="a module called 'map' is there already"):
        without.bank.load(mapped / "modules" / "map.json")


def test_the_command_loads_and_lists_an_added_head(finished: Path, mapped: Path, tmp_path: Path) -> None:
    given = ("modules", finished, "--load", mapped / "modules" / "map.json", "--out", tmp_path / "both", "--json")
    shown = json.loads(succeeds(*given))
    base, both = load_model(finished)[0], load_model(tmp_path / "both")[0]
    assert_kept(base, both)
    assert_equal(load_model(mapped)[0], both)
    rain, ground, head = shown["modules"]
    assert (rain["name"], ground["name"], ground["when"]) == ("rain", "ground", ["boston", "map"])
    assert (head["name"], head["kind"], head["where"]) == ("map", "task", ["heads.map", "heads.map.*"])
    assert head["parameters"] == sum(p.numel() for p in both.added.parameters())
    for suffix in (".json", ".safetensors"):
        file = Path("modules") / f"map{suffix}"
        assert (tmp_path / "both" / file).read_bytes() == (mapped / file).read_bytes()


def test_a_head_that_does_not_fit_is_refused_and_changes_nothing(finished: Path, mapped: Path, tmp_path: Path) -> None:
    model = load_model(finished)[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    file = tmp_path / "map.json"
    shutil.copy(mapped / "modules" / "map.safetensors", tmp_path)
    content = json.loads((mapped / "modules" / "map.json").read_text())
    elsewhere = {"name": "trunk.9", **{key: content["modules"][0]["slots"][0][key] for key in ("layer", "shape")}}
    for changes, message in (
        ({"base": "0" * 64}, "was trained on another base"),
        ({"name": "flow"}, "tasks.flow: is not a known key"),
        ({"name": "detection"}, "its base has the task detection already"),
        ({"options": {"chanels": 8}}, "tasks.map.chanels: is not a known key"),
        ({"options": {"channels": 4}}, "tensors are not those of its JSON file"),
        ({"modules": [{**content["modules"][0], "slots": [elsewhere]}]}, "the network has no slot 'trunk.9'"),
        ({"modules": [{**content["modules"][0], "name": "rain"}]}, "tensors are not those"),
        ({"when": ["map"]}, "when: extra inputs"),
    ):
        file.write_text(json.dumps(content | changes))
        with one_line_error(message):
            model.bank.load(file)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="is the head of the task map, which keeps its name"):
        model.bank.load(file, rename={file: "land"})
    model.bank.modules["map"] = model.bank.modules["rain"]
    with pytest.raises(InputError, match="a module called 'map' is there already"):
        model.bank.load(file)
    del model.bank.modules["map"]
    assert_same(model.state_dict(), before)
    assert model.bank.load(file) == ["map"]  # all is well with the file


def test_adding_what_cannot_be_added_is_refused(finished: Path, tables: NuScenesTables, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for task, content, message in (
        ("detection", {}, "its base has the task detection already"),
        ("flow", {}, "flow"),
        ("map", {"tasks": {"map": {"chanels": 8}}}, "chanels"),
        ("map", {"modules": [{"name": "rain", "kind": "low_rank", "slots": ["trunk.*"]}]}, "rain"),
        ("map", {"modules": [{"name": "a", "kind": "low_rank", "slots": ["tronk.*"]}]}, "tronk"),
    ):
        with pytest.raises(InputError, match=message):
            add_task(finished, task, content, tables, "all", (), out, steps=1)
        assert not out.exists()
    (tmp_path / "task.yaml").write_text("task: {map: {}}\n")
    with pytest.raises(InputError, match="task: is not a known key"):
        read_task(tmp_path / "task.yaml")


def test_keyframes_without_tags_teach_no_conditions(
    finished: Path, tables: NuScenesTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "conditions", lambda token: Conditions())
    with pytest.raises(InputError, match="no keyframe of the split has labels for the task conditions"):
        add_task(finished, "conditions", {}, tables, "all", (), tmp_path / "run", steps=1)


def test_the_command_adds_a_task(finished: Path, sim_root: Path, tmp_path: Path) -> None:
    given = ("--data", sim_root, "--split", "all", "--steps", 1)
    succeeds("adapt", finished, "--task", "conditions", *given, "--out", tmp_path / "recognising")
    model, config = load_model(tmp_path / "recognising")
    assert_kept(load_model(finished)[0], model)
    assert [*config.tasks] == ["detection", "conditions"]
    (tmp_path / "map.yaml").write_text("tasks: {map: {channels: 4}}\n")
    more = ("--task", "map", "--config", tmp_path / "map.yaml", *given, "--out", tmp_path / "map")
    succeeds("adapt", tmp_path / "recognising", *more)
    both, config = load_model(tmp_path / "map")
    assert config.tasks["map"].channels == 4  # type: ignore[attr-defined]
    assert_kept(model, both)
    again = refuses("adapt", finished, "--task", "detection", *given, "--out", tmp_path / "no")
    assert "its base has the task detection already" in again
