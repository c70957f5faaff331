"""What of a model learns and what keeps every bit; modules that are adapted, merged and recalibrated."""

import copy
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.utils import set_seed
from commands import refuses, succeeds
from networks import assert_same, little, small
from torch import nn
from vocabulary import CAMERAS

from perception.checkpoint import load_model, provenance, save_model
from perception.config import Config
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Conditions, Frame
from perception.model import batch_inputs
from perception.modules.computation.channelwise import BatchNorm
from perception.modules.computation.weight_delta import LowRank
from perception.modules.routing.fixed import present
from perception.modules.spec import parse_module
from perception.sensors.inputs import prepare
from perception.training import optimize
from perception.training.adapt import adapt, with_sensors
from perception.training.combine import merge, recalibrate
from perception.training.loader import Batch, FrameDataset, batches
from perception.training.loop import fit, train


def without_modules(**training: object) -> Config:
    return small(**training).model_copy(update={"modules": ()})


@pytest.fixture(scope="module")
def trained(tables: NuScenesTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a base without modules."""
    run = tmp_path_factory.mktemp("runs") / "base"
    train(without_modules(steps=2), tables, "all", run)
    return run


@pytest.mark.parametrize("fact", ["no-lidar", "no-cameras", "lidar", "cameras"])
def test_a_module_for_sensors_trains_on_frames_that_have_or_lack_them(tables, trained, tmp_path, fact):
    """All of the drives' frames have both."""
    module = {"name": "new", "kind": "low_rank", "rank": 2, "slots": ["trunk.*"], "when": [fact]}
    adapt(trained, module, tables, "all", [], tmp_path / "run", steps=1, learning_rate=0.01)
    after, before = (load_model(each)[0].state_dict() for each in (tmp_path / "run", trained))
    weights = [value for name, value in after.items() if ".computations.new." in name]
    assert weights
    assert all(value.any() for value in weights)  # one of its two factors is zero at first
    assert_same(before, base_of(after))


@pytest.mark.parametrize(
    ("both", "facts"),
    [(True, "no-cameras no-lidar"), (False, "no-lidar"), (False, "no-cameras"), (False, "cameras")],
)
def test_a_module_that_no_training_frame_reaches_is_refused(tables, trained, tmp_path, both, facts):
    """In a network with both sensors, or with LiDAR alone, whose frames neither have nor lack cameras."""
    base = trained
    if not both:
        base, model = tmp_path / "base", little([])
        save_model(base, model.config, model)
    new = {"name": "new", "kind": "low_rank", "rank": 2, "slots": ["trunk.*"], "when": facts.split()}
    says = f"new: requires {facts.replace(' ', ' and ')}, which no training frame of a network with lidar"
    with pytest.raises(InputError, match=says):
        adapt(base, new, tables, "all", (), tmp_path / "run", steps=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("facts", "reached"), [("no-lidar", True), ("no-cameras", False), ("cameras", False)])
def test_a_memory_may_run_where_a_network_with_lidar_alone_sees_nothing(facts, reached):
    """The frames before had points. Its frames neither have nor lack cameras."""
    model = little([])
    model.bank.add(parse_module({"name": "new", "kind": "memory", "when": [facts]}))
    with nullcontext() if reached else pytest.raises(InputError, match=f"new: requires {facts}, which no training"):
        optimize.require_reachable(model, "new")


@pytest.mark.parametrize(
    ("module", "drops"),
    [
        ({"kind": "memory"}, (0.25, 0.5)),
        ({"kind": "memory", "when": ["no-lidar"]}, (0.0, 0.0)),
        ({"kind": "memory", "when": ["lidar"]}, (0.0, 0.5)),
        ({"kind": "low_rank", "slots": ["trunk.*"], "when": ["no-lidar"]}, (1.0, 0.0)),
        ({"kind": "low_rank", "slots": ["trunk.*"], "when": ["cameras"]}, (0.25, 0.0)),
    ],
)
def test_what_a_module_lacks_is_dropped_and_a_memory_loses_it_in_outages(module, drops):
    config = little([]).config
    train = config.train.model_copy(update={"drop": {"lidar": 0.25, "cameras": 0.5}})
    found = with_sensors(config.model_copy(update={"train": train}), parse_module({"name": "new"} | module)).train
    assert tuple(found.drop.values()) == drops


def first_batch(config: Config, tables: NuScenesTables) -> Batch:
    return next(iter(batches(FrameDataset(tables, tables.samples("all"), config), config)))


def base_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if ".computations." not in name}


