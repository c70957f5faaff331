"""Whom a vehicle trusts: signatures, what a device may compile itself, and no way back to an older release.

build.sh runs for real, with a stand-in for trtexec. TensorRT itself is only on the device: here a module of its name
tells a version, and the engine of its "plan" is ONNX Runtime.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import types
from datetime import datetime, timedelta, timezone
from pathlib import Path

import onnx
import pytest
from commands import one_line_error, refuses, succeeds
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from devices import Device, refused
from exported import QUIET, bundle, checkpoint, copied, keys, plan_record, rewritten, trusting
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from refits import trained_further
from typer.testing import CliRunner

from deploy.build import build
from deploy.build_package import BuildPackage
from deploy.bundle import Bundle
from deploy.cli import app
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.permit import Permit, default_permits
from deploy.release import parse_expiry
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from deploy.sign import sign
from deploy.signature import require_signed, signer
from deploy.targets import TARGETS
from deploy.trust import Trust
from deploy.verify import verify
from perception.errors import InputError

NOW = datetime.now(timezone.utc).replace(microsecond=0)


@pytest.fixture
def owner(tmp_path: Path) -> tuple[Path, Path]:
    """The private and the public key."""
    return keys(tmp_path / "owner")


@pytest.fixture
def stranger(tmp_path: Path) -> tuple[Path, Path]:
    return keys(tmp_path / "stranger")


@pytest.fixture
def path(tmp_path: Path, owner: tuple[Path, Path]) -> Path:
    """A bundle that the owner signed."""
    return rewritten(copied(tmp_path / "bundle"), sign=owner[0])


def retrained() -> bytes:
    return trained_further(onnx.load(bundle().onnx)).SerializeToString()


# ----- signatures: with a key only what its owner made is accepted, whoever can compute hashes -----


def test_what_the_owner_of_the_key_signed_runs(path: Path, owner: tuple[Path, Path]) -> None:
    assert (path / "manifest.sig").stat().st_size == 64
    manifest = Runtime(path, trust=trusting(owner[1])).bundle.manifest
    assert manifest.signer == signer(owner[0]).id
    assert manifest == bundle().manifest.model_copy(update={"signer": manifest.signer, "sha256": manifest.sha256})
    Runtime(path)  # who has no key cannot tell, and looks at hashes only


def test_another_key_or_no_signature_is_refused(
    path: Path, owner: tuple[Path, Path], stranger: tuple[Path, Path], tmp_path: Path
) -> None:
    (key, public), (other, other_public) = owner, stranger
    who = f"{other_public} ({signer(other).id}): one of them was changed, or it is another's"
    named = f"it names the key {signer(key).id}"
    with one_line_error(exactly=f"{path}/manifest.sig: not the signature of manifest.json by the key {who} ({named})"):
        Bundle.load(path, trusting(other_public))
    rewritten(path)
    only = f"and only what {public} ({signer(key).id}) signed is accepted"
    with one_line_error(exactly=f"{path}/manifest.json: is not signed (manifest.sig is missing), {only}"):
        Bundle.load(path, trusting(public))
    rewritten(path, sign=other)
    given = Settings(trust=trusting(public))
    for use in (
        lambda: Bundle.load(path, given.trust),
        lambda: Runtime(path, trust=given.trust),
        lambda: replay(Source(tmp_path, "v1.0-sim"), path, tmp_path / "out", given, console=QUIET),
    ):
        with one_line_error(says="manifest.sig: not the signature"):
            use()


def test_while_one_key_replaces_another_both_are_trusted(
    path: Path, owner: tuple[Path, Path], stranger: tuple[Path, Path], tmp_path: Path
) -> None:
    """And each tells its own bundles from those of the other."""
    (key, public), (new, new_public) = owner, keys(tmp_path / "new")
    vehicle = trusting(public, new_public)
    assert verify(path, vehicle)["signature"] == f"by the key {signer(key).id}"
    rewritten(path, sign=new)
    assert verify(path, vehicle)["signature"] == f"by the key {signer(new).id}" != f"by the key {signer(key).id}"
    rewritten(path, sign=stranger[0])
    with one_line_error(says=f"by the key {public} ({signer(key).id}) or {new_public} ({signer(new).id})"):
        Bundle.load(path, vehicle)
    with one_line_error(says=f"it names the key {signer(stranger[0]).id}"):
        Bundle.load(path, vehicle)


def test_a_forger_who_makes_all_hashes_anew_is_refused(path: Path, owner: tuple[Path, Path]) -> None:
    """A network that computes something else, and a golden frame to match: all is whole, and nothing is the owner's."""
    signature, graph = (path / "manifest.sig").read_bytes(), onnx.load(path / "model.onnx")
    graph.doc_string = "mine"
    rewritten(path, onnx=graph.SerializeToString())
    (path / "manifest.sig").write_bytes(signature)
    Runtime(path)
    with one_line_error(says="manifest.sig: not the signature"):
        Bundle.load(path, trusting(owner[1]))


