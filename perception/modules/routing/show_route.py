"""A route as a table and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from perception.modules.bank import Bank
from perception.modules.route import Route


class Row(NamedTuple):
    """The weight of one module at one slot."""

    slot: str
    module: str
    weight: float  # of a route by cells, the mean
    cells: np.ndarray | None  # (rows, columns) weights of the cells, where they differ


def routing_table(route: Route, bank: Bank, frame: int = 0) -> list[Row]:
    """The weight of each module at each slot that holds it, zero where it does not run.

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
                rows.append(Row(slot.name, module, float(own.mean()), own[0] if own.ndim else None))
            else:
                rows.append(Row(slot.name, module, float(weight), None))
    return rows


def as_table(rows: Sequence[Row]) -> Table:
    """Slots down, modules across; empty where a slot does not hold the module."""
    slots, modules, weights = _matrix(rows)
    table = Table("slot", *modules, title="weights of the modules")
    for slot, line in zip(slots, weights, strict=True):
        table.add_row(slot, *("" if np.isnan(weight) else f"{weight:.2f}" for weight in line))
    return table


def picture(rows: Sequence[Row]) -> Figure:
    """A heat map of slots by modules, and the weight map of each module whose weight differs by cell.

    `savefig(path)` writes it; no window or display is needed.
    """
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


def _matrix(rows: Sequence[Row]) -> tuple[list[str], list[str], np.ndarray]:
    """Slots, modules, and the weights between them; NaN where the slot does not hold the module."""
    slots, modules = list(dict.fromkeys(r.slot for r in rows)), list(dict.fromkeys(r.module for r in rows))
    weights = np.full((len(slots), len(modules)), np.nan)
    for row in rows:
        weights[slots.index(row.slot), modules.index(row.module)] = row.weight
    return slots, modules, weights
