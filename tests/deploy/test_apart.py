"""One bundle with a network for each route: as cheap as the base, the right one for every frame, none unguarded."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from exported import QUIET, apart, apart_checkpoint, bundle, keys, trusting
from vocabulary import RIG

from deploy.build import build
from deploy.bundle import Bundle
from deploy.golden import synthetic_frame
from deploy.runtime import Runtime
from deploy.verify import verify
from perception.errors import InputError
from perception.frame import Conditions
from perception.sensors.inputs import prepare
from perception.tasks.result import to_prediction
from perception.training.checkpoint import load_model


def exported() -> Bundle:
    return apart()[0]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With plans that nobody signed."""
    pytest.importorskip("tensorrt_rtx")
    path = copytree(exported().path, tmp_path_factory.mktemp("compiled") / "bundle")
    build(path, "rtx-ampere", QUIET)
    return path


@pytest.mark.parametrize(
    ("conditions", "served"),
    [
        (Conditions(), Conditions()),
        (Conditions(weather="rain", city="boston"), Conditions(weather="rain")),
        (Conditions(weather="rain", light="night"), Conditions(weather="rain", light="night")),
        (Conditions(light="night"), Conditions()),  # no network for night alone: the one that asks for nothing
    ],
)
def test_each_frame_gets_the_network_that_asks_for_most_of_what_is_known(
    conditions: Conditions, served: Conditions
) -> None:
    frame = replace(synthetic_frame("ego", RIG, 3), conditions=conditions)
    inputs = {name: torch.from_numpy(a) for name, a in prepare(frame, exported().spec).items()}
    with torch.no_grad():
        outputs = {k: v.numpy() for k, v in load_model(apart_checkpoint())[0].predict(inputs, [served]).items()}
    expected = to_prediction(exported().manifest.heads, outputs)
    found = Runtime(exported().path).step(frame).prediction
    np.testing.assert_allclose(found.results["detection"].scores, expected.results["detection"].scores, atol=1e-4)
    np.testing.assert_allclose(found.results["map"], expected.results["map"], atol=1e-4)


def test_every_network_has_the_operators_of_the_base_alone() -> None:
    for part in (exported(), *exported().routes.values()):
        assert part.manifest.operators == bundle().manifest.operators
        assert part.manifest.banked == ()
    assert [part.manifest.folded for part in exported().routes.values()] == [("rain",), ("rain", "night")]


def test_verify_looks_into_every_network(tmp_path: Path) -> None:
    assert verify(exported().path)["routes"] == "base, rain with its own network, rain+night with its own network"
    for file, message in (
        ("routes/rain/model.onnx", "was changed"),
        ("routes/rain/manifest.json", "was changed"),
        ("routes/rain+night/golden.safetensors", "was changed"),
        ("routes/rain/more", "does not name this file"),
        ("routes/fog/manifest.json", "does not name this file"),
    ):
        path = copytree(exported().path, tmp_path / file.replace("/", "-"))
        (path / file).parent.mkdir(exist_ok=True)
        with (path / file).open("ab") as opened:
            opened.write(b" ")
        with pytest.raises(InputError, match=f"{file.split('/')[-1]}: .*{message}"):
            Bundle.load(path)


def test_a_route_that_leads_out_of_the_bundle_is_refused(tmp_path: Path) -> None:
    path = copytree(exported().path, tmp_path / "bundle")
    forged = exported().manifest.model_copy(update={"apart": ("../elsewhere",)})
    (path / "manifest.json").write_bytes(forged.hashed_json())
    with pytest.raises(InputError, match=r"apart: '\.\./elsewhere' is none of clear"):
        Bundle.load(path)


def test_a_signature_holds_for_all_networks(compiled: Path, tmp_path: Path) -> None:
    path, (_, private, _), public = copytree(compiled, tmp_path / "bundle"), apart(), tmp_path / "mine" / "public.pem"
    public.parent.mkdir()
    public.write_bytes(apart()[2].read_bytes())  # a vehicle keeps its state beside it
    _, another = keys(tmp_path / "another")
    assert set(Bundle.load(path, trusting(public)).routes) == {"rain", "rain+night"}
    with pytest.raises(InputError, match="not the signature"):
        Bundle.load(path, trusting(another))
    with pytest.raises(InputError, match=r"routes/rain/engines/rtx-ampere\..*sign"):
        Bundle.load(path, trusting(public)).routes["rain"].plan("rtx-ampere")
    build(path, "rtx-ampere", QUIET, sign=private)
    assert Bundle.load(path, trusting(public)).routes["rain"].plan("rtx-ampere").data


def test_every_network_is_compiled(compiled: Path, tmp_path: Path) -> None:
    path = copytree(compiled, tmp_path / "bundle")
    found = Bundle.load(path)
    plans = [part.plan("rtx-ampere") for part in (found, *found.routes.values())]
    assert len({plan.data for plan in plans}) == 3
    assert "rtx-ampere by tensorrt_rtx" in verify(path)["engines"]
    plans[1].path.write_bytes(plans[0].data)
    with pytest.raises(InputError, match=r"routes/rain/engines/rtx-ampere.plan: was changed"):
        verify(path)
