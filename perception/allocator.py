"""Keeps freed memory in the process while it trains or simulates.

glibc takes blocks over 128 KiB to 32 MiB from the kernel and gives them back when they are freed. A training on a CPU
frees and takes the same large tensors in every step, so the kernel clears the same pages again and again. With higher
thresholds (mallopt(3)) the pages stay. The process is larger by what was free.
"""

from __future__ import annotations

import ctypes
import os
import sys

VARIABLE = "PERCEPTION_KEEP_MEMORY"  # environment variable; 0 leaves malloc as it is
# Parameters of mallopt(3) with their environment variables, which processes started later read, and values in bytes.
_SETTINGS = (
    (-3, "MALLOC_MMAP_THRESHOLD_", 1 << 30),
    (-1, "MALLOC_TRIM_THRESHOLD_", (1 << 31) - 1),
    (-2, "MALLOC_TOP_PAD_", 1 << 28),
)


def keep_memory() -> bool:
    """Let malloc keep what is freed, here and in processes started from now on; call it before torch allocates.

    What the user set of malloc's environment variables stays.

    Returns:
        Whether it does: false without glibc, with PERCEPTION_KEEP_MEMORY=0, or where glibc refuses.
    """
    if sys.platform != "linux" or os.environ.get(VARIABLE) == "0":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    accepted = True
    for parameter, variable, value in _SETTINGS:
        if variable not in os.environ:
            os.environ[variable] = str(value)
            accepted &= library.mallopt(parameter, value) == 1
    return accepted
