"""The C++ runtime's pillars and pictures, equal in every bit, where its package can be used (docs/native.md)."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any


def _native() -> Any:
    if importlib.util.find_spec("tessera_runtime") is None:
        return None
    native = importlib.import_module("tessera_runtime")
    try:
        native.load()
    except OSError as error:
        warnings.warn(
            f"tessera_runtime: cannot be used ({error}); pillars and pictures are made by Python", stacklevel=2
        )
        return None
    return native


NATIVE = _native()
