"""Merging: modules of a bank become one new module, through their task vectors (`parameters.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from perception.errors import InputError
from perception.modules.aggregation.parameters import Vector, average, dare, task_arithmetic, ties, weighted
from perception.modules.bank import Bank
from perception.modules.slot_patterns import matching

Method = Literal["average", "task_arithmetic", "ties", "dare"]


@dataclass(frozen=True)
class Merging:
    """How task vectors become one.

    Attributes:
        method: average: the mean, or with weights their weighted sum; task_arithmetic: the sum; ties; dare: entries
            are dropped at random, then as task_arithmetic, or with weights their weighted sum.
        weights: one for each member, used as they are.
        strength: lambda, which multiplies the result of any method.
        keep: share of its entries, over all slots, that each member keeps for ties.
        drop: probability that dare drops an entry. Of batch norms it drops none: statistics are not redundant.
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
    bank: Bank, name: str, members: Sequence[str], way: Merging, rank: int | None = None, when: Sequence[str] = ()
) -> dict[str, float]:
    """Add the module `name`, which is the members merged. They stay as they are.

    It has room for any weighted sum of its members: low-rank modules are merged as products, and the ranks add up;
    sparse ones keep every entry that one of them has. Only what TIES and DARE make of low-rank products is of a
    higher rank, and is cut to the nearest one that fits.
    Merged weights shrink the variance of activations: recalibrate batch normalisations after a merge.

    Args:
        bank: of the members.
        members: modules of one kind, at the same slots.
        rank: of the new module, where the kind is low_rank, instead of the sum of the ranks.
        when: facts that the new module requires.

    Returns:
        What the new module had no room for: for each slot, the norm of the missing part of the merged task vector
        over the norm of all of it; zero up to rounding but for the cuts above and for a smaller `rank`.

    Raises:
        InputError: the members cannot be merged, or a name or number is wrong. The bank is as it was.
    """
    specs = _specs(bank, members)
    vectors = [_task_vector(bank, member) for member in members]
    fixed = {slot for slot, (_, kind) in _kinds(bank, members[0]).items() if kind == "batch_norm"} if members else set()
    joined = _joined(vectors, way, fixed)
    merged = {key: way.strength * v for key, v in joined.items()}
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
    """At each slot of the module the number and the kind of its part there."""
    parts = enumerate(bank.modules[name].single())
    return {slot.name: (i, part.kind) for i, part in parts for slot in matching(bank.slots, part.slots, part.kind)}


def _task_vector(bank: Bank, name: str) -> Vector:
    """The module's task vectors at all its slots as one: names are SLOT/TENSOR."""
    try:
        return {
            f"{slot}/{key}": tensor
            for slot, module in bank.at(name).items()
            for key, tensor in module.task_vector(bank.slots[slot].layer).items()
        }
    except NotImplementedError as error:
        raise InputError(f"{name!r}: {error}") from None


def _joined(vectors: list[Vector], way: Merging, fixed: set[str]) -> Vector:
    if way.method not in get_args(Method):
        raise InputError(f"no way to merge is called {way.method!r}; there are {', '.join(get_args(Method))}")
    if way.method == "ties":
        if way.weights is not None:
            raise InputError("ties elects by size and takes no weights; leave them out, or use average")
        return ties(vectors, way.keep)
    if way.method == "dare":
        whole = [{key: v for key, v in vector.items() if key.split("/")[0] in fixed} for vector in vectors]
        thin = [
            {key: v for key, v in vector.items() if key not in kept}
            for vector, kept in zip(vectors, whole, strict=True)
        ]
        thinned = dare(thin, way.drop, torch.Generator().manual_seed(way.seed))
        vectors = [kept | rest for kept, rest in zip(whole, thinned, strict=True)]
    if way.weights is not None:
        return weighted(vectors, way.weights)
    return average(vectors) if way.method == "average" else task_arithmetic(vectors, 1.0)


def _spec(bank: Bank, specs: list[Any], vectors: list[Vector], name: str, rank: int | None, when: Sequence[str]) -> Any:
    """The new module in words: of the members' kinds, with room for any weighted sum of them."""
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
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"module {name!r}: {where}: {first['msg'].lower()}, got {first['input']!r}") from None


def _options(bank: Bank, parts: Sequence[Any], vectors: list[Vector], rank: int | None) -> dict[str, Any]:
    """Of the kind that these modules, or parts of unions, have in common."""
    if parts[0].kind == "low_rank":
        return {"rank": sum(part.rank for part in parts) if rank is None else rank, "alpha": None}
    if parts[0].kind == "sparse_delta":
        slots = {slot.name for slot in matching(bank.slots, parts[0].slots, parts[0].kind)}
        own = [{key: v for key, v in vector.items() if key.split("/")[0] in slots} for vector in vectors]
        return {"share": min(1.0, max(sum(part.share for part in parts), _filled(own)))}
    return dict(parts[0].options())


def _filled(vectors: list[Vector]) -> float:
    """Largest share of a tensor's entries that are not zero in at least one of the vectors."""
    used = {key: torch.stack([vector[key] != 0 for vector in vectors]).any(dim=0) for key in vectors[0]}
    return max(float(there.double().mean()) for there in used.values())


def _fill(module: Any, merged: Mapping[str, Tensor], slot: Any) -> float:
    """Make the module, at this slot, the merged one; returns the share of the norm that it has no room for."""
    wanted = {key.removeprefix(f"{slot.name}/"): v for key, v in merged.items() if key.startswith(f"{slot.name}/")}
    module.set_task_vector(wanted, slot.layer)
    missing = {key: wanted[key] - got for key, got in module.task_vector(slot.layer).items()}
    return _norm(missing) / max(_norm(wanted), torch.finfo(torch.float64).tiny)


def _norm(vector: Mapping[str, Tensor]) -> float:
    return float(torch.cat([tensor.double().flatten() for tensor in vector.values()]).norm())
