"""Intrinsics from projections in closed form, and what the depth makes of them in torch and in the exported graph."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import config as little
from networks import disturb, inputs, spec
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.engines.tensorrt import build_engine
from deploy.onnx_export import to_onnx
from deploy.targets import find_target
from perception.config import Config, Image
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.sensors.camera.lens import intrinsics

IMAGE = Image(height=256, width=704)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([-1.0, 1.0]), st.sampled_from([-1.0, 1.0]))
def test_intrinsics_of_a_known_camera(seed: int, flip: float, mirror: float) -> None:
    rng = np.random.default_rng(seed)
    fx, fy, cx, cy = rng.uniform([100, 100, 0, 0], [1500, 1500, 700, 250])
    lens = np.array([[mirror * fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    rigid = np.c_[Rotation.random(random_state=int(rng.integers(2**32))).as_matrix(), rng.normal(size=3)]
    similarity = np.eye(4)  # of the reference frame, as `draw_similarity`
    similarity[:3, :3] = (
        rng.uniform(0.8, 1.2) * Rotation.random(random_state=int(rng.integers(2**32))).as_matrix() * [1, flip, 1]
    )
    similarity[:3, 3] = rng.normal(size=3)
    projection = torch.from_numpy(lens @ rigid @ np.linalg.inv(similarity))
    expected = [fx / 704, fy / 256, cx / 704, cy / 256]
    np.testing.assert_allclose(intrinsics(projection, IMAGE), expected, rtol=1e-9, atol=1e-9)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(intrinsics(projection.float(), IMAGE), expected, rtol=1e-4, atol=1e-5)


def test_a_missing_camera_has_zeros() -> None:
    assert not intrinsics(torch.zeros(2, 6, 3, 4), IMAGE).any()


def with_lens() -> Config:
    """The little model with cameras alone, of whose lenses the depth knows."""
    config = little()
    depth = config.model.camera.depth.model_copy(update={"intrinsics": True})
    camera = config.model.camera.model_copy(update={"depth": depth})
    model = config.model.model_copy(update={"camera": camera, "lidar": None})
    return config.model_copy(update={"model": model, "tasks": {"map": config.tasks["map"]}})


@cache
def trained() -> PerceptionModel:
    """With statistics of real activations, a gate that has learned, and a module at every slot of the depth."""
    torch.manual_seed(0)
    model = PerceptionModel(with_lens())
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(pictures())
        torch.nn.init.normal_(model.camera.lens_depth.gate.layer.weight, std=1.0)
    model.bank.add(spec("module", "low_rank", "camera.lens*", "camera.depth*"))
    disturb(model, "module")
    return model.eval()


def pictures() -> dict[str, Tensor]:
    return {name: inputs(0)[name] for name in ("images", "image_from_reference")}


def logits(model: PerceptionModel, zoom: float = 1.0) -> Tensor:
    """Logits of the depth for cameras whose focal lengths are `zoom` times as large, and the same pictures."""
    given = pictures()
    x, y, z = given["image_from_reference"].unbind(dim=2)
    longer = torch.stack([zoom * x, zoom * y, z], dim=2)
    with torch.no_grad():
        return model.camera(given["images"], longer)[1]


def test_the_lens_makes_no_difference_at_first_and_does_once_learned() -> None:
    torch.manual_seed(0)
    model = PerceptionModel(with_lens()).eval()
    lens = model.camera.lens_depth
    features = torch.randn(6, 32, 4, 8)
    plain = lens.head(lens.mix(features))
    torch.testing.assert_close(lens(features, pictures()["image_from_reference"]), plain)
    assert torch.equal(logits(model), logits(model, 1.5))
    assert (logits(trained()) - logits(trained(), 1.5)).abs().max() > 0.01


def test_a_missing_camera_gives_no_nan_in_training() -> None:
    torch.manual_seed(0)
    model = PerceptionModel(with_lens())
    given = pictures()
    given["image_from_reference"] = given["image_from_reference"].clone()
    given["image_from_reference"][:, 2:] = 0
    model(given)["map/logits"].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.camera.parameters())
    assert model.camera.lens_depth.gate.layer.weight.grad.any()


class Depths(nn.Module):
    """The depth alone, as `to_onnx` takes a network."""

    router = None

    def __init__(self, model: PerceptionModel) -> None:
        super().__init__()
        self.depth = model.camera.lens_depth

    def predict(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"y": self.depth(given["features"], given["image_from_reference"])}


def test_the_graph_computes_what_torch_does_and_compiles() -> None:
    fog, projections = Conditions(weather="fog"), pictures()["image_from_reference"].clone()
    projections[:, 5] = 0
    given = {"features": torch.randn(6, 32, 4, 8), "image_from_reference": projections}
    with torch.no_grad():
        trained()(pictures(), [fog])  # its slots keep the route
        expected = Depths(trained()).predict(given)["y"]
        plain = Depths(trained().folded()).predict(given)["y"]
    assert (expected - plain).abs().max() > 0.1  # what the module changes
    arrays = {name: values.numpy() for name, values in given.items()}
    network: Any = Depths(trained().deployed(fog))
    graph = to_onnx(network, arrays, ["y"]).SerializeToString()
    np.testing.assert_allclose(OnnxRuntimeEngine(graph).run(arrays)["y"], expected, atol=1e-4)
    pytest.importorskip("tensorrt_rtx")
    shapes = {name: values.shape for name, values in arrays.items()}
    assert build_engine(graph, find_target("rtx-ada"), inputs=shapes).layers > 0
