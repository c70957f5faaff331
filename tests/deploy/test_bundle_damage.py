"""A bundle in which anything was changed, cut, taken away or put beside is refused, and so is one that leads out."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from exported import bundle, copied, keys, plan_record, rewritten, trusting
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import one_line_error

from deploy.bundle import Bundle
from deploy.signature import signer
from perception.errors import InputError

SIGNATURES = ("manifest.sig", "engines/rtx-ampere.sig")
FILES = (
    "manifest.json",
    "model.onnx",
    "golden.safetensors",
    "modules/rain.json",
    "modules/rain.safetensors",
    "engines/rtx-ampere.plan",
    "engines/rtx-ampere.json",
)


def opened(path: Path, key: Path | None) -> None:
    """What a vehicle reads."""
    Bundle.load(path, None if key is None else trusting(key)).plan("rtx-ampere")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A signed bundle with a module and an engine, and the public key."""
    folder = tmp_path_factory.mktemp("signed")
    key, public = keys(folder)
    path = rewritten(copied(folder / "bundle", "rain"), sign=key)
    plan = bytes(range(256)) * 4
    record = plan_record(path, plan, target="rtx-ampere", compiler="tensorrt_rtx 1.7")
    Bundle.load(path).add_plan(plan, record, signer(key))
    return path, public


@pytest.fixture
def put_back(signed: tuple[Path, Path]) -> Iterator[None]:
    """After the test the bundle must be whole."""
    opened(*signed)
    yield
    opened(*signed)


@pytest.mark.parametrize("keyed", [True, False])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_anywhere_is_refused_by_name(
    signed: tuple[Path, Path], keyed: bool, data: st.DataObject
) -> None:
    """Of signatures only who has the key can tell; all else is told by hashes."""
    path, public = signed
    name = data.draw(st.sampled_from((*FILES, *SIGNATURES) if keyed else FILES))
    whole = (path / name).read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = {
        "flip": whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :],
        "cut": whole[:place],
        "grow": whole + data.draw(st.binary(min_size=1, max_size=9)),
        "delete": None,
    }[data.draw(st.sampled_from(("flip", "cut", "grow", "delete")))]
    try:
        (path / name).unlink() if damaged is None else (path / name).write_bytes(damaged)
        with one_line_error(says=Path(name).stem):
            opened(path, public if keyed else None)
    finally:
        (path / name).write_bytes(whole)


def test_every_byte_of_the_manifest_counts(signed: tuple[Path, Path]) -> None:
    file = signed[0] / "manifest.json"
    content = file.read_bytes()
    try:
        for i in range(0, len(content), 29):
            for change in (0x01, 0x07, 0x20):  # 0x07 makes a carriage return of a line feed
                file.write_bytes(content[:i] + bytes([content[i] ^ change]) + content[i + 1 :])
                with pytest.raises(InputError, match=r"manifest\.json"):
                    Bundle.load(file.parent)
    finally:
        file.write_bytes(content)


@given(
    folder=st.sampled_from(("", "modules/", "new/")), name=st.text("abm.-_1", min_size=1).filter(lambda t: t.strip("."))
)
@settings(max_examples=30, deadline=None)
def test_a_file_that_the_manifest_does_not_name_is_refused_by_name(
    signed: tuple[Path, Path], folder: str, name: str
) -> None:
    file = signed[0] / folder / name[:100]
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    try:
        with one_line_error(at=f"{file}: the manifest does not name this file"):
            Bundle.load(signed[0])
    finally:
        file.unlink()


@pytest.mark.parametrize(
    "name",
    ["../{0}", "{1}", "modules/../../{0}", "..\\{0}", "C:\\{0}", "C:{0}", "\\\\host\\{0}", "modules\\rain.json",
     "./model.onnx", "modules//rain.json", "a\0b", "a\nb", ""],
)  # fmt: skip
def test_a_path_out_of_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    """Also where the file that it leads to has the hash that the manifest says."""
    path = copied(tmp_path / "bundle", "rain")
    secret = tmp_path / "secret"
    secret.write_bytes(b"of another")
    name = name.format(secret.name, secret)
    manifest = bundle("rain").manifest
    files = manifest.files | {name: hashlib.sha256(b"of another").hexdigest()}
    (path / "manifest.json").write_bytes(manifest.model_copy(update={"files": files}).hashed_json())
    with one_line_error(exactly=f"{path}: names {name!r}, which is not a path inside it; do not use this bundle"):
        Bundle.load(path)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "modules/rain.json", "modules", "engines"])
def test_a_link_out_of_the_bundle_is_refused(
    signed: tuple[Path, Path], put_back: None, tmp_path: Path, name: str
) -> None:
    """Though what it leads to is what belongs there."""
    file, outside = signed[0] / name, tmp_path / "outside"
    file.rename(outside)
    file.symlink_to(outside)
    try:
        with one_line_error(at=file, says="a link leads out of the bundle"):
            opened(signed[0], None)
    finally:
        file.unlink()
        outside.rename(file)


def test_an_engine_is_not_written_through_a_link(tmp_path: Path, signed: tuple[Path, Path]) -> None:
    path = copied(tmp_path / "bundle", "rain")
    (path / "engines").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(InputError, match="engines: a link leads out"):
        Bundle.load(path).add_plan(b"plan", Bundle.load(signed[0]).plan("rtx-ampere").record)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_links_that_stay_or_lead_in_are_none_of_its_business(tmp_path: Path, signed: tuple[Path, Path]) -> None:
    (tmp_path / "latest").symlink_to(signed[0])
    opened(tmp_path / "latest", signed[1])
    path = copied(tmp_path / "bundle", "rain")
    (path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="loop: the manifest does not name this file"):
        Bundle.load(path)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """Reading one would wait for ever."""
    path = copied(tmp_path / "bundle", "rain")
    (path / "model.onnx").unlink()
    os.mkfifo(path / "model.onnx")
    with pytest.raises(InputError, match=r"model\.onnx: the file is missing"):
        Bundle.load(path)


@pytest.mark.parametrize("name", ["model.onnx", "golden.safetensors"])
def test_a_manifest_that_leaves_a_file_out_is_refused(tmp_path: Path, name: str) -> None:
    path = copied(tmp_path / "bundle", "rain")
    manifest = bundle("rain").manifest
    files = {file: digest for file, digest in manifest.files.items() if file != name}
    (path / "manifest.json").write_bytes(manifest.model_copy(update={"files": files}).hashed_json())
    with pytest.raises(InputError, match=f"manifest.json: does not name {name}"):
        Bundle.load(path)
