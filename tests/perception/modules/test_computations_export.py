"""Modules in exported graphs: beside their layers they compute what torch computes, folded they leave no operator."""

import contextlib
import copy
import io
from collections import Counter
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from computations import AFFINE, CASES, randomize, trained
from torch import Tensor, nn
from vocabulary import Z

from perception.modules.computation.kinds import KINDS
from perception.modules.route import Route
from perception.modules.slot import Slot


class Network(nn.Module):
    """A slot with each of the layers, as the model has them."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = Slot("down", nn.Conv2d(3, 4, 3, 2, 1, bias=False)), Slot("norm", nn.BatchNorm2d(4))
        self.up, self.mix = Slot("up", nn.ConvTranspose2d(4, 4, 2, 2, bias=False)), Slot("mix", nn.Linear(4, 4))
        self.norm1d = Slot("norm1d", nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.norm(self.down(x)).relu()).relu()
        return self.norm1d(self.mix(x.mean((2, 3))))


class Side(nn.Module):
    """Networks side by side in one graph, which exports in a fraction of the time of as many graphs."""

    def __init__(self, networks: dict[str, Network]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: network(x) for name, network in self.networks.items()}


X = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(1))


@cache
def base() -> Network:
    torch.manual_seed(0)
    network = Network().eval()
    randomize(network)
    return network


@cache
def with_modules(case: str) -> Network:
    """The network with a module of this kind wherever one attaches, after one pass."""
    network = copy.deepcopy(base())
    torch.manual_seed(2)
    for slot in network.children():
        if KINDS[CASES[case][0]].attaches_to(slot.layer):
            slot.computations["m"] = trained(case, slot.layer)
        slot.route = Route({"m": 1.0}, z=torch.ones(1, Z))
    assert (network(X) - base()(X)).abs().max() > 1e-3
    return network


def folded(case: str) -> Network:
    network = copy.deepcopy(with_modules(case))
    for slot in network.children():
        slot.fold()
    return network


def frame_by_frame() -> Network:
    """Modules with weights and condition vectors of their own for each frame."""
    network = copy.deepcopy(with_modules("film"))
    for slot in network.children():
        slot.route = Route({"m": torch.tensor([0.0, 0.5])}, z=torch.eye(Z)[:2])
    return network


def exported(networks: dict[str, Network]) -> tuple[dict[str, np.ndarray], dict[str, Counter[str]]]:
    """What ONNX Runtime computes for each network, and the operators that it takes."""
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            Side(networks).eval(), (X,), dynamo=True, opset_version=18, output_names=list(networks), verbose=False
        )
    graph = program.model_proto
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = session.run(list(networks), {session.get_inputs()[0].name: X.numpy()})
    return dict(zip(networks, outputs, strict=True)), {name: operators(graph, name) for name in networks}


def operators(graph: onnx.ModelProto, output: str) -> Counter[str]:
    """Standard operators that an output depends on."""
    by_output = {name: node for node in graph.graph.node for name in node.output}
    found, open_ends = {}, [output]
    while open_ends:
        node = by_output.get(open_ends.pop())  # None for the input and for weights
        if node is not None and node.output[0] not in found:
            assert not node.domain
            found[node.output[0]] = node.op_type
            open_ends += node.input
    return Counter(found.values())


@cache
def beside() -> tuple[dict[str, np.ndarray], dict[str, Counter[str]]]:
    return exported({case: with_modules(case) for case in CASES} | {"frames": frame_by_frame()})


@cache
def within() -> tuple[dict[str, np.ndarray], dict[str, Counter[str]]]:
    return exported({case: folded(case) for case in AFFINE} | {"base": base()})


def assert_close(actual: np.ndarray, network: Network) -> None:
    with torch.no_grad():
        np.testing.assert_allclose(actual, network(X).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_modules_beside_their_layers_export(case):
    assert_close(beside()[0][case], with_modules(case))


def test_weights_and_conditions_of_single_frames_export():
    assert_close(beside()[0]["frames"], frame_by_frame())


@pytest.mark.parametrize("case", AFFINE)
def test_folded_modules_leave_no_operator(case):
    outputs, operators = within()
    assert_close(outputs[case], with_modules(case))
    # A prompt becomes a map that is added, and the normalisation after it no longer merges with the convolution.
    more = {"Add": 1, "BatchNormalization": 1} if KINDS[CASES[case][0]].kind == "prompt" else {}
    assert operators[case] == operators["base"] + Counter(more)
    alone = beside()[1][case].total()
    assert alone == operators["base"].total() if case == "batch_norm" else alone > operators["base"].total()
