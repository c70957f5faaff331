"""Checkpoints of mmdet3d: tensors are all that is taken from them, and every one must be accounted for."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from perception.errors import InputError
from perception.mmdet3d.config import Settings

EPSILON = 1e-3  # of our batch normalisations
_SHOWN = 6  # names of keys in a message


def read_state(path: Path) -> dict[str, Tensor]:
    """The `state_dict` of a checkpoint; no code in it runs.

    Raises:
        InputError: the file is absent, cut short or no checkpoint, or holds objects besides tensors and plain data.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise InputError(
                f"{path}: holds more than tensors and plain data ({_named(error)}), which would run code when read; "
                "keep the weights alone: tools/model_converters/publish_model.py of mmdet3d"
            ) from None
        raise InputError(f"{path}: not a checkpoint of torch, or damaged") from None
    except Exception:  # a reader of bytes that come from elsewhere: whatever it stumbles over
        raise InputError(f"{path}: not a checkpoint of torch, or cut short") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no `state_dict` of tensors; give a checkpoint of mmdet3d")
    return dict(state)


def _named(error: Exception) -> str:
    """The object that torch's reader refused."""
    text = str(error)
    return text[text.find("GLOBAL ") :].split()[1] if "GLOBAL " in text else "unknown"


def take(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], modules: Mapping[str, str], path: Path
) -> dict[str, Tensor]:
    """The checkpoint's tensors under our names; all that we have must be there, and all that is there must be ours.

    Args:
        state: of the checkpoint.
        expected: our `state_dict`, for names and shapes.
        modules: our module -> theirs, such as trunk.stages.0.0.conv.layer -> pts_backbone.blocks.0.0.
        path: of the checkpoint, for messages.

    Raises:
        InputError: keys are missing, unexpected or of another shape; the message names them.
    """
    theirs = {}
    for ours in expected:
        module, _, leaf = ours.rpartition(".")
        theirs[ours] = f"{modules[module]}.{leaf}"
    require_fit(state, {key: expected[ours] for ours, key in theirs.items()}, path)
    return {ours: state[key].to(expected[ours].dtype) for ours, key in theirs.items()}


def require_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError, which names the keys, unless a checkpoint has all tensors that are expected and no other."""
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
    """Of `a, b, c` the first few."""
    more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f" ({', '.join(keys[:_SHOWN])}{more})" if keys else ""


def same_norms(weights: dict[str, Tensor], parts: Mapping[str, tuple[Settings, float]]) -> None:
    """Scale the weights of batch normalisations so that they compute with our epsilon what they did with theirs.

    weight / sqrt(variance + theirs) = weight' / sqrt(variance + ours), of each channel, with running statistics.

    Args:
        weights: our `state_dict`, changed in place.
        parts: by the beginning of our names the part of the configuration whose `norm_cfg` has the epsilon, and
            mmdet3d's default where there is no `norm_cfg`; one without `eps` means torch's.
    """
    for key in [key for key in weights if key.endswith(".running_var")]:
        part, default = next(found for start, found in parts.items() if key.startswith(start))
        theirs = float(part.get("norm_cfg", {"eps": default}).get("eps", 1e-5))
        name, variance = f"{key.removesuffix('.running_var')}.weight", weights[key].double()
        scaled = weights[name].double() * ((variance + EPSILON) / (variance + theirs)).sqrt()
        weights[name] = scaled.to(weights[name])
