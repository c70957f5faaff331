"""Bundles: complete, sealed against every changed byte, and written whole or not at all."""

import json
from pathlib import Path

import pytest
from exported import bundle, copied
from refusals import one_line_error
from repository import ROOT
from vocabulary import CLASSES, RIG

from deploy.bundle import Bundle, write_bundle
from deploy.network import UNITS
from perception.atomic import write_atomically
from perception.config import load_config
from perception.errors import InputError
from perception.sensors.inputs import InputSpec

FILES = ("manifest.json", "model.onnx", "golden.safetensors", "modules/rain.json", "modules/rain.safetensors")


def rewrite(path: Path) -> None:
    """Write the tiny bundle's content over the bundle at `path`."""
    source = bundle("rain")
    modules = {f"modules/{file.name}": file.read_bytes() for file in (source.path / "modules").iterdir()}
    write_bundle(path, source.onnx.read_bytes(), source.golden_frames(), source.manifest, modules)


def listed(path: Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}


def test_manifest_describes_the_golden_frame_and_the_configuration() -> None:
    loaded = Bundle.load(bundle().path)
    heads = loaded.manifest.heads.items()
    units = UNITS | {f"{name}/{output.name}": output.unit for name, task in heads for output in task.outputs}
    for tensors, arrays in zip((loaded.manifest.inputs, loaded.manifest.outputs), loaded.golden(), strict=True):
        assert [(t.name, t.shape, t.dtype) for t in tensors] == [
            (name, array.shape, array.dtype.name) for name, array in arrays.items()
        ]
        assert [t.unit for t in tensors] == [units[name] for name in arrays]
    config = load_config(ROOT / "configs" / "tiny.yaml")
    assert loaded.spec == InputSpec.of(config)
    assert loaded.manifest.taxonomy.class_names == CLASSES
    assert loaded.manifest.rig == RIG
    assert set(Bundle.load(bundle("rain").path).manifest.files) == set(FILES) - {"manifest.json"}
    assert listed(bundle("rain").path) == set(FILES)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (10, "this bundle is schema 10, this version reads 9; update this program, or export again with it"),
        (8, "this bundle is schema 8, this version reads 9; export again"),
        ("new", "this bundle is schema 'new', this version reads 9; export again"),
    ],
)
def test_another_schema_version_says_so_whatever_else_is_new(tmp_path: Path, version: object, message: str) -> None:
    file = copied(tmp_path / "bundle") / "manifest.json"
    file.write_text(json.dumps({"news": 1} | json.loads(file.read_text()) | {"schema_version": version, "grid": None}))
    with one_line_error(exactly=f"{file}: {message}"):
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
    assert listed(path) == set(FILES)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_write_spares_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(InputError, match="exists and is not a bundle"):
        rewrite(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "ten years"


@pytest.mark.parametrize("failing", [*(Path(name).name for name in FILES), "rename"])
def test_failure_while_writing_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """The disk fills up at each file in turn, and the last rename fails."""
    path = copied(tmp_path / "bundle")
    before = {name: (path / name).read_bytes() for name in listed(path)}

    def full(self: Path, *_: object, original: object = None) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("perception.atomic._exchange", lambda *_: False)  # as on a disk that cannot
    for method in ("write_bytes", "rename"):
        original = getattr(Path, method)

        def guarded(self: Path, *arguments: object, original=original, method=method):  # type: ignore[no-untyped-def]
            if self.name == failing or (method == failing == "rename" and ".new-" in self.name):
                full(self)
            return original(self, *arguments)

        monkeypatch.setattr(Path, method, guarded)
    with pytest.raises(InputError, match="No space left on device"):
        rewrite(path)
    monkeypatch.undo()
    assert {name: (path / name).read_bytes() for name in listed(Bundle.load(path).path)} == before
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
