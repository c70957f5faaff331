"""Python as on a vehicle, where nothing of the workshop is installed."""

import subprocess
import sys

from check_repository import ABSENT
from repository import ROOT

BLOCKED = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, check=False, cwd=ROOT)
