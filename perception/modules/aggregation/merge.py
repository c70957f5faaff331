"""Parameter aggregation: merges modules of a bank to a new one by arithmetic on their task vectors.

A task vector (Ilharco et al., 2023) is the change that a module makes to the base, as named tensors that are zero for
the identity (`Computation.task_vector`). All vectors of a call have the same names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from perception.errors import InputError
from perception.io.section import explain
from perception.modules.bank import Bank
from perception.modules.slot import matching

Method = Literal["average", "task_arithmetic", "ties", "dare"]


@dataclass(frozen=True)
class Merging:
    """How task vectors are merged.

    Attributes:
        method: average: the mean, or the weighted sum; task_arithmetic: the sum (theta_0 + lambda * sum tau_i, Ilharco
            et al., 2023); ties; dare: the sum, or the weighted sum, after entries were dropped at random.
        weights: one for each member; need not sum to one.
        strength: lambda, by which the result of any method is multiplied.
        keep: share of its entries, over all slots, that each member keeps in ties.
        drop: probability that dare drops an entry; batch norms keep all, because statistics are not redundant.
        seed: for dare.
    """

    method: Method
    weights: Sequence[float] | None = None
    strength: float = 1.0
    keep: float = 0.2
    drop: float = 0.5
    seed: int = 0


@torch.no_grad()
def merge_modules(
    bank: Bank, name: str, members: Sequence[str], merging: Merging, rank: int | None = None, when: Sequence[str] = ()
) -> dict[str, float]:
    """Add a new module that is the merge of the members, which do not change.

    The new module can represent any weighted sum of its members: low-rank modules are merged as products, with the sum
    of their ranks, or another `rank`; sparse ones have the union of their entries. TIES and DARE give low-rank products
    a higher rank, so their result is approximated. Batch normalisations can be recalibrated after
    (`training/combine.py`).

    Returns:
        Slot -> relative norm of the part of the merged task vector that the new module cannot represent.
    """
    specs = _specs(bank, members)
    vectors = [_task_vector(bank, member) for member in members]
    fixed = {slot for slot, (_, kind) in _kinds(bank, members[0]).items() if kind == "batch_norm"} if members else set()
    joined = _join_vectors(vectors, merging, fixed)
    merged = {key: merging.strength * v for key, v in joined.items()}
    bank.add(_spec(bank, specs, vectors, name, rank, when))
    return {slot: _fill(module, merged, bank.slots[slot]) for slot, module in bank.at(name).items()}


def _specs(bank: Bank, members: Sequence[str]) -> list[Any]:
    """The members' specs, which must be of one kind and at the same slots."""
    bank.require(members)
    specs = [bank.modules[member] for member in members]
    first = _kinds(bank, members[0]) if members else {}
    for member in members:
        instead = f"they can run together as they are: average({members[0]}, {member})"
        kinds = _kinds(bank, member)
        one, other = (" + ".join(dict(k.values()).values()) for k in (first, kinds))
        if one != other:
            raise InputError(f"{members[0]!r} is {one}, {member!r} is {other}, and do not merge; {instead}")
        only = sorted(kinds.keys() ^ first.keys())
        if only:
            raise InputError(f"only one of {members[0]!r} and {member!r} is at {', '.join(only)}; {instead}")
        if kinds != first:
            raise InputError(f"the parts of {members[0]!r} and {member!r} are at different slots; {instead}")
    return specs


def _kinds(bank: Bank, name: str) -> dict[str, tuple[int, str]]:
    """Slot -> index and kind of the module's part there."""
    parts = enumerate(bank.modules[name].single())
    return {slot.name: (i, part.kind) for i, part in parts for slot in matching(bank.slots, part.slots, part.kind)}


def _task_vector(bank: Bank, name: str) -> Vector:
    """The module's task vectors at all its slots in one, with names SLOT/TENSOR."""
    try:
        return {
            f"{slot}/{key}": tensor
            for slot, module in bank.at(name).items()
            for key, tensor in module.task_vector(bank.slots[slot].layer).items()
        }
    except NotImplementedError as error:
        raise InputError(f"{name!r}: {error}") from None


def _join_vectors(vectors: list[Vector], merging: Merging, fixed: set[str]) -> Vector:
    if merging.method not in get_args(Method):
        raise InputError(f"no way to merge is called {merging.method!r}; there are {', '.join(get_args(Method))}")
    if merging.method == "ties":
        if merging.weights is not None:
            raise InputError("ties elects by size and takes no weights; leave them out, or use average")
        return ties(vectors, merging.keep)
    if merging.method == "dare":
        whole = [{key: v for key, v in vector.items() if key.split("/")[0] in fixed} for vector in vectors]
        thin = [
            {key: v for key, v in vector.items() if key not in kept}
            for vector, kept in zip(vectors, whole, strict=True)
        ]
        thinned = dare(thin, merging.drop, torch.Generator().manual_seed(merging.seed))
        vectors = [kept | rest for kept, rest in zip(whole, thinned, strict=True)]
    each = 1 / max(1, len(vectors)) if merging.method == "average" else 1.0
    return weighted_sum(vectors, [each] * len(vectors) if merging.weights is None else merging.weights)


