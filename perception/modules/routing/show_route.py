"""Shows a route as a table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from perception.modules.bank import Bank
from perception.modules.route import Route


class RouteWeight(NamedTuple):
    """The weight of one module at one slot."""

    slot: str
    module: str
    weight: float  # the mean if it differs by cell
    cells: np.ndarray | None  # (rows, columns) weights of the cells if they differ


def routing_table(route: Route, bank: Bank, frame: int = 0) -> list[RouteWeight]:
    """The weight of each module at each of its slots, zero where it does not run.

    Args:
        route: as in `PerceptionModel.routes` after a forward pass.
        bank: of the model.
        frame: index in the batch.
    """
    rows = []
    for slot in bank.slots.values():
        for module in slot.computations:
            weight = route.at(slot.name).get(module, 0.0)
            if isinstance(weight, Tensor):
                own = weight.detach().cpu().numpy()[frame if len(weight) > 1 else 0]
                rows.append(RouteWeight(slot.name, module, float(own.mean()), own[0] if own.ndim else None))
            else:
                rows.append(RouteWeight(slot.name, module, float(weight), None))
    return rows


def as_table(rows: Sequence[RouteWeight]) -> Table:
    """A table with a row for each slot and a column for each module; empty where a slot does not have the module."""
    slots, modules, weights = _matrix(rows)
    table = Table("slot", *modules, title="weights of the modules")
    for slot, line in zip(slots, weights, strict=True):
        table.add_row(slot, *("" if np.isnan(weight) else f"{weight:.2f}" for weight in line))
    return table


def as_figure(rows: Sequence[RouteWeight]) -> Figure:
    """A heat map of slots by modules, and the weight map of each module whose weight differs by cell; needs no
    display."""
    slots, modules, weights = _matrix(rows)
    maps = {row.module: row.cells for row in rows if row.cells is not None}  # the same at every slot
    figure = Figure(figsize=(2 + 0.8 * len(modules) + 3 * len(maps), 2 + 0.2 * len(slots)), layout="constrained")
    axes = figure.subplots(1, 1 + len(maps), squeeze=False)[0]
    image = axes[0].imshow(weights, vmin=0, vmax=1, aspect="auto", cmap="viridis")
    axes[0].set_xticks(range(len(modules)), modules, rotation=45)
    axes[0].set_yticks(range(len(slots)), slots, fontsize=7)
    for axis, (module, cells) in zip(axes[1:], maps.items(), strict=True):
        axis.imshow(cells, vmin=0, vmax=1, origin="lower", cmap="viridis")  # y of the bird's-eye view points up
        axis.set_title(module)
    figure.colorbar(image, ax=axes, label="weight")
    return figure


def _matrix(rows: Sequence[RouteWeight]) -> tuple[list[str], list[str], np.ndarray]:
    """Slots, modules, and their weights (slots, modules); NaN where the slot does not have the module."""
    slots, modules = list(dict.fromkeys(r.slot for r in rows)), list(dict.fromkeys(r.module for r in rows))
    weights = np.full((len(slots), len(modules)), np.nan)
    for row in rows:
        weights[slots.index(row.slot), modules.index(row.module)] = row.weight
    return slots, modules, weights
