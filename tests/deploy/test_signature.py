"""Signatures: with a key only what its owner made is accepted, whoever can compute hashes."""

import shutil
import subprocess
from pathlib import Path

import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from exported import QUIET, bundle, copied, keys, rewritten, trusting
from refusals import one_line_error

from deploy.build import build
from deploy.bundle import Bundle
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from deploy.signature import require_signed, signer
from deploy.verify import verify
from perception.errors import InputError


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A signed bundle, the private and the public key."""
    key, public = keys(tmp_path / "owner")
    return rewritten(copied(tmp_path / "bundle"), sign=key), key, public


def refusal(path: Path, *keys: Path) -> str:
    with pytest.raises(InputError) as error:
        Bundle.load(path, trusting(*keys))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_the_owner_of_the_key_signed_runs(signed: tuple[Path, Path, Path]) -> None:
    path, key, public = signed
    assert (path / "manifest.sig").stat().st_size == 64
    manifest = Runtime(path, trust=trusting(public)).bundle.manifest
    assert manifest.signer == signer(key).id
    assert manifest == bundle().manifest.model_copy(update={"signer": manifest.signer, "sha256": manifest.sha256})
    Runtime(path)  # who has no key cannot tell, and looks at hashes only


def test_another_key_or_no_signature_is_refused(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, key, public = signed
    other, other_public = keys(tmp_path / "stranger")
    assert refusal(path, other_public) == (
        f"{path}/manifest.sig: not the signature of manifest.json by the key {other_public} ({signer(other).id}): "
        f"one of them was changed, or it is another's (it names the key {signer(key).id})"
    )
    rewritten(path)
    assert refusal(path, public) == (
        f"{path}/manifest.json: is not signed (manifest.sig is missing), and only what {public} ({signer(key).id}) "
        "signed is accepted"
    )
    rewritten(path, sign=other)
    assert "manifest.sig: not the signature" in refusal(path, public)
    with pytest.raises(InputError, match=r"manifest\.sig: not the signature"):
        Runtime(path, trust=trusting(public))
    settings = Settings(trust=trusting(public))
    with pytest.raises(InputError, match=r"manifest\.sig: not the signature"):
        replay(Source(tmp_path, "v1.0-sim"), path, tmp_path / "out", settings, console=QUIET)


def test_while_one_key_replaces_another_both_are_trusted(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """And each tells its own bundles from those of the other."""
    path, key, public = signed
    new, new_public = keys(tmp_path / "new")
    vehicle = trusting(public, new_public)
    assert verify(path, vehicle)["signature"] == f"by the key {signer(key).id}"
    rewritten(path, sign=new)
    assert verify(path, vehicle)["signature"] == f"by the key {signer(new).id}"
    assert signer(new).id != signer(key).id
    stranger, _ = keys(tmp_path / "stranger")
    rewritten(path, sign=stranger)
    message = refusal(path, public, new_public)
    assert f"by the key {public} ({signer(key).id}) or {new_public} ({signer(new).id})" in message
    assert f"it names the key {signer(stranger).id}" in message


def test_a_forger_who_makes_all_hashes_anew_is_refused(signed: tuple[Path, Path, Path]) -> None:
    """A network that computes something else, and a golden frame to match: all is whole, and nothing is the owner's."""
    path, _, public = signed
    signature = (path / "manifest.sig").read_bytes()
    graph = onnx.load(path / "model.onnx")
    graph.doc_string = "mine"
    rewritten(path, onnx=graph.SerializeToString())
    (path / "manifest.sig").write_bytes(signature)
    Runtime(path)
    assert "manifest.sig: not the signature" in refusal(path, public)


