"""The computation functions by kind."""

from __future__ import annotations

from typing import Any

from perception.modules.computation.adapter import Bottleneck, ParallelAdapter, SeriesAdapter
from perception.modules.computation.batch_norm import BatchNorm
from perception.modules.computation.computation import Computation
from perception.modules.computation.conditional import Film, HyperNetwork
from perception.modules.computation.low_rank import LowRank
from perception.modules.computation.prompt import Prompt
from perception.modules.computation.rescale import Rescale, ScaleShift
from perception.modules.computation.sparse_delta import SparseDelta

KINDS: dict[str, type[Computation]] = {
    computation.kind: computation
    for computation in (
        LowRank,
        SparseDelta,
        BatchNorm,
        Prompt,
        SeriesAdapter,
        ParallelAdapter,
        Bottleneck,
        Rescale,
        ScaleShift,
        Film,
        HyperNetwork,
    )
}


def build(module: Any, layer: Any, conditions: int) -> Computation:
    """A new computation function, for this layer, of a module of one kind (`spec.py`).

    Args:
        conditions: length of a condition vector.
    """
    make: Any = KINDS[module.kind]
    further = {"conditions": conditions} if make.conditional else {}
    computation: Computation = make(layer, **further, **module.options())
    return computation
