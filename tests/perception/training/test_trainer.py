"""The trainer: bits that resume, the recipe's values, what is logged, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.layers import BatchNormAct2d
from torch import nn

from perception.checkpoint import initialise, load_model, newest, provenance, save_model
from perception.config import (
    Config,
    Data,
    InitFrom,
    Schedule,
    Train,
    Validation,
    find_config,
    load_config,
)
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.model import PerceptionModel
from perception.parts import Grid, Model, Trunk
from perception.sensors.lidar.config import Lidar
from perception.tasks.conditions.task import ConditionsConfig
from perception.tasks.detection.config import DetectionHead
from perception.tasks.map.task import MapHead
from perception.training import monitor, optimize
from perception.training.adapt import adapt
from perception.training.log import TrainingLog
from perception.training.loop import fit, train
from perception.training.monitor import Validator
from perception.training.optimize import optimizer_of, schedule_of, set_momentum


@pytest.fixture(scope="module")
def recorded(recorded_root: Path) -> NuScenesTables:
    """Three keyframes."""
    return NuScenesTables(recorded_root, "v1.0-tiny")


def minimal(**training: object) -> Config:
    """LiDAR and boxes at a size that trains at once."""
    return Config(
        name="minimal",
        grid=Grid(cell=3.2),
        data=Data(augment=None),
        model=Model(
            lidar=Lidar(max_pillars=200, points_per_pillar=3, channels=8, sweeps=0),
            fused_channels=8,
            trunk=Trunk(channels=(8,), blocks=(1,), strides=(1,), up_channels=8, stride=1),
        ),
        tasks={"detection": DetectionHead(channels=8, top_k=20)},
        train=Train(**({"steps": 4, "batch": 2, "checkpoint_every": 2} | training)),
    )


def scalars(run: Path) -> EventAccumulator:
    """What the training wrote to TensorBoard."""
    return EventAccumulator(str(run / "tensorboard")).Reload()


def test_the_log_has_means_of_intervals_and_names_the_first_loss_that_is_not_finite(tmp_path: Path) -> None:
    losses = [4.0, 2.0, 1.0, float("nan"), float("inf")]
    with TrainingLog(minimal(), tmp_path, 0, 5, True) as log:
        for step, value in enumerate(losses, 1):
            log.add(step, {"map/cells": torch.tensor(value), "loss": torch.tensor(2 * value)})
            if step in (2, 3):
                log.write({"learning_rate": 0.5 / step})
        with pytest.raises(InputError, match=r"the loss at step 4 is nan; lower train.learning_rate"):
            log.write({})
    events = scalars(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/map/cells")] == [(2, 3.0), (3, 1.0)]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(2, 6.0), (3, 2.0)]
    assert [e.value for e in events.Scalars("train/learning_rate")] == pytest.approx([0.25, 0.5 / 3])


def test_weights_that_are_not_finite_are_not_written(recorded: NuScenesTables, tmp_path: Path) -> None:
    # The first loss is finite, the first step is too long.
    diverging = {"steps": 10, "learning_rate": 3.75e38, "weight_decay": 20.0}
    often = Validation(every=1, unit="steps", split="all", metric="samples")
    for run, config in {
        "a": minimal(**diverging, checkpoint_every=1),
        "b": minimal(**diverging, validation=often),
    }.items():
        with pytest.raises(InputError, match=r"after step 1 the weights \S+ are not finite; lower train.learning_rate"):
            train(config, recorded, "all", tmp_path / run)
        assert not list(tmp_path.glob(f"{run}/checkpoints/*"))


def rates(schedule: Schedule, steps: int, *peaks: float) -> np.ndarray:
    """(steps, groups) learning rates."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": peak} for peak in peaks]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    rule, found = schedule_of(optimizer, schedule, steps), []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        rule.step()
    return np.array(found)


