"""Bundles: described to the last output, written whole or not at all, verified, and refused by name when damaged."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import one_line_error, python, succeeds
from exported import bundle, copy_bundle, keys, nano, plan_record, reseal, rewritten, seal, trusting
from hypothesis import given, settings
from hypothesis import strategies as st
from lowered import onnx_model
from onnx import ModelProto, TensorProto, helper, numpy_helper
from vocabulary import CLASSES, RIG

from deploy import manifest
from deploy.bundle import Bundle, write_bundle
from deploy.engines import open_engine
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.export import UNITS
from deploy.golden_file import read_golden
from deploy.integrity import Content
from deploy.manifest import TensorInfo
from deploy.onnx_export import serialise
from deploy.runtime import Runtime
from deploy.signature import signer
from deploy.verify import verify
from perception.errors import InputError
from perception.tasks import parse_tasks

FILES = (
    "SHA256SUMS",
    "manifest.json",
    "model.onnx",
    "golden.safetensors",
    "ml_package.param.yaml",
    "modules/rain.json",
    "modules/rain.safetensors",
)
ENGINE = ("engines/rtx-ampere.plan", "engines/rtx-ampere.json")
SIGNATURES = ("SHA256SUMS.sig", "engines/rtx-ampere.sig")
MAP = "map/probabilities"
OUTPUTS = ("detection/boxes", "detection/scores", "detection/labels", "detection/attributes", MAP)
EXTRA = TensorInfo(name="conditions/probabilities", shape=(1, 7), dtype="float32", unit="probability")
RECOGNISED = (EXTRA.name, "conditions/distance")


def listed(path: Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}


def test_manifest_describes_the_golden_frame_and_the_configuration() -> None:
    loaded = Bundle.load(bundle().path)
    heads = loaded.manifest.heads.items()
    units = UNITS | {f"{name}/{output.name}": output.unit for name, task in heads for output in task.outputs}
    for sensor in nano().spec.sensors.values():
        units |= {name: array.unit for name, array in sensor.inputs.items()}
    for tensors, arrays in zip((loaded.manifest.inputs, loaded.manifest.outputs), loaded.golden(), strict=True):
        described = [(t.name, t.shape, t.dtype, t.unit) for t in tensors]
        assert described == [(name, a.shape, a.dtype.name, units[name]) for name, a in arrays.items()]
    assert loaded.spec == nano().spec
    assert (loaded.manifest.taxonomy.class_names, loaded.manifest.rig) == (CLASSES, RIG)
    assert set(bundle("rain").files) == set(FILES) - {"SHA256SUMS"}
    assert listed(bundle("rain").path) == set(FILES)


def test_another_schema_version_says_so_whatever_else_is_new(tmp_path: Path) -> None:
    file = copy_bundle(tmp_path / "bundle") / "manifest.json"
    content = {"news": 1} | json.loads(file.read_text()) | {"grid": None}
    for version, remedy in ((15, "update this program, or export again with it"), (9, "export again"), ("new", "exp")):
        file.write_text(json.dumps(content | {"schema_version": version}))
        with one_line_error(at=f"{file}: this bundle is schema {version!r}, this version reads 14; {remedy}"):
            Bundle.load(seal(file.parent))
    file.write_text(200_000 * "[")
    with one_line_error(at=f"{file}: "):
        Bundle.load(seal(file.parent))


def test_the_next_schema_s_reader_reads_a_bundle_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the next one adds has a default; within a schema an unknown key is a mistake."""

    class Next(manifest.Manifest):
        news: int = 7

    path, known = copy_bundle(tmp_path / "bundle"), bundle().manifest
    monkeypatch.setattr(manifest, "Manifest", Next)
    monkeypatch.setattr(manifest, "SCHEMA", 15)
    found = Bundle.load(path).manifest
    assert (found.schema_version, found.news, found.tasks) == (14, 7, known.tasks)
    reseal(path, lambda content: content.update(schema_version=15, news=8))
    assert Bundle.load(path).manifest.news == 8
    monkeypatch.undo()
    with one_line_error(says="this bundle is schema 15, this version reads 14; update this program"):
        Bundle.load(path)
    reseal(path, lambda content: content.update(schema_version=14))
    with one_line_error(says="news: is not a known key"):
        Bundle.load(path)


