"""A training as a user watches it: in a pipe, on a terminal, with Ctrl-C, and resumed."""

import csv
import importlib.util
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

import pytest
import yaml
from commands import refuses, succeeds
from repository import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from perception.training.interrupt import InterruptRequest

SMALL = {
    "name": "small",
    "grid": {"cell": 3.2},
    "data": {"augment": None, "workers": 0},
    "model": {
        "lidar": {"max_pillars": 200, "points_per_pillar": 3, "channels": 8, "sweeps": 0},
        "fused_channels": 8,
        "trunk": {"channels": [8], "blocks": [1], "strides": [1], "up_channels": 8, "stride": 1},
    },
    "tasks": {"detection": {"channels": 8, "top_k": 20}},
    "train": {"steps": 8, "batch": 2, "log_every": 2},
}


@pytest.fixture
def training(recorded_root: Path, tmp_path: Path) -> list[str]:
    """Arguments of a training of 8 steps, without --out."""
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL))
    return ["train", str(config), "--data", str(recorded_root), "--split", "all"]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(run: Path, step: int) -> tuple[bytes, ...]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    return tuple((folder / f"{name}.safetensors").read_bytes() for name in ("model", "training"))


@contextmanager
def on_terminal(columns: int, *arguments: object) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The command on a terminal of this width; yields the other end of the terminal, and the process."""
    master, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "CI")}
    environment |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *map(str, arguments)],
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
        env=environment,
        start_new_session=True,
    )
    os.close(terminal)
    try:
        yield master, process
    finally:
        process.kill()
        process.wait()
        os.close(master)


def read_until(master: int, text: str = "") -> str:
    """What the terminal shows until this text, or the end of the process."""
    shown = b""
    while not text or text.encode() not in shown:
        try:
            shown += os.read(master, 4096)
        except OSError:  # the process closed the terminal
            break
    return shown.decode(errors="replace")


@pytest.mark.slow("a process in a pipe")
def test_a_pipe_gets_a_line_for_each_interval_and_each_validation(training, tmp_path: Path) -> None:
    run, small = tmp_path / "run", yaml.safe_load((tmp_path / "small.yaml").read_text())
    small["train"]["validation"] = {"every": 4, "unit": "steps", "split": "all", "metric": "mAP"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "deploy.cli", *training, "--out", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    steps = [
        (int(n), "validation" in line) for line in done.stderr.splitlines() for n in re.findall(r"^step (\d+)/8", line)
    ]
    assert steps == [(2, False), (4, False), (4, True), (6, False), (8, False), (8, True)]
    first = next(line for line in done.stderr.splitlines() if line.startswith("step 2/8"))
    for word in ("loss", "detection/heatmap", "learning_rate", "s/step", "ETA", "memory"):
        assert word in first
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    assert f"tensorboard --logdir {run / 'tensorboard'}" in done.stderr
    assert "log.csv" in done.stderr
    table = rows(run)
    assert [row["step"] for row in table] == ["2", "4", "6", "8"]
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for name in ("loss", "detection/heatmap", "learning_rate"):
        logged = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert logged == [(int(row["step"]), pytest.approx(float(row[name]), rel=1e-5)) for row in table]
    assert [event.step for event in events.Scalars("validation/mAP")] == [4, 8]
    terms = [sum(float(row[name]) for name in row if "/" in name) for row in table]
    assert [float(row["loss"]) for row in table] == pytest.approx(terms, rel=1e-4)


@pytest.mark.slow("a process on a terminal")
@pytest.mark.parametrize("columns", [60, 160])
def test_the_bar_fits_the_terminal(training, tmp_path: Path, columns: int) -> None:
    with on_terminal(columns, *training, "--out", tmp_path / "run") as (master, process):
        shown = read_until(master)
        assert process.wait() == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    drawn = [line for line in re.split(r"[\r\n]+", plain) if "ETA" in line]
    assert drawn
    assert max(map(len, drawn)) <= columns
    assert "\x1b[2A" not in shown  # a bar that wraps is drawn over two lines
    last = drawn[-1]
    assert re.search(r"step 8/8  loss \d\S*  \S+ s/step  ETA 0:00:00", last), last
    assert "━" in last
    assert "detection/" not in plain


@pytest.mark.slow("a process on a terminal, and 300 steps twice, so that it can be interrupted among them")
def test_ctrl_c_saves_and_the_printed_command_continues_to_the_same_bits(training, tmp_path: Path) -> None:
    training, stopped, whole = [*training, "train.steps=300"], tmp_path / "stopped", tmp_path / "whole"
    with on_terminal(200, *training, "--out", stopped) as (master, process):
        read_until(master, "s/step")
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        shown = read_until(master)
        assert process.wait() == 130, shown
    step = int(re.search(r"stopped after step (\d+) of 300 and saved", shown)[1])
    assert 0 < step < 300
    assert (stopped / "checkpoints" / f"step-{step:06d}").exists()
    command = shlex.split(next(line for line in shown.splitlines() if line.startswith("perception train")))
    succeeds(*command[1:])
    succeeds(*training, "--out", whole)
    assert weights(stopped, 300) == weights(whole, 300)
    assert rows(stopped)[-1]["step"] == "300"


def test_a_second_ctrl_c_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with InterruptRequest() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_continues_with_more_steps_and_other_intervals(training, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeeds(*training, "--out", run)
    succeeds(*training, "train.steps=12", "train.log_every=3", "train.checkpoint_every=5", "--out", run, "--resume")
    assert [row["step"] for row in rows(run)] == ["2", "4", "6", "8", "9", "10", "12"]
    rates = [float(row["learning_rate"]) for row in rows(run)]
    assert rates[4] > rates[3]  # the schedule of 12 steps is higher at step 9
    assert rates[6] < 1e-6
    assert "beyond 9 steps" in refuses(*training, "train.steps=9", "--out", run, "--resume")
    line = refuses(*training, "train.steps=20", "train.batch=1", "--out", run, "--resume")
    assert "train.batch was 2, is 1" in line
    assert "train.steps" in line


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_missing_is_said_before_the_training(training, tmp_path: Path) -> None:
    line = refuses(*training, "train.trackers=[tensorboard, wandb]", "--out", tmp_path / "run")
    assert "pip install wandb" in line
    assert not (tmp_path / "run").exists()


def test_an_adaptation_resumes_to_the_bytes_of_a_whole_one(training, tmp_path: Path) -> None:
    base, data = tmp_path / "base", training[2:]
    succeeds(*training, "--out", base)
    adapt = ["adapt", base, "--add", "low_rank:a", *data, "--steps"]
    succeeds(*adapt, 6, "--out", tmp_path / "whole")
    refuses(*adapt, 6, "--out", tmp_path / "whole")
    succeeds(*adapt, 6, "--out", tmp_path / "whole", "--resume")  # without a step
    whole = weights(tmp_path / "whole", 6)
    succeeds(*adapt, 9, "--out", tmp_path / "whole", "--resume")
    assert weights(tmp_path / "whole", 6) == whole
    assert (tmp_path / "whole" / "checkpoints" / "step-000009").exists()
