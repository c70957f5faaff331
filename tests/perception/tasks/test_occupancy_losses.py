"""Losses of occupancy against plain loops, and what the head decodes."""

import numpy as np
import pytest
import torch
from occupied import CLASSES, FREE, SMALL
from torch import Tensor
from vocabulary import NUSCENES

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from perception.grid import BevGrid
from perception.tasks.lovasz import lovasz_softmax
from perception.tasks.occupancy.config import OccupancyHead
from perception.tasks.occupancy.free_space import body_levels, free_rays
from perception.tasks.occupancy.losses import cross_entropy, lovasz, scale_loss
from perception.tasks.occupancy.task import OccupancyTask
from perception.voxels import OTHERS

GRID = BevGrid((-25.6, 25.6), (-25.6, 25.6), cell=1.6)


def problem(seed: int, count: int = 200, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits and labels; one class never occurs."""
    torch.manual_seed(seed)
    return 2 * torch.randn(count, classes, dtype=torch.float64), torch.randint(1, classes, (count,))


def test_the_cross_entropy_is_torchs_weighted_one() -> None:
    logits, labels = problem(0)
    weights = torch.tensor([1.0, 0.1, 2.0, 0.0, 3.0], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits, labels, weights)
    torch.testing.assert_close(cross_entropy(logits, labels, weights), expected)
    assert cross_entropy(logits, labels, torch.zeros(5)) == 0


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_scale_loss_is_monoscenes(everywhere: bool) -> None:
    """Precision, recall and specificity of each class that occurs, one after the other."""
    logits, labels = problem(1)
    if everywhere:
        labels = torch.full_like(labels, 2)  # then there is no specificity
    p = logits.softmax(dim=1).numpy()
    truth = torch.nn.functional.one_hot(labels, 5).bool()
    losses = []
    for c in set(labels.tolist()):
        own = labels.numpy() == c
        hits = sum(p[i, c] for i in range(len(p)) if own[i])
        loss = -np.log(hits / sum(p[:, c])) - np.log(hits / own.sum())
        if not own.all():
            loss -= np.log(sum(1 - p[i, c] for i in range(len(p)) if not own[i]) / (~own).sum())
        losses.append(loss)
    assert len(losses) == (1 if everywhere else 4)
    assert scale_loss(torch.from_numpy(p), truth).item() == pytest.approx(np.mean(losses), rel=1e-12)
    assert scale_loss(truth.double(), truth) == 0


def test_lovasz_takes_all_that_is_occupied_and_as_much_free_space_that_looks_occupied() -> None:
    logits, labels = problem(2, 300)
    p = logits.softmax(dim=1)
    free = 4
    labels[40:] = free
    occupied, empty = np.flatnonzero(labels != free), np.flatnonzero(labels == free)
    hardest = sorted(empty, key=lambda i: p[i, free].item())[: len(occupied)]
    chosen = [*occupied, *hardest]
    assert lovasz(p, labels, free).item() == pytest.approx(lovasz_softmax(p[chosen], labels[chosen]).item(), rel=1e-12)
    some = labels[:50]  # with less free space than that
    assert lovasz(p[:50], some, free).item() == pytest.approx(lovasz_softmax(p[:50], some).item(), rel=1e-12)
    assert torch.isfinite(lovasz(p[40:], labels[40:], free))  # nothing is occupied


def head(**options: object) -> tuple[OccupancyTask, torch.nn.Module]:
    shape = {"x": SMALL.x, "y": SMALL.y, "z": SMALL.z, "cell": 0.8}
    task = OccupancyTask(OccupancyHead.model_validate(shape | options), GRID, NUSCENES)
    torch.manual_seed(0)
    return task, task.network(4)


def test_terms_and_classes_have_their_weights_and_unobserved_voxels_none() -> None:
    weights = {"cross_entropy": 2.0, "lovasz": 0.0, "geometric": 3.0, "semantic": 1.0, "classes": {"free": 0.25}}
    task, network = head(losses=weights)
    rng = np.random.default_rng(0)
    truth = np.where(rng.random((2, *task.voxels.shape)) < 0.7, FREE, rng.integers(0, FREE, (2, *task.voxels.shape)))
    truth[0, :, :30] = 255
    logits = torch.randn(2, len(CLASSES) * task.voxels.shape[0], *task.voxels.shape[1:], dtype=torch.float64)
    losses = network.losses({"logits": logits}, {"classes": torch.from_numpy(truth.astype(np.uint8))})
    assert losses.keys() == {"cross_entropy", "geometric", "semantic"}
    first = logits[0].reshape(task.voxels.shape[0], len(CLASSES), *task.voxels.shape[1:])[:, :, 30:]
    own, labels = first.movedim(1, -1).reshape(-1, len(CLASSES)), torch.from_numpy(truth[0, :, 30:].reshape(-1))
    p, free = own.softmax(dim=1), labels == FREE
    by_class = torch.where(torch.arange(len(CLASSES)) == FREE, 0.25, 1.0).double()
    assert losses["cross_entropy"].sums[0].item() == pytest.approx(
        2 * torch.nn.functional.cross_entropy(own, labels, by_class).item(), rel=1e-9
    )
    geometric = scale_loss(1 - p[:, FREE:], ~free[:, None])
    assert losses["geometric"].sums[0].item() == pytest.approx(3 * geometric.item(), rel=1e-9)
    assert losses["geometric"].counts.tolist() == [1, 1]


def drawn(task: OccupancyTask, seed: int) -> Tensor:
    """Logits of a scene with much free space."""
    torch.manual_seed(seed)
    logits = 2 * torch.randn(1, task.voxels.shape[0], len(CLASSES), *task.voxels.shape[1:])
    logits[:, :, FREE] += 6.5
    return logits


@pytest.mark.parametrize("odds", [1.0, 4.0])
def test_decoding_gives_classes_probabilities_and_free_distances(odds: float) -> None:
    task, network = head(body=(0.3, 2.0), odds=odds)
    logits = drawn(task, 1)
    outputs = network.decode({"logits": logits.flatten(1, 2)})
    p = logits.double().softmax(dim=2).numpy()[0]
    assert outputs["classes"].dtype == torch.uint8
    things = p[:, :FREE]
    best = things.argmax(axis=1)
    np.testing.assert_array_equal(outputs["classes"][0], np.where(things.max(axis=1) > odds * p[:, FREE], best, FREE))
    assert odds > 1 or (outputs["classes"][0].numpy() == p.argmax(axis=1)).all()
    np.testing.assert_allclose(outputs["occupied"][0], 1 - p[:, FREE], atol=1e-6)
    np.testing.assert_allclose(outputs["others"][0], p[:, OTHERS], atol=1e-6)
    flat = [i for i, name in enumerate(CLASSES) if name in ("driveable_surface", "other_flat", "sidewalk", "terrain")]
    assert len(flat) == 4
    solid = (1 - p[:, FREE] > 0.5) & ~np.isin(best, flat)
    blocked = solid[body_levels(task.voxels, (0.3, 2.0))].any(axis=0)
    np.testing.assert_array_equal(outputs["free"][0], free_rays(task.voxels).free(blocked))
    assert (blocked != solid.any(axis=0)).any()  # heights count
    assert 10 < len(np.unique(outputs["free"])) < 360


def test_the_head_is_the_same_in_onnx_runtime_and_compiles_for_tensorrt() -> None:
    import onnx

    task, network = head()
    network.eval()
    features = 3 * torch.randn(1, 4, *GRID.shape)

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = network

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.head.decode(self.head(x)).values())

    names = [output.name for output in task.outputs]
    program = torch.onnx.export(
        Graph().eval(), (features,), dynamo=True, opset_version=18, input_names=["x"], output_names=names, verbose=False
    )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    assert not {node.op_type for node in graph.graph.node} & {"NonZero", "Loop", "If", "Scan", "ScatterND"}
    found = OnnxRuntimeEngine(graph.SerializeToString()).run({"x": features.numpy()})
    with torch.no_grad():
        expected = network.decode(network(features))
    assert [*found] == names
    for name in ("occupied", "others"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    assert found["classes"].dtype == np.uint8
    assert (found["classes"] == expected["classes"].numpy()).mean() > 0.999
    assert (found["free"] == expected["free"].numpy()).mean() > 0.98
    pytest.importorskip("tensorrt_rtx")
    from deploy.engines.tensorrt import build_engine
    from deploy.targets import TARGETS

    target = next(each for each in TARGETS.values() if each.compiler == "tensorrt_rtx")
    assert build_engine(graph.SerializeToString(), target).layers > 10
