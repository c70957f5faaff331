"""A detector of mmdet3d with slots around its layers, so that modules attach to it as they do to our own network.

The detector stays what it is: its own data pipeline, losses, decoding. No router chooses its modules; the bank's
`activate` does. Without an active module it computes what it did without slots, bit for bit.
"""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import set_seed
from torch import nn

from perception.errors import InputError
from perception.layers import slotted
from perception.mmdet3d.checkpoint import read_state, require_fit
from perception.mmdet3d.foreign_config import ForeignBackbone, ForeignConfig
from perception.mmdet3d.install import import_mmdet3d
from perception.modules.bank import Bank
from perception.modules.computation.computation import LAYERS


class ForeignTrunk(NamedTuple):
    detector: Any  # a BaseModel of MMEngine, in evaluation mode
    bank: Bank
    config: Any  # MMEngine's Config


def load_foreign(config: ForeignConfig) -> ForeignTrunk:
    """The detector with slots and the modules of the configuration, none of them active.

    Raises:
        InputError: mmdet3d is not installed, the configuration does not build, the checkpoint does not fit it, or a
            pattern or module fits no layer.
    """
    theirs = read_config(config.backbone)
    set_seed(config.seed)
    detector = _build(theirs, config.backbone)
    trunk = ForeignTrunk(detector.eval(), with_slots(detector, config.backbone.slots), theirs)
    trunk.bank.load(*map(Path, config.modules))
    return trunk


def read_config(backbone: ForeignBackbone) -> Any:
    """MMEngine's Config of a file, or of a configuration that comes with mmdet3d."""
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
            f"{file}: what its custom_imports name cannot be imported ({_line(_first(error))}); the folder that has it "
            "must be on PYTHONPATH, with its operators compiled. `projects`, such as BEVFusion, are in mmdet3d's "
            "repository and not in its package"
        ) from None
    except Exception as error:  # the file is a program
        raise InputError(f"{file}: cannot be read as a configuration of mmdet3d ({_line(error)})") from None


def _build(theirs: Any, backbone: ForeignBackbone) -> Any:
    from mmdet3d.registry import MODELS
    from mmengine.logging import MMLogger

    MMLogger.get_current_instance().setLevel("WARNING")  # else every parameter's initialisation is a line
    model = copy.deepcopy(theirs.model)  # some detectors take out of it what is not for their parts
    if backbone.checkpoint is not None:
        _leave_out_pretrained(model)
    try:
        detector = MODELS.build(model)
        if backbone.checkpoint is None:
            detector.init_weights()
    except Exception as error:  # of any layer that the configuration names
        raise InputError(f"{backbone.config}: mmdet3d cannot build the model ({_line(error)})") from None
    if backbone.checkpoint is not None:
        path = Path(backbone.checkpoint)
        state = read_state(path)
        require_fit(state, detector.state_dict(), path)  # a part of it would train modules on random layers
        detector.load_state_dict(state)
    return detector


def _leave_out_pretrained(part: Any) -> None:
    """Take out of a configuration the files that its parts begin with: they are fetched, and the checkpoint has all."""
    if isinstance(part, dict):
        begins = part.get("init_cfg")
        if isinstance(begins, dict) and begins.get("type") == "Pretrained":
            del part["init_cfg"]
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ():
        _leave_out_pretrained(each)


def with_slots(detector: nn.Module, patterns: tuple[str, ...] = ("*",)) -> Bank:
    """Wrap the convolutions, normalisations and linear layers whose names fit, such as `pts_backbone.blocks.1*`.

    Sparse and deformable convolutions are of other kinds and stay as they are.

    Raises:
        InputError: a pattern fits no layer.
    """
    from mmcv.cnn.bricks import wrappers

    kinds = (*LAYERS, wrappers.Conv2d, wrappers.ConvTranspose2d, wrappers.Linear)  # torch's, by other names
    slotted(detector, kinds=kinds, patterns=patterns)
    bank = Bank(detector)
    for pattern in patterns:
        if not any(fnmatchcase(slot, pattern) for slot in bank.slots):
            parts = sorted({name for name, _ in detector.named_children()})
            raise InputError(f"backbone.slots: {pattern!r} names no layer; the detector's parts are {', '.join(parts)}")
    return bank


def _first(error: BaseException) -> BaseException:
    """The error that led to this one."""
    earlier = error.__cause__ or error.__context__
    return error if earlier is None else _first(earlier)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
