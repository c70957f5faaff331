"""Commands whose output nobody reads to its end, as by `| head`."""

import os
import subprocess
import sys

import pytest
from exported import bundle


@pytest.mark.slow("may be the first to export")
def test_a_closed_pipe_is_no_verdict() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "deploy.cli", "verify", str(bundle().path)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=300)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
