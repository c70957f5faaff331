"""Tolerances in FP32 follow from how much the network multiplies rounding errors, which float64 shows."""

from functools import cache

import lowered
import numpy as np
import onnx
import pytest
import torch
from damaged import damaged
from networks import model, tasks

from deploy.bundle import ONNX
from deploy.golden import GoldenFrame, WrongEngine, dense_spreads, differences, require_agreement
from deploy.onnx_export import run, to_onnx
from deploy.precision.measure import make_golden_frames
from deploy.tolerances import BOUNDS, LEAST, Tolerances
from perception.errors import InputError
from perception.model import PerceptionModel

MAP = "map/probabilities"
FRAMES = {str(seed): lowered.frame(seed) for seed in range(3)}


def network(factor: float) -> PerceptionModel:
    """The logits of its map are this many times as large, and so are their rounding errors."""
    scaled = model().deployed()
    last = [layer for layer in scaled.heads["map"].modules() if isinstance(layer, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight *= factor
    return scaled


@cache
def prove(factor: float) -> tuple[tuple[GoldenFrame, ...], Tolerances, onnx.ModelProto]:
    graph = to_onnx(network(factor), FRAMES["0"], lowered.OUTPUTS)
    frames = {name: (frame, run(network(factor), frame)[0]) for name, frame in FRAMES.items()}
    return *make_golden_frames({ONNX: graph}, "fp32", frames, tasks()), graph


@pytest.mark.parametrize("factor", [1, 30])
def test_tolerances_cover_the_rounding_errors_of_float32(factor: float) -> None:
    golden, allowed, graph = prove(factor)
    exact = network(factor).double()
    for frame in golden:
        assert differences(frame.outputs, lowered.run(graph, dict(frame.inputs)), allowed, frame.compared) == []
        double = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in frame.inputs.items()}
        expected = run(exact, double)[0]
        for each, most in zip(
            dense_spreads(expected[MAP], frame.outputs[MAP]), allowed.dense[MAP].values(), strict=True
        ):
            assert each.each <= most.each
            assert each.mean <= most.mean


def test_a_network_that_multiplies_rounding_errors_has_greater_tolerances() -> None:
    usual, wide = (prove(factor)[1] for factor in (1, 30))
    assert all(each == LEAST.cells for each in usual.dense[MAP].values())
    assert max(each.each for each in wide.dense[MAP].values()) > LEAST.cells.each
    assert wide.ranked == usual.ranked  # detection does not see it


def test_a_network_that_float32_cannot_hold_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^the graph in fp32 does not .*: tolerance map.* train the network further: "
    ):
        prove(1e5)


def test_a_wrong_graph_does_not_widen_them() -> None:
    expected = {name: (frame, run(network(1), frame)[0]) for name, frame in FRAMES.items()}
    golden, allowed = make_golden_frames({ONNX: damaged(lowered.single())}, "fp32", expected, tasks())
    bounds = dict(BOUNDS["fp32"].all(tasks()).numbers())
    assert all(number < bounds[name] for name, number in allowed.numbers() if bounds[name])
    for frame in golden:
        actual = lowered.run(damaged(lowered.single()), dict(frame.inputs))
        with pytest.raises(WrongEngine, match="does not compute the exported network"):
            require_agreement(frame.outputs, actual, "engine", allowed, frame.compared)
