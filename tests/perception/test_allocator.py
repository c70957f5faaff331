"""The allocator's setting: pages stay in the process, and only where a command trains or simulates."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import os, resource, sys
from perception.commands.common import keep_memory
print(keep_memory())
import numpy as np
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(40 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def printed(code: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "PERCEPTION_KEEP"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def test_freed_pages_stay_in_the_process():
    """In a second round over blocks of 40 MB the kernel gives no page anew, unless the user has set malloc."""
    if "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"):
        pytest.skip("not glibc")
    accepted, faults = printed(FAULTS)
    switched_off, more = printed(FAULTS, PERCEPTION_KEEP_MEMORY="0")
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
    also_accepted, own = printed(FAULTS, **dict(zip(names, ("4096", "4096", "0"), strict=True)))
    assert (accepted, switched_off, also_accepted) == ("True", "False", "True")
    assert int(faults) < 20 < min(int(more), int(own))  # at least one page for each of the 20 blocks
