"""Reads checkpoints of mmdet3d (tensors only) and renames their weights; missing and unexpected keys are errors."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from perception.errors import InputError
from perception.mmdet3d.flat_config import ConfigSection

NORM_EPSILON = 1e-3  # of our batch normalisations
_MAX_KEYS_SHOWN = 6  # in an error message


def read_state(path: Path) -> dict[str, Tensor]:
    """The `state_dict` of a checkpoint, read without running code from it.

    Raises:
        InputError: the file is absent, truncated or no checkpoint, or holds objects besides tensors and plain data.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise InputError(
                f"{path}: holds more than tensors and plain data ({_refused_object(error)}), which would run code when "
                "read; keep the weights alone: tools/model_converters/publish_model.py of mmdet3d"
            ) from None
        raise InputError(f"{path}: not a checkpoint of torch, or damaged") from None
    except Exception:  # torch raises many types for damaged files
        raise InputError(f"{path}: not a checkpoint of torch, or cut short") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no `state_dict` of tensors; give a checkpoint of mmdet3d")
    return dict(state)


def _refused_object(error: Exception) -> str:
    """Name of the object that torch's unpickler refused."""
    text = str(error)
    return text[text.find("GLOBAL ") :].split()[1] if "GLOBAL " in text else "unknown"


def renamed_state(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], modules: Mapping[str, str], path: Path
) -> dict[str, Tensor]:
    """The checkpoint's tensors under our names.

    Args:
        state: the `state_dict` of the checkpoint.
        expected: our `state_dict`, for names and shapes.
        modules: our module name -> mmdet3d's, such as trunk.stages.0.0.conv.layer -> pts_backbone.blocks.0.0.
        path: of the checkpoint, for messages.

    Raises:
        InputError: keys are missing, unexpected or of another shape; the message names them.
    """
    source = {}
    for name in expected:
        module, _, leaf = name.rpartition(".")
        source[name] = f"{modules[module]}.{leaf}"
    require_same_keys(state, {key: expected[name] for name, key in source.items()}, path)
    return {name: state[key].to(expected[name].dtype) for name, key in source.items()}


def require_same_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError that names the keys unless a checkpoint has exactly the expected tensors and shapes."""
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise InputError(
            f"{path}: does not fit its configuration: {len(missing)} keys are missing{_list(missing)}, "
            f"{len(unexpected)} unexpected{_list(unexpected)}"
        )
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            found, wanted = tuple(state[key].shape), tuple(tensor.shape)
            raise InputError(f"{path}: {key} has the shape {found}, the configuration says {wanted}")


def _list(keys: list[str]) -> str:
    """The first keys in brackets, for a message."""
    more = f", and {len(keys) - _MAX_KEYS_SHOWN} more" if len(keys) > _MAX_KEYS_SHOWN else ""
    return f" ({', '.join(keys[:_MAX_KEYS_SHOWN])}{more})" if keys else ""


def convert_norm_epsilons(weights: dict[str, Tensor], parts: Mapping[str, tuple[ConfigSection, float]]) -> None:
    """Rescale the weights of batch normalisations in place so that their outputs are the same with our epsilon.

    weight / sqrt(variance + theirs) = weight' / sqrt(variance + ours) for each channel, with running statistics.

    Args:
        weights: our `state_dict`.
        parts: prefix of our names -> the section of the configuration whose `norm_cfg` has the epsilon, and mmdet3d's
            default without a `norm_cfg`. A `norm_cfg` without `eps` means torch's default.
    """
    for key in [key for key in weights if key.endswith(".running_var")]:
        part, default = next(found for start, found in parts.items() if key.startswith(start))
        theirs = float(part.get("norm_cfg", {"eps": default}).get("eps", 1e-5))
        name, variance = f"{key.removesuffix('.running_var')}.weight", weights[key].double()
        scaled = weights[name].double() * ((variance + NORM_EPSILON) / (variance + theirs)).sqrt()
        weights[name] = scaled.to(weights[name])
