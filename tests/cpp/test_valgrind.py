"""The C example with ONNX Runtime in valgrind: nothing invalid is read or written, and no memory is lost."""

import os
import shutil
import subprocess
from itertools import islice
from pathlib import Path

import pytest
import tessera_runtime as native
from both_runtimes import drive, write_frames
from exported import remembering

PROGRAM = Path(os.environ[native.LIBRARY]).with_name("run_folder")
CHECK = ("valgrind", "--quiet", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect", "--error-exitcode=99")
pytestmark = [
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed (apt-get install valgrind)"),
    pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizers look for the same"),
    pytest.mark.slow("a program takes 20 times as long in valgrind"),
]


@pytest.mark.parametrize("network", ["whole", "damaged"])
def test_a_program_makes_no_error_of_memory(network: str, tmp_path: Path) -> None:
    """Neither while it drives nor where a bundle is refused; it says and returns what it does without valgrind."""
    path = remembering().path
    if network == "damaged":
        path = shutil.copytree(path, tmp_path / "bundle")
        with (path / "model.onnx").open("ab") as file:
            file.write(b"\0")
    write_frames(islice(drive(), 3), tmp_path)
    command = [PROGRAM, path, tmp_path]
    plain, checked = (
        subprocess.run([*words, *command], capture_output=True, text=True, check=False) for words in ((), CHECK)
    )
    assert plain.returncode == (2 if network == "damaged" else 0)
    assert (checked.returncode, checked.stderr) == (plain.returncode, plain.stderr)
    seen, expected = ({line.split()[0] for line in each.stdout.splitlines()} for each in (checked, plain))
    assert seen == expected  # frames; the last bit of a score may differ, since valgrind has no AVX-512
