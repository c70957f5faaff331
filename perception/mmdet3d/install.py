"""mmdet3d itself, where it is installed. To import one of its checkpoints it is not needed."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from perception.errors import InputError

# mmdet 3.3.0 and mmdet3d 1.4.0 assert mmcv < 2.2.0 when they are imported. That limit was set before mmcv 2.2 was
# there; what they call of it is the same in the maintained fork (onedl-mmcv), which says 2.3 or later. So it says this
# for as long as they are being imported.
ASSERTED = "2.1.0"


def import_mmdet3d() -> ModuleType:
    """The package mmdet3d, with its models registered.

    Raises:
        InputError: it, mmdet or mmcv is not installed, or they do not fit each other.
    """
    try:
        mmcv: Any = importlib.import_module("mmcv")
        version, mmcv.__version__ = mmcv.__version__, ASSERTED
        try:
            importlib.import_module("mmdet")
            mmdet3d = importlib.import_module("mmdet3d")
            importlib.import_module("mmdet3d.utils").register_all_modules()
        finally:
            mmcv.__version__ = version
    except (ImportError, AssertionError) as error:  # asserts are how it refuses a version
        reason = " ".join(str(error).split())
        raise InputError(f"mmdet3d cannot be imported ({reason}); install it with `make install-mmdet3d`") from None
    return mmdet3d