@pytest.mark.parametrize("part", ["the modules", "the heads", "the base"])
def test_what_is_asked_for_learns_and_nothing_else(tables, trained, tmp_path, part):
    model, _ = load_model(trained)
    model.bank.add(LowRank.Options(name="a", rank=2, slots=("*",)))
    if part == "the modules":
        model.bank.add(BatchNorm.Options(name="b", slots=("*",)))
    before = copy.deepcopy(model.state_dict())
    if part == "the modules":
        optimize.post_hoc(model, ["a", "b"])
    else:
        optimize.joint(model)
        optimize.freeze(model, {"*.computations.*": 0, **({"heads.*": 1, "*": 0} if part == "the heads" else {})})
    learning = {name for name, _ in optimize.parameters(model)}
    fit(model, tables, tables.samples("all"), tmp_path / "run")
    after = model.state_dict()
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    of_modules = {key for key in moved if ".computations." in key}
    if part == "the modules":
        assert moved == of_modules
        assert {key.split(".computations.")[1].split(".")[0] for key in moved} == {"a", "b"}
        assert any(key.endswith("running_mean") for key in moved)  # a BN set collects its own statistics
        return
    assert not of_modules
    if part == "the heads":
        assert {key.split(".")[0] for key in moved} == {"heads"}
    else:
        assert learning == {name for name, _ in model.named_parameters() if ".computations." not in name}
        still = base_of(after).keys() - moved
        assert all(key.endswith("bias") or after[key].numel() < 3 for key in still), still


def test_adapting_again_and_again_leaves_what_was_there_bit_for_bit(tables, trained, tmp_path):
    rain = {"kind": "low_rank", "name": "rain", "slots": ["trunk.*"], "rank": 2, "when": ["rain"]}
    night = {"kind": "scale_shift", "name": "night", "slots": ["trunk.*"], "when": ["night"]}
    adapt(trained, rain, tables, "all", (), tmp_path / "rain", steps=3)
    adapt(tmp_path / "rain", night, tables, "all", (), tmp_path / "both", steps=3)
    one, _ = load_model(tmp_path / "rain")
    both, config = load_model(tmp_path / "both")
    assert [m.name for m in config.modules] == ["rain", "night"]
    base = load_model(trained)[0]
    assert_same(base.state_dict(), base_of(both.state_dict()))
    assert both.bank.base_hash() == base.bank.base_hash()
    inputs, _ = first_batch(without_modules(), tables).frames[-1]
    with torch.no_grad():
        for conditions in (Conditions(), Conditions(weather="rain"), Conditions(weather="rain", light="day")):
            earlier, later = one(inputs, [conditions] * 2), both(inputs, [conditions] * 2)
            assert_same(earlier, later)
        night_outputs = both(inputs, [Conditions(light="night")] * 2)
    assert not torch.equal(night_outputs["detection/heatmap"], later["detection/heatmap"])
    record = json.loads((tmp_path / "both" / "modules" / "night.json").read_text())
    assert record["base"] == base.bank.base_hash()
    plain, _ = load_model(trained)
    plain.bank.load(tmp_path / "both" / "modules" / "night.safetensors")
    for slot, module in both.bank.at("night").items():
        assert_same(module.state_dict(), plain.bank.at("night")[slot].state_dict())


def test_adapt_trains_on_the_frames_under_its_conditions_alone(tables):
    every = tables.samples("all")
    wet = optimize.with_conditions(tables, every, ("rain", "night"))
    assert 0 < len(wet) < len(every)
    assert {tables.conditions(token)["weather"] for token in wet} == {"rain"}
    assert optimize.with_conditions(tables, every, ("map",)) == every  # a task is no condition


def test_a_module_of_a_file_is_that_of_a_configuration(trained: Path, sim_root: Path, tmp_path: Path) -> None:
    parts = [{"kind": "low_rank", "slots": ["trunk.*"], "rank": 2}, {"kind": "batch_norm", "slots": ["*norm"]}]
    union = {"name": "wet", "kind": "union", "when": ["rain"], "parts": parts}
    file, given = tmp_path / "file.yaml", ("--data", sim_root, "--split", "all", "--steps", 2, "--out")
    file.write_text(yaml.safe_dump({"modules": [union]}))
    succeeds("adapt", trained, "--config", file, *given, tmp_path / "of_file")
    module, config = load_model(tmp_path / "of_file")
    assert config.modules[-1] == parse_module(union)
    tables = NuScenesTables(sim_root, "v1.0-sim", config.rig, config.taxonomy)
    set_seed(config.seed)
    adapt(trained, union, tables, "all", (), tmp_path / "called", steps=2, learning_rate=1e-2)
    assert_same(module.state_dict(), load_model(tmp_path / "called")[0].state_dict())
    for content in ({"modules": [union, union]}, {"modules": [{"kind": "low_rank"}]}, {"tasks": {"map": {}}}):
        file.write_text(yaml.safe_dump(content))
        wrong = refuses("adapt", trained, "--config", file, *given, tmp_path / "wrong")
        assert f"{file}: write one module with a name under `modules`" in wrong


