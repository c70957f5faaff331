"""Bundles: complete, sealed against every changed byte, and written whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest
from exported import bundle, copied

from deploy.bundle import Bundle, write_bundle
from deploy.export import UNITS
from perception.atomic import write_atomically
from perception.config import load_config
from perception.data.inputs import InputSpec
from perception.errors import InputError
from perception.frame import CAMERAS, CLASSES

FILES = ("manifest.json", "model.onnx", "golden.safetensors")


def rewrite(path: Path) -> Bundle:
    """Write the tiny bundle's content over the bundle at `path`."""
    source = bundle()
    describe = lambda files: source.manifest.model_copy(update={"files": files})  # noqa: E731
    return write_bundle(path, source.onnx.read_bytes(), source.golden(), describe)


def test_manifest_describes_the_golden_frame_and_the_configuration() -> None:
    loaded = Bundle.load(bundle().path)
    for tensors, arrays in zip((loaded.manifest.inputs, loaded.manifest.outputs), loaded.golden(), strict=True):
        assert [(t.name, t.shape, t.dtype) for t in tensors] == [
            (name, array.shape, array.dtype.name) for name, array in arrays.items()
        ]
        assert [t.unit for t in tensors] == [UNITS[name] for name in arrays]
    config = load_config(Path(__file__).parents[1] / "configs" / "tiny.yaml")
    assert loaded.spec == InputSpec.of(config)
    assert loaded.manifest.classes == CLASSES
    assert loaded.manifest.cameras == CAMERAS
    assert (
        set(loaded.manifest.files)
        == set(FILES) - {"manifest.json"}
        == {p.name for p in loaded.path.iterdir()}
        - {
            "manifest.json",
            "engines",
        }
    )


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.37, 0.99999])
def test_one_flipped_byte_is_refused_by_name(tmp_path: Path, name: str, place: float) -> None:
    file = copied(tmp_path / "bundle") / name
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 0x01
    file.write_bytes(content)
    with pytest.raises(InputError, match=name):
        Bundle.load(file.parent)


def test_every_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    file = copied(tmp_path / "bundle") / "manifest.json"
    content = file.read_bytes()
    for i in np.linspace(0, len(content) - 1, 60).astype(int):
        file.write_bytes(content[:i] + bytes([content[i] ^ 0x10]) + content[i + 1 :])
        with pytest.raises(InputError, match=r"manifest\.json"):
            Bundle.load(file.parent)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = copied(tmp_path / "bundle")
    (path / name).unlink()
    with pytest.raises(InputError, match=name):
        Bundle.load(path)


def test_other_schema_version_says_so(tmp_path: Path) -> None:
    file = copied(tmp_path / "bundle") / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 7}))
    with pytest.raises(InputError, match="schema version 7, but this program reads 2"):
        Bundle.load(file.parent)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a bundle"):
        Bundle.load(tmp_path)
    with pytest.raises(InputError, match="not a bundle"):
        Bundle.load(tmp_path / "nowhere")


def test_write_replaces_a_bundle_and_its_engines(tmp_path: Path) -> None:
    path = copied(tmp_path / "bundle")
    (path / "engines").mkdir(exist_ok=True)
    (path / "engines" / "orin.plan").write_bytes(b"of the older network")
    rewrite(path)
    assert {p.name for p in path.iterdir()} == set(FILES)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_write_spares_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(InputError, match="exists and is not a bundle"):
        rewrite(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "ten years"


@pytest.mark.parametrize("failing", [*FILES, "rename"])
def test_failure_while_writing_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """The disk fills up at each file in turn, and the last rename fails."""
    path = copied(tmp_path / "bundle")
    before = {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}

    def full(self: Path, *_: object, original: object = None) -> None:
        raise OSError(28, "No space left on device")

    for method in ("write_bytes", "write_text", "rename"):
        original = getattr(Path, method)

        def guarded(self: Path, *arguments: object, original=original, method=method):  # type: ignore[no-untyped-def]
            if self.name == failing or (method == failing == "rename" and ".new-" in self.name):
                full(self)
            return original(self, *arguments)

        monkeypatch.setattr(Path, method, guarded)
    with pytest.raises(InputError, match="No space left on device"):
        rewrite(path)
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in Bundle.load(path).path.iterdir() if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_write_atomically_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match=str(file)):
        write_atomically(file, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]
