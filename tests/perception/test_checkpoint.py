"""Checkpoints: what is saved comes back, a kill or a full disk leaves the previous one, and damage is refused."""

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import RAIN, little

from perception import checkpoint
from perception.checkpoint import load_model, newest, provenance
from perception.errors import InputError
from perception.model import PerceptionModel

CONFIG = little([RAIN]).config


def stepped(seed: int = 0) -> tuple[PerceptionModel, torch.optim.AdamW]:
    """A model and its optimizer after one step with random gradients."""
    torch.manual_seed(seed)
    model = PerceptionModel(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def states(model: PerceptionModel, optimizer: torch.optim.AdamW) -> tuple[dict[str, Any], dict[str, Any]]:
    return model.state_dict(), optimizer.state_dict()


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = stepped()
    folder = checkpoint.save(
        tmp_path, 7, CONFIG, *states(model, optimizer), {"rate": 0.1}, ["drives", "drives at night"]
    )
    loaded, config = load_model(tmp_path)
    assert config == CONFIG
    assert not loaded.training
    state = loaded.state_dict()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())

    other, fresh = stepped(seed=1)
    assert checkpoint.resume(tmp_path, CONFIG, other, fresh) == (7, {"rate": 0.1})
    before, after = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[i][k], after[i][k]) for i in before for k in before[i])

    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert provenance(tmp_path) == (weights, ("drives", "drives at night"))
    content = json.loads((folder / "checkpoint.json").read_text())
    del content["data"]  # as earlier versions wrote it
    (folder / "checkpoint.json").write_text(json.dumps(content))
    assert provenance(tmp_path) == (weights, ())
    checkpoint.resume(tmp_path, CONFIG, model, optimizer)

    for step in (8, 9, 10):  # only the newest stay
        last = checkpoint.save(tmp_path, step, CONFIG, *states(model, optimizer), {})
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-000009", "step-000010"]
    assert newest(tmp_path) == last


def save_forever(run: Path, done: Any, state: tuple[PerceptionModel, torch.optim.AdamW]) -> None:
    for step in range(10_000):
        checkpoint.save(run, step, CONFIG, *states(*state), {})
        done.send(step)


