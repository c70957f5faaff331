"""What routers look at is standardised by what was seen, not by the batch."""

import pytest
import torch

from perception.modules.routing.pooling import MAX_DEVIATIONS, CellFeatures, PooledFeatures, RunningNorm


@pytest.mark.parametrize("cells", [(), (3, 4)])
def test_running_estimates_are_those_of_all_that_was_seen(cells):
    torch.manual_seed(0)
    features = RunningNorm(5).double()
    seen = (
        torch.randn(40, 2, 5, *cells, dtype=torch.float64) * torch.arange(1.0, 6.0).reshape(5, *(1 for _ in cells)) + 7
    )
    for batch in seen:
        features(batch)
    rows = seen.transpose(0, 2).flatten(1)
    torch.testing.assert_close(features.mean, rows.mean(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(features.variance, rows.var(dim=1, correction=0), rtol=1e-12, atol=0)


def test_later_batches_weigh_more_from_the_hundredth_on():
    features = RunningNorm(1)
    for value in [0.0] * 200 + [1.0] * 100:
        features(torch.full((2, 1), value))
    assert features.mean.item() == pytest.approx(1 - 0.99**100, rel=1e-4)


def test_in_evaluation_a_frame_is_standardised_alone_and_nothing_moves():
    features = RunningNorm(2).eval()
    features.mean.copy_(torch.tensor([1.0, -2.0]))
    features.variance.copy_(torch.tensor([4.0, 0.25]))
    x = torch.tensor([[3.0, -2.5], [1.0, 98.0]])
    torch.testing.assert_close(features(x), torch.tensor([[1.0, -1.0], [0.0, MAX_DEVIATIONS]]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features(x[:1]), features(x)[:1])
    assert features.batches.item() == 0


@pytest.mark.parametrize("kind", [PooledFeatures, CellFeatures])
def test_a_small_shift_of_large_features_is_told_apart(kind):
    """Two kinds of frames whose maps differ by a hundredth of what they share, from batches of two."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(kind(4), torch.nn.Flatten(), torch.nn.LazyLinear(2))

    def frames(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(2, (n,))
        shared = torch.tensor([10.0, 3.0, 0.5, 20.0]).reshape(4, 1, 1)
        return shared * (1 + 0.01 * labels.reshape(n, 1, 1, 1) + 0.003 * torch.randn(n, 4, 6, 6)), labels

    network(frames(2)[0])
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(200):
        x, labels = frames(2)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
    x, labels = frames(200)
    # The kinds are so far apart (12 standard deviations of a map's mean) that all can be told; by chance half are.
    assert (network.eval()(x).argmax(dim=1) == labels).float().mean() > 0.75
