"""The command in a real terminal, which is narrow."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from replays import small
from tiny import write_tiny

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours, and movements of the cursor


def in_terminal(columns: int, *arguments: object) -> list[str]:
    """The lines that a terminal shows while the command succeeds, one over the other too."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    command = [sys.executable, "-m", "deploy.cli", *map(str, arguments)]
    done = subprocess.Popen(command, stdin=there, stdout=there, stderr=there, env=environment | {"TERM": "xterm"})
    os.close(there)
    shown = bytearray()
    try:
        while part := os.read(here, 1 << 16):
            shown += part
    except OSError:  # nobody writes to it any more
        pass
    os.close(here)
    assert done.wait() == 0, shown.decode()
    return re.split(r"[\r\n]+", _CONTROL.sub("", shown.decode()))


@pytest.mark.slow("may be the first to export")
@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("command", ["--help", "replay --help", "export --help", "build --list", "verify {}"])
def test_no_line_is_wider_than_the_terminal(command: str, columns: int) -> None:
    lines = in_terminal(columns, *command.format(small()).split())
    assert 1 < max(map(len, lines)) <= columns


@pytest.mark.slow("simulates a keyframe")
def test_a_progress_bar_ends_full(tmp_path: Path) -> None:
    lines = in_terminal(80, "simulate", tmp_path / "drives", "--scenes", 1, "--samples", 1, "--jobs", 1)
    assert max(map(len, lines)) <= 80
    assert "100%" in [line for line in lines if line.strip()][-1]


@pytest.mark.slow("two replays, each a process")
@pytest.mark.parametrize("columns", [80, 60])
def test_the_table_of_a_replay_is_whole(columns: int, tmp_path: Path) -> None:
    """Its numbers, which a terminal of 60 columns has room for, are not cut."""
    write_tiny(tmp_path / "drives")
    lines = in_terminal(columns, "replay", tmp_path / "drives", "--bundle", small(), "--out", tmp_path / "out")
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= columns
    assert not any("…" in line for line in lines)
    assert any(re.match(r"│ total +│ +[0-9.]+ │ +[0-9.]+ │ +[0-9.]+ │$", line) for line in lines)
