"""The head for training alone that finds the objects of the frame before in the state of a memory."""

import numpy as np
import torch
from networks import disturb, small

from perception.checkpoint import load_model
from perception.config import Config, parse_config
from perception.model import PerceptionModel
from perception.modules.computation.memory import SLOT
from perception.sensors.inputs import InputSpec
from perception.sensors.state import Limits, Moment, state_inputs
from perception.training.history import HISTORY, _inverse, move_back
from perception.training.loader import FrameDataset, collate
from perception.training.loop import train
from perception.training.losses import Losses, Scope


def config_with(history: float, **training: object) -> Config:
    content = small(**training).model_dump(mode="json")
    content |= {"modules": [{"name": "memory", "kind": "memory", "frames": 3, "outages": 0.0, "history": history}]}
    content["model"]["camera"] = None
    content["model"]["fused_stride"] = content["model"]["trunk"]["stride"]
    return parse_config(content, "test")


def test_boxes_moved_back_are_where_the_keyframe_before_has_them(tables):
    off, still = [], []
    for scene in tables.scenes():
        before = None
        for token in tables.samples(None, [scene]):
            frame = tables.frame(token, InputSpec.of(config_with(0.5)).reads._replace(annotations=True))
            if before is not None:
                told = state_inputs(Moment.of(before), Moment.of(frame), Limits(1.2, 70.0))
                moved = move_back(frame.boxes, told["current_from_previous"][0], float(told["elapsed"][0]))
                places = dict(zip(before.boxes.instances, before.boxes.centers, strict=True))
                for i, name in enumerate(moved.instances):
                    if name in places and np.linalg.norm(frame.boxes.velocities[i]) > 1:
                        off.append(np.linalg.norm(moved.centers[i] - places[name]))
                        still.append(np.linalg.norm(frame.boxes.centers[i] - places[name]))
            before = frame
    assert np.median(off) < 0.3
    assert np.median(still) > 1.0


def test_a_state_moved_back_is_the_map_that_was_moved():
    network = PerceptionModel(config_with(0.5))
    layer, motion = network.memory.layer, torch.eye(4)[None].clone()
    cos, sin = np.cos(0.1), np.sin(0.1)
    motion[0, :2, :2], motion[0, :2, 3] = torch.tensor([[cos, -sin], [sin, cos]]), torch.tensor([3.0, -1.0])
    ramp = layer.centers[..., 0][None, None].expand(1, layer.shape[0], -1, -1).float()
    there, _ = layer.warp(ramp, motion)
    back, _ = layer.warp(there, _inverse(motion))
    middle = (slice(None), slice(None), slice(12, 20), slice(12, 20))
    torch.testing.assert_close(back[middle], ramp[middle], atol=0.05, rtol=0)


def test_gradients_reach_the_memory_and_what_comes_before_it(tables):
    config = config_with(0.5, batch=2, drop_lidar=0.0)
    dataset, network = FrameDataset(tables, tables.samples("all"), config), PerceptionModel(config)
    disturb(network, "memory", 0.5)
    samples = [dataset[i] for i in range(20)]
    batch = collate([sample for sample in samples if len(sample.earlier) == 2][:2])
    losses = Losses(network, Scope(tuple(network.tasks)))
    terms = losses(batch.inputs, batch.conditions, batch.labels, batch.earlier)
    own = [value for name, value in terms.items() if name.startswith(f"{HISTORY}/")]
    assert len(own) >= 2
    torch.stack(own).sum().backward()
    reached = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"lidar", "fuse", SLOT}
    assert network.memory.computations["memory"].scale.grad.any()


def test_a_checkpoint_has_no_part_of_it_and_a_training_without_it_does_not_change(tables, tmp_path):
    for name, weight in (("with", 0.5), ("without", 0.0)):
        train(config_with(weight, steps=3), tables, "all", tmp_path / name)
    trained = {name: load_model(tmp_path / name)[0].state_dict() for name in ("with", "without")}
    assert trained["with"].keys() == trained["without"].keys()
    assert not all(torch.equal(value, trained["without"][name]) for name, value in trained["with"].items())
