"""A small model after one step, for checkpoints."""

import torch

from perception.config import Config, Lidar, Model, Trunk
from perception.model import PerceptionModel
from perception.modules.spec import LowRank

CONFIG = Config(
    name="t",
    model=Model(
        lidar=Lidar(channels=4), fused_channels=4, trunk=Trunk(channels=(4,), blocks=(1,), strides=(2,), up_channels=4)
    ),
    modules=(LowRank(name="rain", rank=1, when=("rain",)),),
)


def trained(seed: int = 0) -> tuple[PerceptionModel, torch.optim.AdamW]:
    """A model and its optimizer after one step with random gradients."""
    torch.manual_seed(seed)
    model = PerceptionModel(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer
