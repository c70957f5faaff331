"""Signed and compiled on the device: the whole way of a bundle to a device that has no private key.

build.sh runs for real, with test_build_package's stand-in for trtexec. TensorRT itself is only on the device: here a
module of its name tells a version, and the engine of its "plan" is ONNX Runtime.
"""

import hashlib
import json
import subprocess
import sys
import types
from pathlib import Path

import onnx
import pytest
from devices import Device, refused
from exported import QUIET, bundle, copied, keys, plan_record, rewritten, trusting
from hypothesis import given
from hypothesis import strategies as st
from refits import trained_further
from refusals import one_line_error
from typer.testing import CliRunner

from deploy.build import build
from deploy.build_package import BuildPackage
from deploy.bundle import Bundle
from deploy.cli import app
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.permit import Permit, default_permits
from deploy.runtime import Runtime
from deploy.sign import sign
from deploy.targets import TARGETS
from deploy.verify import verify
from perception.errors import InputError


class OfOnnxRuntime(OnnxRuntimeEngine):
    """In the place of TensorRtEngine."""

    network = b""

    def __init__(self, *_: object) -> None:
        super().__init__(self.network)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """A Jetson Orin with the trtexec of TensorRT 10.3.0."""
    return Device(tmp_path / "device", 100300)


def drive(path: Path, public: Path, network: bytes | None = None) -> Runtime:
    """On a device whose TensorRT calls itself 10.3.0.30 in Python, and runs this network for every plan."""
    trt = types.ModuleType("tensorrt")
    trt.__version__ = "10.3.0.30"  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", trt)
        patch.setattr("deploy.engines.tensorrt_plan.TensorRtEngine", OfOnnxRuntime)
        patch.setattr(OfOnnxRuntime, "network", network or bundle().onnx.read_bytes())
        return Runtime(path, "orin", trusting(public))


@pytest.fixture
def owner(tmp_path: Path) -> tuple[Path, Path]:
    return keys(tmp_path / "owner")


def delivered(folder: Path, key: Path, **manifest: object) -> BuildPackage:
    """A signed bundle in a signed build package, as a workshop without an Orin makes them."""
    path = rewritten(copied(folder / "bundle"), sign=key, **manifest)
    package = build(path, "orin", QUIET, out=folder / "package", sign=key)
    return package


def test_a_plan_that_the_device_compiled_runs_under_a_key_that_is_not_there(
    tmp_path: Path, device: Device, owner: tuple[Path, Path]
) -> None:
    key, public = owner
    package = delivered(tmp_path, key, release=4)
    key.unlink()
    found = verify(Path(package.package), trusting(public))
    assert found["package"].startswith("6 files as in SHA256SUMS, signature: by ")
    done = device.builds(package, str(public))
    assert (done.returncode, done.stderr) == (0, "")
    path = Path(package.package) / "bundle"
    assert not list((path / "engines").glob("*.sig"))
    drive(path, public)
    assert trusting(public).highest() == 4
    assert "orin by tensorrt 10.3.0, not signed" in verify(Path(package.package), trusting(public))["engines"]


def test_what_the_golden_frame_refuses_does_not_run_though_it_is_permitted(
    tmp_path: Path, device: Device, owner: tuple[Path, Path]
) -> None:
    key, public = owner
    package = delivered(tmp_path, key)
    device.builds(package, str(public))
    other = trained_further(onnx.load(bundle().onnx)).SerializeToString()
    with pytest.raises(InputError, match="does not compute the exported network"):
        drive(Path(package.package) / "bundle", public, other)


