"""Whom a vehicle trusts: signatures, plans that a device compiled itself, and no way back to an older release.

build.sh runs for real, with a stand-in for trtexec; TensorRT in Python is a stand-in, too.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from commands import one_line_error, refuses, succeeds
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from devices import Device, require_refusal
from exported import QUIET, bundle, checkpoint, copy_bundle, keys, plan_record, reseal, rewritten, trusting
from hypothesis import given, settings
from hypothesis import strategies as st
from refits import train_further
from typer.testing import CliRunner

from deploy.build import build
from deploy.build_package import BuildPackage
from deploy.bundle import Bundle
from deploy.cli import app
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from deploy.signature import require_signed, signer
from deploy.trust import Trust, parse_expiry
from deploy.verify import sign, verify
from perception.errors import InputError

Keys = tuple[Path, Path]  # private and public
NOW = datetime.now(timezone.utc).replace(microsecond=0)


@pytest.fixture
def owner(tmp_path: Path) -> Keys:
    return keys(tmp_path / "owner")


@pytest.fixture
def stranger(tmp_path: Path) -> Keys:
    return keys(tmp_path / "stranger")


@pytest.fixture
def path(tmp_path: Path, owner: Keys) -> Path:
    """A bundle that the owner signed."""
    return rewritten(copy_bundle(tmp_path / "bundle"), sign=owner[0])


def retrained() -> bytes:
    return train_further(onnx.load(bundle().onnx)).SerializeToString()


def test_what_the_owner_of_the_key_signed_runs_and_what_a_forger_made_whole_does_not(path: Path, owner: Keys) -> None:
    signature = (path / "SHA256SUMS.sig").read_bytes()
    assert len(signature) == 64
    opened = Runtime(path, trust=trusting(owner[1])).bundle
    assert (opened.signer, opened.manifest) == (signer(owner[0]).id, bundle().manifest)
    graph = onnx.load(path / "model.onnx")
    graph.doc_string = "mine"
    rewritten(path, onnx=graph.SerializeToString())
    (path / "SHA256SUMS.sig").write_bytes(signature)
    Runtime(path)  # who has no key cannot tell, and looks at hashes only
    with one_line_error(says="SHA256SUMS.sig: not the signature"):
        Bundle.load(path, trusting(owner[1]))


def test_another_key_or_no_signature_is_refused(path: Path, owner: Keys, stranger: Keys, tmp_path: Path) -> None:
    (key, public), (other, other_public) = owner, stranger
    who = f"{other_public} ({signer(other).id}): one of them was changed, or it is another's"
    with one_line_error(exactly=f"{path}/SHA256SUMS.sig: not the signature of SHA256SUMS by the key {who}"):
        Bundle.load(path, trusting(other_public))
    rewritten(path)
    only = f"and only what {public} ({signer(key).id}) signed is accepted"
    with one_line_error(exactly=f"{path}/SHA256SUMS: is not signed (SHA256SUMS.sig is missing), {only}"):
        Bundle.load(path, trusting(public))
    rewritten(path, sign=other)
    given = Settings(trust=trusting(public))
    for use in (
        lambda: Bundle.load(path, given.trust),
        lambda: Runtime(path, trust=given.trust),
        lambda: replay(Source(tmp_path, "v1.0-sim"), path, tmp_path / "out", given, console=QUIET),
    ):
        with one_line_error(says="SHA256SUMS.sig: not the signature"):
            use()


def test_while_one_key_replaces_another_both_are_trusted(path: Path, owner: Keys, stranger: Keys) -> None:
    """And each tells its own bundles from those of the other."""
    (key, public), (new, new_public) = owner, keys(path.parent / "new")
    vehicle = trusting(public, new_public)
    assert verify(path, vehicle)["signature"] == f"by the key {signer(key).id}"
    rewritten(path, sign=new)
    assert verify(path, vehicle)["signature"] == f"by the key {signer(new).id}" != f"by the key {signer(key).id}"
    rewritten(path, sign=stranger[0])
    who = f"{public} ({signer(key).id}) or {new_public} ({signer(new).id})"
    with one_line_error(says=f"by the key {who}"):
        Bundle.load(path, vehicle)


def test_what_cannot_be_signed(path: Path, owner: Keys, stranger: Keys) -> None:
    for target in ("rtx-ampere", "orin"):
        with pytest.raises(InputError, match=r"SHA256SUMS: is not signed by the key [0-9a-f]{16}, which"):
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
    rewritten(path, onnx=retrained())
    with pytest.raises(InputError, match="does not compute the exported network"):
        sign(path, owner[0])
    (path / "model.onnx").write_bytes(retrained()[:-1])
    with pytest.raises(InputError, match="was changed"):
        sign(path, owner[0])
    assert not (path / "SHA256SUMS.sig").exists()


def test_keys_that_are_none(tmp_path: Path) -> None:
    key, _ = keys(tmp_path)
    password = BestAvailableEncryption(b"password")
    for name, private, encryption in (
        ("encrypted", ed25519.Ed25519PrivateKey.generate(), password),
        ("curve", ec.generate_private_key(ec.SECP256R1()), NoEncryption()),
    ):
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        (tmp_path / f"{name}.pem").write_bytes(pem)
    (tmp_path / "text.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\nnot base64\n-----END PRIVATE KEY-----\n")

    def check(file: Path) -> str:
        return require_signed(tmp_path / "manifest.json", b"", file)

    for use, file, message in (
        (signer, "none.pem", "cannot read the key"),
        (signer, "text.pem", "not a private key in PEM; make one with `openssl genpkey"),
        (signer, "encrypted.pem", "the key is encrypted"),
        (signer, "curve.pem", "not an Ed25519 key"),
        (check, "none.pem", "cannot read the key"),
        (check, key.name, "not a public key in PEM; make it with `openssl pkey -in key.pem -pubout -out public.pem`"),
    ):
        with one_line_error(at=f"{tmp_path / file}: {message}"):
            use(tmp_path / file)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_makes_the_keys_and_agrees_on_the_signature(tmp_path: Path) -> None:
    """By the commands in the docstring of deploy.signature."""

    def shell(command: str) -> str:
        return subprocess.run(command, shell=True, check=True, capture_output=True, cwd=tmp_path, text=True).stdout

    shell("openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out public.pem")
    rewritten(copy_bundle(tmp_path / "bundle"), sign=tmp_path / "key.pem")
    check = (
        "openssl pkeyutl -verify -rawin -in bundle/SHA256SUMS -sigfile bundle/SHA256SUMS.sig -pubin -inkey public.pem"
    )
    shell(check)
    found = shell("openssl pkey -pubin -in public.pem -outform DER | sha256sum | cut -c 1-16")
    assert found.strip() == signer(tmp_path / "key.pem").id
    shell("openssl pkeyutl -sign -rawin -in bundle/SHA256SUMS -inkey key.pem -out bundle/SHA256SUMS.sig")
    Bundle.load(tmp_path / "bundle", trusting(tmp_path / "public.pem"))
    (tmp_path / "bundle" / "SHA256SUMS.sig").write_bytes(bytes(64))
    with pytest.raises(subprocess.CalledProcessError):
        shell(check)


def test_a_bundle_is_signed_after_its_export(tmp_path: Path, owner: Keys) -> None:
    key, public = owner
    path = copy_bundle(tmp_path / "bundle", "rain")
    done = CliRunner().invoke(app, ["sign", str(path), "--key", str(key), "--json"])
    assert json.loads(done.stdout) == {"signed": f"{path}/SHA256SUMS", "key": signer(key).id}
    assert Runtime(path, trust=trusting(public)).bundle.files == bundle("rain").files
    new, new_public = keys(tmp_path / "new")
    sign(path, new)
    Bundle.load(path, trusting(new_public))
    with pytest.raises(InputError, match="not the signature"):
        Bundle.load(path, trusting(public))


def drive(path: Path, public: Path, network: bytes | None = None) -> Runtime:
    """On a device whose TensorRT calls itself 10.3.0.30 in Python, and runs this network for every plan."""
    engine = OnnxRuntimeEngine(network or bundle().onnx)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", SimpleNamespace(__name__="tensorrt", __version__="10.3.0.30"))
        patch.setattr("deploy.engines.tensorrt.TensorRtEngine", lambda *_: engine)
        return Runtime(path, "orin", trusting(public))


def device(folder: Path) -> Device:
    """A Jetson Orin with the trtexec of TensorRT 10.3.0."""
    return Device(folder / "device", 100300)


def delivered(folder: Path, key: Path, **manifest: object) -> BuildPackage:
    """A signed bundle in a signed build package, as a workshop without an Orin makes them."""
    path = rewritten(copy_bundle(folder / "bundle"), sign=key, **manifest)
    return build(path, "orin", QUIET, out=folder / "package", sign=key)


def test_a_plan_of_the_device_runs_under_a_key_that_is_not_there(tmp_path: Path, owner: Keys) -> None:
    """The public key is given by a path relative to where the script is called. Another network is still refused."""
    (key, public), orin = owner, device(tmp_path)
    package = delivered(tmp_path, key, release=4)
    key.unlink()
    found = verify(Path(package.package), trusting(public))
    assert found["package"].startswith("8 files as in SHA256SUMS, signature: by ")
    (orin.bin.parent / "trusted.pem").write_bytes(public.read_bytes())
    done = orin.builds(package, "trusted.pem")
    assert (done.returncode, done.stderr) == (0, "")
    path = Path(package.package) / "bundle"
    assert not list((path / "engines").glob("*.sig"))
    with pytest.raises(InputError, match="does not compute the exported network"):
        drive(path, public, retrained())
    drive(path, public)
    assert trusting(public).ran().release == 4
    assert "orin by tensorrt 10.3.0, not signed" in verify(Path(package.package), trusting(public))["engines"]


def test_a_plan_of_the_device_is_pinned_when_it_has_run(tmp_path: Path, owner: Keys) -> None:
    """Another one that nobody signed does not take its place, unless the vehicle's owner lets it."""
    key, public = owner
    path = Path(delivered(tmp_path, key).package) / "bundle"
    first, second = (plan_record(path, plan) for plan in (b"first", b"second"))
    loaded = Bundle.load(path, trusting(public))
    loaded.add_plan(b"first", first)
    with pytest.raises(InputError, match="does not compute the exported network"):
        drive(path, public, retrained())
    loaded.add_plan(b"second", second)  # since the first one has never run
    drive(path, public)
    drive(path, public)
    loaded.add_plan(b"first", first)
    state = public.parent / "state" / "release.json"
    why = f"is not signed, and another plan ran here before, says {state}"
    remedy = f"sign it with `perception sign {path} --target orin --key PRIVATE`, or remove that plan there"
    with one_line_error(exactly=f"{path}/engines/orin.json: {why}; {remedy}"):
        drive(path, public)
    content = json.loads(state.read_text())
    assert [*content["plans"]] == [f"orin of {loaded.files['model.onnx']}"]
    state.write_text(json.dumps(content | {"plans": {}}))
    drive(path, public)
    sign(path, key, "orin")
    loaded.add_plan(b"second", second, signer(key))  # what is signed may always take its place
    drive(path, public)


