"""Imports a configuration and a checkpoint of mmdet3d as a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from perception.config import Config
from perception.errors import InputError
from perception.mmdet3d import centerpoint, pillarnest, pointpillars
from perception.mmdet3d.checkpoint import ConfigSection, read_config, read_state
from perception.model import PerceptionModel
from perception.training.checkpoint import save_model

Converter = Callable[[ConfigSection, Path, Mapping[str, Tensor]], tuple[Config, PerceptionModel]]
CONVERTERS: Mapping[str, Converter] = {"CenterPoint": centerpoint.convert, "MVXFasterRCNN": pointpillars.convert}
FOREIGN = "it loads as a foreign trunk (`backbone: {kind: mmdet3d, ...}`)"


def import_checkpoint(config: Path, checkpoint: Path, out: Path) -> tuple[Config, PerceptionModel]:
    """Write the converted network to the folder `out` as a run; returns configuration and model.

    Args:
        config: a flat configuration, see `checkpoint.py`.

    Raises:
        InputError: an unsupported network, a file that cannot be read, missing or unexpected keys, or `out` is not
            empty.
    """
    foreign = read_config(config)
    model = foreign.part("model")
    kind = str(model.get("type", None))
    middle_encoder = model.get("pts_middle_encoder", model.get("middle_encoder", None))
    encoder = str(middle_encoder.get("type")) if isinstance(middle_encoder, dict) else ""
    if "Sparse" in encoder or kind == "BEVFusion":
        raise InputError(
            f"{config}: {kind} with {encoder or 'sparse convolutions'} has no counterpart here: {FOREIGN}, and its "
            "sparse convolutions do not export without a plugin"
        )
    if kind not in CONVERTERS:
        raise InputError(
            f"{config}: {kind} is none of {', '.join(CONVERTERS)}, which have a counterpart here; {FOREIGN}"
        )
    try:
        converted, network = _converter(model, kind)(foreign, checkpoint, read_state(checkpoint))
    except ValidationError as error:  # a value that our configuration does not allow
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{config}: no counterpart here: {where}: {first['msg']}".replace(": : ", ": ")) from None
    save_model(out, converted, network, [f"checkpoint {checkpoint.name} of mmdet3d"])
    return converted, network


def _converter(model: ConfigSection, kind: str) -> Converter:
    """PillarNeSt has CenterPoint's class, and a backbone of its own."""
    if kind == "CenterPoint" and model.part("pts_backbone").get("type", None) == pillarnest.BACKBONE:
        return pillarnest.convert
    return CONVERTERS[kind]