def test_a_bundle_that_demands_signatures_gets_them_from_perception_sign(
    tmp_path: Path, device: Device, owner: tuple[Path, Path]
) -> None:
    key, public = owner
    package = delivered(tmp_path, key, builds=())
    device.builds(package)
    path = Path(package.package) / "bundle"
    why = "is not signed, and the manifest does not permit tensorrt 10.3.0 to compile for orin without"
    remedy = f"sign it with `perception sign {path} --target orin --key PRIVATE`"
    with one_line_error(exactly=f"{path}/engines/orin.json: {why}; {remedy}"):
        drive(path, public)
    stranger, _ = keys(tmp_path / "stranger")
    with pytest.raises(InputError, match=r"manifest\.json: is not signed by the key"):
        sign(path, stranger, "orin")
    sign(path, key, "orin")
    drive(path, public)
    assert "orin by tensorrt 10.3.0, signed" in verify(path, trusting(public))["engines"]
    (path / "engines" / "orin.sig").write_bytes(bytes(64))  # a bad signature is not taken for none
    with pytest.raises(InputError, match=r"orin\.sig: not the signature of orin\.json"):
        Bundle.load(path, trusting(public)).plan("orin")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        ({"compiler": "tensorrt 10.9.0"}, None),
        ({"compiler": "tensorrt 10.3.0 with DLA 0"}, None),
        ({"compiler": "tensorrt 10.9.0 with DLA 0"}, "does not permit tensorrt 10.9.0 with DLA 0 to compile for orin"),
        ({"compiler": "tensorrt 10.2.0"}, "does not permit tensorrt 10.2.0 to compile for orin without"),
        ({"compiler": "tensorrt 11.0.0"}, "does not permit tensorrt 11.0.0 to compile for orin without"),
        ({"compiler": "tensorrt_rtx 10.3.0"}, "does not permit tensorrt_rtx 10.3.0 to compile for orin without"),
        ({"onnx_sha256": "0" * 64}, "the manifest cannot permit a plan of another bundle's network"),
        ({"weights_sha256": "0" * 64}, "compiled from another network"),
        ({"plan_sha256": "0" * 64}, r"orin\.plan: was changed"),
    ],
)
def test_only_what_the_manifest_permits_runs_unsigned(
    tmp_path: Path, owner: tuple[Path, Path], changed: dict[str, object], message: str | None
) -> None:
    """Refitted plans (`onnx_sha256` of another bundle) need a signature."""
    key, public = owner
    path = rewritten(copied(tmp_path / "bundle"), sign=key)
    plan = b"compiled\n"
    Bundle.load(path).add_plan(plan, plan_record(path, plan, refittable=True, **changed))
    if message is None:
        assert Bundle.load(path, trusting(public)).plan("orin").data == b"compiled\n"
        return
    with pytest.raises(InputError, match=message):
        Bundle.load(path, trusting(public)).plan("orin")


@given(
    st.sampled_from([*TARGETS, "toaster"]), st.sampled_from(["tensorrt", "tensorrt_rtx", "onnxruntime"]),
    st.tuples(st.integers(0, 13), st.integers(0, 20), st.integers(0, 9)), st.booleans(),
)  # fmt: skip
def test_a_permit_is_for_what_the_table_of_targets_allows(
    target: str, compiler: str, version: tuple[int, int, int], dla: bool
) -> None:
    said = f"{compiler} {'.'.join(map(str, version))}{' with DLA 0' if dla else ''}"
    known = TARGETS.get(target)
    of_table = None if known is None else (known.dla_versions if dla else known.versions)
    expected = (
        known is not None
        and known.compiler == compiler == "tensorrt"
        and of_table is not None
        and of_table.first <= version[:2] < of_table.end
    )
    assert any(permit.covers(target, said) for permit in default_permits("fp32", 18)) is expected


def test_what_is_no_permit() -> None:
    assert default_permits("fp32", 21) == ()
    everything = Permit(target="toaster", dla=False, first=(0, 0), end=(99, 0))
    assert not everything.covers("toaster", "tensorrt 10.3.0")
    orin = Permit(target="orin", dla=False, first=(0, 0), end=(99, 0))
    assert not any(orin.covers("orin", said) for said in ("", "tensorrt", "tensorrt of mine", "10.3.0"))


# ----- the package itself -----


def test_the_script_checks_the_signature_before_all_else(
    tmp_path: Path, device: Device, owner: tuple[Path, Path]
) -> None:
    """A package whose maker made all sums anew is whole, and still not the owner's."""
    key, public = owner
    package = delivered(tmp_path, key)
    folder = Path(package.package)
    _, other = keys(tmp_path / "stranger")
    refused(device.builds(package, str(other)), f"SHA256SUMS was not signed by {other}, or was changed since")
    refused(device.builds(package, str(tmp_path / "none.pem")), "none.pem: no such key")
    (folder / "public.pem").write_bytes(other.read_bytes())
    refused(device.builds(package, str(folder / "public.pem")), "the key lies in the package, whose maker could be any")
    (folder / "public.pem").unlink()
    graph, sums = folder / "bundle" / "model.onnx", folder / "SHA256SUMS"
    whole, signed = graph.read_bytes(), sums.read_bytes()
    graph.write_bytes(whole + b"\0")
    forged = signed.replace(*(hashlib.sha256(each).hexdigest().encode() for each in (whole, graph.read_bytes())))
    sums.write_bytes(forged)
    assert device.builds(package).returncode == 0  # which is why there is a key
    refused(device.builds(package, str(public)), f"SHA256SUMS was not signed by {public}, or was changed since")
    with pytest.raises(InputError, match=r"SHA256SUMS\.sig: not the signature of SHA256SUMS"):
        verify(folder, trusting(public))
    graph.write_bytes(whole)
    sums.write_bytes(signed)
    (folder / "SHA256SUMS.sig").unlink()
    refused(device.builds(package, str(public)), "this package is not signed (SHA256SUMS.sig is missing)")
    with pytest.raises(InputError, match=r"SHA256SUMS: is not signed \(SHA256SUMS\.sig is missing\)"):
        verify(folder, trusting(public))


