"""A network with a memory: trained on clips, evaluated drive by drive, added by a command to a base that stays."""

import copy
import json
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from commands import refuses, succeeds
from made_up import keyframe, paint_frame
from networks import assert_same, disturb, small
from torch import Tensor, nn

from perception.checkpoint import load_model
from perception.config import Augment, Config, parse_config
from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.frame import Conditions, Prediction
from perception.model import PerceptionModel, Trace, batch_inputs
from perception.modules.memories import with_spacing
from perception.predict import TorchPredictor
from perception.sensors.camera.config import Image
from perception.sensors.inputs import prepare
from perception.state import Limits, Moment, state_inputs
from perception.tasks.task import to_prediction
from perception.training.augment import Augmentation
from perception.training.clips import Clips
from perception.training.loader import Batch, FrameDataset, Sample, collate
from perception.training.loop import fit, train
from perception.training.losses import Losses
from perception.training.optimize import joint, post_hoc, statistics_kept

MEMORY = {"name": "memory", "kind": "memory", "frames": 3, "outages": 0.0}
LIMITS = Limits(1.2, 70.0)


def config_with(memory: bool = True, data: dict[str, object] | None = None, **training: object) -> Config:
    """LiDAR alone."""
    content = small(**training).model_dump(mode="json") | {"modules": [MEMORY] if memory else []}
    content["data"] |= data or {}
    content["model"]["camera"] = None
    return parse_config(content, "test")


def plain(**training: object) -> Config:
    """Frames as recorded, each once per epoch."""
    data = {"augment": None, "class_balanced": False}
    return config_with(data=data, drop={}, **training)


def learned(config: Config) -> PerceptionModel:
    """With a memory that matters."""
    torch.manual_seed(0)
    network = PerceptionModel(config)
    disturb(network, "memory", 0.5)
    return network.eval()


def inputs_of(clip: Sample | Batch) -> list[Any]:
    """Of all frames, the oldest first."""
    return [inputs for inputs, _ in clip.frames]


