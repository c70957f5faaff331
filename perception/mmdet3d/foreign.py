"""An mmdet3d detector with slots around its layers, so that modules attach to it as to our own network.

The detector keeps its data pipeline, losses and decoding. Its modules are chosen by `Bank.activate`, not by a router.
Without an active module its outputs are bit-identical to those without slots.
"""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import set_seed
from torch import nn

from perception.errors import InputError
from perception.layers import add_slots
from perception.mmdet3d.checkpoint import read_state, require_same_keys
from perception.mmdet3d.foreign_config import ForeignBackbone, ForeignConfig
from perception.mmdet3d.install import import_mmdet3d
from perception.mmdet3d.vocabulary import NUSCENES
from perception.modules.bank import Bank
from perception.modules.computation.computation import LAYERS
from perception.tasks import TASKS


class ForeignTrunk(NamedTuple):
    detector: Any  # a BaseModel of MMEngine
    bank: Bank
    config: Any  # MMEngine's Config


def load_foreign(config: ForeignConfig) -> ForeignTrunk:
    """The detector in evaluation mode, with slots and the modules of the configuration, none of them active.

    Raises:
        InputError: mmdet3d is not installed, the configuration does not build, the checkpoint does not fit it, or a
            pattern or module matches no layer.
    """
    mmdet3d_config = read_config(config.backbone)
    set_seed(config.seed)
    detector = _build(mmdet3d_config, config.backbone)
    trunk = ForeignTrunk(detector.eval(), wrap_layers(detector, config.backbone.slots), mmdet3d_config)
    trunk.bank.load(*map(Path, config.modules))
    return trunk


def read_config(backbone: ForeignBackbone) -> Any:
    """MMEngine's Config of a file or of a configuration that comes with mmdet3d; runs the file.

    Raises:
        InputError: mmdet3d is not installed, or there is no such configuration or it fails.
    """
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
        raise InputError(
            f"{file}: what its custom_imports name cannot be imported ({_one_line(_root_cause(error))}); the folder "
            "that has it must be on PYTHONPATH, with its operators compiled. `projects`, such as BEVFusion, are in "
            "mmdet3d's repository and not in its package"
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
    `pts_backbone.blocks.1*`. Sparse and deformable convolutions get none.

    Raises:
        InputError: a pattern matches no layer.
    """
    from mmcv.cnn.bricks import wrappers

    kinds = (*LAYERS, wrappers.Conv2d, wrappers.ConvTranspose2d, wrappers.Linear)  # subclasses of torch's
    add_slots(detector, kinds=kinds, patterns=patterns)
    bank = Bank(detector, NUSCENES.conditions, TASKS)
    for pattern in patterns:
        if not any(fnmatchcase(slot, pattern) for slot in bank.slots):
            parts = sorted({name for name, _ in detector.named_children()})
            raise InputError(f"backbone.slots: {pattern!r} names no layer; the detector's parts are {', '.join(parts)}")
    return bank


def _root_cause(error: BaseException) -> BaseException:
    """The first error in the chain of causes."""
    earlier = error.__cause__ or error.__context__
    return error if earlier is None else _root_cause(earlier)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