def test_rates_follow_their_closed_forms() -> None:
    done, steps = np.arange(100), 100
    cosine = rates(Schedule(kind="cosine", warm_up=0.2, start_divisor=5.0), steps, 2.0, 0.2)
    expected = np.where(done < 20, 0.2 + 0.8 * done / 20, (1 + np.cos(np.pi * (done - 20) / 80)) / 2)
    np.testing.assert_allclose(cosine, np.outer(expected, [2.0, 0.2]), rtol=1e-12)
    step = rates(Schedule(kind="step", warm_up=0.0, milestones=(0.5, 0.9)), steps, 2.0)
    np.testing.assert_allclose(step[:, 0], 2.0 * np.where(done < 50, 1, np.where(done < 90, 0.1, 0.01)), rtol=1e-12)
    one = rates(Schedule(warm_up=0.4, start_divisor=10.0), steps, 2.0, 0.2)
    top, least = 0.4 * (steps + 1) - 1, 0.1 / 1e4
    rise, fall = (1 - np.cos(np.pi * done / top)) / 2, (1 + np.cos(np.pi * (done - top) / (steps - top))) / 2
    expected = np.where(done <= top, 0.1 + 0.9 * rise, least + (1 - least) * fall)
    np.testing.assert_allclose(one, np.outer(expected, [2.0, 0.2]), rtol=1e-12)
    # A rise of a single step.
    assert np.isfinite(rates(Schedule(warm_up=0.5), 1, 1.0)).all()
    assert rates(Schedule(kind="cosine", warm_up=1.0), 2, 1.0)[:, 0] == pytest.approx([1 / 25, 13 / 25])


def test_the_rate_is_linear_in_the_batch_and_parts_have_their_own() -> None:
    train = Train(batch=8, base_batch=32, learning_rate=0.4)
    assert train.peak == pytest.approx(0.1)
    assert Train(batch=8, learning_rate=0.4).peak == 0.4
    model = PerceptionModel(minimal())
    optimizer = optimizer_of(model, 0.1, 0.01, {"lidar.*": 0.5, "*.weight": 2.0})
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        factor = 0.5 if name.startswith("lidar.") else 2.0 if name.endswith(".weight") else 1.0
        assert rate[id(parameter)] == pytest.approx(0.1 * factor), name
    with pytest.raises(InputError, match=r"train.rates: camera.\* matches no parameter; there are such as lidar"):
        optimizer_of(model, 0.1, 0.01, {"*": 1.0, "camera.*": 0.1})


def test_the_average_moves_from_the_first_weights_towards_the_next(recorded: NuScenesTables, tmp_path: Path) -> None:
    last = train(minimal(steps=2, checkpoint_every=1, ema=0.6, learning_rate=0.01), recorded, "all", tmp_path)
    first, second = (
        (load_file(step / "model.safetensors"), load_file(step / "training.safetensors"))
        for step in (last.with_name("step-000001"), last)
    )
    for name, start in first[0].items():
        weights = [trained[f"weights.{name}"].double() for _, trained in (first, second)]
        assert torch.equal(start.double(), weights[0]), name
        expected = 0.6 * weights[0] + 0.4 * weights[1] if start.is_floating_point() else weights[1]
        torch.testing.assert_close(second[0][name].double(), expected, rtol=1e-6, atol=1e-7, msg=name)
    assert any(not torch.equal(first[0][name], value) for name, value in second[0].items())


def bytes_of(checkpoint: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in checkpoint.iterdir()}


def halfway(tmp_path: Path, step: str) -> Path:
    """A run that ends with this checkpoint of the run `whole`."""
    halves = tmp_path / "halves"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / step, halves / "checkpoints" / step)
    return halves


def test_a_resumed_training_has_the_bytes_of_a_whole_one_with_its_average(recorded, tmp_path: Path) -> None:
    often = Validation(every=1, unit="steps", split="all", metric="samples")
    recipe = {"ema": 0.6, "accumulate": 2, "schedule": Schedule(kind="cosine"), "rates": {"lidar.*": 0.5}}
    config = minimal(**recipe, learning_rate=0.004, base_batch=8, validation=often)
    whole = train(config, recorded, "all", tmp_path / "whole")
    halves = halfway(tmp_path, "step-000002")
    assert bytes_of(train(config, recorded, "all", halves, resume=True)) == bytes_of(whole)
    assert not (halves / "checkpoints" / "best").exists()  # no step is better than the first
    groups = json.loads((whole / "checkpoint.json").read_text())["optimizer"]
    assert sorted(group["initial_lr"] for group in groups) == pytest.approx([0.0005, 0.001])
    state = load_file(whole / "training.safetensors")
    for name, value in load_model(whole)[0].state_dict().items():
        same = torch.equal(value, state[f"weights.{name}"])
        assert same == (name.endswith("num_batches_tracked")), name
    train(config, recorded, "all", tmp_path / "whole", resume=True)  # without a step
    scores = json.loads((tmp_path / "whole" / "validation" / "metrics.json").read_text())
    assert scores["samples"] == len(recorded.samples("all"))