def _spec(bank: Bank, specs: list[Any], vectors: list[Vector], name: str, rank: int | None, when: Sequence[str]) -> Any:
    """The configuration of the new module: of the members' kinds, large enough for any weighted sum of them."""
    of_parts = list(zip(*(spec.single() for spec in specs), strict=True))
    if rank is not None and not any(parts[0].kind == "low_rank" for parts in of_parts):
        kinds = " + ".join(parts[0].kind for parts in of_parts)
        raise InputError(f"only low_rank modules have a rank, these are {kinds}; leave `rank` out")
    parts = [{"kind": p[0].kind, "slots": p[0].slots} | _options(bank, p, vectors, rank) for p in of_parts]
    content: dict[str, Any] = {"name": name, "when": tuple(when)}
    content |= {"parts": parts} if specs[0].kind == "union" else parts[0]
    try:
        return type(specs[0])(**content)
    except ValidationError as error:
        raise InputError(f"module {name!r}: {explain(type(specs[0]), error)}") from None


def _options(bank: Bank, parts: Sequence[Any], vectors: list[Vector], rank: int | None) -> dict[str, Any]:
    """Options of the new module, or part of a union, from those of the members."""
    if parts[0].kind == "low_rank":
        return {"rank": sum(part.rank for part in parts) if rank is None else rank, "alpha": None}
    if parts[0].kind == "sparse_delta":
        slots = {slot.name for slot in matching(bank.slots, parts[0].slots, parts[0].kind)}
        own = [{key: v for key, v in vector.items() if key.split("/")[0] in slots} for vector in vectors]
        return {"share": min(1.0, max(sum(part.share for part in parts), _largest_density(own)))}
    return dict(parts[0].options())


def _largest_density(vectors: list[Vector]) -> float:
    """Largest share of a tensor's entries that are non-zero in at least one of the vectors."""
    used = {key: torch.stack([vector[key] != 0 for vector in vectors]).any(dim=0) for key in vectors[0]}
    return max(float(mask.double().mean()) for mask in used.values())


def _fill(module: Any, merged: Mapping[str, Tensor], slot: Any) -> float:
    """Set the module at this slot to the merged task vector; returns the relative norm of the error."""
    target = {key.removeprefix(f"{slot.name}/"): v for key, v in merged.items() if key.startswith(f"{slot.name}/")}
    module.set_task_vector(target, slot.layer)
    error = {key: target[key] - actual for key, actual in module.task_vector(slot.layer).items()}
    return _norm(error) / max(_norm(target), torch.finfo(torch.float64).tiny)


def _norm(vector: Mapping[str, Tensor]) -> float:
    return float(torch.cat([tensor.double().flatten() for tensor in vector.values()]).norm())


Vector = dict[str, Tensor]


def weighted_sum(vectors: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """sum_i weights_i * vectors_i; the weights need not sum to one."""
    _check(vectors)
    if len(weights) != len(vectors):
        raise InputError(f"{len(vectors)} modules, {len(weights)} weights: give one weight for each module")
    terms = [{name: weight * tensor for name, tensor in v.items()} for v, weight in zip(vectors, weights, strict=True)]
    return {name: sum((term[name] for term in terms[1:]), start=terms[0][name]) for name in terms[0]}


def ties(vectors: Sequence[Vector], keep: float) -> Vector:
    """Trim, elect sign, merge (Yadav et al., 2023).

    Each vector keeps the entries of largest magnitude, a share `keep` over all its tensors. The sign of each entry is
    that of the sum of the kept ones; the result is the mean of the kept entries of that sign, zero where they cancel.
    """
    _check(vectors)
    if not 0 < keep <= 1:
        raise InputError(f"TIES keeps a share of more than 0 and at most 1 of the entries, not {keep}")
    trimmed = [_trim(vector, keep) for vector in vectors]
    merged = {}
    for name in trimmed[0]:
        entries = torch.stack([vector[name] for vector in trimmed])
        agrees = entries.sign() == entries.sum(dim=0).sign()  # where the sum is zero, with zeros only
        merged[name] = (entries * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)
    return merged


def dare(vectors: Sequence[Vector], drop: float, generator: torch.Generator) -> list[Vector]:
    """Drop and rescale (Yu et al., 2024): each entry becomes 0 with probability `drop`, else entry / (1 - drop).

    Each entry keeps its expected value. The generator is on the CPU, so that the outcome does not depend on the device.
    """
    _check(vectors)
    if not 0 <= drop < 1:
        raise InputError(f"DARE drops a share of at least 0 and less than 1 of the entries, not {drop}")

    def dropped(tensor: Tensor) -> Tensor:
        stays = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) >= drop
        return tensor * stays.to(tensor.device) / (1 - drop)

    return [{name: dropped(tensor) for name, tensor in vector.items()} for vector in vectors]


def _trim(vector: Vector, keep: float) -> Vector:
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