def test_without_the_vehicle_s_folder_only_signed_plans_run(path: Path, owner: Keys) -> None:
    loaded = Bundle.load(path, replace(trusting(owner[1]), state=None))
    loaded.add_plan(b"plan", plan_record(path, b"plan"))
    why = f"is not signed; sign it with `perception sign {path} --target orin --key PRIVATE`, or give --state FOLDER"
    with one_line_error(at=f"{path}/engines/orin.json: {why}"):
        loaded.plan("orin")
    assert f"{path}/engines/orin.json: {why}" in refuses("verify", path, "--key", owner[1])
    sign(path, owner[0], "orin")
    assert loaded.plan("orin").data == b"plan"
    assert "orin by tensorrt 10.3.0, signed" in verify(path, trusting(owner[1]))["engines"]


def test_a_forged_plan_does_not_take_the_place_of_a_signed_one(path: Path, owner: Keys, stranger: Keys) -> None:
    """Neither with the signature of the other or a stranger's nor, after it was seen once, without any."""
    key, public = owner
    good, evil, engines = b"good plan", b"evil plan", path / "engines"
    loaded = Bundle.load(path, trusting(public))
    loaded.add_plan(good, plan_record(path, good), signer(key))
    assert Bundle.load(path, trusting(public)).plan("orin").data == good
    signature = (engines / "orin.sig").read_bytes()
    loaded.add_plan(evil, plan_record(path, evil), signer(stranger[0]))
    others = (engines / "orin.sig").read_bytes()
    loaded.add_plan(evil, plan_record(path, evil))
    assert not (engines / "orin.sig").exists()  # the old signature goes with the old plan
    wrong = "not the signature of orin.json"
    for forged, message in ((signature, wrong), (others, wrong), (None, "another plan ran here before")):
        (engines / "orin.sig").unlink(missing_ok=True) if forged is None else (engines / "orin.sig").write_bytes(forged)
        with one_line_error(says=message):
            Bundle.load(path, trusting(public)).plan("orin")
        with one_line_error(says=message):
            drive(path, public)
    loaded.add_plan(good, plan_record(path, good))
    assert Bundle.load(path, trusting(public)).plan("orin").data == good  # the same plan, without its signature


