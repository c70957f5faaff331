"""The architecture page's picture is what the code says."""

import subprocess
import sys

from repository import ROOT


def test_the_picture_is_drawn_from_the_code() -> None:
    tool = ROOT / "tools" / "architecture.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
