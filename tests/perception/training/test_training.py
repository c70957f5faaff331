"""Training: what is interrupted goes on bit for bit, every loss falls, and what cannot go on is said."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import small

from perception import config as c
from perception.config import Data
from perception.errors import InputError
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.training.loader import FrameDataset, batches
from perception.training.loop import train


def test_a_resumed_training_ends_with_the_bytes_of_an_uninterrupted_one(tables, tmp_path):
    paste = c.Paste(classes={"car": 30}, until=0.7, pictures="paste")  # in four of the six steps
    data = Data(augment=c.Augment(shuffle=True, image_rotation=5.4), paste=paste)
    config = small().model_copy(update={"data": data})
    whole = train(config, tables, "all", tmp_path / "whole")
    halves = tmp_path / "halves" / "checkpoints"
    halves.mkdir(parents=True)
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-000003", halves / "step-000003")
    resumed = train(config, tables, "all", tmp_path / "halves", resume=True)
    assert [path.name for path in (tmp_path / "whole" / "objects").iterdir()] == os.listdir(tmp_path / "halves/objects")
    for name in ("model.safetensors", "training.safetensors", "checkpoint.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    before = load_file(tmp_path / "whole" / "checkpoints" / "step-000003" / "model.safetensors")
    after = load_file(whole / "model.safetensors")
    assert not torch.equal(before["fuse.mix.conv.layer.weight"], after["fuse.mix.conv.layer.weight"])


def test_training_on_a_few_frames_lowers_every_loss(tables):
    config = small(steps=40, batch=2, drop_lidar=0.0, drop_cameras=0.0)
    config = config.model_copy(update={"data": Data(augment=None, class_balanced=False)})
    torch.manual_seed(0)
    model = PerceptionModel(config)
    dataset = FrameDataset(tables, tables.samples("all")[:2], config, depth_cells=model.depth_cells())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    history = []
    for batch in batches(dataset, config):
        terms = model.losses(model(batch.inputs, batch.conditions), batch.labels)
        losses = {name: term.mean() for name, term in terms.items()}
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: value.item() for name, value in losses.items()})
    assert "camera/depth" in history[0]
    for name in history[0]:
        values = [losses[name] for losses in history]
        assert max(values[-10:]) < min(values[:5]), (name, values)


def test_a_folded_model_is_the_routed_model(tables):
    config = small()
    batch = next(iter(batches(FrameDataset(tables, tables.samples("all"), config), config)))
    torch.manual_seed(0)
    model = PerceptionModel(config).double().eval()
    for name, parameter in model.named_parameters():
        if ".computations." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    rain = Conditions(weather="rain")
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch.inputs.items()}
    routed, plain = model(inputs, [rain, rain]), model(inputs)
    folded = model.folded(rain)(inputs)
    base = model.folded(Conditions())(inputs)
    for name in routed:
        torch.testing.assert_close(folded[name], routed[name], rtol=1e-10, atol=1e-10)
        assert torch.equal(base[name], plain[name])
    assert not torch.allclose(routed["detection/heatmap"], plain["detection/heatmap"])


def test_a_trained_run_is_not_overwritten(tables, tmp_path):
    train(small(steps=1), tables, "all", tmp_path)
    with pytest.raises(InputError, match="holds a trained run already; add --resume"):
        train(small(steps=1), tables, "all", tmp_path)
    with pytest.raises(InputError, match=r"another configuration: train.batch was 2, is 1"):
        train(small(steps=1, batch=1), tables, "all", tmp_path, resume=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_half_precision_needs_a_gpu(tables, tmp_path):
    with pytest.raises(InputError, match="fp16 needs a GPU; use bf16 or no"):
        train(small(precision="fp16"), tables, "all", tmp_path)


def test_a_loss_that_is_not_finite_stops_the_training(tables, tmp_path):
    with pytest.raises(InputError, match=r"the loss at step \d+ is (nan|inf); lower train.learning_rate"):
        train(small(steps=30, learning_rate=1e30), tables, "all", tmp_path)
    assert not list(Path(tmp_path).glob("checkpoints/step-00003*"))