def test_sha256sum_checks_a_bundle(tmp_path: Path) -> None:
    path = copy_bundle(tmp_path / "bundle", "rain")

    def check() -> str:
        command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
        return subprocess.run(command, cwd=path, check=False, capture_output=True, text=True).stdout

    assert check().splitlines() == [f"{name}: OK" for name in sorted(set(FILES) - {"SHA256SUMS"})]
    (path / "model.onnx").write_bytes(b"")
    assert "model.onnx: FAILED" in check()


@pytest.mark.parametrize("line", ["model.onnx", f"{'0' * 63}  a", f"{'0' * 64} *a"])
def test_a_line_of_sha256sums_that_is_none(line: str, tmp_path: Path) -> None:
    path = copy_bundle(tmp_path / "bundle")
    before = (path / "SHA256SUMS").read_text()
    (path / "SHA256SUMS").write_text(f"{before}{line}\n")
    number = len(before.splitlines()) + 1
    with one_line_error(
        exactly=f"{path}/SHA256SUMS: line {number} is not a sha256, two spaces and a name; do not use it"
    ):
        Bundle.load(path)


def test_outputs_that_are_not_those_of_the_tasks_are_refused(tmp_path: Path) -> None:
    """Though all hashes hold: what no task reads, nothing would compare."""
    given = bundle().manifest.outputs
    tasks = {**bundle().manifest.tasks, **parse_tasks({"conditions": {}})}
    changes = [{"outputs": each} for each in (given[1:], given[:-1], (*given, EXTRA), given[::-1])]
    for i, change in enumerate([*changes, {"tasks": tasks}]):
        described = ", ".join(output.name for output in change.get("outputs", given))
        wanted = ", ".join((*OUTPUTS, *RECOGNISED) if "tasks" in change else OUTPUTS)
        message = f"outputs are {described}, those of its tasks {wanted}; export the bundle again"
        with one_line_error(exactly=f"{tmp_path}/{i}/manifest.json: {message}"):
            rewritten(copy_bundle(tmp_path / str(i)), **change)


def rewrite(path: Path) -> None:
    """Write the content of the bundle for rain over the bundle at `path`."""
    source = bundle("rain")
    modules = {name: (source.path / name).read_bytes() for name in FILES[4:]}
    write_bundle(path, source.onnx.read_bytes(), source.golden_frames(), source.manifest, modules)


