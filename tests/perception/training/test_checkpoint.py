"""Checkpoints: complete or not at all, whatever happens while they are written."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpointed import CONFIG, trained
from repository import ROOT

from perception.errors import InputError
from perception.training import checkpoint

WRITER = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from checkpointed import CONFIG, trained
from perception.training import checkpoint
model, optimizer = trained()
for step in range(int(sys.argv[2]), 10_000):
    checkpoint.save(Path(sys.argv[1]), step, CONFIG, model, optimizer, {{}})
    print(step, flush=True)
"""


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    model, optimizer = trained()
    checkpoint.save(tmp_path, 7, CONFIG, model, optimizer, {"rate": 0.1})
    loaded, config = checkpoint.load_model(tmp_path)
    assert config == CONFIG
    assert not loaded.training
    state = loaded.state_dict()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())

    other, fresh = trained(seed=1)
    step, schedule = checkpoint.resume(tmp_path, CONFIG, other, fresh)
    assert (step, schedule) == (7, {"rate": 0.1})
    before, after = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[i][k], after[i][k]) for i in before for k in before[i])


def test_a_checkpoint_says_what_it_is_and_what_it_was_trained_on(tmp_path):
    model, optimizer = trained()
    folder = checkpoint.save(tmp_path, 7, CONFIG, model, optimizer, {}, ["drives", "drives at night"])
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert checkpoint.provenance(tmp_path) == (weights, ("drives", "drives at night"))
    content = json.loads((folder / "checkpoint.json").read_text())
    del content["data"]  # as earlier versions wrote it
    (folder / "checkpoint.json").write_text(json.dumps(content))
    assert checkpoint.provenance(tmp_path) == (weights, ())
    checkpoint.resume(tmp_path, CONFIG, model, optimizer)


def test_only_the_newest_stay(tmp_path):
    model, optimizer = trained()
    for step in (1, 2, 3, 10):
        last = checkpoint.save(tmp_path, step, CONFIG, model, optimizer, {})
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-000003", "step-000010"]
    assert checkpoint.newest(tmp_path) == last


def run_writer(run: Path, first: int, before: str = "") -> subprocess.Popen[str]:
    code = before + WRITER.format(tests=str(ROOT / "tests" / "support"))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(run), str(first)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_kill_in_the_middle_of_writing_leaves_the_previous_one(tmp_path):
    """The writer saves without a pause and is killed without warning, at several moments."""
    writer = run_writer(tmp_path, 0)
    for _ in range(3):
        writer.stdout.readline()
    for _ in range(4):
        writer.stdout.readline()
        time.sleep(0.003)
    writer.send_signal(signal.SIGKILL)
    done = [int(line) for line in writer.stdout.read().split()]
    writer.wait()
    newest = checkpoint.newest(tmp_path)
    assert int(newest.name.removeprefix("step-")) >= max(done, default=6)
    loaded, _ = checkpoint.load_model(tmp_path)
    expected = trained()[0].state_dict()
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in expected.items())


def test_a_full_disk_is_said_and_leaves_the_previous_one(tmp_path):
    """The operating system refuses to let a file grow past a limit, as a full disk does."""
    model, optimizer = trained()
    before = checkpoint.save(tmp_path, 1, CONFIG, model, optimizer, {})
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    writer = run_writer(tmp_path, 2, before=limit)
    _, stderr = writer.communicate(timeout=600)  # it would write without end, were it not refused
    assert "cannot write the checkpoint" in stderr.splitlines()[-1]
    assert stderr.endswith("; the earlier ones are unharmed: free some space, --resume\n")
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [before.name]
    checkpoint.load_model(tmp_path)


def test_what_else_stops_a_write_is_said_with_the_way_on(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(
        InputError, match=r"cannot write the checkpoint \(.*\); the earlier .* free some space, --resume"
    ):
        checkpoint.save(tmp_path, 1, CONFIG, *trained(), {})


def test_another_configuration_is_refused(tmp_path):
    model, optimizer = trained()
    folder = checkpoint.save(tmp_path, 1, CONFIG, model, optimizer, {})
    longer = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"steps": 7})})
    with pytest.raises(InputError, match=r"another configuration: train.steps was 1000, is 7"):
        checkpoint.resume(tmp_path, longer, model, optimizer)

    content = json.loads((folder / "checkpoint.json").read_text())
    content["config"]["model"]["trunk"]["channels"] = [6]
    (folder / "checkpoint.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"0 tensors absent, 0 unknown, [0-9]+ of another shape"):
        checkpoint.load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
def test_damage_is_found(tmp_path, name):
    model, optimizer = trained()
    file = checkpoint.save(tmp_path, 1, CONFIG, model, optimizer, {}) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: missing or damaged"):
        checkpoint.load_model(tmp_path)
    file.unlink()
    with pytest.raises(InputError, match=f"{name}: missing or damaged"):
        checkpoint.load_model(tmp_path)


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(InputError, match="no checkpoint here"):
        checkpoint.load_model(tmp_path)
