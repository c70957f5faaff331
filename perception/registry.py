"""What users register beside what comes with the package."""

from __future__ import annotations

from collections import UserDict
from pkgutil import resolve_name
from typing import Any


class Registry(UserDict[str, Any]):
    """Name -> class. One that is given as package.module:Class is imported when it is first needed."""

    def __getitem__(self, name: str) -> Any:
        registered = self.data[name]
        if isinstance(registered, str):
            registered = self.data[name] = resolve_name(registered)
        return registered