def test_write_replaces_a_bundle_and_its_engines_and_nothing_else(tmp_path: Path) -> None:
    path = copy_bundle(tmp_path / "bundle")
    (path / "engines").mkdir()
    (path / "engines" / "orin.plan").write_bytes(b"of the older network")
    rewrite(path)
    assert listed(path) == set(FILES)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(InputError, match="exists and is not a bundle"):
        rewrite(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "ten years"


@pytest.mark.parametrize("failing", [*(Path(name).name for name in FILES), "rename"])
def test_failure_while_writing_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """The disk fills up at each file in turn, and the last rename fails."""
    path = copy_bundle(tmp_path / "bundle")
    before = {name: (path / name).read_bytes() for name in listed(path)}
    monkeypatch.setattr("perception.io.files._exchange", lambda *_: False)  # as on a disk that cannot
    for method in ("write_bytes", "rename"):
        original = getattr(Path, method)

        def guarded(self: Path, *arguments: object, original=original, method=method):  # type: ignore[no-untyped-def]
            if self.name == failing or (method == failing == "rename" and ".new-" in self.name):
                raise OSError(28, "No space left on device")
            return original(self, *arguments)

        monkeypatch.setattr(Path, method, guarded)
    with pytest.raises(InputError, match="No space left on device"):
        rewrite(path)
    monkeypatch.undo()
    assert {name: (path / name).read_bytes() for name in listed(Bundle.load(path).path)} == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def changed(change: Callable[[ModelProto], object]) -> bytes:
    """The network of `bundle()` after a change."""
    model = onnx.load(bundle().onnx)
    change(model)
    return model.SerializeToString()


def renamed(model: ModelProto) -> None:
    model.graph.input[0].name = "points"
    for node in model.graph.node:
        node.input[:] = ["points" if name == "pillar_points" else name for name in node.input]


def opset(model: ModelProto, version: int = 17) -> None:
    model.opset_import[0].version = version


def test_what_is_verified_is_told_by_a_vehicle_too(tmp_path: Path) -> None:
    """By the command itself, in a process that cannot import torch and onnx."""
    key, public = keys(tmp_path)
    path = rewritten(copy_bundle(tmp_path / "bundle", "rain"), sign=key)
    other = rewritten(copy_bundle(tmp_path / "other"), onnx=changed(renamed))
    given = ["perception", "verify", str(path), "--key", str(public), "--state", str(tmp_path / "state"), "--json"]
    done = python(
        f"from deploy.cli import main\nsys.argv = {given}\ntry:\n    main()\nexcept SystemExit as end:\n"
        f"    assert not end.code\nsys.argv = {['perception', 'verify', str(other)]}\nmain()"
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "inputs: pillar_points is not there, the manifest says float32 (1, 'pillars', 8, 5)" in done.stderr
    known = bundle("rain").manifest
    told = {
        "manifest": "schema 14",
        "release": "0, without end",
        "signature": f"by the key {signer(key).id}",
        "files": f"6 files, {sum((path / name).stat().st_size for name in bundle('rain').files) / 1e6:.1f} MB: "
        "hashes match, no other files",
        "graph": "5 inputs, 5 outputs: as in the manifest",
        "golden frames": "synthetic-0 and others: outputs of ONNX Runtime are within the tolerances",
        "engines": "none",
        "routes": "rain",
        "calibration": "none",
        "base": known.origin.base,
        "modules": "rain (domain not known)",
        "trained on": "the checkpoint did not say",
        "license": "not stated",
    }
    assert json.loads(done.stdout) == verify(path, trusting(public)) == told
    assert all(what in succeeds("verify", path) for what in told)
    assert verify(path)["signature"] == "not checked, no --key was given"
    assert verify(bundle().path)["signature"] == "none"


def test_another_graph_is_refused(tmp_path: Path) -> None:
    """Than the manifest says, and whole by its hashes, which a forger made anew."""
    for i, (change, found, said) in enumerate((
        (
            lambda model: setattr(model.graph.input[1].type.tensor_type.shape.dim[1], "dim_value", 7),
            "inputs: pillar_counts is int32 (1, 7)", "int32 (1, 'pillars')",
        ),
        (
            lambda model: model.graph.output.pop(),
            f"outputs: {MAP} is not there", f"float32 {bundle().manifest.outputs[-1].shape}",
        ),
    )):  # fmt: skip
        path = rewritten(copy_bundle(tmp_path / str(i)), onnx=changed(change))
        Bundle.load(path)
        with one_line_error(exactly=f"{path}/model.onnx: {found}, the manifest says {said}; export the bundle again"):
            verify(path)


def test_a_graph_that_no_engine_takes_is_one_line(tmp_path: Path) -> None:
    """The last as a vehicle meets it, where there is no onnx to see it beforehand."""
    path = rewritten(copy_bundle(tmp_path / "bundle"), onnx=b"not a graph")
    with one_line_error(r"model\.onnx: ONNX Runtime refuses it: "):
        Runtime(path)
    path = rewritten(copy_bundle(tmp_path / "new"), onnx=changed(lambda model: opset(model, 99)), opset=99)
    with one_line_error(r"model\.onnx: ONNX Runtime refuses it: .*[Oo]pset 99"):
        verify(path)
    path = rewritten(copy_bundle(tmp_path / "renamed"), onnx=changed(renamed))
    with one_line_error(r"ONNX Runtime cannot run the network: .*pillar_points"):
        Runtime(path)


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
        path = rewritten(copy_bundle(tmp_path / str(change)), inputs=wrong)
        with one_line_error(at=f"{path}/golden.safetensors: {message}"):
            Runtime(path)
    header = json.dumps({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()  # which numpy lacks
    content = Content(tmp_path / "golden", len(header).to_bytes(8, "little") + header + bytes(2))
    with one_line_error(at=f"{tmp_path / 'golden'}: cannot read the golden frames"):
        read_golden(content, bundle().manifest, "model")


def opened(path: Path, key: Path | None) -> None:
    """What a vehicle reads."""
    Bundle.load(path, None if key is None else trusting(key)).plan("rtx-ampere")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A signed bundle with a module and an engine, and the public key."""
    folder = tmp_path_factory.mktemp("signed")
    key, public = keys(folder)
    path, plan = rewritten(copy_bundle(folder / "bundle", "rain"), sign=key), bytes(range(256)) * 4
    record = plan_record(path, plan, target="rtx-ampere", compiler="tensorrt_rtx 1.7")
    Bundle.load(path).add_plan(plan, record, signer(key))
    return path, public


@pytest.mark.parametrize("keyed", [True, False])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_anywhere_is_told_by_name(signed: tuple[Path, Path], keyed: bool, data: st.DataObject) -> None:
    """Of signatures and of a plan's record only who has the key can tell; all else is told by hashes."""
    path, public = signed
    name = data.draw(st.sampled_from((*FILES, *ENGINE, *SIGNATURES) if keyed else (*FILES, ENGINE[0])))
    whole = (path / name).read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = {
        "flip": whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :],
        "cut": whole[:place],
        "grow": whole + data.draw(st.binary(min_size=1, max_size=9)),
        "delete": None,
    }[data.draw(st.sampled_from(("flip", "cut", "grow") + (("delete",) if name != SIGNATURES[1] else ())))]
    try:
        (path / name).unlink() if damaged is None else (path / name).write_bytes(damaged)
        with one_line_error(says=Path(name).stem if keyed or name != "SHA256SUMS" else str(path)):
            opened(path, public if keyed else None)
    finally:
        (path / name).write_bytes(whole)


@given(
    folder=st.sampled_from(("", "modules/", "new/")), name=st.text("abm.-_1", min_size=1).filter(lambda t: t.strip("."))
)
@settings(max_examples=30, deadline=None)
def test_a_file_that_the_manifest_does_not_name_is_told(signed: tuple[Path, Path], folder: str, name: str) -> None:
    file = signed[0] / folder / name[:100]
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    try:
        with one_line_error(at=f"{file}: SHA256SUMS does not name this file"):
            Bundle.load(signed[0])
    finally:
        file.unlink()


def naming(path: Path, files: dict[str, str]) -> Path:
    """A copy of the bundle for rain whose SHA256SUMS names these files."""
    lines = (f"{digest}  {name}\n" for name, digest in files.items())
    (copy_bundle(path, "rain") / "SHA256SUMS").write_bytes("".join(lines).encode())
    return path


def test_hashes_that_leave_a_file_out_are_refused(tmp_path: Path) -> None:
    for name in ("manifest.json", "model.onnx", "golden.safetensors", "modules/rain.json"):
        files = {each: digest for each, digest in bundle("rain").files.items() if each != name}
        with pytest.raises(InputError, match=f"{name}(: SHA256SUMS does not name this file)?; "):
            Bundle.load(naming(tmp_path / name, files))


@pytest.mark.parametrize(
    "name",
    ["../{0}", "{1}", "modules/../../{0}", "..\\{0}", "C:{0}", "./model.onnx", "a\0b"],
)
def test_a_path_out_of_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    """Also where the file that it leads to has the hash that the manifest says."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"of another")
    name = name.format(secret.name, secret)
    digest = hashlib.sha256(b"of another").hexdigest()
    path = naming(tmp_path / "bundle", {**bundle("rain").files, name: digest})
    with one_line_error(exactly=f"{path}: names {name!r}, which is not a path inside it; do not use this bundle"):
        Bundle.load(path)


@pytest.mark.parametrize("name", ["SHA256SUMS", "model.onnx", "modules/rain.json", "modules", "engines"])
def test_a_link_out_of_the_bundle_is_refused(signed: tuple[Path, Path], tmp_path: Path, name: str) -> None:
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
    opened(*signed)


def test_what_is_no_file_is_none_of_the_bundles(tmp_path: Path, signed: tuple[Path, Path]) -> None:
    """A link to the bundle is fine; one to itself, or a pipe, of which reading would wait for ever, is no file."""
    (tmp_path / "latest").symlink_to(signed[0])
    opened(tmp_path / "latest", signed[1])
    path = copy_bundle(tmp_path / "bundle", "rain")
    (path / "engines").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(InputError, match="engines: a link leads out"):
        Bundle.load(path).add_plan(b"plan", Bundle.load(signed[0]).plan("rtx-ampere").record)
    assert not list((tmp_path / "elsewhere").iterdir())
    (path / "engines").unlink()
    (path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="loop: SHA256SUMS does not name this file"):
        Bundle.load(path)
    (path / "loop").unlink()
    (path / "model.onnx").unlink()
    os.mkfifo(path / "model.onnx")
    with pytest.raises(InputError, match=r"model\.onnx: the file is missing"):
        Bundle.load(path)


def test_a_file_that_changes_after_it_was_hashed_is_refused_or_was_read(tmp_path: Path) -> None:
    path, content = copy_bundle(tmp_path / "bundle"), b"a plan"
    record, loaded = plan_record(path, content), Bundle.load(path)
    file = loaded.add_plan(content, record)
    plan = loaded.plan("orin")
    file.write_bytes(b"of another")
    assert (plan.data, plan.record) == (content, record)
    with pytest.raises(InputError, match=r"orin\.plan: was changed"):
        loaded.plan("orin")
    file.with_suffix(".json").unlink()
    with pytest.raises(InputError, match="no engine for orin; run `perception build"):
        verify(path)
    # Another whole graph of the same signature takes the place of the one that was hashed.
    (path / "model.onnx").write_bytes(changed(lambda model: setattr(model, "doc_string", "another's")))
    with pytest.raises(InputError, match=r"model\.onnx: was changed \(its sha256 differs"):
        open_engine(loaded)
    (path / "golden.safetensors").write_bytes(b"of another")
    with pytest.raises(InputError, match=r"golden\.safetensors: was changed"):
        loaded.golden()


def weights_elsewhere(place: str, location: str) -> bytes:
    """A network that adds weights in another file."""
    tensor = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value=location)
    tensor.data_location = TensorProto.EXTERNAL
    add = helper.make_node("Add", ["x", "w"], ["y"])
    model = onnx_model([add], {"x": [4]}, {"y": [4]})
    if place == "graph":
        model.graph.initializer.append(tensor)
    elif place == "node":
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    else:
        branch = helper.make_graph([add], "branch", [], [*model.graph.output], [tensor])
        model.graph.node[0].CopyFrom(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    return model.SerializeToString()


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize("place", ["graph", "node", "branch"])
def test_no_network_reads_another_file(
    place: str, optimise: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which no hash covers: neither in the working directory, where ONNX Runtime looks by itself, nor out of it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (Path(), Path("..")):
        (folder / "weights.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    for location in ("weights.bin", "../weights.bin", str(tmp_path / "weights.bin")):
        with one_line_error(at="a.onnx: ONNX Runtime refuses it: "):
            OnnxRuntimeEngine(weights_elsewhere(place, location), "a.onnx", optimise=optimise)


@pytest.mark.parametrize("place", ["graph", "node"])
def test_an_export_keeps_no_weights_elsewhere(place: str) -> None:
    with one_line_error(exactly="the graph keeps w in another file; a bundle has all weights in its graphs"):
        serialise(onnx.load_from_string(weights_elsewhere(place, "weights.bin")))