def test_adapt_refuses_what_makes_no_sense(tables, trained, tmp_path):
    for change, message in (
        ({"kind": "lora"}, "lora"),
        ({"when": ["snow"]}, "snow"),
        ({"when": ["fog"]}, "no keyframe of the split is known to have fog"),
        ({"slots": ["tronk.*"]}, "no slot is called 'tronk"),
    ):
        module = {"kind": "low_rank", "name": "a", "slots": ["trunk.*"], "when": []} | change
        with pytest.raises(InputError, match=message):
            adapt(trained, module, tables, "all", (), tmp_path / "run", steps=1)
        assert not (tmp_path / "run").exists()


def test_merged_modules_are_a_checkpoint_with_one_more(tables, trained, tmp_path):
    checkpoint = trained
    for name, when in (("rain", "rain"), ("night", "night")):
        module = {"kind": "low_rank", "name": name, "slots": ["trunk.*"], "rank": 2, "when": [when]}
        adapt(checkpoint, module, tables, "all", (), tmp_path / name, steps=2)
        checkpoint = tmp_path / name
    lost = merge(checkpoint, ["rain", "night"], "wet_night", "average", tmp_path / "merged", ["rain", "night"])
    assert max(lost.values()) < 1e-5
    model, config = load_model(tmp_path / "merged")
    assert [m.name for m in config.modules] == ["rain", "night", "wet_night"]
    for slot, module in model.bank.at("wet_night").items():
        mean = sum(model.bank.at(n)[slot].delta() for n in ("rain", "night")) / 2
        torch.testing.assert_close(module.delta(), mean, rtol=1e-4, atol=1e-6)
    assert (tmp_path / "merged" / "modules" / "wet_night.json").exists()
    all_drives, one_drive = "v1.0-sim: 6 keyframes of 2 scenes", "v1.0-sim: 3 keyframes of 1 scenes"
    assert provenance(tmp_path / "merged").data == (all_drives, one_drive, one_drive)
    merge(checkpoint, ["0.5*rain", "-2*night"], "mixed", "task-arithmetic", tmp_path / "mixed", [])
    bank = load_model(tmp_path / "mixed")[0].bank
    for slot, module in bank.at("mixed").items():
        total = 0.5 * bank.at("rain")[slot].delta() - 2 * bank.at("night")[slot].delta()
        torch.testing.assert_close(module.delta(), total, rtol=1e-4, atol=1e-6)
    for members, method, options, message in (
        (["rain", "fog"], "average", {}, "no module called 'fog'"),
        (["rain", "night"], "magic", {}, "magic"),
        (["0.5*rain", "night"], "average", {}, "an average has weights for all its members or for none"),
        (["0.5*stack(rain, night)"], "average", {}, "modules merge, blocks do not"),
        (["rain", "night"], "ties", {"depth": 1}, "depth"),
    ):
        with pytest.raises(InputError, match=message):
            merge(checkpoint, members, "c", method, tmp_path / "no", [], **options)
        assert not (tmp_path / "no").exists()


def test_a_merged_module_has_the_statistics_of_frames_under_its_conditions(tables, trained, tmp_path):
    """Of the frames as recorded, one by one, with the statistics of each at every norm of the module."""
    checkpoint = trained
    for name in ("rain", "night"):
        module = {"kind": "batch_norm", "name": name, "slots": ["trunk.*"], "when": [name]}
        adapt(checkpoint, module, tables, "all", (), tmp_path / name, steps=2)
        checkpoint = tmp_path / name
    merge(checkpoint, ["rain", "night"], "both", "average", tmp_path / "both", ["rain"], drives=(tables, "all"))
    model, _ = load_model(tmp_path / "both")
    model.bank.activate("both")
    found = {slot: copy.deepcopy(each.norm) for slot, each in model.bank.at("both").items()}
    means, variances = (dict.fromkeys(found, 0.0) for _ in range(2))
    for slot, each in model.bank.at("both").items():
        each.norm.train()

        def measure(_: nn.Module, x: tuple[torch.Tensor], slot: str = slot) -> None:
            means[slot] += x[0].mean(dim=(0, 2, 3))
            variances[slot] += x[0].var(dim=(0, 2, 3))

        each.norm.register_forward_pre_hook(measure)
    wet, spec = optimize.with_conditions(tables, tables.samples("all"), ["rain"]), model.config.spec
    for token in wet:
        inputs = prepare(tables.frame(token, Reads(spec.grid.reference, spec.sweeps)), spec)
        with torch.no_grad():
            model({name: torch.from_numpy(each) for name, each in inputs.items()}, [Conditions()])
    assert 0 < len(wet) < len(tables.samples("all"))
    assert len(found) > 5
    assert_same(load_model(trained)[0].state_dict(), base_of(model.state_dict()))
    for slot, norm in found.items():
        torch.testing.assert_close(norm.running_mean, means[slot] / len(wet), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variances[slot] / len(wet), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="no keyframe of the split is known to have fog"):
        merge(checkpoint, ["rain", "night"], "c", "average", tmp_path / "no", ["fog"], drives=(tables, "all"))
    low_rank = {"kind": "low_rank", "name": "thin", "slots": ["trunk.*"], "rank": 1, "when": ["rain"]}
    adapt(trained, low_rank, tables, "all", (), tmp_path / "thin", steps=1)
    recalibrating = ("--merge", "0.5*thin", "--name", "c", "--method", "task-arithmetic", "--data", tables.dataroot)
    said = refuses("modules", tmp_path / "thin", *recalibrating, "--out", tmp_path / "no")
    assert "c: no batch normalisation to recalibrate" in said
    merging = ("--merge", "thin", "--name", "c", "--option", "keep=0.5", "--out", tmp_path / "no")
    assert "keep: is of --method ties, not average" in refuses("modules", tmp_path / "thin", *merging)


