"""The exported graph takes any number of pillars, and padding changes nothing."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from exported import bundle, checkpoint
from hypothesis import given
from hypothesis import strategies as st
from vocabulary import RIG

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import differences, synthetic_frame
from perception.sensors.inputs import PILLARS, prepare, without_padding
from perception.training.checkpoint import load_model


def inputs_with(pillars: int) -> dict[str, np.ndarray]:
    """Of a frame with a point in each of so many cells, of which the network keeps `max_pillars` at most."""
    spec = bundle().spec
    rows, columns = spec.grid.shape
    cells = np.random.default_rng(pillars).permutation(rows * columns)[:pillars]
    points = np.zeros((pillars, 5), np.float32)
    points[:, 0] = spec.grid.x[0] + (cells % columns + 0.5) * spec.grid.cell
    points[:, 1] = spec.grid.y[0] + (cells // columns + 0.5) * spec.grid.cell
    points[:, 3] = cells % 251
    return prepare(replace(synthetic_frame("ego", RIG), points=points), spec)


@pytest.mark.parametrize("pillars", [0, 1, 2, 37, 5000, 11_999, 12_000, 12_500])
def test_any_number_of_pillars_gives_what_torch_gives_with_padding(pillars: int) -> None:
    padded = inputs_with(pillars)
    assert padded["pillar_counts"].shape == (1, 12_000)
    assert (padded["pillar_counts"] > 0).sum() == min(pillars, 12_000)
    with torch.no_grad():
        outputs = load_model(checkpoint())[0].predict({k: torch.from_numpy(v) for k, v in padded.items()})
    expected = {name: value.numpy() for name, value in outputs.items()}
    assert differences(expected, OnnxRuntimeEngine(bundle().onnx).run(padded), bundle().manifest.tolerances) == []
    # The graph itself, with padding and without, without what the engine makes of it.
    session = onnxruntime.InferenceSession(bundle().onnx, providers=["CPUExecutionProvider"])
    for inputs in (padded, without_padding(padded)):
        found = dict(zip(expected, session.run(list(expected), inputs), strict=True))
        assert differences(expected, found, bundle().manifest.tolerances) == []


@given(st.lists(st.integers(0, 6), min_size=1, max_size=3))
def test_what_is_left_out_is_padding_alone(filled: list[int]) -> None:
    batch, most = len(filled), 6
    counts = (np.arange(most) < np.array(filled)[:, None]).astype(np.int32) * 3
    inputs = {
        "pillar_points": np.random.default_rng(0).random((batch, most, 4, 5)).astype(np.float32),
        "pillar_counts": counts,
        "pillar_cells": np.arange(batch * most, dtype=np.int32).reshape(batch, most),
        "route": np.ones((1, 9), np.float32),
    }
    left = without_padding(inputs)
    for name in PILLARS:
        np.testing.assert_array_equal(left[name], inputs[name][:, : max(1, *filled, 0)])
        assert left[name].base is not None  # nothing is copied
    assert left["pillar_counts"].sum() == counts.sum()
    assert left["route"].shape == (1, 9)
    assert without_padding({"images": counts}).keys() == {"images"}