def test_samples_are_clips_of_keyframes_that_end_with_each_keyframe_once_per_epoch(tables):
    config = plain(batch=2, steps=30)
    dataset, spec = FrameDataset(tables, tables.samples("all"), config), config.spec
    lengths, drives = [], {scene: tables.samples(None, [scene]) for scene in tables.scenes()}
    for epoch in range(2):
        positions = range(epoch * dataset.epoch_length, (epoch + 1) * dataset.epoch_length)
        samples = [dataset[position] for position in positions]
        assert sorted(sample.token for sample in samples) == sorted(tables.samples("all"))
        for position, sample in zip(positions, samples, strict=True):
            drive = drives[tables.scene(sample.token)]
            place = drive.index(sample.token)
            frames = [tables.frame(token, spec.reads) for token in drive[: place + 1][-len(sample.frames) :]]
            assert frames[-1].token == sample.token
            assert [facts for _, facts in sample.frames] == [frame.conditions for frame in frames]
            for frame, arrays in zip(frames, inputs_of(sample), strict=True):
                assert all(np.array_equal(arrays[name], each) for name, each in prepare(frame, spec).items())
            moments = [Moment.of(frame) for frame in frames]
            for pair, arrays in zip([(None, moments[0]), *pairwise(moments)], inputs_of(sample), strict=True):
                told = state_inputs(*pair, LIMITS)
                assert all(np.array_equal(arrays[name], each) for name, each in told.items())
                assert arrays["state_valid"] == (pair[0] is not None)
            lengths.append((position // 2, place, len(sample.frames) - 1))
    for step in {step for step, _, _ in lengths}:
        asked = max(length for each, _, length in lengths if each == step)
        assert all(length == min(asked, place) for each, place, length in lengths if each == step)
    assert {length for _, _, length in lengths} == {0, 1, 2}


def with_outages(config: Config, share: float) -> Config:
    (module,) = config.modules
    return config.model_copy(update={"modules": (module.model_copy(update={"outages": share}),)})


def test_in_an_outage_a_sample_has_no_points_and_the_state_of_the_last_frame_that_has_some(tables):
    """All clips that can have one; a sample without earlier frames has none. Frames lost in between are left out."""
    config = plain(batch=2, steps=30)
    dataset = FrameDataset(tables, tables.samples("all"), with_outages(config, 1.0))
    usual = FrameDataset(tables, tables.samples("all"), config)
    lost, lengths = set(), set()
    for position in range(6 * dataset.epoch_length):
        sample, same = dataset[position], usual[position]
        (*earlier, own), recorded = inputs_of(sample), inputs_of(same)
        for frame, usual_frame in zip(earlier, recorded, strict=False):
            assert all(np.array_equal(frame[name], each) for name, each in usual_frame.items())
        gone = recorded[len(earlier) :]
        assert own["pillar_counts"].any() == (not earlier)
        assert own["state_valid"] == (len(recorded) > 1)
        np.testing.assert_allclose(own["elapsed"], sum(each["elapsed"] for each in gone), rtol=1e-6)
        motions = [each["current_from_previous"][0] for each in gone]
        np.testing.assert_allclose(own["current_from_previous"][0], reduce(np.matmul, motions[::-1]), atol=1e-4)
        lost.add(len(gone) if earlier else 0)
        lengths.add(len(recorded))
    assert (lost, lengths) == ({0, 1, 2}, {1, 2, 3})


def test_all_clips_of_a_step_end_in_an_outage_or_none(tables):
    clips, token = Clips(tables, with_outages(plain(batch=4), 0.5), LIMITS), tables.samples("all")[0]
    outages = np.array([clips.clip(token, position).outage for position in range(4000)]).reshape(-1, 4)
    assert (outages == outages[:, :1]).all()
    assert outages.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("when", "trained", "lost"),
    [
        ([], None, {"lidar", "camera"}),
        ([], ["memory", "other"], {"lidar", "camera"}),
        (["no-lidar"], None, {"lidar"}),
        (["no-cameras"], None, {"camera"}),
        (["no-cameras", "no-lidar"], None, {"lidar", "camera"}),
        (["lidar"], None, {"camera"}),
        (["lidar", "cameras"], None, {""}),
        ([], ["other"], {""}),
    ],
)
def test_outages_take_what_a_memory_that_trains_runs_without(tables, when, trained, lost):
    """Nothing from modules that train beside a memory that does not."""
    content = small().model_dump(mode="json") | {"modules": [MEMORY | {"when": when, "outages": 1.0}]}
    clips = Clips(tables, parse_config(content, "test"), LIMITS, trained)
    ends = [clips.clip(tables.samples("all")[2], position) for position in range(40)]
    assert {each.missing for each in ends if len(each.tokens) > 1} == lost
    assert {each.outage for each in ends} == {lost != {""}}


def test_frames_without_pictures_leave_the_statistics_of_the_camera_also_in_a_clip(tables):
    """They would learn from black pictures; the depth of cells without labels has no loss."""
    content = small(drop={"cameras": 1.0}).model_dump(mode="json") | {"modules": [MEMORY]}
    config = parse_config(content, "test")
    network = PerceptionModel(config)
    joint(network)
    dataset = FrameDataset(tables, tables.samples("all"), config, supervision=network.supervision())
    samples = (dataset[position] for position in range(20))
    batch = collate([next(each for each in samples if len(each.frames) == 3)])
    norms = {name: value.clone() for name, value in network.named_buffers() if name.split(".")[-1].startswith("run")}
    terms = Losses(network, tuple(network.tasks))(batch.frames, batch.labels, Trace())
    assert terms["camera/depth"] == 0
    moved = {name for name, value in network.named_buffers() if name in norms and not torch.equal(value, norms[name])}
    assert moved
    assert not {name for name in moved if name.startswith("camera.")}
    assert {name for name in norms if name.startswith("camera.")}


def test_an_outage_teaches_all_weights_and_leaves_the_running_statistics(tables, tmp_path):
    network = learned(with_outages(config_with(steps=3), 1.0))
    joint(network)
    before = copy.deepcopy(network.state_dict())
    fit(network, tables, tables.samples("all"), tmp_path / "run")
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert not {name for name in changed if "running_" in name}
    convolutions = {name for name, value in network.named_parameters() if value.ndim == 4}
    assert convolutions
    assert changed >= convolutions


def test_a_pass_of_an_outage_that_fails_leaves_the_momenta_of_the_running_statistics():
    network = PerceptionModel(config_with())
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    with pytest.raises(KeyError, match="pillar"), statistics_kept(network):
        network({})
    assert [norm.momentum for norm in norms] == before
    assert all(before)


def test_a_memory_for_frames_without_lidar_learns_from_outages_alone(tables, tmp_path):
    """Steps without one change nothing."""
    bridge = MEMORY | {"name": "bridge", "when": ["no-lidar"]}
    changed = []
    for outages in (0.0, 1.0):
        content = config_with(steps=6).model_dump(mode="json")
        content["modules"].append(bridge | {"outages": outages})
        network = learned(parse_config(content, "test"))
        post_hoc(network, ["bridge"])
        before = copy.deepcopy(network.state_dict())
        fit(network, tables, tables.samples("all"), tmp_path / str(outages))
        after = network.state_dict()
        changed.append({name for name in before if not torch.equal(after[name], before[name])})
    assert changed[0] == set()
    assert changed[1] == {name for name, _ in network.named_parameters() if ".bridge." in name}


def test_one_augmentation_moves_all_frames_of_a_clip_and_their_motion():
    """Points at rest, seen from two places: each frame's own are where the motion takes those of the one before."""
    settings = Augment(flip=True, rotation=3.0, scale=0.3, translation=2.0, shuffle=False)
    at_rest = np.random.default_rng(0).uniform([-20, -20, -2, 1], [20, 20, 2, 1], (50, 4))
    turn, first = np.eye(4), paint_frame(np.array([20.0, 2.0, 0.5]))
    turn[:2, :2], turn[:2, 3] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]], [4.0, -1.0]
    poses = first.global_from_reference, first.global_from_reference @ turn
    mirrored = set()
    for seed in range(8):
        augmentation = Augmentation(np.random.default_rng(seed), settings, Image(height=64, width=96))
        moments, places, pixels = [], [], []
        for time, pose in enumerate(poses):
            points = np.zeros((50, 5), np.float32)
            points[:, :3] = np.linalg.solve(pose, first.global_from_reference @ at_rest.T).T[:, :3]
            seen = replace(first, global_from_reference=pose, timestamp=500_000 * time, **keyframe(points))
            frame = augmentation.apply(seen)
            moments.append(Moment.of(frame))
            places.append(np.c_[frame.points[:, :3], np.ones(50)])
            (camera,) = frame.cameras
            pixels.append(augmentation.affines[camera] @ frame.image_from_reference(camera) @ places[-1].T)
        motion = state_inputs(*moments, LIMITS)
        assert motion["state_valid"] == 1
        np.testing.assert_allclose(places[0] @ motion["current_from_previous"][0].T, places[1], atol=1e-3)
        np.testing.assert_allclose(pixels[0], pixels[1], atol=0.5, rtol=1e-4)  # one camera, at rest in the world
        mirrored.add(np.linalg.det(augmentation.similarity[:2, :2]) < 0)
    assert mirrored == {False, True}