def test_the_average_of_an_adaptation_leaves_the_base_bit_for_bit(recorded: NuScenesTables, tmp_path: Path) -> None:
    base = train(minimal(ema=0.6), recorded, "all", tmp_path / "base")
    module = {"name": "a", "kind": "batch_norm", "slots": ["trunk.*norm"], "when": []}
    adapted = adapt(base, module, recorded, "all", (), tmp_path / "a", steps=3)
    state, before = load_file(adapted / "model.safetensors"), load_file(base / "model.safetensors")
    for name, value in before.items():
        assert torch.equal(state[name], value), name
    # The file of the module holds what the checkpoint holds.
    own = load_file(tmp_path / "a" / "modules" / "a.safetensors")
    inside = {name for name in state if ".computations.a." in name and state[name].is_floating_point()}
    found = [any(state[name].shape == v.shape and torch.equal(state[name], v) for v in own.values()) for name in inside]
    assert inside
    assert all(found)


def test_passes_of_parts_make_the_step_of_the_whole_batch(recorded: NuScenesTables, tmp_path: Path) -> None:
    """Without batch statistics. All keyframes have as many objects, so that the means of parts have equal weights."""
    weights, logged = [], []
    for passes in (1, 2):
        config = minimal(steps=2, accumulate=passes, batch=4, weight_decay=0.0, norm_momentum=0.0)
        torch.manual_seed(0)
        model = PerceptionModel(config)
        optimize.joint(model)
        fit(model, recorded, recorded.samples(), tmp_path / str(passes))
        weights.append({name: value.double() for name, value in model.named_parameters()})
        events = scalars(tmp_path / str(passes))
        logged.append([events.Scalars(name)[0].value for name in events.Tags()["scalars"]])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-6)
    np.testing.assert_allclose(logged[1], logged[0], rtol=1e-5)  # losses, and the norm of the gradient


def test_norms_change_their_momentum() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 1), BatchNormAct2d(4), nn.BatchNorm2d(4))
    set_momentum(network, 0.01)
    assert [network[i].momentum for i in (1, 2)] == [0.01, 0.01]


