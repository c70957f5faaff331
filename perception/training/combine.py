"""Combines separately trained modules in one checkpoint, and recomputes running statistics after a merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from perception.checkpoint import load_model, provenance, save_model
from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.model import PerceptionModel, batch_inputs
from perception.modules.aggregation.merge import Merging, Method, merge_modules
from perception.modules.composition import parse_block
from perception.modules.computation.channelwise import BatchNorm
from perception.modules.files import HeadRecord, Record, read_record, read_records
from perception.modules.status import Row
from perception.sensors.inputs import prepare
from perception.training.optimize import lacking, require_reachable, with_conditions

OPTIONS = {"strength", "keep", "drop", "seed", "rank"}  # of a merge


def module_rows(model: PerceptionModel, checkpoint: Path) -> list[Row]:
    """The bank's status, with domain and metrics from RUN/modules for modules and heads trained on this base."""
    base, records = model.bank.base_hash(), read_records(checkpoint)
    known = {name: record for name, record in records.items() if record.base == base}
    return [
        replace(row, domain=known[row.name].domain, metrics=known[row.name].metrics) if row.name in known else row
        for row in model.bank.status()
    ]


def combine(checkpoint: Path, modules: Sequence[str], out: Path) -> None:
    """Write the checkpoint's model with further modules and heads to OUT, and each of them to OUT/modules.

    Args:
        modules: files of modules or heads: FILE, or NAME=FILE to rename a module.
    """
    model, _ = load_model(checkpoint)
    bank, records = model.bank, read_records(checkpoint)
    named = [(Path(file), name) for name, _, file in (module.rpartition("=") for module in modules)]
    files = [file for file, _ in named]
    if len(set(files)) < len(files):
        raise InputError(f"{max(files, key=files.count)}: is named twice")
    added = bank.load(*files, rename={file: name for file, name in named if name})
    records |= {name: read_record(file) for name, file in zip(added, files, strict=True)}
    _save(model, records, checkpoint, out)


def merge(
    checkpoint: Path,
    members: Sequence[str],
    name: str,
    method: str,
    out: Path,
    when: Sequence[str],
    drives: tuple[Keyframes, str] | None = None,
    **options: Any,
) -> dict[str, float]:
    """Merge modules to a new one; write the checkpoint's model with it to OUT, and the module to OUT/modules.

    Args:
        members: names, all or none with a weight: 0.7*rain.
        drives: keyframes and their split; on those under `when`, the new module's batch normalisations are
            recalibrated.

    Returns:
        For each slot the share of the change that the new module's rank could not represent.
    """
    unknown = sorted(options.keys() - OPTIONS)
    if unknown:
        raise InputError(f"{unknown[0]} is no option of a merge; there are {', '.join(sorted(OPTIONS))}")
    names, weights = _parse_weights(members)
    model, _ = load_model(checkpoint)
    rank, merging = options.pop("rank", None), Merging(cast(Method, method.replace("-", "_")), weights, **options)
    lost = merge_modules(model.bank, name, names, merging, rank, when)
    if drives is not None:
        tables, split = drives
        model.bank.activate(name)
        recalibrate(model, tables, with_conditions(tables, tables.samples(split), when), name)
        model.bank.activate(None)
    records = read_records(checkpoint)
    _save(model, records, checkpoint, out)
    model.bank.save(name, out / "modules" / name, f"{method} of {', '.join(members)}")
    return lost


def _parse_weights(members: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """Names of modules, and their weights if written as 0.7*rain."""
    text = f"average({', '.join(members)})"
    if "*" not in text:
        return list(members), None
    block: Any = parse_block(text)
    if not all(isinstance(member, str) for member in block.members):
        raise InputError(f"{text}: modules merge, blocks do not; merge the inner ones first")
    return list(block.members), list(block.shares)


def _save(model: PerceptionModel, records: dict[str, Record | HeadRecord], checkpoint: Path, out: Path) -> None:
    if model.chooser is not None:
        model.chooser.update()
    save_model(out, model.config, model, provenance(checkpoint).data)
    base = model.bank.base_hash()
    for name, record in records.items():
        if name in model.bank.names and record.base == base:
            model.bank.save(name, out / "modules" / name, record.domain, record.metrics)


@torch.no_grad()
def recalibrate(model: PerceptionModel, tables: Keyframes, tokens: Sequence[str], module: str) -> None:
    """Recompute the running statistics of a `batch_norm` module, or of such parts, as averages over these keyframes.

    The frames lack the sensors that the module requires to be missing. Merged weights have other activations than the
    ones that the statistics were computed for (Jordan et al., REPAIR, 2023). `torch.optim.swa_utils.update_bn` does not
    fit: it resets the normalisations of frozen parts as well, passes no conditions to the model, and the hook of
    `Freeze` would put the layers back into evaluation mode.

    Args:
        module: its name; it must run on the frames.
    """
    require_reachable(model, module)
    # Not those of series adapters: what these were merged to has fixed unit statistics (`set_task_vector`).
    norms = [each.norm for each in model.bank.at(module).values() if isinstance(each, BatchNorm)]
    if not norms:
        raise InputError(f"{module}: no batch normalisation to recalibrate")
    mode, momenta = model.training, [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average

    def update_statistics(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        norm.train(inputs[0].numel() > 0)  # a frame without images has no statistics

    hooks = [norm.register_forward_pre_hook(update_statistics) for norm in norms]  # run after the hook of `Freeze`
    spec = model.config.spec
    changes: dict[str, Any] = dict.fromkeys(lacking(model.bank.modules[module].when), False)
    reads = spec.reads._replace(**changes)
    try:
        for token in tokens:
            frame = tables.frame(token, reads)
            model(batch_inputs([prepare(frame, spec)]), [frame.conditions], training=True)
    finally:
        for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
            norm.momentum = momentum
            hook.remove()
        model.train(mode)