def test_the_script_checks_the_signature_first(tmp_path: Path, owner: Keys, stranger: Keys) -> None:
    """A package whose maker made all sums anew is whole, and still not the owner's."""
    (key, public), (_, other), orin = owner, stranger, device(tmp_path)
    package = delivered(tmp_path, key)
    folder = Path(package.package)
    inside, graph, sums = folder / "public.pem", folder / "bundle" / "model.onnx", folder / "SHA256SUMS"
    inside.write_bytes(other.read_bytes())
    for trusted, message in (
        (other, f"SHA256SUMS was not signed by {other}, or was changed since"),
        (tmp_path / "none.pem", "none.pem: no such key"),
        (inside, "the key lies in the package, whose maker could be any"),
    ):
        require_refusal(orin.builds(package, str(trusted)), message)
    inside.unlink()
    whole, signed = graph.read_bytes(), sums.read_bytes()
    graph.write_bytes(whole + b"\0")
    sums.write_bytes(signed.replace(*(hashlib.sha256(b).hexdigest().encode() for b in (whole, graph.read_bytes()))))
    assert orin.builds(package).returncode == 0  # which is why there is a key
    require_refusal(orin.builds(package, str(public)), f"SHA256SUMS was not signed by {public}, or was changed since")
    with pytest.raises(InputError, match=r"SHA256SUMS\.sig: not the signature of SHA256SUMS"):
        verify(folder, trusting(public))
    graph.write_bytes(whole)
    sums.write_bytes(signed)
    (folder / "SHA256SUMS.sig").unlink()
    require_refusal(orin.builds(package, str(public)), "this package is not signed (SHA256SUMS.sig is missing)")
    with pytest.raises(InputError, match=r"SHA256SUMS: is not signed \(SHA256SUMS\.sig is missing\)"):
        verify(folder, trusting(public))


