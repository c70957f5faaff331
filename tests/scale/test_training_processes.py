"""A training in several processes: the result of one process, whichever of them go on or are killed."""

import json
import random
import shutil
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from commands import one_line_error
from processes import train, training
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import distributed as dist
from torch import nn

from perception.checkpoint import load_model, newest, weights
from perception.config import parse_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.model import PerceptionModel
from perception.training.distribute import accelerator_of, report_lost_process
from perception.training.loader import FrameDataset, batches

CLOSE = 1e-6  # of parameters and running statistics, after 20 steps
CONFIG = {
    "name": "small",
    "grid": {"cell": 3.2},
    "data": {"augment": {"flip": True, "shuffle": True}, "paste": {"classes": {"car": 6}, "points": 1}},
    "model": {
        "lidar": {"max_pillars": 200, "points_per_pillar": 3, "channels": 8, "sweeps": 0},
        "fused_channels": 8,
        "trunk": {
            **{"kind": "convnext", "channels": [8], "blocks": [2], "kernels": [3], "strides": [1]},
            **{"up_channels": 8, "stride": 1, "drop_path": 0.5},
        },
    },
    "tasks": {"detection": {"channels": 8, "top_k": 20}, "map": {"channels": 8}},
    # Each runs on some frames only, so often on those of one process: `dry` on those that the router draws it for.
    # `night` makes another pass for a task.
    "modules": [
        {"name": "rain", "kind": "series_adapter", "slots": ["fused"], "when": ["rain"]},
        {
            **{"name": "night", "kind": "batch_norm", "slots": ["fused.norm", "heads.detection.norm"]},
            "when": ["night", "detection"],
        },
        {"name": "dry", "kind": "low_rank", "rank": 2, "slots": ["trunk.*"], "when": ["clear"]},
    ],
    "routing": {"kind": "learned", "choose": "reinforce", "balance": 0.1, "supervise": 0.1, "modules": ["dry"]},
    "train": {
        "steps": 20,
        "batch": 2,
        "ema": 0.9,
        "norm_momentum": 0.0,  # on CPUs each process has its own batch statistics
        "checkpoint_every": 1,
        "log_every": 1,
        "validation": {"every": 20, "unit": "steps", "split": "all", "metric": "mAP"},
    },
}
SHORT = {**CONFIG["train"], "steps": 8, "validation": None}
MODULES_ALONE = {"*.computations.*": 1.0, "*": 0.0}  # rates