def test_an_engine_is_signed_on_its_own(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    path, key, public = signed
    build(path, "rtx-ampere", QUIET)
    Bundle.load(path).plan("rtx-ampere")
    with pytest.raises(InputError, match=r"engines/rtx-ampere\.json: is not signed"):
        Bundle.load(path, trusting(public)).plan("rtx-ampere")
    build(path, "rtx-ampere", QUIET, sign=key)
    plan = Bundle.load(path, trusting(public)).plan("rtx-ampere")
    build(path, "rtx-ampere", QUIET)  # the old signature goes with the old plan
    assert not plan.path.with_suffix(".sig").exists()
    other, _ = keys(tmp_path / "stranger")
    Bundle.load(path).add_plan(b"of a stranger", plan.record, signer(other))
    with pytest.raises(InputError, match=r"rtx-ampere\.sig: not the signature of rtx-ampere\.json"):
        Bundle.load(path, trusting(public)).plan("rtx-ampere")


def test_there_is_no_plan_to_sign_for_a_cpu(signed: tuple[Path, Path, Path]) -> None:
    with pytest.raises(InputError, match="--sign: there is no plan for cpu to sign"):
        build(signed[0], "cpu", QUIET, sign=signed[1])


def test_a_key_signs_no_plan_of_another_ones_bundle(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    other, _ = keys(tmp_path / "stranger")
    for target in ("rtx-ampere", "orin"):
        with pytest.raises(InputError, match=r"manifest\.json: is not signed by the key [0-9a-f]{16}, which"):
            build(signed[0], target, QUIET, sign=other)
    assert not (signed[0].parent / "bundle-orin").exists()


def test_keys_that_are_none(tmp_path: Path) -> None:
    key, public = keys(tmp_path)
    private = ed25519.Ed25519PrivateKey.generate()
    password = BestAvailableEncryption(b"password")
    encrypted, curve, text = (tmp_path / name for name in ("encrypted.pem", "curve.pem", "text.pem"))
    encrypted.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, password))
    other = ec.generate_private_key(ec.SECP256R1())
    curve.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    text.write_bytes(b"-----BEGIN PRIVATE KEY-----\nnot base64\n-----END PRIVATE KEY-----\n")
    for file, message in (
        (tmp_path / "none.pem", "cannot read the key"),
        (text, "not a private key in PEM; make one with `openssl genpkey"),
        (public, "not a private key in PEM"),
        (encrypted, "the key is encrypted"),
        (curve, "not an Ed25519 key"),
    ):
        with one_line_error(at=f"{file}: {message}"):
            signer(file)
    for file, message in (
        (tmp_path / "none.pem", "cannot read the key"),
        (text, "not a public key in PEM; make it with `openssl pkey"),
        (key, "not a public key in PEM"),
    ):
        with one_line_error(at=f"{file}: {message}"):
            require_signed(tmp_path / "manifest.json", b"", file)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_makes_the_keys_and_agrees_on_the_signature(tmp_path: Path) -> None:
    """By the commands in the docstring of deploy.signature."""

    def shell(command: str) -> None:
        subprocess.run(command, shell=True, check=True, capture_output=True, cwd=tmp_path)

    shell("openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out public.pem")
    rewritten(copied(tmp_path / "bundle"), sign=tmp_path / "key.pem")
    check = "-rawin -in bundle/manifest.json -sigfile {} -pubin -inkey public.pem"
    shell(f"openssl pkeyutl -verify {check.format('bundle/manifest.sig')}")
    found = subprocess.run(
        "openssl pkey -pubin -in public.pem -outform DER | sha256sum | cut -c 1-16",
        shell=True, check=True, capture_output=True, cwd=tmp_path, text=True,
    ).stdout  # fmt: skip
    assert found.strip() == signer(tmp_path / "key.pem").id == Bundle.load(tmp_path / "bundle").manifest.signer
    shell("openssl pkeyutl -sign -rawin -in bundle/manifest.json -inkey key.pem -out theirs.sig")
    (tmp_path / "bundle" / "manifest.sig").write_bytes((tmp_path / "theirs.sig").read_bytes())
    Bundle.load(tmp_path / "bundle", trusting(tmp_path / "public.pem"))
    (tmp_path / "theirs.sig").write_bytes(bytes(64))
    with pytest.raises(subprocess.CalledProcessError):
        shell(f"openssl pkeyutl -verify {check.format('theirs.sig')}")
