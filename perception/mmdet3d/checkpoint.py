"""Reads configurations and checkpoints of mmdet3d, without running them, and renames their weights.

Configurations are flat: Python files of names and literals, which are parsed. mmengine's `Config.dump` writes such a
file, with literals and dict(key=value) as the only values. Every training of mmdet3d has one in its folder, and
`mim download` writes one beside the checkpoint.
"""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perception.checkpoint import require_same_keys
from perception.errors import InputError

FLATTEN = "python -c \"from mmengine.config import Config; Config.fromfile('{}').dump('flat.py')\""
NORM_EPSILON = 1e-3  # of our batch normalisations


class ConfigSection:
    """One dictionary of a configuration; `name` is its key path, such as model.pts_neck, or empty for the whole."""

    def __init__(self, content: Mapping[str, Any], path: Path, name: str = "") -> None:
        self.content, self.path, self.name = content, path, name

    def __getitem__(self, key: str) -> Any:
        if key not in self.content:
            raise InputError(f"{self.path}: {self._key_path(key)} is missing")
        return self.content[key]

    def _key_path(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def get(self, key: str, default: Any) -> Any:
        return self.content.get(key, default)

    def part(self, key: str) -> ConfigSection:
        content = self[key]
        if not isinstance(content, dict):
            raise InputError(f"{self.path}: {self._key_path(key)} must be a dictionary, is {content!r}")
        return ConfigSection(content, self.path, self._key_path(key))

    def require(self, key: str, *supported: Any, default: Any = ...) -> None:
        """Raise InputError unless the setting has one of the supported values.

        Args:
            default: mmdet3d's value where the key is absent. By default the key must be present; None accepts its
                absence.
        """
        if default is None and key not in self.content:
            return
        given = self[key] if default is ... else self.get(key, default)
        if _as_lists(given) not in [_as_lists(each) for each in supported]:
            raise self.unsupported_error(
                f"{key} is {given!r}, ours has {' or '.join(repr(each) for each in supported)}"
            )

    def require_all(self, settings: Mapping[str, tuple[Any, Any]]) -> None:
        """`require` each setting: its supported value, and mmdet3d's default."""
        for key, (supported, default) in settings.items():
            self.require(key, supported, default=default)

    def unsupported_error(self, reason: str) -> InputError:
        return InputError(f"{self.path}: {self.name}: no counterpart here: {reason}")


def _as_lists(value: Any) -> Any:
    """Tuples as lists, so that both are equal."""
    return [_as_lists(each) for each in value] if isinstance(value, list | tuple) else value


def read_config(path: Path) -> ConfigSection:
    """The names of a flat configuration with their values."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the configuration ({error.__class__.__name__})") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: not a Python file ({error.__class__.__name__})") from None
    content: dict[str, Any] = {}
    for statement in tree.body:
        try:
            match statement:
                case ast.Assign([ast.Name(name)], value) if name != "_base_":
                    content[name] = ast.literal_eval(_Dictionaries().visit(value))
                case _:
                    raise ValueError
        except (ValueError, TypeError, RecursionError, MemoryError):
            line = text.splitlines()[statement.lineno - 1].strip()
            raise InputError(
                f"{path}:{statement.lineno}: {line[:40]!a} is more than a name and its value: a configuration is read, "
                f"not run; write a flat one with {FLATTEN.format(path)}"
            ) from None
    if not isinstance(content.get("model"), dict):
        raise InputError(f"{path}: no `model` here; give a configuration of mmdet3d")
    return ConfigSection(content, path)


class _Dictionaries(ast.NodeTransformer):
    """Rewrites dict(key=value), as mmengine writes dictionaries, to the literal {'key': value}."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.Call(ast.Name("dict"), [], keywords) if all(keyword.arg for keyword in keywords):
                return ast.Dict([ast.Constant(each.arg) for each in keywords], [each.value for each in keywords])
        return node


def read_state(path: Path) -> dict[str, Tensor]:
    """The `state_dict` of a checkpoint, read without running code from it."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError as error:
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path}: holds more than tensors and plain data ({refused[1]}), which would run code when read; keep"
                " the weights alone: tools/model_converters/publish_model.py of mmdet3d"
            ) from None
        raise InputError(f"{path}: not a checkpoint of torch, or damaged") from None
    except Exception:  # torch raises many types for damaged files
        raise InputError(f"{path}: not a checkpoint of torch, or cut short") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no `state_dict` of tensors; give a checkpoint of mmdet3d")
    return dict(state)


def rename_state(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], modules: Mapping[str, str], path: Path
) -> dict[str, Tensor]:
    """The checkpoint's tensors under our names.

    Args:
        expected: our `state_dict`, for names and shapes.
        modules: our module name -> mmdet3d's, such as trunk.stages.0.0.conv.layer -> pts_backbone.blocks.0.0.
    """
    parts = {name: name.rpartition(".") for name in expected}
    source = {name: f"{modules[module]}.{leaf}" for name, (module, _, leaf) in parts.items()}
    require_same_keys(state, {key: expected[name] for name, key in source.items()}, path)
    return {name: state[key].to(expected[name].dtype) for name, key in source.items()}


def convert_norm_epsilons(weights: dict[str, Tensor], parts: Mapping[str, tuple[ConfigSection, float]]) -> None:
    """Rescale the weights of batch normalisations in place so that their outputs are the same with our epsilon.

    weight / sqrt(variance + theirs) = weight' / sqrt(variance + ours) for each channel, with running statistics.

    Args:
        parts: prefix of our names -> the section of the configuration whose `norm_cfg` has the epsilon, and mmdet3d's
            default without a `norm_cfg`. A `norm_cfg` without `eps` means torch's default.
    """
    for key in [key for key in weights if key.endswith(".running_var")]:
        part, default = next(found for start, found in parts.items() if key.startswith(start))
        theirs = float(part.get("norm_cfg", {"eps": default}).get("eps", 1e-5))
        name, variance = f"{key.removesuffix('.running_var')}.weight", weights[key].double()
        scaled = weights[name].double() * ((variance + NORM_EPSILON) / (variance + theirs)).sqrt()
        weights[name] = scaled.to(weights[name])
