"""Parameter aggregation: merges modules by arithmetic on their task vectors.

A task vector (Ilharco et al., 2023) is the change that a module makes to the base, as named tensors that are zero for
the identity (`Computation.task_vector`). All vectors of a call have the same names and shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from perception.errors import InputError

Vector = dict[str, Tensor]


def average(vectors: Sequence[Vector]) -> Vector:
    """The mean.

    Raises:
        InputError: no vectors, or their names or shapes differ (as in all functions here).
    """
    return weighted(vectors, [1 / max(1, len(vectors))] * len(vectors))


def weighted(vectors: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """sum_i weights_i * vectors_i; the weights need not sum to one.

    Raises:
        InputError: also if there is not one weight for each vector.
    """
    _check(vectors)
    if len(weights) != len(vectors):
        raise InputError(f"{len(vectors)} modules, {len(weights)} weights: give one weight for each module")
    terms = [{name: weight * tensor for name, tensor in v.items()} for v, weight in zip(vectors, weights, strict=True)]
    return {name: sum((term[name] for term in terms[1:]), start=terms[0][name]) for name in terms[0]}


def task_arithmetic(vectors: Sequence[Vector], strength: float) -> Vector:
    """strength * the sum of the vectors: theta_0 + lambda * sum tau_i (Ilharco et al., 2023)."""
    return weighted(vectors, [strength] * len(vectors))


def ties(vectors: Sequence[Vector], keep: float) -> Vector:
    """Trim, elect sign, merge (Yadav et al., 2023).

    Each vector keeps the entries of largest magnitude, a share `keep` over all its tensors. The sign of each entry is
    that of the sum of the kept ones; the result is the mean of the kept entries of that sign, zero where they cancel.

    Args:
        keep: 0 < keep <= 1; rounded to whole entries, ties are kept.

    Raises:
        InputError: also for a `keep` out of range.
    """
    _check(vectors)
    if not 0 < keep <= 1:
        raise InputError(f"TIES keeps a share of more than 0 and at most 1 of the entries, not {keep}")
    trimmed = [_trimmed(vector, keep) for vector in vectors]
    merged = {}
    for name in trimmed[0]:
        entries = torch.stack([vector[name] for vector in trimmed])
        agrees = entries.sign() == entries.sum(dim=0).sign()  # where the sum is zero, with zeros only
        merged[name] = (entries * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)
    return merged


def dare(vectors: Sequence[Vector], drop: float, generator: torch.Generator) -> list[Vector]:
    """Drop and rescale (Yu et al., 2024): each entry becomes 0 with probability `drop`, else entry / (1 - drop).

    Each entry keeps its expected value. The result is merged like other vectors, for instance by `average`.

    Args:
        drop: 0 <= drop < 1.
        generator: on the CPU, so that the outcome does not depend on the device.

    Raises:
        InputError: also for a `drop` out of range.
    """
    _check(vectors)
    if not 0 <= drop < 1:
        raise InputError(f"DARE drops a share of at least 0 and less than 1 of the entries, not {drop}")

    def dropped(tensor: Tensor) -> Tensor:
        stays = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) >= drop
        return tensor * stays.to(tensor.device) / (1 - drop)

    return [{name: dropped(tensor) for name, tensor in vector.items()} for vector in vectors]


def _trimmed(vector: Vector, keep: float) -> Vector:
    magnitudes = torch.cat([tensor.abs().flatten() for tensor in vector.values()])
    count = max(1, round(keep * len(magnitudes)))
    smallest = magnitudes.kthvalue(len(magnitudes) - count + 1).values
    return {name: torch.where(tensor.abs() >= smallest, tensor, 0) for name, tensor in vector.items()}


def _check(vectors: Sequence[Vector]) -> None:
    if not vectors:
        raise InputError("there is nothing to merge: name one module or more")
    shapes = [{name: tuple(tensor.shape) for name, tensor in vector.items()} for vector in vectors]
    for i, other in enumerate(shapes):
        for name in sorted(shapes[0].keys() | other.keys()):
            if shapes[0].get(name) != other.get(name):
                raise InputError(
                    f"modules 1 and {i + 1} cannot be merged: {name} is {shapes[0].get(name, 'missing')} in one and "
                    f"{other.get(name, 'missing')} in the other; merge modules of one kind, size and base"
                )
