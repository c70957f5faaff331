"""`perception verify`: what it checks, what it says, and how it ends."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from commands import perception, succeeds
from exported import bundle, copied, keys, rewritten, trusting
from onnx import TensorProto
from refusals import one_line_error
from vehicle_modules import python

from deploy.bundle import Bundle
from deploy.runtime import Runtime
from deploy.signature import signer
from deploy.verify import verify
from perception.errors import InputError


def test_what_is_verified_is_told(tmp_path: Path) -> None:
    key, public = keys(tmp_path)
    path = rewritten(copied(tmp_path / "bundle", "rain"), sign=key)
    assert verify(path)["signature"] == "not checked, no --key was given"
    assert verify(bundle().path)["signature"] == "none"
    manifest = bundle("rain").manifest
    told = json.loads(succeeds("verify", path, "--key", public, "--state", tmp_path, "--json"))
    assert told == {
        "manifest": f"schema 9, sha256 {json.loads((path / 'manifest.json').read_text())['sha256']}",
        "release": "0, without end",
        "signature": f"by the key {signer(key).id}",
        "files": f"4 files, {sum((path / name).stat().st_size for name in manifest.files) / 1e6:.1f} MB: "
        "hashes match, no other files",
        "graph": f"opset 18, 5 inputs, 5 outputs, {sum(manifest.operators.values())} operators: as in the manifest",
        "golden frames": "synthetic-0 and others: outputs of ONNX Runtime are within the tolerances",
        "engines": "none",
        "unsigned engines": "orin, thor, drive-orin, drive-thor may compile their own",
        "routes": "rain",
        "calibration": "none",
        "base": manifest.origin.base,
        "modules": "rain (domain not known)",
        "trained on": "the checkpoint did not say",
        "license": "not stated",
    }
    shown = succeeds("verify", path, "--key", public, "--state", tmp_path)
    assert all(what in shown for what in told)


def renamed(model: onnx.ModelProto) -> None:
    graph = model.graph
    graph.input[0].name = "points"
    for node in graph.node:
        node.input[:] = ["points" if name == "pillar_points" else name for name in node.input]


def one_node_more(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Softsign", [model.graph.output[1].name], ["unused"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model: setattr(model.opset_import[0], "version", 17),
            "opset: ONNX is 17, the manifest says 18",
        ),
        (
            lambda model: model.opset_import.append(onnx.helper.make_opsetid("com.acme", 1)),
            "opset: com.acme is 1, the manifest says that there is none",
        ),
        (renamed, "inputs: pillar_points is not there, the manifest says float32 (1, 'pillars', 8, 5)"),
        (
            lambda model: setattr(model.graph.input[1].type.tensor_type.shape.dim[1], "dim_value", 7),
            "inputs: pillar_counts is int32 (1, 7), the manifest says int32 (1, 'pillars')",
        ),
        (
            lambda model: setattr(model.graph.output[2].type.tensor_type, "elem_type", TensorProto.INT32),
            "outputs: detection/labels is int32 (1, 200), the manifest says int64 (1, 200)",
        ),
        (
            lambda model: model.graph.output.pop(),
            "outputs: map/probabilities is not there, the manifest says float32 (1, 6, 128, 128)",
        ),
        (one_node_more, "operators: Softsign is 1, the manifest says that there is none"),
    ],
)
def test_a_graph_that_is_not_the_manifests_is_refused(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    """Whole by its hashes, which a forger made anew."""
    model = onnx.load(bundle().onnx)
    change(model)
    path = rewritten(copied(tmp_path / "bundle"), onnx=model.SerializeToString())
    Bundle.load(path)
    with one_line_error(exactly=f"{path}/model.onnx: {message}; export the bundle again"):
        verify(path)


def test_an_opset_that_the_engine_does_not_know(tmp_path: Path) -> None:
    model = onnx.load(bundle().onnx)
    model.opset_import[0].version = 99
    path = rewritten(copied(tmp_path / "bundle"), onnx=model.SerializeToString(), opset=99)
    with one_line_error(r"model\.onnx: ONNX Runtime refuses it: .*[Oo]pset 99"):
        verify(path)


def test_what_is_no_graph_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.onnx: not an ONNX file"):
        rewritten(copied(tmp_path / "bundle"), onnx=b"not a graph")


def test_a_golden_frame_that_is_not_the_manifests(tmp_path: Path) -> None:
    inputs = bundle().manifest.inputs
    stored = int((bundle().golden_frames()[0].inputs["pillar_counts"] > 0).sum())
    points = f"first.inputs.pillar_points is float32 (1, {stored}, 8, 5)"
    for change, message in (
        ({"shape": (1, 2)}, f"{points}, the manifest says float32 (1, 2)"),
        ({"dtype": "uint8"}, f"{points}, the manifest says uint8"),
        ({"name": "radar"}, "first.inputs.radar is missing, the manifest says float32 (1, 12000, 8, 5)"),
    ):
        wrong = (inputs[0].model_copy(update=change), *inputs[1:])
        path = rewritten(copied(tmp_path / str(change)), inputs=wrong)
        with one_line_error(at=f"{path}/golden.safetensors: {message}"):
            Runtime(path)


def test_a_network_that_does_not_take_the_golden_frame_is_one_line(tmp_path: Path) -> None:
    """Where there is no onnx to see it beforehand."""
    model = onnx.load(bundle().onnx)
    renamed(model)
    path = rewritten(copied(tmp_path / "bundle"), onnx=model.SerializeToString())
    with one_line_error(r"ONNX Runtime cannot run the network: .*pillar_points"):
        Runtime(path)


def test_engines_are_verified_too(tmp_path: Path) -> None:
    path = copied(tmp_path / "bundle")
    (path / "engines").mkdir()
    (path / "engines" / "orin.plan").write_bytes(b"of nobody")
    with pytest.raises(InputError, match="no engine for orin; run `perception build"):
        verify(path)


def test_a_damaged_bundle_ends_with_exit_code_2(tmp_path: Path) -> None:
    path = copied(tmp_path / "bundle")
    with (path / "golden.safetensors").open("ab") as file:
        file.write(b"\0")
    shown = perception("verify", path)
    assert (shown.returncode, shown.stdout, shown.stderr.count("\n")) == (2, "", 1)
    assert shown.stderr.startswith(f"perception: {path}/golden.safetensors: was changed")


def test_a_vehicle_verifies_without_torch_and_onnx(tmp_path: Path) -> None:
    """The command itself, in a process that cannot import them, says what one says that can."""
    path, (key, public) = copied(tmp_path / "bundle", "rain"), keys(tmp_path)
    path = rewritten(path, sign=key)
    arguments = ["perception", "verify", str(path), "--key", str(public), "--state", str(tmp_path / "state"), "--json"]
    done = python(f"import sys\nsys.argv = {arguments}\nfrom deploy.cli import main\nmain()")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == verify(path, trusting(public))
    model = onnx.load(bundle().onnx)
    one_node_more(model)
    path = rewritten(copied(tmp_path / "other"), onnx=model.SerializeToString())
    done = python(f"import sys\nsys.argv = {['perception', 'verify', str(path)]}\nfrom deploy.cli import main\nmain()")
    assert done.returncode == 2
    assert "operators: Softsign is 1, the manifest says that there is none" in done.stderr
