"""Golden frames catch a single changed weight, in every layer and precision, where all hashes hold."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from golden_networks import PRECISIONS, engine, flipped, small, weights

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import GoldenFrame, differences, require_golden
from deploy.tolerances import Precision


@cache
def frames(precision: Precision) -> tuple[GoldenFrame, ...]:
    """The golden frames with the outputs of `engine`, whose kernels round in other places than those of the graph."""
    run = engine(precision).run
    return tuple(replace(frame, outputs=run(frame.inputs)) for frame in small(precision).golden_frames())


def caught(precision: Precision, changed: Mapping[str, np.ndarray]) -> bool:
    """By any golden frame, with the tolerances that the exporter wrote."""
    allowed = small(precision).manifest.tolerances
    return any(
        differences(frame.outputs, engine(precision).run({**frame.inputs, **changed}), allowed, frame.compared)
        for frame in frames(precision)
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_as_exported_it_passes(precision: Precision) -> None:
    operators = small(precision).manifest.operators
    assert len(weights(precision)) == operators["Conv"] + operators["ConvTranspose"] == 41
    plain = OnnxRuntimeEngine(small(precision).onnx)
    require_golden(small(precision).golden_frames(), plain.run, "the graph", small(precision).manifest.tolerances)


@pytest.mark.parametrize("part", ["camera", "fuse", "trunk", "heads"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_weight_is_caught_in_every_convolution(precision: Precision, part: str) -> None:
    here = {name: weight for name, weight in weights(precision).items() if name.startswith(f"model.{part}.")}
    assert here
    assert [name for name, weight in here.items() if not caught(precision, {name: flipped(weight, precision)})] == []