def test_an_engine_is_signed_on_its_own(path: Path, owner: tuple[Path, Path], stranger: tuple[Path, Path]) -> None:
    pytest.importorskip("tensorrt_rtx")
    key, public = owner
    build(path, "rtx-ampere", QUIET)
    Bundle.load(path).plan("rtx-ampere")
    with pytest.raises(InputError, match=r"engines/rtx-ampere\.json: is not signed"):
        Bundle.load(path, trusting(public)).plan("rtx-ampere")
    build(path, "rtx-ampere", QUIET, sign=key)
    plan = Bundle.load(path, trusting(public)).plan("rtx-ampere")
    build(path, "rtx-ampere", QUIET)  # the old signature goes with the old plan
    assert not plan.path.with_suffix(".sig").exists()
    Bundle.load(path).add_plan(b"of a stranger", plan.record, signer(stranger[0]))
    with pytest.raises(InputError, match=r"rtx-ampere\.sig: not the signature of rtx-ampere\.json"):
        Bundle.load(path, trusting(public)).plan("rtx-ampere")


def test_what_cannot_be_signed(path: Path, owner: tuple[Path, Path], stranger: tuple[Path, Path]) -> None:
    for target in ("rtx-ampere", "orin"):
        with pytest.raises(InputError, match=r"manifest\.json: is not signed by the key [0-9a-f]{16}, which"):
            build(path, target, QUIET, sign=stranger[0])
    assert not (path.parent / "bundle-orin").exists()
    with pytest.raises(InputError, match="--sign: there is no plan for cpu to sign"):
        build(path, "cpu", QUIET, sign=owner[0])
    for key, target, message in (
        (owner[0], "cpu", "cpu: has no plan to sign"),
        (owner[0], "orin", "no engine for orin; run `perception build"),
        (owner[1], "", "not a private key in PEM"),
    ):
        with pytest.raises(InputError, match=message):
            sign(path, key, target or None)


def test_keys_that_are_none(tmp_path: Path) -> None:
    key, public = keys(tmp_path)
    password = BestAvailableEncryption(b"password")
    for name, private, encryption in (
        ("encrypted", ed25519.Ed25519PrivateKey.generate(), password),
        ("curve", ec.generate_private_key(ec.SECP256R1()), NoEncryption()),
    ):
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        (tmp_path / f"{name}.pem").write_bytes(pem)
    (tmp_path / "text.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\nnot base64\n-----END PRIVATE KEY-----\n")
    for file, message in (
        ("none.pem", "cannot read the key"),
        ("text.pem", "not a private key in PEM; make one with `openssl genpkey"),
        (public.name, "not a private key in PEM"),
        ("encrypted.pem", "the key is encrypted"),
        ("curve.pem", "not an Ed25519 key"),
    ):
        with one_line_error(at=f"{tmp_path / file}: {message}"):
            signer(tmp_path / file)
    for file, message in (
        ("none.pem", "cannot read the key"),
        ("text.pem", "not a public key in PEM; make it with `openssl pkey"),
        (key.name, "not a public key in PEM"),
    ):
        with one_line_error(at=f"{tmp_path / file}: {message}"):
            require_signed(tmp_path / "manifest.json", b"", tmp_path / file)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_makes_the_keys_and_agrees_on_the_signature(tmp_path: Path) -> None:
    """By the commands in the docstring of deploy.signature."""

    def shell(command: str) -> str:
        return subprocess.run(command, shell=True, check=True, capture_output=True, cwd=tmp_path, text=True).stdout

    shell("openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out public.pem")
    rewritten(copied(tmp_path / "bundle"), sign=tmp_path / "key.pem")
    check = "-rawin -in bundle/manifest.json -sigfile {} -pubin -inkey public.pem"
    shell(f"openssl pkeyutl -verify {check.format('bundle/manifest.sig')}")
    found = shell("openssl pkey -pubin -in public.pem -outform DER | sha256sum | cut -c 1-16")
    assert found.strip() == signer(tmp_path / "key.pem").id == Bundle.load(tmp_path / "bundle").manifest.signer
    shell("openssl pkeyutl -sign -rawin -in bundle/manifest.json -inkey key.pem -out theirs.sig")
    (tmp_path / "bundle" / "manifest.sig").write_bytes((tmp_path / "theirs.sig").read_bytes())
    Bundle.load(tmp_path / "bundle", trusting(tmp_path / "public.pem"))
    (tmp_path / "theirs.sig").write_bytes(bytes(64))
    with pytest.raises(subprocess.CalledProcessError):
        shell(f"openssl pkeyutl -verify {check.format('theirs.sig')}")


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
    path, graph = copied(tmp_path / "bundle"), retrained()
    for damage, message in (
        (lambda: rewritten(path, onnx=graph), "does not compute the exported network"),
        (lambda: (path / "model.onnx").write_bytes(graph[:-1]), "was changed"),
    ):
        damage()
        with pytest.raises(InputError, match=message):
            sign(path, owner[0])
        assert not (path / "manifest.sig").exists()