def test_the_readme_has_the_commands_that_check_the_package(tmp_path: Path, owner: Keys) -> None:
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
    with pytest.raises(InputError, match=r"trtexec: SHA256SUMS does not name this file"):
        verify(folder)


def released(path: Path, key: Path, release: int, expires: datetime | None = None) -> Path:
    return rewritten(path if path.exists() else copy_bundle(path), sign=key, release=release, expires=expires)


def test_an_older_release_is_refused_unless_told(tmp_path: Path, owner: Keys) -> None:
    key, public = owner
    old, new = (released(tmp_path / f"release-{n}", key, n) for n in (3, 7))
    for path, highest in ((old, 3), (new, 7), (new, 7)):
        Runtime(path, trust=trusting(public))
        assert trusting(public).ran().release == highest
    why = f"is release 3, but release 7 ran here before, says {public.parent}/state/release.json"
    remedy = "take a newer release, or run this one with --allow-older"
    with one_line_error(exactly=f"{old}/manifest.json: {why}; {remedy}"):
        Runtime(old, trust=trusting(public))
    Runtime(old, trust=trusting(public, allow_older=True))
    Runtime(old)  # without a key a bundle of any age is taken
    assert trusting(public).ran().release == 7


def test_a_release_that_does_not_compute_its_golden_frame_is_not_remembered(tmp_path: Path, owner: Keys) -> None:
    """Else a broken bundle would keep the vehicle from going on with the one that it has."""
    key, public = owner
    broken = rewritten(copy_bundle(tmp_path / "bundle"), onnx=retrained(), sign=key, release=9)
    Bundle.load(broken, trusting(public))
    with pytest.raises(InputError, match="does not compute the exported network"):
        Runtime(broken, trust=trusting(public))
    assert trusting(public).ran().release == 0
    assert not (public.parent / "state").exists()


