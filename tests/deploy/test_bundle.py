"""Bundles: described to the last output, verified, and written whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from commands import one_line_error, python, succeeds
from exported import bundle, copied, keys, nano, rewritten, trusting
from networks import tasks
from onnx import TensorProto
from vocabulary import CLASSES, MAP_CLASSES, NUSCENES, RIG

from deploy.bundle import Bundle, write_bundle
from deploy.manifest import TensorInfo
from deploy.network import UNITS
from deploy.runtime import Runtime
from deploy.signature import signer
from deploy.tolerances import LEAST, Tolerances, require_bounded
from deploy.verify import verify
from perception.errors import InputError
from perception.sensors.inputs import InputSpec
from perception.tasks import TASKS, configured, tasks_of

FILES = ("manifest.json", "model.onnx", "golden.safetensors", "modules/rain.json", "modules/rain.safetensors")
MAP = "map/probabilities"
OUTPUTS = ("detection/boxes", "detection/scores", "detection/labels", "detection/attributes", MAP)
EXTRA = TensorInfo(name="conditions/probabilities", shape=(1, 7), dtype="float32", unit="probability")


def rewrite(path: Path) -> None:
    """Write the content of the bundle for rain over the bundle at `path`."""
    source = bundle("rain")
    modules = {f"modules/{file.name}": file.read_bytes() for file in (source.path / "modules").iterdir()}
    write_bundle(path, source.onnx.read_bytes(), source.golden_frames(), source.manifest, modules)


def listed(path: Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}


# ----- what a manifest says -----


def test_manifest_describes_the_golden_frame_and_the_configuration() -> None:
    loaded = Bundle.load(bundle().path)
    heads = loaded.manifest.heads.items()
    units = UNITS | {f"{name}/{output.name}": output.unit for name, task in heads for output in task.outputs}
    for tensors, arrays in zip((loaded.manifest.inputs, loaded.manifest.outputs), loaded.golden(), strict=True):
        described = [(t.name, t.shape, t.dtype, t.unit) for t in tensors]
        assert described == [(name, a.shape, a.dtype.name, units[name]) for name, a in arrays.items()]
    assert loaded.spec == InputSpec.of(nano())
    assert (loaded.manifest.taxonomy.class_names, loaded.manifest.rig) == (CLASSES, RIG)
    assert set(bundle("rain").manifest.files) == set(FILES) - {"manifest.json"}
    assert listed(bundle("rain").path) == set(FILES)


@pytest.mark.parametrize(
    ("version", "remedy"),
    [(10, "update this program, or export again with it"), (8, "export again"), ("new", "export again")],
)
def test_another_schema_version_says_so_whatever_else_is_new(tmp_path: Path, version: object, remedy: str) -> None:
    file = copied(tmp_path / "bundle") / "manifest.json"
    file.write_text(json.dumps({"news": 1} | json.loads(file.read_text()) | {"schema_version": version, "grid": None}))
    with one_line_error(exactly=f"{file}: this bundle is schema {version!r}, this version reads 9; {remedy}"):
        Bundle.load(file.parent)


def test_outputs_that_are_not_those_of_the_tasks_are_refused(tmp_path: Path) -> None:
    """Though all hashes hold: what no task reads, nothing would compare."""
    given = bundle().manifest.outputs
    changes: tuple[dict[str, Any], ...] = (
        *({"outputs": given[:i] + given[i + 1 :]} for i in range(len(OUTPUTS))),
        {"outputs": (*given, EXTRA)},
        {"outputs": given[::-1]},
        {"outputs": (*given[:-1], given[-1].model_copy(update={"name": "map"}))},
        {"tasks": {**bundle().manifest.tasks, **configured({"conditions": {}})}},
    )
    for i, change in enumerate(changes):
        described = ", ".join(output.name for output in change.get("outputs", given))
        wanted = ", ".join((*OUTPUTS, EXTRA.name) if "tasks" in change else OUTPUTS)
        message = f"outputs are {described}, those of its tasks {wanted}; export the bundle again"
        with one_line_error(exactly=f"{tmp_path}/{i}/manifest.json: {message}"):
            rewritten(copied(tmp_path / str(i)), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ranked, dense: dense.pop(MAP), rf"no tolerance {MAP}\.carpark_area\.each"),
        (lambda ranked, dense: dense[MAP].pop("walkway"), rf"no tolerance {MAP}\.walkway\.each"),
        (lambda ranked, dense: ranked.pop("detection"), r"no tolerance detection\.center\.each"),
        (lambda ranked, dense: dense[MAP].update(moat=dense[MAP]["walkway"]), rf"an unknown tolerance {MAP}\.moat"),
        (lambda ranked, dense: dense.update({EXTRA.name: {"rain": dense[MAP]["walkway"]}}), rf"an .* {EXTRA.name}\.ra"),
        (lambda ranked, dense: dense.update({MAP: dict(reversed(dense[MAP].items()))}), "tolerances in another order"),
    ],
)
def test_tolerances_must_be_those_of_every_output_and_channel(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], message: str
) -> None:
    found = bundle().manifest.tolerances.model_dump()
    change(found["ranked"], found["dense"])
    with one_line_error(rf"manifest\.json: has {message}.*; export the bundle again$"):
        rewritten(copied(tmp_path / "bundle"), tolerances=Tolerances.model_validate(found))


def test_a_task_that_the_tolerances_do_not_know_is_refused() -> None:
    found = LEAST.all(tasks())
    more = tasks_of(configured({name: {} for name in TASKS}), tasks()["map"].grid, NUSCENES)
    require_bounded(found, "fp32", tasks(), "here")
    require_bounded(LEAST.all(more), "fp32", more, "here")
    with pytest.raises(InputError, match=r"^here: has no tolerance conditions/probabilities\.boston\.each"):
        require_bounded(found, "fp32", more, "here")
    assert [*found.dense[MAP]] == [*MAP_CLASSES]


# ----- written whole -----


def test_write_replaces_a_bundle_and_its_engines_and_nothing_else(tmp_path: Path) -> None:
    path = copied(tmp_path / "bundle")
    (path / "engines").mkdir(exist_ok=True)
    (path / "engines" / "orin.plan").write_bytes(b"of the older network")
    rewrite(path)
    assert listed(path) == set(FILES)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
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
    monkeypatch.setattr("perception.atomic._exchange", lambda *_: False)  # as on a disk that cannot
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


# ----- perception verify -----


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


def opset(model: onnx.ModelProto, version: int = 17) -> None:
    model.opset_import[0].version = version


def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    """The network of `bundle()` after a change."""
    model = onnx.load(bundle().onnx)
    change(model)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (opset, "opset: ONNX is 17, the manifest says 18"),
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
    tmp_path: Path, change: Callable[[onnx.ModelProto], object], message: str
) -> None:
    """Whole by its hashes, which a forger made anew."""
    path = rewritten(copied(tmp_path / "bundle"), onnx=changed(change))
    Bundle.load(path)
    with one_line_error(exactly=f"{path}/model.onnx: {message}; export the bundle again"):
        verify(path)


def test_a_graph_that_no_engine_takes_is_one_line(tmp_path: Path) -> None:
    """The last as a vehicle meets it, where there is no onnx to see it beforehand."""
    path = copied(tmp_path / "bundle")
    with pytest.raises(InputError, match=r"model\.onnx: not an ONNX file"):
        rewritten(path, onnx=b"not a graph")
    path = rewritten(copied(tmp_path / "new"), onnx=changed(lambda model: opset(model, 99)), opset=99)
    with one_line_error(r"model\.onnx: ONNX Runtime refuses it: .*[Oo]pset 99"):
        verify(path)
    path = rewritten(copied(tmp_path / "renamed"), onnx=changed(renamed))
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
        path = rewritten(copied(tmp_path / str(change)), inputs=wrong)
        with one_line_error(at=f"{path}/golden.safetensors: {message}"):
            Runtime(path)


def test_engines_are_verified_too(tmp_path: Path) -> None:
    path = copied(tmp_path / "bundle")
    (path / "engines").mkdir()
    (path / "engines" / "orin.plan").write_bytes(b"of nobody")
    with pytest.raises(InputError, match="no engine for orin; run `perception build"):
        verify(path)


def test_a_vehicle_verifies_without_torch_and_onnx(tmp_path: Path) -> None:
    """The command itself, in a process that cannot import them, says what one says that can."""
    key, public = keys(tmp_path)
    path = rewritten(copied(tmp_path / "bundle", "rain"), sign=key)
    other = rewritten(copied(tmp_path / "other"), onnx=changed(one_node_more))
    given = ["perception", "verify", str(path), "--key", str(public), "--state", str(tmp_path / "state"), "--json"]
    done = python(
        f"from deploy.cli import main\nsys.argv = {given}\ntry:\n    main()\nexcept SystemExit as end:\n"
        f"    assert not end.code\nsys.argv = {['perception', 'verify', str(other)]}\nmain()"
    )
    assert json.loads(done.stdout) == verify(path, trusting(public))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "operators: Softsign is 1, the manifest says that there is none" in done.stderr