def sequence(network: PerceptionModel, inputs: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The outputs on frames one after the other."""
    states, found = network.no_states(len(inputs[0]["state_valid"])), []
    for each in inputs:
        found.append(network(each | states))
        states = {"state": found[-1]["next_state"].detach()}
    return found


def clip_samples(tables: Keyframes, config: Config) -> list[Sample]:
    """Of the last and of the first keyframe of a drive, so that one clip has three frames and the other one."""
    dataset, drive = FrameDataset(tables, tables.samples("all"), config), tables.samples("all")[:3]
    samples = {}
    for position in range(10 * dataset.epoch_length):
        sample = dataset[position]
        samples[sample.token, len(sample.frames)] = sample
    return [samples[drive[2], 3], samples[drive[0], 1]]


def clip_batch(tables: Keyframes, config: Config) -> Batch:
    """Of `clip_samples`."""
    return collate(clip_samples(tables, config))


def test_a_batch_has_its_frames_by_age_and_short_clips_do_not_feel_how_they_are_filled(tables):
    config = plain()
    batch = clip_batch(tables, config)
    assert [each["state_valid"].tolist() for each in inputs_of(batch)] == [[0, 0], [1, 0], [1, 0]]
    network = learned(config)
    with torch.no_grad():
        together = sequence(network, inputs_of(batch))[-1]
        alone = sequence(network, [{name: each[1:] for name, each in batch.frames[-1][0].items()}])[-1]
    for name, value in alone.items():
        torch.testing.assert_close(together[name][1:], value, rtol=1e-4, atol=1e-4)


def test_the_losses_are_those_of_the_last_frame_after_the_earlier_ones(tables):
    config = plain()
    batch, network = clip_batch(tables, config), learned(config)
    network.bank.train("memory")
    losses = Losses(network, tuple(network.tasks))
    torch.stack([*losses(batch.frames, batch.labels, Trace()).values()]).sum().backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    assert all(".computations.memory." in name for name in gradients)
    network.zero_grad()
    dense = sequence(network, inputs_of(batch))[-1]
    terms = network.losses(dense, batch.labels)
    expected = sum(term.sums.sum() / term.counts.sum().clamp(min=1) for term in terms.values())
    assert isinstance(expected, Tensor)
    expected.backward()
    assert gradients["memory.computations.memory.scale"].abs().max() > 0
    for name, parameter in network.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_shorter_clips_than_those_of_other_processes_are_filled_and_do_not_feel_it(tables, monkeypatch):
    config = plain()
    network, passes = learned(config), []
    step = network.next_states
    monkeypatch.setattr(
        network, "next_states", lambda *given, **options: passes.append(given) or step(*given, **options)
    )
    losses = Losses(network, tuple(network.tasks))
    for sample in clip_samples(tables, config):
        batch, found = collate([sample]), []
        for longest in (len(batch.frames), 5):
            monkeypatch.setattr("perception.training.losses.largest", lambda value, device, longest=longest: longest)
            passes.clear()
            found.append(losses(batch.frames, batch.labels, Trace()))
            assert len(passes) == longest - 1
        assert_same(*found)


def test_earlier_frames_run_on_their_own_conditions(tables, monkeypatch):
    config = plain()
    network, passes = learned(config), []
    step = network.next_states
    monkeypatch.setattr(
        network, "next_states", lambda *given, **options: passes.append(given[1]) or step(*given, **options)
    )
    batch = clip_batch(tables, config)
    weathers = [[Conditions(weather=weather)] * 2 for weather in ("rain", "fog")]
    *earlier, last = batch.frames
    changed = [(own, facts) for (own, _), facts in zip(earlier, weathers, strict=True)]
    Losses(network, tuple(network.tasks))([*changed, last], batch.labels, Trace())
    assert passes == weathers


def assert_equal(found: Prediction, expected: Prediction) -> None:
    for name in ("scores", "centers", "sizes", "velocities", "labels"):
        a, b = (getattr(each.results["detection"], name) for each in (found, expected))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_predictor_carries_the_state_through_each_drive(tables, batch):
    network = learned(plain())
    predictor, reads, tokens = TorchPredictor(network, batch), network.config.spec.reads, tables.samples("all")
    predicted = {frame.token: found for frame, found in predictor.predictions(tables, reads, tokens)}
    assert [*predicted] == tokens
    changed = 0
    for scene in tables.scenes():
        states, before = network.no_states(1), None
        for token in tables.samples(None, [scene]):
            frame = tables.frame(token, reads)
            moment = Moment.of(frame)
            inputs = batch_inputs([prepare(frame, predictor.spec) | state_inputs(before, moment, LIMITS)])
            with torch.no_grad():
                dense = network(inputs | states, [frame.conditions])
                outputs = network.decode(dense)
            states, before = {"state": dense["next_state"]}, moment
            arrays = {name: value.numpy() for name, value in outputs.items()}
            assert_equal(predicted[token], to_prediction(network.tasks, arrays))
            alone = predictor(frame).results["detection"].scores
            changed += not np.array_equal(alone, predicted[token].results["detection"].scores)
    assert changed == len(tokens) - len(tables.scenes())  # all but the first frame of each drive


def test_a_frame_that_sees_nothing_leaves_the_state_for_the_next_one(tables):
    """It has the state itself."""
    predictor, drive = TorchPredictor(learned(plain())), tables.samples(None, tables.scenes()[:1])
    blind = lambda frame: frame.without_points() if frame.token == drive[1] else frame  # noqa: E731
    reads = plain().spec.reads._replace(change=blind)
    seen = {frame.token: found for frame, found in predictor.predictions(tables, reads, drive)}
    for left_out, equal in ((drive[1], True), (drive[0], False)):
        left = [token for token in drive if token != left_out]
        fewer = {frame.token: found for frame, found in predictor.predictions(tables, reads, left)}
        same = [np.array_equal(*(each[token].results["detection"].scores for each in (seen, fewer))) for token in left]
        assert same == [equal] * len(left)


def test_nothing_is_pasted_into_clips(tables, tmp_path):
    network = PerceptionModel(config_with(data={"paste": {"classes": {"car": 3}, "points": 1}}, steps=1))
    fit(network, tables, tables.samples("all"), tmp_path / "run")
    assert not (tmp_path / "run" / "objects").exists()


def test_a_command_adds_a_memory_to_a_base_that_keeps_every_bit(tables, tmp_path):
    run, data = tmp_path / "base", tables.dataroot
    train(config_with(memory=False, steps=2), tables, "all", run)
    succeeds("adapt", run, "--memory", "--data", data, "--split", "all", "--out", tmp_path / "adapted", "--steps", 4)
    base, with_memory = load_model(run)[0], load_model(tmp_path / "adapted")[0]
    state = with_memory.state_dict()
    assert_same({name: state[name] for name in base.state_dict()}, base.state_dict())
    assert with_memory.memory.computations["memory"].scale.any()
    record = json.loads((tmp_path / "adapted" / "modules" / "memory.json").read_text())
    assert record["options"]["spacing"] == [0.5, 0.5], "of the keyframes, which the drives have alone"
    assert with_memory.config.modules[0].spacing == (0.5, 0.5)
    assert record["slots"] == [{"name": "memory", "layer": "FusedMap", "shape": [*base.memory.layer.shape]}]
    loaded = copy.deepcopy(base)
    loaded.bank.load(tmp_path / "adapted" / "modules" / "memory.json")
    assert_same(loaded.state_dict(), state)
    without = copy.deepcopy(with_memory)
    without.bank.delete("memory")
    assert_same(without.state_dict(), base.state_dict())
    evaluate = ("evaluate", tmp_path / "adapted", "--data", data, "--split", "all", "--out", tmp_path / "scores")
    succeeds(*evaluate)
    assert "has a memory, so that its frames depend on those before" in refuses(*evaluate, "--jobs", 2)


def test_a_memory_that_no_frame_could_train_is_refused(tables, tmp_path):
    """Keyframes are 0.5 s apart, or alone. Where it does not train, other modules do."""
    network, tokens = PerceptionModel(plain()), tables.samples("all")
    spec = network.config.modules[0].model_copy(update={"seconds": 0.3})
    config = network.config.model_copy(update={"modules": (spec,)})
    with pytest.raises(InputError, match=r"none of these keyframes has a frame up to 0.3 s before it"):
        FrameDataset(tables, tokens, config)
    FrameDataset(tables, tokens, config, trained=["other"])
    firsts = [tables.samples(None, [scene])[0] for scene in tables.scenes()]
    with pytest.raises(InputError, match=r"none of these keyframes has a frame up to 1.2 s before it"):
        FrameDataset(tables, firsts, network.config)


@pytest.mark.parametrize(("given", "spacing"), [((0.1, 0.9), (0.5, 0.9)), ((0.1, 2.0), (0.5, 1.2)), ((0.6, 0.7), None)])
def test_a_training_says_which_spacings_it_has_seen(tables, given, spacing):
    """From that of the keyframes to what the options say, as far as a state is used."""
    network = PerceptionModel(plain())
    spec = with_spacing(network.config.modules[0], given)
    config = network.config.model_copy(update={"modules": (spec,)})
    dataset = FrameDataset(tables, tables.samples("all"), config)
    assert dataset.spacing == (spacing or given)
    assert FrameDataset(tables, tables.samples("all"), config, trained=["other"]).spacing is None
