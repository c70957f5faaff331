"""The import of mmdet3d itself."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from perception.errors import InputError

# mmdet 3.3.0 and mmdet3d 1.4.0 assert mmcv < 2.2.0 on import. The maintained fork (onedl-mmcv, 2.3 or later) has the
# same interface, so it reports this version during the import.
REPORTED_MMCV_VERSION = "2.1.0"


def import_mmdet3d() -> ModuleType:
    """The package mmdet3d, with its models registered."""
    try:
        mmcv: Any = importlib.import_module("mmcv")
        version, mmcv.__version__ = mmcv.__version__, REPORTED_MMCV_VERSION
        try:
            importlib.import_module("mmdet")
            mmdet3d = importlib.import_module("mmdet3d")
            importlib.import_module("mmdet3d.utils").register_all_modules()
        finally:
            mmcv.__version__ = version
    except (ImportError, AssertionError) as error:  # it checks versions by assertions
        reason = " ".join(str(error).split())
        raise InputError(f"mmdet3d cannot be imported ({reason}); install it with `make install-mmdet3d`") from None
    return mmdet3d