@pytest.fixture(scope="module")
def command(sim_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """`train` without --out: one drive is clear, the other one at night in the rain."""
    config = tmp_path_factory.mktemp("config") / "small.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    return "train", config, "--data", sim_root, "--split", "all"


@pytest.fixture(scope="module")
def runs(command: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with uninterrupted trainings in one process and in two: 1 and 2."""
    folder = tmp_path_factory.mktemp("runs")
    for count in (1, 2):
        train(count, folder / f"output-{count}", *command, "--out", folder / str(count))
    return folder


def require_close(run: Path, other: Path) -> None:
    """Parameters and statistics of the last checkpoints, also those that train beside their average."""
    for file in ("model.safetensors", "training.safetensors"):
        own, others = (load_file(newest(each) / file) for each in (run, other))
        assert own.keys() == others.keys()
        for name, value in own.items():
            assert (value.double() - others[name].double()).abs().max() <= CLOSE, name


def logged(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_two_processes_end_with_the_parameters_of_one_and_log_its_numbers(runs: Path) -> None:
    """Losses are float32; a second logger would write each step twice."""
    require_close(runs / "1", runs / "2")
    assert (runs / "output-2").read_text().count(str(newest(runs / "2"))) == 1  # the main process alone prints
    one, two = logged(runs / "1"), logged(runs / "2")
    assert one.keys() == two.keys() >= {"train/loss", "train/norm", "train/map/cells", "validation/mAP"}
    for name, values in one.items():
        assert two[name] == [(step, pytest.approx(value, rel=1e-6, abs=1e-6)) for step, value in values], name
    scores = [json.loads((runs / count / "validation" / "metrics.json").read_text()) for count in "12"]
    assert scores[0] == scores[1]


def require_whole(run: Path) -> None:
    """Every checkpoint has the content that its hashes say."""
    for checkpoint in (run / "checkpoints").glob("step-*"):
        assert weights(checkpoint)


def wait_for(run: Path, step: int, trainer: ForkServerProcess) -> None:
    """Until a checkpoint of this step or a later one is there."""
    while step_of(run) < step:
        assert trainer.is_alive()
        time.sleep(0.001)


def step_of(run: Path) -> int:
    last = newest(run)
    return 0 if last is None else int(last.name.removeprefix("step-"))


def test_a_training_ends_with_one_of_its_processes_and_goes_on_in_one(
    command: tuple[object, ...], runs: Path, tmp_path: Path
) -> None:
    run, chance = tmp_path / "run", random.Random(0)
    launcher = training(2, tmp_path / "output", *command, "--out", run)
    wait_for(run, chance.randint(2, 10), launcher)
    processes = psutil.Process(launcher.pid).children()
    chance.choice(processes).kill()
    launcher.join()
    assert launcher.exitcode != 0
    assert not any(process.is_running() for process in processes)
    said = (tmp_path / "output").read_text()
    # Of the other process, unless torchrun ends it before it notices; torchrun's own report names the signal.
    line = f"perception: {run}: another process of the training has ended or does not answer"
    assert line in said or "SIGKILL" in said
    assert 2 <= step_of(run) < 20
    require_whole(run)
    train(1, tmp_path / "resumed", *command, "--out", run, "--resume")
    require_close(run, runs / "1")


def test_a_training_that_is_killed_again_and_again_has_the_bytes_of_an_uninterrupted_one(
    command: tuple[object, ...], runs: Path, tmp_path: Path
) -> None:
    run, chance = tmp_path / "run", random.Random(1)
    for i in range(3):
        resume = ["--resume"] if newest(run) else []
        trainer = training(1, tmp_path / f"killed-{i}", *command, "--out", run, *resume)
        wait_for(run, step_of(run) + 1, trainer)
        time.sleep(chance.uniform(0.0, 0.1))
        trainer.kill()
        trainer.join()
        require_whole(run)
    assert step_of(run) < 20
    shutil.copytree(run, tmp_path / "two")
    for count, folder in ((1, run), (2, tmp_path / "two")):
        train(count, tmp_path / f"resumed-{count}", *command, "--out", folder, "--resume")
        assert not [*(folder / "checkpoints").glob(".*")]  # what a killed process left
    for file in newest(run).iterdir():
        assert file.read_bytes() == (newest(runs / "1") / file.name).read_bytes(), file.name
    require_close(tmp_path / "two", runs / "1")


def require_as_one(config: dict[str, object], data: Path, folder: Path) -> None:
    """Two processes train this configuration as one does; the runs are 1 and 2 in the folder."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))  # the first of the rates that fits counts
    for count in (1, 2):
        out = ("--split", "all", "--out", folder / str(count))
        train(count, folder / f"output-{count}", "train", file, "--data", data, *out)
    require_close(folder / "1", folder / "2")


def require_learned(module: str, run: Path) -> None:
    """A low-rank module, whose second factors begin with zeros."""
    learned = [value.any() for name, value in weights(run).items() if name.endswith(f"{module}.b.weight")]
    assert learned
    assert all(learned)


def test_two_processes_train_a_memory_as_one(sim_root: Path, tmp_path: Path) -> None:
    """The first keyframe of a drive has none before it, so that its process often has the shorter clips."""
    memory = {"name": "memory", "kind": "memory", "frames": 3, "outages": 0.3}
    changed = {"modules": [memory], "routing": None, "train": SHORT}
    require_as_one({**CONFIG, **changed}, sim_root, tmp_path)
    assert weights(tmp_path / "2")["memory.computations.memory.scale"].any()


def test_two_processes_train_a_module_as_one_where_one_of_them_has_no_frames_for_it(
    sim_root: Path, tmp_path: Path
) -> None:
    """With the base frozen the loss of such a process depends on nothing that trains; on some steps that is both."""
    module = {"name": "rain", "kind": "low_rank", "rank": 2, "slots": ["trunk.*"], "when": ["rain"]}
    recipe = {**SHORT, "rates": MODULES_ALONE}
    require_as_one({**CONFIG, "modules": [module], "routing": None, "train": recipe}, sim_root, tmp_path)
    require_learned("rain", tmp_path / "2")


CAMERA = {
    **{"backbone": "resnet10t", "stages": [2, 3], "image": {"height": 32, "width": 96}},
    **{"channels": 8, "depth": {"bins": 8, "supervision": 0.5}, "heights": [0.0], "stride": 1},
}
PICTURES = {
    **{**CONFIG, "model": {**CONFIG["model"], "camera": CAMERA}, "modules": [], "routing": None},
    "data": {"augment": {"flip": True, "shuffle": True}},
}


@pytest.mark.slow("trainings with pictures in one process and in two")
def test_two_processes_train_cameras_as_one_where_one_of_them_has_no_images(sim_root: Path, tmp_path: Path) -> None:
    """On some steps neither has any."""
    require_as_one({**PICTURES, "train": {**SHORT, "drop": {"cameras": 0.5}}}, sim_root, tmp_path)


@pytest.mark.slow("a training with pictures in two processes")
def test_statistics_of_cameras_are_those_of_the_images_of_the_main_process(sim_root: Path, tmp_path: Path) -> None:
    """Without SyncBatchNorm, which needs GPUs. Weights hardly change, so a pass over these images is the oracle."""
    recipe = {**SHORT, "norm_momentum": None, "ema": None, "drop": {"cameras": 0.5}, "learning_rate": 1e-12}
    file, run = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump({**PICTURES, "train": recipe}))
    train(2, tmp_path / "output", "train", file, "--data", sim_root, "--split", "all", "--out", run)
    model, config = load_model(run)
    tables = NuScenesTables(sim_root, "v1.0-sim")
    supervision = model.double().supervision()
    dataset = FrameDataset(tables, tables.samples("all"), config, supervision=supervision)
    trained = {name: value.clone() for name, value in model.camera.state_dict().items() if "running_" in name}
    norms = [each for each in model.camera.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
    blind = 0
    for batch in batches(dataset, config, 0, 0, 2):
        inputs, _ = batch.frames[-1]
        projections = inputs["image_from_reference"].double()
        present = projections.flatten(2).any(dim=2)
        blind += not present.any()
        if present.any():
            model.camera.train().encode(inputs["images"][present][None], projections[present][None])
    assert 0 < blind < SHORT["steps"]
    for name, value in trained.items():
        torch.testing.assert_close(value, model.camera.state_dict()[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize(("when", "rates"), [([], {}), (["rain"], MODULES_ALONE)], ids=["always", "sometimes"])
def test_two_processes_add_the_passes_of_a_step_as_one(
    when: list[str], rates: dict[str, float], sim_root: Path, tmp_path: Path
) -> None:
    """Also where the last pass of a step has no frame for the only module that trains."""
    module = {"name": "added", "kind": "low_rank", "rank": 2, "slots": ["trunk.*"], "when": when}
    recipe = {**SHORT, "batch": 4, "accumulate": 2, "rates": rates}
    require_as_one({**CONFIG, "modules": [module], "routing": None, "train": recipe}, sim_root, tmp_path)
    require_learned("added", tmp_path / "2")


@pytest.mark.parametrize("error", [dist.DistBackendError("NCCL"), RuntimeError("[gloo/transport/tcp] closed")])
def test_the_message_about_a_lost_process_says_how_each_command_goes_on(error: RuntimeError, tmp_path: Path) -> None:
    line = "start it again: perception train with --resume, perception adapt with another --out"
    with one_line_error(line), report_lost_process(tmp_path):
        raise error


def test_two_processes_adapt_as_one(runs: Path, sim_root: Path, tmp_path: Path) -> None:
    module = ("--add", "low_rank:wet", "--slots", "trunk.*", "--conditions", "rain")
    for count in (1, 2):
        out = ("--out", tmp_path / str(count), "--data", sim_root, "--split", "all", "--steps", 5)
        train(count, tmp_path / f"output-{count}", "adapt", runs / "1", *module, *out)
    require_close(tmp_path / "1", tmp_path / "2")
    one, two = (load_file(tmp_path / count / "modules" / "wet.safetensors") for count in "12")
    assert one.keys() == two.keys()
    base = weights(runs / "1")
    for name, value in weights(tmp_path / "2").items():
        assert name not in base or value.equal(base[name]), name


def test_a_launch_that_divides_the_model_is_refused(tables: NuScenesTables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with one_line_error("accelerate launch: FSDP is not supported; launch without it"):
        model = PerceptionModel(parse_config(CONFIG, "small"))
        accelerator_of(model, tuple(model.tasks), tables, tables.samples("all"))