def test_a_bundle_expires(tmp_path: Path, owner: Keys) -> None:
    key, public = owner
    path = released(tmp_path / "bundle", key, 1, NOW + timedelta(hours=1))
    Bundle.load(path, trusting(public))
    released(path, key, 1, NOW - timedelta(seconds=1))
    with one_line_error(at=f"{path}/manifest.json: expired at {NOW - timedelta(seconds=1):%Y-%m-%d %H:%M} UTC"):
        Bundle.load(path, trusting(public))
    Bundle.load(path)
    signature = (path / "SHA256SUMS.sig").read_bytes()
    reseal(path, lambda content: content.update(expires="2999-01-01T00:00:00Z"))
    (path / "SHA256SUMS.sig").write_bytes(signature)
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
        assert Trust((), state).ran().release == max(ran)


def test_a_memory_that_is_damaged_or_cannot_be_written_is_no_way_back(path: Path, owner: Keys, tmp_path: Path) -> None:
    for content in (
        "", "{}", "7", '{"release": "7"}', '{"release": true}', '{"release": 1.5}', '{"release": 7, "plans": []}'
    ):  # fmt: skip
        (tmp_path / "release.json").write_text(content)
        with pytest.raises(InputError, match=r"release\.json: does not say what ran here"):
            Trust((), tmp_path).require_current(Path("manifest.json"), 8, None)
    (owner[1].parent / "state").write_text("in the way")
    with pytest.raises(InputError, match=r"state(/release\.json)?: (cannot keep what ran|does not say)"):
        Runtime(released(path, owner[0], 2), trust=trusting(owner[1]))


def test_an_export_states_its_release(tmp_path: Path, owner: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = onnx.load(bundle().onnx)
    monkeypatch.setattr("deploy.export.to_onnx", lambda *arguments: graph)  # the slow part
    stated = ["--release", "5", "--expires", "2999-06-30T12:00+02:00", "--sign", str(owner[0])]
    done = CliRunner().invoke(app, ["export", str(checkpoint()), "--out", str(tmp_path / "bundle"), *stated])
    assert done.exit_code == 0, done.output
    manifest = Bundle.load(tmp_path / "bundle", trusting(owner[1])).manifest
    expires = datetime(2999, 6, 30, 10, tzinfo=timezone.utc)
    assert (manifest.release, manifest.expires) == (5, expires)


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
