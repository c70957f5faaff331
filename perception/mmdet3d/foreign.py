"""An mmdet3d detector with slots around its layers, so that modules attach to it as to our own network.

The detector keeps its data pipeline, losses and decoding. Its modules are chosen by `Bank.activate`, not by a router.
Without an active module its outputs are bit-identical to those without slots.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain, repeat
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from accelerate.utils import set_seed
from rich.progress import track
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from perception.checkpoint import require_same_keys
from perception.datasets.infos import NUSCENES
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.io.section import Section, parse_section
from perception.mmdet3d import annotation_file
from perception.mmdet3d.checkpoint import read_state
from perception.mmdet3d.foreign_config import FILE, ForeignBackbone, ForeignConfig, write_foreign_config
from perception.modules.bank import Bank
from perception.modules.composition import Parallel
from perception.modules.computation.computation import LAYERS
from perception.modules.slot import add_slots
from perception.modules.spec import AnyModule
from perception.sensors import SENSORS
from perception.tasks import TASKS
from perception.training import optimize
from perception.training.optimize import optimizer_of

# mmdet 3.3.0 and mmdet3d 1.4.0 assert mmcv < 2.2.0 on import. The maintained fork (onedl-mmcv, 2.3 or later) has the
# same interface, so it reports this version during the import.
REPORTED_MMCV_VERSION = "2.1.0"


class ForeignTrunk(NamedTuple):
    detector: Any  # a BaseModel of MMEngine
    bank: Bank
    config: Any  # MMEngine's Config


def load_foreign(config: ForeignConfig) -> ForeignTrunk:
    """The detector in evaluation mode, with slots and the modules of the configuration, none of them active."""
    mmdet3d_config = read_config(config.backbone)
    set_seed(config.seed)
    detector = _build(mmdet3d_config, config.backbone)
    trunk = ForeignTrunk(detector.eval(), wrap_layers(detector, config.backbone.slots), mmdet3d_config)
    trunk.bank.load(*map(Path, config.modules))
    return trunk


def import_mmdet3d() -> ModuleType:
    """The package mmdet3d, with its models registered."""
    try:
        mmcv: Any = importlib.import_module("mmcv")
        version, mmcv.__version__ = mmcv.__version__, REPORTED_MMCV_VERSION
        try:
            importlib.import_module("mmdet")
            mmdet3d = importlib.import_module("mmdet3d")
            importlib.import_module("mmdet3d.utils").register_all_modules()
        finally:
            mmcv.__version__ = version
    except (ImportError, AssertionError) as error:  # it checks versions by assertions
        reason = " ".join(str(error).split())
        raise InputError(f"mmdet3d cannot be imported ({reason}); install it with `make install-mmdet3d`") from None
    return mmdet3d


def read_config(backbone: ForeignBackbone) -> Any:
    """MMEngine's Config of a file or of a configuration that comes with mmdet3d; runs the file."""
    mmdet3d = import_mmdet3d()
    from mmengine.config import Config

    file = Path(backbone.config)
    if not file.suffix:
        shipped = Path(str(mmdet3d.__file__)).parent / ".mim" / "configs"
        found = sorted(shipped.glob(f"*/{backbone.config}.py"))
        if not found:
            raise InputError(f"backbone.config: mmdet3d has no configuration {backbone.config}; give a file's path")
        file = found[0]
    try:
        return Config.fromfile(file)
    except ImportError as error:
        cause: BaseException = error
        while earlier := cause.__cause__ or cause.__context__:
            cause = earlier
        raise InputError(
            f"{file}: what its custom_imports name cannot be imported ({_one_line(cause)}); the folder that has "
            "it must be on PYTHONPATH, with its operators compiled. `projects`, such as BEVFusion, are in mmdet3d's "
            "repository and not in its package"
        ) from None
    except Exception as error:  # the file is a program
        raise InputError(f"{file}: cannot be read as a configuration of mmdet3d ({_one_line(error)})") from None