# ----- plans that the device compiled: the whole way of a bundle to a device that has no private key -----


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


def delivered(folder: Path, key: Path, **manifest: object) -> BuildPackage:
    """A signed bundle in a signed build package, as a workshop without an Orin makes them."""
    path = rewritten(copied(folder / "bundle"), sign=key, **manifest)
    return build(path, "orin", QUIET, out=folder / "package", sign=key)


def test_a_plan_that_the_device_compiled_runs_under_a_key_that_is_not_there(
    tmp_path: Path, device: Device, owner: tuple[Path, Path]
) -> None:
    """The public key is given by a path relative to where the script is called. Another network is still refused."""
    key, public = owner
    package = delivered(tmp_path, key, release=4)
    key.unlink()
    found = verify(Path(package.package), trusting(public))
    assert found["package"].startswith("6 files as in SHA256SUMS, signature: by ")
    (device.bin.parent / "trusted.pem").write_bytes(public.read_bytes())
    done = device.builds(package, "trusted.pem")
    assert (done.returncode, done.stderr) == (0, "")
    path = Path(package.package) / "bundle"
    assert not list((path / "engines").glob("*.sig"))
    with pytest.raises(InputError, match="does not compute the exported network"):
        drive(path, public, retrained())
    drive(path, public)
    assert trusting(public).highest() == 4
    assert "orin by tensorrt 10.3.0, not signed" in verify(Path(package.package), trusting(public))["engines"]


def test_a_bundle_that_demands_signatures_gets_them_from_perception_sign(
    tmp_path: Path, device: Device, owner: tuple[Path, Path], stranger: tuple[Path, Path]
) -> None:
    key, public = owner
    package = delivered(tmp_path, key, builds=())
    device.builds(package)
    path = Path(package.package) / "bundle"
    why = "is not signed, and the manifest does not permit tensorrt 10.3.0 to compile for orin without"
    remedy = f"sign it with `perception sign {path} --target orin --key PRIVATE`"
    with one_line_error(exactly=f"{path}/engines/orin.json: {why}; {remedy}"):
        drive(path, public)
    with pytest.raises(InputError, match=r"manifest\.json: is not signed by the key"):
        sign(path, stranger[0], "orin")
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
    path: Path, owner: tuple[Path, Path], changed: dict[str, object], message: str | None
) -> None:
    """Refitted plans (`onnx_sha256` of another bundle) need a signature."""
    plan = b"compiled\n"
    Bundle.load(path).add_plan(plan, plan_record(path, plan, refittable=True, **changed))
    if message is None:
        assert Bundle.load(path, trusting(owner[1])).plan("orin").data == plan
        return
    with pytest.raises(InputError, match=message):
        Bundle.load(path, trusting(owner[1])).plan("orin")


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


