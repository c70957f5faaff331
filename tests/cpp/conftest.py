import os
from pathlib import Path

import pytest
from repository import ROOT


@pytest.fixture(scope="session")
def headers() -> Path:
    """Folder of the headers of TensorRT and ROS 2, which `make cpp` unpacks."""
    folder = ROOT / "runs" / "cpp" / "headers"
    if not folder.exists():
        packed = os.environ.get("PERCEPTION_HEADERS") or ROOT.parent / "shared" / "headers" / "headers.tar.xz"
        pytest.skip(f"headers not found at {packed} (set PERCEPTION_HEADERS)")
    return folder
