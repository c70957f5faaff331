"""The pillar encoder takes its statistics from real points, and agrees with a loop over points, modules included."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from vocabulary import CONDITIONS

from perception.config import Lidar
from perception.grid import BevGrid
from perception.modules.bank import Bank
from perception.modules.route import Route
from perception.modules.spec import Module
from perception.sensors.lidar.encoder import PillarEncoder

GRID = BevGrid(x=(-4.0, 4.0), y=(-2.0, 2.0), z=(-2.0, 2.0), cell=1.0)  # 4 rows, 8 columns
COUNTS = torch.tensor([[2, 3, 1, 0], [3, 0, 0, 0]], dtype=torch.int32)  # frames with 6 and 3 points
CELLS = torch.tensor([[3, 17, 30, 32], [9, 32, 32, 32]], dtype=torch.int32)
FRAMES = [0, 0, 0, 0, 0, 0, 1, 1, 1]


class Net(nn.Module):
    """An encoder with a bank of modules, in float64."""

    def __init__(self, encoder: str, *modules: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lidar = PillarEncoder(Lidar(channels=5, points_per_pillar=3, encoder=encoder), GRID).double()
        self.lidar.norm.layer.momentum = 1.0  # the statistics of the last batch
        nn.init.normal_(self.lidar.norm.layer.bias)
        nn.init.uniform_(self.lidar.norm.layer.weight, 0.5, 2.0)
        self.bank = Bank(self, CONDITIONS)
        for module in modules:
            self.bank.add(TypeAdapter(Module).validate_python({"when": [], **module}))
        for name, parameter in self.named_parameters():
            if "computations" in name:
                nn.init.normal_(parameter)

    def forward(self, points: Tensor, counts: Tensor = COUNTS) -> Tensor:
        features: Tensor = self.lidar(points, counts, CELLS)
        return features


def _points() -> Tensor:
    """(2, 4, 3, 5) inside their cells."""
    points = torch.zeros(2, 4, 3, 5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for frame, pillar in ((f, p) for f in range(2) for p in range(4)):
        row, column = divmod(int(CELLS[frame, pillar]), 8)
        for point in points[frame, pillar, : COUNTS[frame, pillar]]:
            point[:] = torch.rand(5, generator=generator, dtype=torch.float64)
            point[:2] += torch.tensor([GRID.x[0] + column, GRID.y[0] + row])
    return points


def _ten_features(points: Tensor, network: Net) -> Tensor:
    """(9, 10) of the real points, one by one."""
    found = []
    for frame, pillar in ((f, p) for f in range(2) for p in range(4)):
        row, column = divmod(int(CELLS[frame, pillar]), 8)
        real = points[frame, pillar, : COUNTS[frame, pillar]]
        center = torch.tensor([GRID.x[0] + column + 0.5, GRID.y[0] + row + 0.5])
        found += [torch.cat([point, point[:3] - real[:, :3].mean(0), point[:2] - center]) for point in real]
    return torch.stack(found) * network.lidar.scale


def _expected(y: Tensor, network: Net) -> Tensor:
    """The feature map for outputs y (9, 5) of the linear layer: normalised by hand, the maximum by a loop."""
    norm = network.lidar.norm.layer
    y = (y - y.mean(0)) / (y.var(0, unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
    canvas, start = torch.zeros(2, 5, 4, 8, dtype=torch.float64), 0
    for frame, pillar in ((f, p) for f in range(2) for p in range(4)):
        if count := int(COUNTS[frame, pillar]):
            row, column = divmod(int(CELLS[frame, pillar]), 8)
            canvas[frame, :, row, column] = y[start : start + count].amax(0).clamp(min=0)
            start += count
    return canvas


def test_statistics_outputs_and_gradients_are_those_of_the_real_points() -> None:
    network, points = Net("real").train(), _points()
    linear, norm = network.lidar.linear.layer, network.lidar.norm.layer
    weights = [linear.weight, norm.weight, norm.bias]
    cost = torch.randn(2, 5, 4, 8, dtype=torch.float64)
    features = network(points)
    gradients = torch.autograd.grad((features * cost).sum(), weights)

    y = _ten_features(points, network) @ linear.weight.T
    torch.testing.assert_close(norm.running_mean, y.mean(0).detach())
    torch.testing.assert_close(norm.running_var, y.var(0).detach())
    expected = _expected(y, network)
    torch.testing.assert_close(features, expected)
    for one, other in zip(gradients, torch.autograd.grad((expected * cost).sum(), weights), strict=True):
        torch.testing.assert_close(one, other)
    assert (expected > 0).any(dim=(0, 2, 3)).all()


def test_evaluation_does_not_change() -> None:
    real, masked = Net("real").eval(), Net("masked").eval()
    for network in (real, masked):
        network.lidar.norm.layer.running_mean.fill_(0.1)
    assert torch.equal(real(_points()), masked(_points()))
    assert not torch.equal(real.train()(_points()), masked.train()(_points()))


@pytest.mark.parametrize("vectors", [1, 2])
def test_modules_run_on_the_points_of_their_frames(vectors: int) -> None:
    slots = {"slots": ["lidar.pillar"]}
    network = Net(
        "real",
        {"name": "low", "kind": "low_rank", "rank": 2, **slots},
        {"name": "turned", "kind": "film", **slots},
        {"name": "absent", "kind": "low_rank", "rank": 1, **slots},
    ).train()
    z = torch.randn(vectors, network.lidar.linear.computations["turned"].scale.shape[1], dtype=torch.float64)
    weights = {"low": torch.tensor([0.5, 2.0]).double(), "turned": 1.0, "absent": torch.tensor([0.0, 1.0]).double()}
    network.bank.apply(Route(weights, z=z, static=False))
    features, points = network(_points()), _ten_features(_points(), network)

    low, turned, absent = (network.lidar.linear.computations[name] for name in weights)
    rows = []
    for point, frame in zip(points, FRAMES, strict=True):
        base = network.lidar.linear.layer.weight @ point
        own = z[frame if len(z) > 1 else 0]
        delta = weights["low"][frame] * low.b.weight @ low.a.weight @ point
        delta = delta + (turned.scale @ own) * base + turned.shift @ own
        if frame == 1:
            delta = delta + absent.b.weight @ absent.a.weight @ point
        rows.append(base + delta)
    torch.testing.assert_close(features, _expected(torch.stack(rows), network))
    assert network.lidar.linear.route.z is z  # of frames again


def test_a_normalisation_trained_on_a_frozen_base_sees_real_points() -> None:
    network = Net("real", {"name": "own", "kind": "batch_norm", "slots": ["lidar.pillar.norm"]})
    network.bank.train("own")
    network.bank.apply(Route({"own": 1.0}))
    before = network.lidar.norm.layer.running_mean.clone()
    own = network.lidar.norm.computations["own"].norm
    own.momentum = 1.0
    network(_points())
    y = _ten_features(_points(), network) @ network.lidar.linear.layer.weight.T
    torch.testing.assert_close(own.running_mean, y.mean(0).detach())
    assert torch.equal(network.lidar.norm.layer.running_mean, before)


@pytest.mark.parametrize("points", [0, 1])
def test_without_points_there_are_no_statistics(points: int) -> None:
    network = Net("real").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    counts = torch.zeros_like(COUNTS)
    counts[0, 0] = points
    features = network(_points(), counts)
    features.sum().backward()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert features.isfinite().all()
    assert (features[0, :, 0, 3] > 0).any() == bool(points)
    assert all(parameter.grad is not None for parameter in network.parameters())  # as distributed training wants it
    assert network.lidar.norm.layer.training