def test_a_kill_in_the_middle_of_writing_leaves_the_previous_one(tmp_path: Path) -> None:
    """The writer saves without a pause and is killed without warning, at several moments."""
    model, optimizer = stepped()
    for moment in range(4):
        context, run = multiprocessing.get_context("fork"), tmp_path / str(moment)
        here, there = context.Pipe(duplex=False)
        writer = context.Process(target=save_forever, args=(run, there, (model, optimizer)))
        writer.start()
        there.close()
        steps = [here.recv() for _ in range(4)]
        time.sleep(0.003 * moment)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        while here.poll():
            try:
                steps.append(here.recv())
            except EOFError:
                break
        assert int(newest(run).name.removeprefix("step-")) >= max(steps)
        state = load_model(run)[0].state_dict()
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_a_full_disk_is_said_and_leaves_the_previous_one(tmp_path: Path) -> None:
    """The operating system refuses to let a file grow past a limit, as a full disk does."""
    model, optimizer = stepped()
    before = checkpoint.save(tmp_path, 1, CONFIG, *states(model, optimizer), {})
    says = r"cannot write the checkpoint \(.*\); the earlier ones are unharmed: free some space, --resume$"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InputError, match=says):
            checkpoint.save(tmp_path, 2, CONFIG, *states(model, optimizer), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [before.name]
    load_model(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoints").write_text("")
    with pytest.raises(InputError, match=says):
        checkpoint.save(tmp_path / "other", 1, CONFIG, *states(model, optimizer), {})


def test_a_checkpoint_beyond_a_million_steps_is_the_newest(tmp_path: Path) -> None:
    model, optimizer = stepped()
    for step in (999_000, 999_500):
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    saved = checkpoint.save(tmp_path, 1_000_000, model.config, *states(model, optimizer), {})
    assert newest(tmp_path) == saved
    assert {path.name for path in saved.parent.iterdir()} == {"step-999500", "step-1000000"}


def test_a_copy_beside_the_checkpoints_is_left_alone(tmp_path: Path) -> None:
    model, optimizer = stepped()
    first = checkpoint.save(tmp_path, 1, CONFIG, *states(model, optimizer), {})
    for name in ("step-000001-keep", "step-", "step-\u0664", "step-copy"):
        shutil.copytree(first, first.with_name(name))
    assert newest(tmp_path) == first
    for step in (2, 3):
        last = checkpoint.save(tmp_path, step, CONFIG, *states(model, optimizer), {})
    assert newest(tmp_path) == last
    assert {path.name for path in last.parent.iterdir()} >= {"step-000001-keep", "step-copy", "step-000002"}
    assert not first.exists()


NOT_CHECKPOINTS: list[Any] = [
    *("[" * 200_000, '{"a":' * 100_000, "null", "[]", "5", "", '{"x":' + "9" * 5000 + "}", '"\\ud800"', b"\xff\xfe\0"),
    *({"sha256": value} for value in ([1], "x", None, 7, {}, {"model.safetensors": 5}, {"x" * 5000: "x"}, {".": "x"})),
    *({"sha256": {"../../../../etc/hostname": "x"}}, {"config": None}, {"config": []}, {"data": 5}, {"data": "abc"}),
    *({"step": "1"}, {"schedule": []}, {"optimizer": {}}, {"optimizer": None}),
]


@pytest.mark.parametrize("changed", NOT_CHECKPOINTS, ids=range(len(NOT_CHECKPOINTS)))
def test_whatever_a_description_holds_is_read_or_refused(tmp_path: Path, changed: Any) -> None:
    model, optimizer = stepped()
    folder = checkpoint.save(tmp_path, 1, CONFIG, *states(model, optimizer), {})
    file = folder / "checkpoint.json"
    if isinstance(changed, dict):
        changed = json.dumps({**json.loads(file.read_text()), **changed})
    file.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    for read in (checkpoint.read_config, provenance, load_model, partial(resume, model, optimizer)):
        with pytest.raises(InputError) as error:
            read(tmp_path)
        assert str(file) in str(error.value)
        assert len(str(error.value).splitlines()) == 1


def resume(model: PerceptionModel, optimizer: torch.optim.AdamW, run: Path) -> None:
    checkpoint.resume(run, CONFIG, model, optimizer)


@pytest.mark.parametrize("missing", ["config", "sha256", "optimizer", "schedule", "step"])
def test_keys_that_are_missing_are_one_line(tmp_path: Path, missing: str) -> None:
    model, optimizer = stepped()
    folder = checkpoint.save(tmp_path, 1, CONFIG, *states(model, optimizer), {})
    file = folder / "checkpoint.json"
    content = json.loads(file.read_text())
    del content[missing]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"checkpoint\.json: "):
        checkpoint.resume(tmp_path, CONFIG, model, optimizer)


def test_damaged_and_other_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint here"):
        load_model(tmp_path)
    model, optimizer = stepped()
    folder = checkpoint.save(tmp_path, 1, CONFIG, *states(model, optimizer), {})
    for name in ("model.safetensors", "training.safetensors"):
        whole = (folder / name).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        (folder / name).write_bytes(flipped)
        with pytest.raises(InputError, match=f"{name}: missing or damaged"):
            load_model(tmp_path)
        (folder / name).unlink()
        with pytest.raises(InputError, match=f"{name}: missing or damaged"):
            load_model(tmp_path)
        (folder / name).write_bytes(whole)
    longer = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"batch": 7})})
    with pytest.raises(InputError, match=f"another configuration: train.batch was {CONFIG.train.batch}, is 7"):
        checkpoint.resume(tmp_path, longer, model, optimizer)
    content = json.loads((folder / "checkpoint.json").read_text())
    trunk = content["config"]["model"]["trunk"]
    trunk["channels"] = [6] * len(trunk["channels"])
    (folder / "checkpoint.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"has the shape .*, the configuration says"):
        load_model(folder)
