"""Tables of a bank's modules and added heads, and of a route."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Column, Table

from perception.modules.base import is_base_key
from perception.modules.files import Head
from perception.modules.route import Route
from perception.modules.slot import Slot
from perception.modules.spec import COMPUTATIONS, Module


@dataclass(frozen=True)
class Row:
    name: str
    kind: str
    slots: int
    where: list[str]  # names of the slots; `trunk.*` for all there that the kind attaches to
    parameters: int
    share: float  # parameters relative to those of the base
    multiply_adds: int  # at each output cell of all slots, if the module is not folded
    folds: bool
    when: list[str]
    state: list[str]  # of active, training, frozen
    domain: str = ""
    metrics: Mapping[str, float | None] = field(default_factory=dict)


def row(spec: Module, computations: Mapping[str, Any], slots: Mapping[str, Slot], base: int, active: bool) -> Row:
    """The row of one module, from its computation at each slot, all slots, and the number of the base's parameters."""
    kinds = list(dict.fromkeys(part.kind for part in spec.single()))
    classes = [COMPUTATIONS[kind] for kind in kinds]
    attachable = [s.name for s in slots.values() if any(each.attaches_to(s.layer) for each in classes)]
    parameters = [parameter for computation in computations.values() for parameter in computation.parameters()]
    count = sum(parameter.numel() for parameter in parameters)
    trainable = any(parameter.requires_grad for parameter in parameters)
    state = {
        "active": active,
        "training": trainable and any(computation.training for computation in computations.values()),
        "frozen": not trainable,
    }
    return Row(
        spec.name,
        " + ".join(kinds),
        len(computations),
        compact(computations.keys(), attachable),
        count,
        count / base,
        sum(computation.multiply_adds(slots[slot].layer) for slot, computation in computations.items()),
        all(computation.affine for computation in computations.values()),
        list(spec.when),
        [word for word, holds in state.items() if holds],
    )


def head_row(head: Head, slots: Sequence[str], base: int) -> Row:
    own = head.slots()
    parameters = [parameter for name, parameter in head.network.named_parameters() if is_base_key(name)]
    count, learns = sum(p.numel() for p in parameters), any(p.requires_grad for p in parameters)
    layers: list[Any] = [slot.layer for slot in own.values()]
    state = [
        word for word, holds in {"training": learns and head.network.training, "frozen": not learns}.items() if holds
    ]
    return Row(
        head.task,
        "task",
        len(own),
        compact(own.keys(), slots),
        count,
        count / base,
        sum(layer.weight.numel() for layer in layers),
        folds=False,
        when=[],
        state=state,
    )


def compact(chosen: Collection[str], candidates: Sequence[str], depth: int = 1) -> list[str]:
    """Few names and globs that match exactly the chosen among the candidates."""
    groups: dict[str, list[str]] = {}
    for name in candidates:
        groups.setdefault(".".join(name.split(".")[:depth]), []).append(name)
    found = []
    for prefix, group in groups.items():
        matches = [name for name in group if name in chosen]
        if len(matches) <= 1:
            found += matches
        elif len(matches) == len(group):
            found += [name for name in group if name == prefix] + [f"{prefix}.*"]
        else:
            found += compact(matches, group, depth + 1)
    return found


def table(modules: Sequence[Row]) -> Table:
    """The rows as a table for a console, without empty columns."""
    columns = {
        "name": [row.name for row in modules],
        "kind": [row.kind for row in modules],
        "slots": [f"{row.slots}: {', '.join(row.where)}" for row in modules],
        "parameters": [f"{row.parameters:,} ({row.share:.2%})" for row in modules],
        "multiply-adds": [f"{row.multiply_adds:,}" for row in modules],
        "folds": ["yes" if row.folds else "no" for row in modules],
        "when": [", ".join(row.when) for row in modules],
        "state": [", ".join(row.state) for row in modules],
        "domain": [row.domain for row in modules],
        "metrics": [", ".join(f"{k} {v:.3g}" for k, v in row.metrics.items() if v is not None) for row in modules],
    }
    filled = {title: cells for title, cells in columns.items() if any(cells)}
    shown = Table(*(Column(title, overflow="fold") for title in filled))
    for cells in zip(*filled.values(), strict=True):
        shown.add_row(*cells)
    return shown


def routing_table(route: Route, slots: Mapping[str, Slot]) -> Table:
    """A row for each slot and a column for each module, with its weight in the first frame of a batch.

    Zero where it does not run, the mean where it differs by cell, and empty where the slot does not have the module.
    """
    modules = list(dict.fromkeys(name for slot in slots.values() for name in slot.computations))
    table = Table("slot", *modules, title="weights of the modules")
    for name, slot in slots.items():
        if slot.computations:
            weights = [torch.as_tensor(route.at(name).get(module, 0.0)).detach() for module in modules]
            first = [float((weight[0] if weight.ndim else weight).mean()) for weight in weights]
            cells = (f"{w:.2f}" if m in slot.computations else "" for m, w in zip(modules, first, strict=True))
            table.add_row(name, *cells)
    return table