def test_the_script_checks_the_signature_before_all_else(
    tmp_path: Path, device: Device, owner: tuple[Path, Path], stranger: tuple[Path, Path]
) -> None:
    """A package whose maker made all sums anew is whole, and still not the owner's."""
    (key, public), (_, other) = owner, stranger
    package = delivered(tmp_path, key)
    folder = Path(package.package)
    inside = folder / "public.pem"
    inside.write_bytes(other.read_bytes())
    for trusted, message in (
        (other, f"SHA256SUMS was not signed by {other}, or was changed since"),
        (tmp_path / "none.pem", "none.pem: no such key"),
        (inside, "the key lies in the package, whose maker could be any"),
    ):
        refused(device.builds(package, str(trusted)), message)
    inside.unlink()
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


def test_the_readme_has_the_commands_that_check_the_package(tmp_path: Path, owner: tuple[Path, Path]) -> None:
    """By openssl and sha256sum alone, without running anything of the package."""
    key, public = owner
    folder = Path(delivered(tmp_path, key).package)
    lines = [line.strip() for line in (folder / "README.md").read_text().splitlines()]
    (check,) = (line for line in lines if line.startswith("openssl "))
    assert "sha256sum -c SHA256SUMS" in lines
    command = f"{check.replace('/path/to/public.pem', str(public))} && sha256sum -c SHA256SUMS"

    def checked() -> bool:
        return subprocess.run(command, shell=True, cwd=folder, capture_output=True, check=False).returncode == 0

    assert checked()
    for name in ("build.sh", "SHA256SUMS"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b"\n")
        assert not checked()
        with pytest.raises(InputError, match=name):
            verify(folder, trusting(public))
        (folder / name).write_bytes(content)
    (folder / "trtexec").write_text("#!/bin/sh")
    with pytest.raises(InputError, match=r"trtexec: the manifest does not name this file"):
        verify(folder)


# ----- no going back: releases, expiry, and what a vehicle remembers outside its bundles -----


def released(path: Path, key: Path, release: int, expires: datetime | None = None) -> Path:
    return rewritten(path if path.exists() else copied(path), sign=key, release=release, expires=expires)


def test_an_older_release_is_refused_unless_told(tmp_path: Path, owner: tuple[Path, Path]) -> None:
    key, public = owner
    old, new = (released(tmp_path / f"release-{n}", key, n) for n in (3, 7))
    for path, highest in ((old, 3), (new, 7), (new, 7)):
        Runtime(path, trust=trusting(public))
        assert trusting(public).highest() == highest
    why = f"is release 3, but release 7 ran here before, says {public.parent}/state/release.json"
    remedy = "take a newer release, or run this one with --allow-older"
    with one_line_error(exactly=f"{old}/manifest.json: {why}; {remedy}"):
        Runtime(old, trust=trusting(public))
    Runtime(old, trust=trusting(public, allow_older=True))
    Runtime(old)  # without a key a bundle of any age is taken
    assert trusting(public).highest() == 7
    rewritten(old, sign=key, release=6, name="another")  # another name is no way back
    with pytest.raises(InputError, match="is release 6, but release 7 ran here before"):
        Runtime(old, trust=trusting(public))


def test_a_release_that_does_not_compute_its_golden_frame_is_not_remembered(
    tmp_path: Path, owner: tuple[Path, Path]
) -> None:
    """Else a broken bundle would keep the vehicle from going on with the one that it has."""
    key, public = owner
    model = onnx.load(bundle().onnx)
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
    broken = rewritten(copied(tmp_path / "bundle"), onnx=model.SerializeToString(), sign=key, release=9)
    Bundle.load(broken, trusting(public))
    with pytest.raises(InputError, match="does not compute the exported network"):
        Runtime(broken, trust=trusting(public))
    assert trusting(public).highest() == 0
    assert not (public.parent / "state").exists()


def test_a_bundle_expires(tmp_path: Path, owner: tuple[Path, Path]) -> None:
    key, public = owner
    path = released(tmp_path / "bundle", key, 1, NOW + timedelta(hours=1))
    Bundle.load(path, trusting(public))
    released(path, key, 1, NOW - timedelta(seconds=1))
    with one_line_error(at=f"{path}/manifest.json: expired at {NOW - timedelta(seconds=1):%Y-%m-%d %H:%M} UTC"):
        Bundle.load(path, trusting(public))
    Bundle.load(path)
    forged = json.loads((path / "manifest.json").read_text()) | {"expires": "2999-01-01T00:00:00Z"}
    (path / "manifest.json").write_text(json.dumps(forged))
    with pytest.raises(InputError, match="not the signature"):
        Bundle.load(path, trusting(public))


