"""The export plan: what an export will do with the modules at every slot, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor, nn

from deploy.golden import synthetic_frame
from deploy.onnx_export import run
from deploy.route import parse_conditions
from perception.checkpoint import load_model
from perception.model import PerceptionModel
from perception.modules.computation.computation import inputs, outputs
from perception.modules.routing.fixed import SteeredRouter
from perception.modules.slot import Slot
from perception.sensors.inputs import prepare
from perception.tasks.detection.center_head import PeakHead

What = Literal[
    "folded", "banked", "inline"
]  # into the weights; in the graph, switched by an input; always in the graph


@dataclass(frozen=True)
class Step:
    """The plan for one slot."""

    slot: str
    what: What
    modules: tuple[str, ...]
    parameters: int  # in the graph, in addition to the layer's
    flops: int  # per frame, in addition to the layer's; all modules are computed, even with weight 0
    why: str


@dataclass(frozen=True)
class Plan:
    """The plan for all slots with modules."""

    steps: tuple[Step, ...]
    unused: tuple[str, ...]  # modules that no route uses, which are not exported
    parameters: int  # of the base
    flops: int  # of the base, per frame


def plan(checkpoint: Path, routes: Sequence[Sequence[str]] = ((),)) -> Plan:
    """Plan the export of a checkpoint for these routes."""
    model, config = load_model(checkpoint)
    base = PerceptionModel(config.model_copy(update={"modules": (), "fusions": (), "routing": None})).eval()
    spec = config.spec
    arrays = prepare(synthetic_frame(spec.grid.reference, spec.rig), spec)
    frame = {name: torch.from_numpy(array) for name, array in arrays.items()}
    known = [parse_conditions(route, config.taxonomy) for route in routes]
    with torch.no_grad():
        for conditions in known:  # this run tells prompts the size of their input
            model(frame, [conditions])
    settled = model.deployed(*known)
    # A module may force the regression to run at all cells.
    lean = base.deployed() if any(isinstance(head, PeakHead) for head in settled.heads.values()) else base
    cells, flops = _cells(base, frame), run(lean, arrays)[1]
    running = {*settled.bank.folded, *settled.bank.modules}
    steps = []
    for name, slot in model.bank.slots.items():
        here = tuple(module for module in slot.computations if module in running)
        if here:
            steps.append(_step(settled.bank.slots[name], here, settled, cells[name]))
    unused = tuple(module for module in model.bank.modules if module not in running)
    return Plan(tuple(steps), unused, sum(p.numel() for p in base.parameters()), flops)


def _step(slot: Slot, here: tuple[str, ...], settled: PerceptionModel, cells: int) -> Step:
    """The plan for one slot after folding; `here` are the modules that it had before."""
    left: dict[str, Any] = dict(slot.computations.items())
    stacked: list[Any] = [slot.stack] if slot.stack else []
    names = tuple(name for name in here if name in left or any(name in stack.names for stack in stacked))
    if not names:
        return Step(slot.name, "folded", here, 0, 0, "affine and the same on all routes")
    steered = settled.router.steered if isinstance(settled.router, SteeredRouter) else ()
    switched = [name for name in names if name in steered]
    nonlinear = [name for name, module in left.items() if not module.affine]
    what: What = "inline"
    why = f"{', '.join(nonlinear)} cannot fold"
    if settled.chooser is not None and slot.name in settled.bank.after_fusion():
        what, why = "banked", "selected by the router in the graph"
    elif switched:
        what, why = "banked", f"{', '.join(switched)}: not on all routes"
    elif not nonlinear:
        why = "reads tasks or conditions that differ between routes"
    parts = [*left.values(), *stacked]
    parameters = sum(p.numel() for part in parts for p in part.parameters())
    flops = 2 * cells * sum(part.multiply_adds(slot.layer) for part in parts)
    return Step(slot.name, what, names, parameters, flops, why)


def _cells(base: PerceptionModel, frame: dict[str, Tensor]) -> dict[str, int]:
    cells: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(layer: nn.Module, seen: tuple[Tensor], y: Tensor) -> None:
            transposed = isinstance(layer, nn.ConvTranspose2d)  # its modules are counted at the input
            cells[name] = seen[0].numel() // inputs(layer) if transposed else y.numel() // outputs(layer)

        return hook

    hooks = [slot.layer.register_forward_hook(count(name)) for name, slot in base.bank.slots.items()]
    with torch.no_grad():
        base.predict(frame)
    for each in hooks:
        each.remove()
    return cells


def table(plan: Plan) -> Table:
    shown = Table("slot", "what", "modules", "parameters", "MFLOP", "why")
    for step in plan.steps:
        shown.add_row(
            step.slot, step.what, ", ".join(step.modules), f"{step.parameters:,}", f"{step.flops / 1e6:.2f}", step.why
        )
    parameters, flops = (sum(getattr(step, what) for step in plan.steps) for what in ("parameters", "flops"))
    shown.add_section()
    shown.add_row(
        "all", "", "", f"{parameters:,} ({parameters / plan.parameters:.2%})",
        f"{flops / 1e6:.2f} ({flops / plan.flops:.2%})", f"of the base's {plan.flops / 1e9:.2f} GFLOP a frame",
    )  # fmt: skip
    if plan.unused:
        shown.caption = f"on no route, not exported: {', '.join(plan.unused)}"
    return shown