def _build(config: Any, backbone: ForeignBackbone) -> Any:
    from mmdet3d.registry import MODELS
    from mmengine.logging import MMLogger

    MMLogger.get_current_instance().setLevel("WARNING")  # else it logs the initialisation of every parameter
    model = copy.deepcopy(config.model)  # some detectors modify it
    if backbone.checkpoint is not None:
        _drop_pretrained(model)
    try:
        detector = MODELS.build(model)
        if backbone.checkpoint is None:
            detector.init_weights()
    except Exception as error:  # any layer that the configuration names may raise
        raise InputError(f"{backbone.config}: mmdet3d cannot build the model ({_one_line(error)})") from None
    if backbone.checkpoint is not None:
        path = Path(backbone.checkpoint)
        state = read_state(path)
        require_same_keys(state, detector.state_dict(), path)  # else modules would be trained on random layers
        detector.load_state_dict(state)
    return detector


def _drop_pretrained(part: Any) -> None:
    """Remove pretrained weights from a configuration in place: they would be downloaded, then overwritten."""
    if isinstance(part, dict):
        initialisation = part.get("init_cfg")
        if isinstance(initialisation, dict) and initialisation.get("type") == "Pretrained":
            del part["init_cfg"]
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ():
        _drop_pretrained(each)


def wrap_layers(detector: nn.Module, patterns: tuple[str, ...] = ("*",)) -> Bank:
    """Add slots to the convolutions, normalisations and linear layers whose names match, such as
    `pts_backbone.blocks.1*`. Sparse and deformable convolutions get none."""
    from mmcv.cnn.bricks import wrappers

    kinds = (*LAYERS, wrappers.Conv2d, wrappers.ConvTranspose2d, wrappers.Linear)  # subclasses of torch's
    add_slots(detector, kinds=kinds, patterns=patterns)
    bank = Bank(detector, NUSCENES.conditions, TASKS, SENSORS)
    for pattern in patterns:
        if not any(fnmatchcase(slot, pattern) for slot in bank.slots):
            parts = sorted({name for name, _ in detector.named_children()})
            raise InputError(f"backbone.slots: {pattern!r} names no layer; the detector's parts are {', '.join(parts)}")
    return bank


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


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
        selectors: scenes or keyframes of the split to train on; empty for all.
    """
    if (run / FILE).exists():
        raise InputError(f"{run}: holds a trained run already; choose another --out")
    spec: Any = parse_section(_NewModule, {"module": module}, f"module {module.get('name')}").module
    trunk = load_foreign(config)
    trunk.bank.add(spec)
    tokens = optimize.with_conditions(tables, tables.samples(split, selectors), spec.when)
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
    """Train the module with this name as the only active one; returns the loss of each step."""
    from mmengine.dataset import pseudo_collate

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector, bank = trunk.detector.to(device), trunk.bank
    bank.activate(Parallel(name))
    bank.train(name)
    set_seed(config.seed)
    optimizer = optimizer_of(detector, learning_rate, decay=0.0)
    schedule = OneCycleLR(optimizer, learning_rate, total_steps=steps + 1)
    losses: list[float] = []
    order = torch.Generator().manual_seed(config.seed)
    loader = DataLoader(frames, config.batch, shuffle=True, collate_fn=pseudo_collate, generator=order)
    batches = chain.from_iterable(repeat(loader))
    for _, batch in zip(track(range(steps), "training", transient=True), batches, strict=False):
        loss = _loss(detector, batch)
        if not torch.isfinite(loss):
            raise InputError(f"{config.name}: the loss at step {len(losses)} is {loss.item()}; lower --learning-rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in optimize.parameters(detector)], GRADIENT_CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    bank.freeze(name)
    bank.activate(None)
    detector.eval()
    return losses


def _loss(detector: Any, batch: Any) -> Tensor:
    try:
        loss, _ = detector.parse_losses(detector(**detector.data_preprocessor(batch, True), mode="loss"))
    except (NotImplementedError, RuntimeError) as error:
        if not any(words in str(error) for words in MISSING_OPERATOR):
            raise
        raise InputError(
            f"mmcv: {' '.join(str(error).split())}: sparse convolutions run on a GPU, with a build of mmcv for CUDA"
        ) from None
    return loss
