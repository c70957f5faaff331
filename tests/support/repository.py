"""Where this repository lies, and the recorded data that tests use."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def recorded(name: str, file: str) -> Path:
    """The folder of recorded data that PERCEPTION_<name> says; skips a test where it does not have the file."""
    variable = f"PERCEPTION_{name.upper()}"
    root = Path(os.environ.get(variable) or ROOT.parent / "shared" / "data" / name)
    if not (root / file).exists():
        pytest.skip(f"recorded data not found at {root} (set {variable})")
    return root