def test_validation_keeps_the_best_and_changes_no_training(recorded: NuScenesTables, tmp_path: Path) -> None:
    lasting = {"steps": 25, "learning_rate": 0.03, "checkpoint_every": 25, "ema": 0.5}
    alone = train(minimal(**lasting), recorded, "all", tmp_path / "alone")
    validation = Validation(every=20, unit="steps", split="all", batch=2)
    last = train(minimal(**lasting, validation=validation), recorded, "all", tmp_path / "run")
    for name in ("model.safetensors", "training.safetensors"):
        assert (last / name).read_bytes() == (alone / name).read_bytes()
    scores = {e.step: e.value for e in scalars(tmp_path / "run").Scalars("validation/NDS")}
    assert scores[20] < scores[25]
    best = tmp_path / "run" / "checkpoints" / "best"
    assert json.loads((best / "checkpoint.json").read_text())["score"] == pytest.approx(scores[25])
    assert (best / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()


def test_validations_fall_on_the_ends_of_epochs(recorded: NuScenesTables, tmp_path: Path) -> None:
    """An epoch of six samples in batches of four: the third one ends within step 5, the fifth with the last step."""
    validation = Validation(every=3, split="all", metric="samples")
    config = minimal(steps=None, epochs=5, batch=4, validation=validation, checkpoint_every=5)
    last = train(config, recorded, "all", tmp_path)
    alone = train(minimal(steps=8, batch=4), recorded, "all", tmp_path / "alone")
    assert (last / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
    assert [e.step for e in scalars(tmp_path).Scalars("validation/NDS")] == [5, 8]
    assert newest(tmp_path) == last == tmp_path / "checkpoints" / "step-000008"
    best, then = (tmp_path / "checkpoints" / name for name in ("best", "step-000005"))  # the first of equal ones
    assert json.loads((best / "checkpoint.json").read_text())["step"] == 5
    assert load_model(best)[1] == config
    assert (best / "model.safetensors").read_bytes() == (then / "model.safetensors").read_bytes()


def test_a_network_without_boxes_is_validated_by_a_nested_score(tables, tmp_path: Path) -> None:
    validation = Validation(every=1, unit="steps", split="all", metric="map.iou_max.mean")
    config = minimal(steps=1, validation=validation).model_copy(update={"tasks": {"map": MapHead(channels=8)}})
    train(config, tables, "all", tmp_path)
    scores = json.loads((tmp_path / "validation" / "metrics.json").read_text())
    best = json.loads((tmp_path / "checkpoints" / "best" / "checkpoint.json").read_text())
    assert 0 < best["score"] == scores["map"]["iou_max"]["mean"] < 1
    logged = scalars(tmp_path).Scalars("validation/map.iou_0.5.mean")
    assert [e.value for e in logged] == pytest.approx([scores["map"]["iou_0.5"]["mean"]])


@pytest.mark.parametrize("metric", ["mAP_present", "map.iou_max.mean", "NDS.mean", "mop.mean"])
def test_a_score_may_be_undefined_on_the_first_keyframe(recorded, tmp_path: Path, monkeypatch, metric: str) -> None:
    found = {"samples": 1, "NDS": 0.5, "mAP_present": None, "label_aps": {"car": {"0.5": 0.1}}, "map": None}
    monkeypatch.setattr(monitor, "evaluate", lambda *_: found)
    validator = Validator(Validation(split="all", metric=metric), recorded, tmp_path)
    if metric in ("mAP_present", "map.iou_max.mean"):
        validator.check(PerceptionModel(minimal()))
        with pytest.raises(InputError, match=rf"{metric} is none of the scores NDS, samples, label_aps\.\*$"):
            validator.scores(PerceptionModel(minimal()))
    else:
        with pytest.raises(InputError, match=rf"{metric} is none of the scores NDS, mAP_present, map, samples, label"):
            validator.check(PerceptionModel(minimal()))


def test_a_training_starts_from_parts_of_a_run(recorded: NuScenesTables, tmp_path: Path) -> None:
    """The rate is so low that no weight moves in its last step."""
    run = train(minimal(), recorded, "all", tmp_path / "run")
    torch.manual_seed(0)
    fresh, still = PerceptionModel(minimal()), {"learning_rate": 1e-60, "weight_decay": 0.0, "norm_momentum": 0.0}
    config = minimal(steps=2, checkpoint_every=1, **still)
    config = config.model_copy(update={"init_from": InitFrom(run=str(tmp_path / "run"), parts=("lidar.*", "trunk.*"))})
    started = train(config, recorded, "all", tmp_path / "started")
    state, theirs = load_file(started / "model.safetensors"), load_file(run / "model.safetensors")
    for name, value in fresh.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        taken = name.startswith(("lidar.", "trunk."))
        assert torch.equal(state[name], theirs[name] if taken else value), name
    head = "heads.detection.shared.conv.layer.weight"
    assert not torch.equal(theirs[head], state[head])
    described = "v1.0-tiny: 3 keyframes of 1 scenes"
    assert provenance(tmp_path / "started").data == (described, described)
    shutil.rmtree(started)
    train(config, recorded, "all", tmp_path / "started", resume=True)
    assert provenance(tmp_path / "started").data == (described, described)


def test_a_rate_of_zero_freezes_parts_of_a_run_that_trains_on(recorded: NuScenesTables, tmp_path: Path) -> None:
    run = train(minimal(), recorded, "all", tmp_path / "run")
    for kept, norms in ((0.0, {}), (None, {"running_mean", "running_var", "num_batches_tracked"})):
        config = minimal(rates={"heads.*": 1.0, "*": 0.0}, norm_momentum=kept)
        config = config.model_copy(update={"init_from": InitFrom(run=str(tmp_path / "run"))})
        after = load_file(train(config, recorded, "all", tmp_path / f"{kept}") / "model.safetensors")
        before = load_file(run / "model.safetensors")
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert {name.split(".")[0] for name in moved} == {"heads"}
        assert {name.split(".")[-1] for name in moved} == {"weight", "bias", *norms}


def test_parts_that_do_not_fit_are_named(tmp_path: Path) -> None:
    boxes, wider, ground = DetectionHead(channels=8, top_k=20), DetectionHead(channels=9, top_k=20), MapHead(channels=8)
    own = minimal().model_copy(update={"tasks": {"detection": wider, "map": ground}})
    shapes = r"\(8, 8, 3, 3\), the configuration says \(9, 9, 3, 3\)"
    for theirs, parts, says in (
        ({"detection": boxes}, ("lidar.*", "camera.*"), r"init_from.parts: camera.\* matches no tensor of the model"),
        ({"detection": boxes}, ("heads.detection.*",), rf"run, init_from.parts: heads.\S+ has the shape {shapes}"),
        ({"detection": wider}, ("*",), r"\d keys are missing \(heads.map.logits.layer.bias"),
        (
            {**own.tasks, "conditions": ConditionsConfig()},
            ("*",),
            r"0 keys are missing, \d+ unexpected \(added.conditions",
        ),
    ):
        run = minimal().model_copy(update={"tasks": theirs})
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        save_model(tmp_path / "run", run, PerceptionModel(run))
        with pytest.raises(InputError, match=says):
            initialise(PerceptionModel(own), InitFrom(run=str(tmp_path / "run"), parts=parts))


def test_no_precision_needs_no_quotes(tmp_path: Path) -> None:
    """YAML reads it as false, in a file and on the command line."""
    tiny, written = find_config("tiny"), tmp_path / "a.yaml"
    written.write_text(tiny.read_text().replace("train: {", "train: {precision: no, "))
    for config in (load_config(written), load_config(tiny, ["train.precision=no"])):
        assert config.train.precision == "no"
    with pytest.raises(InputError, match="precision"):
        load_config(tiny, ["train.precision=yes"])


def test_what_cannot_be_trained_is_said_before_the_training(recorded: NuScenesTables, tmp_path: Path) -> None:
    unknown = r"train.validation.metric: NDs is none of the scores NDS, mAP"
    rows = [
        (minimal(validation=Validation(split="all", metric="NDs")), unknown),
        (minimal(validation=Validation(split="val")), "no scene of split val is here"),
    ]
    if not torch.cuda.is_available():
        rows.append((minimal(precision="fp16"), "fp16 needs a GPU; use bf16 or no"))
    for config, says in rows:
        with pytest.raises(InputError, match=says):
            train(config, recorded, "all", tmp_path)
    assert newest(tmp_path) is None
    train(minimal(steps=1), recorded, "all", tmp_path)
    with pytest.raises(InputError, match="holds a trained run already; add --resume"):
        train(minimal(steps=1), recorded, "all", tmp_path)
    with pytest.raises(InputError, match=r"another configuration: train.batch was 2, is 1"):
        train(minimal(steps=1, batch=1), recorded, "all", tmp_path, resume=True)
    unnamed = minimal(steps=1).model_copy(update={"taxonomy": minimal().taxonomy.without_ros_classes()})
    train(unnamed, recorded, "all", tmp_path, resume=True)  # what classes are called in ROS is no part of it


def test_a_training_goes_on_with_its_keyframes_alone(tables: NuScenesTables, tmp_path: Path, monkeypatch) -> None:
    last = train(minimal(steps=1), tables, "all", tmp_path)
    whole, every = bytes_of(last), tables.samples("all")
    for other in (every[:3], [*every[3:], *every[:3]]):
        monkeypatch.setattr(tables, "samples", lambda *_, other=other: other)
        says = rf"other keyframes than these \(.*: {len(other)} keyframes of .*\); resume with its --data and --split"
        with pytest.raises(InputError, match=says):
            train(minimal(steps=1), tables, "all", tmp_path, resume=True)
        monkeypatch.undo()
    monkeypatch.setattr(tables, "version", "moved")
    train(minimal(steps=1), tables, "all", tmp_path, resume=True)
    assert bytes_of(last) == whole
