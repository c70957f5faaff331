"""Configurations of mmdet3d are Python files. They are read here, not run.

mmengine's own reader executes them, so that a configuration from elsewhere could do anything. What a model needs of one
is literals, names, arithmetic, indices, dict(), list(), tuple(), sum() and len(), and `_base_` files of the same kind:
these are evaluated on the syntax tree. Whatever else stands in the file (imports, calls, loops) is passed over, and
refused only where what is asked for depends on it.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from perception.errors import InputError

_CALLS: Mapping[str, Callable[..., Any]] = {"dict": dict, "list": list, "tuple": tuple, "sum": sum, "len": len}
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_LONGEST = 100_000  # elements of a list or characters of a text that addition may make


class _Unreadable(Exception):
    """An expression that is more than data; the message says where and what."""


def read_config(path: Path) -> dict[str, Any]:
    """All names that the configuration and its `_base_` files give a value that can be read without running them.

    Raises:
        InputError: a file is absent or no Python, or bases refer to each other in a circle.
    """
    return {name: value for name, value in _read(path, ()).items() if not isinstance(value, _Unreadable)}


def read_model(path: Path) -> dict[str, Any]:
    """The `model` of a configuration.

    Raises:
        InputError: as `read_config`, or there is none that can be read without running the file.
    """
    model = _read(path, ()).get("model")
    if isinstance(model, _Unreadable):
        raise InputError(f"{model}: a configuration is read, not run; write the value itself (mmengine's Config.dump)")
    if not isinstance(model, dict):
        raise InputError(f"{path}: no `model` here; give a configuration of mmdet3d")
    return model


def read_sweeps(path: Path) -> int:
    """How many LiDAR sweeps before the keyframe the model sees when it is tested.

    Raises:
        InputError: as `read_config`, or there is no `test_pipeline`.
    """
    pipeline = read_config(path).get("test_pipeline")
    if not isinstance(pipeline, list | tuple):
        raise InputError(f"{path}: no `test_pipeline` here, which says how many sweeps the model sees")
    steps = [step for step in pipeline if isinstance(step, dict) and step.get("type") == "LoadPointsFromMultiSweeps"]
    return int(steps[0].get("sweeps_num", 10)) if steps else 0


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in readers:
        raise InputError(f"{path}: is its own `_base_`")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the configuration ({error.__class__.__name__})") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: not a Python file ({error.__class__.__name__})") from None
    names: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    names[target.id] = _value(statement.value, names, path)
    bases = names.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list | tuple) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path}: `_base_` must be a path or a list of paths")
    inherited: dict[str, Any] = {}
    for base in bases:
        inherited |= _read(_base(base, path), (*readers, path.resolve()))
    return _merged(inherited, names)


def _base(name: str, reader: Path) -> Path:
    """The file of a `_base_`: beside the one that names it or, as in mmdet3d::_base_/..., of the package."""
    package, scoped, file = name.partition("::")
    if not scoped:
        return reader.parent / name
    found = find_spec("mmdet3d") if package == "mmdet3d" else None  # it is not imported
    if found is None or found.origin is None:
        raise InputError(f"{reader}: its `_base_` {name} is not here: {package} is not installed")
    return Path(found.origin).parent / ".mim" / "configs" / file


def _merged(base: dict[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """`child` over `base`, dictionaries key by key, as mmengine does; `_delete_` replaces a whole dictionary."""
    result = dict(base)
    for key, value in child.items():
        if isinstance(value, dict):
            own = {name: each for name, each in value.items() if name != "_delete_"}
            below = base.get(key) if not value.get("_delete_") else None
            result[key] = _merged(below if isinstance(below, dict) else {}, own)
        else:
            result[key] = value
    return result


def _value(node: ast.expr, names: Mapping[str, Any], path: Path) -> Any:
    """What an assignment gives its name; an `_Unreadable` if that is more than data."""
    try:
        return _evaluate(node, names, path)
    except _Unreadable as error:
        return error
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        return _Unreadable(f"{path}:{node.lineno}: {ast.unparse(node)[:60]} ({error.__class__.__name__})")


def _evaluate(node: ast.expr, names: Mapping[str, Any], path: Path) -> Any:  # noqa: PLR0911 - one for each kind
    def of(child: ast.expr) -> Any:
        return _evaluate(child, names, path)

    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name) if name in names:
            if isinstance(names[name], _Unreadable):
                raise names[name]
            return names[name]
        case ast.List(elements):
            return [of(each) for each in elements]
        case ast.Tuple(elements):
            return tuple(of(each) for each in elements)
        case ast.Dict(keys, values) if None not in keys:
            return {of(key): of(value) for key, value in zip(keys, values, strict=True) if key is not None}
        case ast.UnaryOp(ast.USub(), operand):
            return -of(operand)
        case ast.BinOp(left, kind, right) if type(kind) in _ARITHMETIC:
            return _computed(_ARITHMETIC[type(kind)], of(left), of(right))
        case ast.Subscript(value, ast.Slice(lower, upper, step)):
            return of(value)[slice(*(each and of(each) for each in (lower, upper, step)))]
        case ast.Subscript(value, index):
            return of(value)[of(index)]
        case ast.Call(ast.Name(name), arguments, keywords) if name in _CALLS and all(k.arg for k in keywords):
            return _CALLS[name](*map(of, arguments), **{str(k.arg): of(k.value) for k in keywords})
    raise _Unreadable(f"{path}:{node.lineno}: {ast.unparse(node)[:60]}")


def _computed(operation: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """The result for two numbers, or two short texts or lists to be joined; others could fill the memory."""
    numbers = all(isinstance(each, int | float) for each in (left, right))
    if numbers or (operation is operator.add and len(left) + len(right) <= _LONGEST):
        return operation(left, right)
    raise ValueError("neither numbers nor something short to join")
