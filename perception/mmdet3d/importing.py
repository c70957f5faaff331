"""A configuration and a checkpoint of mmdet3d become a run of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from perception.config import Config
from perception.errors import InputError
from perception.mmdet3d import centerpoint, pointpillars
from perception.mmdet3d.checkpoint import read_state
from perception.mmdet3d.config import read_model, read_sweeps
from perception.model import PerceptionModel
from perception.training.checkpoint import save_model

# By the configuration's type of model: our configuration and network, from the `model` of theirs, its path, the path
# of the checkpoint, its state, and the number of sweeps before the keyframe.
Converter = Callable[[Mapping[str, Any], Path, Path, Mapping[str, Tensor], int], tuple[Config, PerceptionModel]]
CONVERTERS: Mapping[str, Converter] = {"CenterPoint": centerpoint.convert, "MVXFasterRCNN": pointpillars.convert}
FOREIGN = "it loads as a foreign trunk (`backbone: {kind: mmdet3d, ...}`)"


def import_checkpoint(config: Path, checkpoint: Path, out: Path) -> tuple[Config, PerceptionModel]:
    """Write to the folder `out` what a training of ours would have left there; returns configuration and model.

    Raises:
        InputError: a network that ours cannot be, a file that cannot be read, keys that are missing or unexpected, or
            `out` holds something already.
    """
    model = read_model(config)
    refuse_sparse(model, config)
    kind = str(model.get("type"))
    if kind not in CONVERTERS:
        raise InputError(
            f"{config}: {kind} is none of {', '.join(CONVERTERS)}, which have a counterpart here; {FOREIGN}"
        )
    try:
        ours, network = CONVERTERS[kind](model, config, checkpoint, read_state(checkpoint), read_sweeps(config))
    except ValidationError as error:  # a value that our configuration cannot have
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{config}: no counterpart here: {where}: {first['msg']}".replace(": : ", ": ")) from None
    save_model(out, ours, network, [f"checkpoint {checkpoint.name} of mmdet3d"])
    return ours, network


def refuse_sparse(model: Mapping[str, Any], config: Path) -> None:
    """Raise InputError for networks with sparse convolutions, which ours has none of."""
    middle = model.get("pts_middle_encoder", model.get("middle_encoder"))
    encoder = str(middle.get("type")) if isinstance(middle, dict) else ""
    if "Sparse" in encoder or model.get("type") == "BEVFusion":
        raise InputError(
            f"{config}: {model.get('type')} with {encoder or 'sparse convolutions'} has no counterpart here: "
            f"{FOREIGN}, and its sparse convolutions do not export without a plugin"
        )