def test_a_key_by_a_relative_path(tmp_path: Path, device: Device, owner: tuple[Path, Path]) -> None:
    """Of the folder that the script was called in, not of its own."""
    key, public = owner
    package = delivered(tmp_path, key)
    (device.bin.parent / "trusted.pem").write_bytes(public.read_bytes())
    done = device.builds(package, "trusted.pem")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_readme_has_the_commands_that_check_the_package(
    tmp_path: Path, device: Device, owner: tuple[Path, Path]
) -> None:
    """By openssl and sha256sum alone, without running anything of the package."""
    key, public = owner
    folder = Path(delivered(tmp_path, key).package)
    lines = [line.strip() for line in (folder / "README.md").read_text().splitlines()]
    (check,) = (line for line in lines if line.startswith("openssl "))
    assert "sha256sum -c SHA256SUMS" in lines
    command = f"{check.replace('/path/to/public.pem', str(public))} && sha256sum -c SHA256SUMS"
    assert subprocess.run(command, shell=True, cwd=folder, capture_output=True, check=False).returncode == 0
    for name in ("build.sh", "SHA256SUMS"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b"\n")
        assert subprocess.run(command, shell=True, cwd=folder, capture_output=True, check=False).returncode != 0
        with pytest.raises(InputError, match=name):
            verify(folder, trusting(public))
        (folder / name).write_bytes(content)
    (folder / "trtexec").write_text("#!/bin/sh")
    with pytest.raises(InputError, match=r"trtexec: the manifest does not name this file"):
        verify(folder)


# ----- perception sign -----


def test_a_bundle_is_signed_after_its_export(tmp_path: Path, owner: tuple[Path, Path]) -> None:
    key, public = owner
    path = copied(tmp_path / "bundle", "rain")
    done = CliRunner().invoke(app, ["sign", str(path), "--key", str(key), "--json"])
    assert json.loads(done.stdout) == {"signed": f"{path}/manifest.json", "key": Bundle.load(path).manifest.signer}
    assert Runtime(path, trust=trusting(public)).bundle.manifest.files == bundle("rain").manifest.files
    new, new_public = keys(tmp_path / "new")
    sign(path, new)
    Bundle.load(path, trusting(new_public))
    with pytest.raises(InputError, match="not the signature"):
        Bundle.load(path, trusting(public))


def test_a_bundle_that_is_not_whole_is_not_signed(tmp_path: Path, owner: tuple[Path, Path]) -> None:
    key, _ = owner
    path = copied(tmp_path / "bundle")
    content = json.loads((path / "manifest.json").read_text())
    model = onnx.load(bundle().onnx)
    graph = trained_further(model).SerializeToString()
    for damage, message in (
        (lambda: rewritten(path, onnx=graph), "does not compute the exported network"),
        (lambda: (path / "model.onnx").write_bytes(graph[:-1]), "was changed"),
    ):
        damage()
        with pytest.raises(InputError, match=message):
            sign(path, key)
        assert not (path / "manifest.sig").exists()
    assert content["signer"] == ""


def test_there_is_no_plan_to_sign(tmp_path: Path, owner: tuple[Path, Path]) -> None:
    key, public = owner
    path = rewritten(copied(tmp_path / "bundle"), sign=key)
    with pytest.raises(InputError, match="cpu: has no plan to sign"):
        sign(path, key, "cpu")
    with pytest.raises(InputError, match="no engine for orin; run `perception build"):
        sign(path, key, "orin")
    with pytest.raises(InputError, match="not a private key in PEM"):
        sign(path, public)
