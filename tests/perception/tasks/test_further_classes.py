"""Classes that a trained head with anchors learns later: all else keeps every bit, and they go where the others go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from anchored_model import run
from commands import refuses
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import one_line_error
from routed import assert_same
from vocabulary import NUSCENES, RIG

from deploy.golden import synthetic_frame
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.modules.base_weights import base_hash
from perception.predict import TorchPredictor
from perception.sensors.inputs import prepare
from perception.tasks.detection.config import FurtherClasses, Suppression
from perception.training.adapt import add_task, task_taxonomy
from perception.training.checkpoint import load_model

FURTHER = {
    "classes": [
        {"name": "rack", "categories": ["static_object.bicycle_rack"], "size": [1.0, 4.0, 1.2], "range": 40.0},
        {"name": "debris", "categories": ["movable_object.debris"], "size": [0.6, 0.6, 0.4]},
    ],
    "bottom": -1.8,
}
CONTENT = {"tasks": {"detection": {"further": FURTHER}}}
OWN = len(NUSCENES.classes)


@pytest.fixture(scope="module")
def both(sim_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with both classes, trained on drives that have none of them: only as background."""
    out, config = tmp_path_factory.mktemp("further") / "run", load_model(run("joined"))[1]
    tables = NuScenesTables(sim_root, "v1.0-sim", taxonomy=task_taxonomy(config, "detection", CONTENT, "here"))
    add_task(run("joined"), "detection", CONTENT, tables, "all", tables.scenes()[:1], out, steps=1, batch=1)
    return out


@torch.no_grad()
def test_the_base_and_its_boxes_keep_every_bit(both: Path) -> None:
    before, after = load_model(run("joined"))[0], load_model(both)[0]
    state = after.state_dict()
    assert_same(before.state_dict(), {name: state[name] for name in before.state_dict()})
    assert base_hash(before) == base_hash(after)
    assert {name.rsplit(".", 3)[0] for name in state.keys() - before.state_dict().keys()} == {
        "added.detection.branches"
    }
    assert after.config.taxonomy.class_names == (*NUSCENES.class_names, "rack", "debris")
    assert before.config.taxonomy.class_names == NUSCENES.class_names
    inputs = prepare(synthetic_frame("lidar", RIG, 7), TorchPredictor(after).spec)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    old, new = before.predict(tensors), after.predict(tensors)
    for name, values in old.items():
        torch.testing.assert_close(new[name][:, :OWN], values, rtol=0, atol=0)
        assert new[name].shape[1] == OWN + 2
    assert new["detection/labels"][0, :, 0].tolist() == [*range(OWN + 2)]


def test_its_file_carries_the_classes_to_the_base_and_back(both: Path, tmp_path: Path) -> None:
    base, whole = load_model(run("joined"))[0], load_model(both)[0]
    assert base.bank.load(both / "modules" / "detection.json") == ["detection"]
    assert_same(whole.state_dict(), base.state_dict())
    assert (base.config.tasks, base.config.taxonomy) == (whole.config.tasks, whole.config.taxonomy)
    base.bank.delete("detection")
    assert_same(load_model(run("joined"))[0].state_dict(), base.state_dict())
    assert base.config == load_model(run("joined"))[1]
    assert [each.name for each in whole.bank.status()] == ["detection"]


def test_each_head_learns_from_its_own_classes_alone(both: Path) -> None:
    """Losses of objects of both are the sums of those of each, computed by heads of their own."""
    model = load_model(both)[0]
    first, further = model.heads["detection"], model.added["detection"]
    features = torch.randn(2, 24, 32, 32, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[1.0, 2, -1, 1.9, 4.6, 1.7, 0.1, 0, 0], [5, -4, -1, 1.0, 4.0, 1.2, 0.2, 0, 0]]] * 2)
    labels = {
        "boxes": boxes,
        "classes": torch.tensor([[0, OWN]] * 2),
        "real": torch.tensor([[True, True], [True, False]]),
    }
    head = model.head("detection")
    found = head.losses(head(features), labels)
    alone = {**labels, "boxes": boxes[:, :1], "classes": labels["classes"][:, :1], "real": labels["real"][:, :1]}
    other = {**labels, "boxes": boxes[:, 1:], "classes": torch.tensor([[0]] * 2), "real": labels["real"][:, 1:]}
    expected = first.losses(first(features), alone)
    expected |= {f"further/{name}": loss for name, loss in further.losses(further(features), other).items()}
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(found[name].each(), loss.each(), rtol=0, atol=0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_distances_of_nms_are_half_a_mean_width(widths: list[int]) -> None:
    classes = [{"name": f"c{i}", "size": [1.0 + w, 5.0, 1.0]} for i, w in enumerate(widths)]
    settings = Suppression(threshold=0.1, kind="circle", radii=(1.0, 0.6))
    radii = FurtherClasses.model_validate({"classes": classes}).added_to(settings).radii
    assert radii == (1.0, 0.6, *((1.0 + w) / 2 for w in widths))


def test_what_is_refused_in_one_line(tmp_path: Path, sim_root: Path) -> None:
    model = load_model(run("joined"))[0]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    car = {"classes": [{"name": "car", "categories": ["a"]}]}
    for options, message in (
        ({}, "its base has the task detection already"),
        ({"further": {"classes": []}}, "further.classes"),
        ({"further": {"classes": [{"nam": "a"}]}}, "nam"),
        ({"further": car}, "'car' is there twice"),
        ({"further": {"classes": [{"name": "a", "categories": ["vehicle.car"]}]}}, "'vehicle.car' is of two classes"),
        ({"further": FURTHER, "channels": 3}, "already, with other options"),
    ):
        with one_line_error(message):
            model.bank.add_head("detection", options, "here")
    assert_same(model.state_dict(), state)
    task = tmp_path / "task.yaml"
    module = {"name": "small", "kind": "low_rank", "slots": ["trunk.*"]}
    task.write_text(yaml.safe_dump({**CONTENT, "modules": [module]}))
    given = ("--task", "detection", "--config", task, "--data", sim_root, "--split", "all", "--out", tmp_path / "run")
    assert "`modules` would run for all of the task detection" in refuses("adapt", run("joined"), *given)