@pytest.mark.parametrize("fact", ["no-lidar", "no-cameras"])
def test_the_statistics_of_a_module_for_a_missing_sensor_are_of_frames_without_it(tables, trained, fact):
    model, seen = load_model(trained)[0], []
    model.bank.add(BatchNorm.Options(name="without", slots=("trunk.*",), when=(fact,)))
    hook = model.register_forward_pre_hook(lambda _, given: seen.append(present(model.bank, given[0])))
    recalibrate(model, tables, tables.samples("all")[:2], "without")  # routed by what the frames have
    hook.remove()
    assert [{f"no-{name}" for name, there in each.items() if not there} for each in seen] == [{fact}] * 2
    assert all(int(each.norm.num_batches_tracked) == 2 for each in model.bank.at("without").values())
    model.bank.add(BatchNorm.Options(name="blind", slots=("trunk.*",), when=("no-lidar", "no-cameras")))
    with pytest.raises(InputError, match="blind: requires no-cameras and no-lidar, which no training frame"):
        recalibrate(model, tables, tables.samples("all")[:2], "blind")


def test_a_camera_is_recalibrated_on_the_images_that_there_are(tables, trained):
    """Of frames that have all images, all but two, and none; each with an image counts as much."""
    model, *tokens = load_model(trained)[0], *tables.samples("all")[:3]
    lost = dict(zip(tokens, ((), CAMERAS[:2], CAMERAS), strict=True))
    model.bank.add(BatchNorm.Options(name="new", slots=("camera.*",), when=("lidar",)))
    norms = {slot: each.norm for slot, each in model.bank.at("new").items()}
    images, means, variances = (dict.fromkeys(norms, total) for total in ([], 0.0, 0.0))

    class Lossy:
        def frame(self, token: str, reads: Reads) -> Frame:
            frame = tables.frame(token, reads)
            return replace(frame, cameras={n: c for n, c in frame.cameras.items() if n not in lost[token]})

    recalibrate(model, Lossy(), tokens, "new")
    assert {int(norm.num_batches_tracked) for norm in norms.values()} == {2}
    found = {slot: (norm.running_mean.clone(), norm.running_var.clone()) for slot, norm in norms.items()}
    # The statistics of all are now fixed, so each frame goes its way alone, and without the images it lacks.
    for slot, norm in norms.items():
        norm.reset_running_stats()
        norm.train()

        def measure(_: nn.Module, x: tuple[torch.Tensor], slot: str = slot) -> None:
            images[slot] = [*images[slot], len(x[0])]
            means[slot] += x[0].mean(dim=(0, 2, 3)) / 2
            variances[slot] += x[0].var(dim=(0, 2, 3)) / 2

        norm.register_forward_pre_hook(measure)
    spec = model.config.spec
    for token in tokens[:2]:
        given = batch_inputs([prepare(Lossy().frame(token, spec.reads), spec)])
        there = [name not in lost[token] for name in spec.rig.sensors.cameras]
        only = {name: given[name][:, there] for name in ("images", "image_from_reference")}
        with torch.no_grad():
            model(given | only, [Conditions()])
    assert set(map(tuple, images.values())) == {(len(CAMERAS), len(CAMERAS) - 2)}
    for slot, (mean, variance) in found.items():
        torch.testing.assert_close(mean, means[slot], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(variance, variances[slot], rtol=1e-4, atol=1e-5)
