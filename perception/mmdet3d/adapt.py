"""Post-hoc adaptation of a foreign backbone: trains a new module with mmdet3d's losses and data pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from rich.progress import track
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.mmdet3d import annotation_file
from perception.mmdet3d.foreign import ForeignTrunk, load_foreign
from perception.mmdet3d.foreign_config import FILE, ForeignConfig, write_foreign_config
from perception.modules.aggregation.composition import Parallel
from perception.modules.spec import AnyModule
from perception.section import Section, parse_section
from perception.training import trainable
from perception.training.optimize import optimizer_of

GRADIENT_CLIP = 35.0  # maximum norm, as in CenterPoint
# Ground-truth pasting needs a database that mmdet3d's create_data.py makes of a whole data set.
SKIPPED_STEP = "ObjectSample"
MISSING_OPERATOR = ("is not implemented on CPU", "implementation for device")  # in mmcv's error messages


class _NewModule(Section):
    module: AnyModule


def adapt_foreign(
    config: ForeignConfig,
    module: Mapping[str, Any],
    tables: NuScenesTables,
    split: str | None,
    selectors: Sequence[str],
    run: Path,
    steps: int,
    learning_rate: float,
) -> Path:
    """Train a new module on the frozen detector, without its other modules; returns the module's file.

    The detector and its earlier modules do not change. Writes the module to RUN/modules, and the configuration of the
    detector with it to RUN/foreign.yaml.

    Args:
        module: its name, kind, slots and options; trained on the frames that have all the conditions in its `when`.
        split: of the tables.
        selectors: scenes or keyframes of the split to train on; empty for all.
        learning_rate: maximum of the one-cycle schedule.

    Raises:
        InputError: as `load_foreign` and `fit`; an unknown kind, slot or condition; no frame under the conditions; or
            RUN is already trained.
    """
    if (run / FILE).exists():
        raise InputError(f"{run}: holds a trained run already; choose another --out")
    spec: Any = parse_section(_NewModule, {"module": module}, f"module {module.get('name')}").module
    trunk = load_foreign(config)
    trunk.bank.add(spec)
    tokens = trainable.with_conditions(tables, tables.samples(split, selectors), spec.when)
    annotations = run / "annotations.json"
    annotation_file.write(annotations, tables, tokens)
    fit(trunk, spec.name, training_set(trunk.config, tables, annotations), config, steps, learning_rate)
    file = run / "modules" / f"{spec.name}.safetensors"
    trunk.bank.save(spec.name, file, domain=", ".join(spec.when))
    write_foreign_config(run, config.model_copy(update={"modules": (*config.modules, str(file.resolve()))}))
    return file


def training_set(config: Any, tables: NuScenesTables, annotations: Path) -> Any:
    """The training set of an mmdet3d configuration, with its pipeline, on these annotations (`annotation_file.py`)."""
    from mmdet3d.registry import DATASETS

    content = config.train_dataloader.dataset
    while "dataset" in content:  # wrappers for class-balanced sampling
        content = content.dataset
    content = content.copy()
    content.pipeline = [step for step in content.pipeline if step.type != SKIPPED_STEP]
    content.update(data_root=str(tables.dataroot), ann_file=str(annotations.resolve()))
    return DATASETS.build(content)


def fit(
    trunk: ForeignTrunk, name: str, frames: Any, config: ForeignConfig, steps: int, learning_rate: float
) -> list[float]:
    """Train the module with this name as the only active one; returns the loss of each step.

    Raises:
        InputError: the loss is not finite, or mmcv lacks an operator for this device.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector, bank = trunk.detector.to(device), trunk.bank
    bank.activate(Parallel(name))
    bank.train(name)
    set_seed(config.seed)
    optimizer = optimizer_of(detector, learning_rate, decay=0.0)
    schedule = OneCycleLR(optimizer, learning_rate, total_steps=steps + 1)
    losses: list[float] = []
    for _, batch in zip(track(range(steps), "training", transient=True), _batches(frames, config), strict=False):
        loss = _loss(detector, batch)
        if not torch.isfinite(loss):
            raise InputError(f"{config.name}: the loss at step {len(losses)} is {loss.item()}; lower --learning-rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in trainable.parameters(detector)], GRADIENT_CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    bank.freeze(name)
    bank.activate(None)
    detector.eval()
    return losses


def _batches(frames: Any, config: ForeignConfig) -> Iterator[Any]:
    """Shuffled batches, endlessly."""
    from mmengine.dataset import pseudo_collate

    order = torch.Generator().manual_seed(config.seed)
    loader = DataLoader(frames, config.batch, shuffle=True, collate_fn=pseudo_collate, generator=order)
    while True:
        yield from loader


def _loss(detector: Any, batch: Any) -> Tensor:
    """Sum of the detector's own losses."""
    try:
        loss, _ = detector.parse_losses(detector(**detector.data_preprocessor(batch, True), mode="loss"))
    except (NotImplementedError, RuntimeError) as error:
        if not any(words in str(error) for words in MISSING_OPERATOR):
            raise
        raise InputError(
            f"mmcv: {' '.join(str(error).split())}: sparse convolutions run on a GPU, with a build of mmcv for CUDA"
        ) from None
    return loss
