"""Python as on a vehicle, where nothing of the workshop is installed."""

import subprocess
import sys

from repository import ROOT


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Python as on a vehicle, where nothing of the workshop is installed."""
    from check_repository import ABSENT

    blocked = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n"
    return subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True, check=False, cwd=ROOT)