@given(st.lists(st.integers(0, 9), max_size=8), st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_runs_never_falls_below_what_ran(
    tmp_path_factory: pytest.TempPathFactory, releases: list[int], allow_older: bool
) -> None:
    """Against the plain rule: a release runs if none higher did; the highest is what is remembered."""
    state = tmp_path_factory.mktemp("vehicle") / "state"
    trust, ran = Trust((), state, allow_older), [0]
    for release in releases:
        if release < max(ran) and not allow_older:
            with pytest.raises(InputError, match=f"is release {release}, but release {max(ran)} ran"):
                trust.require_current(Path("manifest.json"), release, None)
            continue
        trust.require_current(Path("manifest.json"), release, None)
        trust.accept(release)
        ran.append(release)
        assert Trust((), state).highest() == max(ran)


@pytest.mark.parametrize("content", ["", "{}", "7", '{"release": "7"}', '{"release": true}', '{"release": 1.5}'])
def test_a_memory_that_is_damaged_is_no_way_back(tmp_path: Path, content: str) -> None:
    (tmp_path / "release.json").write_text(content)
    with pytest.raises(InputError, match=r"release\.json: does not say the highest release that ran"):
        Trust((), tmp_path).require_current(Path("manifest.json"), 8, None)


def test_what_cannot_be_remembered_does_not_run(path: Path, owner: tuple[Path, Path]) -> None:
    (owner[1].parent / "state").write_text("in the way")
    with pytest.raises(InputError, match=r"state(/release\.json)?: (cannot keep the release|does not say)"):
        Runtime(released(path, owner[0], 2), trust=trusting(owner[1]))


def test_an_export_states_its_release(
    tmp_path: Path, owner: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = onnx.load(bundle().onnx)
    monkeypatch.setattr("deploy.network.to_onnx", lambda *arguments: graph)  # the slow part
    stated = ["--release", "5", "--expires", "2999-06-30T12:00+02:00", "--signed-plans", "--sign", str(owner[0])]
    done = CliRunner().invoke(app, ["export", str(checkpoint()), "--out", str(tmp_path / "bundle"), *stated])
    assert done.exit_code == 0, done.output
    manifest = Bundle.load(tmp_path / "bundle", trusting(owner[1])).manifest
    expires = datetime(2999, 6, 30, 10, tzinfo=timezone.utc)
    assert (manifest.release, manifest.expires, manifest.builds) == (5, expires, ())


def test_what_is_no_date() -> None:
    assert parse_expiry("2027-06-30") == datetime(2027, 6, 30, tzinfo=timezone.utc)
    assert parse_expiry("2027-06-30T12:30Z") == datetime(2027, 6, 30, 12, 30, tzinfo=timezone.utc)
    for text in ("tomorrow", "2027-13-01", "30.6.2027"):
        with pytest.raises(InputError, match=f"--expires {text}: not a date such as 2027-06-30"):
            parse_expiry(text)


def test_commands_keep_the_release_where_they_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At home, with the environment's, and with --state."""
    key, public = keys(tmp_path / "keys")
    verify = ("verify", released(tmp_path / "old", key, 1), "--key", public)
    home, surroundings, told = (tmp_path / name for name in ("home/.local/state/perception", "surroundings", "told"))
    for state in (home, surroundings, told):
        Trust((), state).accept(2)
    monkeypatch.delenv("PERCEPTION_STATE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert f"release 2 ran here before, says {home}/release.json" in refuses(*verify)
    monkeypatch.setenv("PERCEPTION_STATE", str(surroundings))
    assert f"release 2 ran here before, says {surroundings}/release.json" in refuses(*verify)
    assert f"release 2 ran here before, says {told}/release.json" in refuses(*verify, "--state", told)
    succeeds(*verify, "--state", told, "--allow-older")
    succeeds(*verify, "--state", tmp_path / "new")
    assert not (tmp_path / "new").exists()  # to verify is not to run
