"""A bundle that is damaged or leads out of itself is refused by name, and what was hashed is what is used."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from commands import one_line_error
from exported import bundle, copied, keys, plan_record, rewritten, trusting
from hypothesis import given, settings
from hypothesis import strategies as st
from lowered import onnx_model
from onnx import TensorProto, helper, numpy_helper

from deploy.bundle import Bundle
from deploy.engines import open_engine
from deploy.integrity import Content
from deploy.onnx_file import DTYPES, read_graph, require_self_contained
from deploy.runtime import Runtime
from deploy.signature import signer
from perception.errors import InputError

ENGINE = ("engines/rtx-ampere.plan", "engines/rtx-ampere.json")
FILES = ("manifest.json", "model.onnx", "golden.safetensors", "modules/rain.json", "modules/rain.safetensors", *ENGINE)
SIGNATURES = ("manifest.sig", "engines/rtx-ampere.sig")


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


# ----- damage -----


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
        for i in range(0, len(content), 83):
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


def with_files(path: Path, change: Callable[[dict[str, str]], object]) -> Path:
    """A copy of the bundle for rain whose manifest names other files."""
    manifest = bundle("rain").manifest
    files = dict(manifest.files)
    change(files)
    copied(path, "rain").joinpath("manifest.json").write_bytes(
        manifest.model_copy(update={"files": files}).hashed_json()
    )
    return path


@pytest.mark.parametrize("name", ["model.onnx", "golden.safetensors"])
def test_a_manifest_that_leaves_a_file_out_is_refused(tmp_path: Path, name: str) -> None:
    path = with_files(tmp_path / "bundle", lambda files: files.pop(name))
    with pytest.raises(InputError, match=f"manifest.json: does not name {name}"):
        Bundle.load(path)


@pytest.mark.parametrize(
    "name",
    ["../{0}", "{1}", "modules/../../{0}", "..\\{0}", "C:\\{0}", "C:{0}", "\\\\host\\{0}", "modules\\rain.json",
     "./model.onnx", "modules//rain.json", "a\0b", "a\nb", ""],
)  # fmt: skip
def test_a_path_out_of_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    """Also where the file that it leads to has the hash that the manifest says."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"of another")
    name = name.format(secret.name, secret)
    digest = hashlib.sha256(b"of another").hexdigest()
    path = with_files(tmp_path / "bundle", lambda files: files.update({name: digest}))
    with one_line_error(exactly=f"{path}: names {name!r}, which is not a path inside it; do not use this bundle"):
        Bundle.load(path)


# ----- links and pipes -----


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


def test_what_is_no_file_is_none_of_the_bundles(tmp_path: Path, signed: tuple[Path, Path]) -> None:
    """A link to the bundle is fine; one to itself, or a pipe, of which reading would wait for ever, is no file."""
    (tmp_path / "latest").symlink_to(signed[0])
    opened(tmp_path / "latest", signed[1])
    path = copied(tmp_path / "bundle", "rain")
    (path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="loop: the manifest does not name this file"):
        Bundle.load(path)
    (path / "loop").unlink()
    (path / "model.onnx").unlink()
    os.mkfifo(path / "model.onnx")
    with pytest.raises(InputError, match=r"model\.onnx: the file is missing"):
        Bundle.load(path)


# ----- files that change after they were hashed -----


def test_a_file_that_changes_after_the_bundle_was_opened_is_refused(tmp_path: Path) -> None:
    """Another whole graph of the same signature takes the place of the one that was hashed."""
    path = copied(tmp_path / "bundle")
    opened = Bundle.load(path)
    other = onnx.load(path / "model.onnx")
    other.doc_string = "another's"
    (path / "model.onnx").write_bytes(other.SerializeToString())
    with pytest.raises(InputError, match=r"model\.onnx: was changed \(its sha256 differs"):
        open_engine(opened)
    (path / "golden.safetensors").write_bytes(b"of another")
    with pytest.raises(InputError, match=r"golden\.safetensors: was changed"):
        opened.golden()


def test_a_network_that_changes_under_the_engine_does_not_matter(tmp_path: Path) -> None:
    """Swapped at the last moment, as ONNX Runtime is about to open it: it has the bytes already, and drops them."""
    path, opened = copied(tmp_path / "bundle"), onnxruntime.InferenceSession
    (inputs, _), engines = bundle().golden(), []

    def late(*arguments: object, **options: object) -> onnxruntime.InferenceSession:
        (path / "model.onnx").write_bytes(b"of another")
        return opened(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", late)
        engines.append(open_engine(Bundle.load(path)))
    expected = open_engine(bundle()).run(inputs)
    for name, array in engines[0].run(inputs).items():
        np.testing.assert_array_equal(array, expected[name])
    assert engines[0]._session._model_bytes is None


def test_a_plan_that_changes_after_it_was_checked_does_not_matter(tmp_path: Path) -> None:
    path, content = copied(tmp_path / "bundle"), b"a plan"
    record = plan_record(path, content)
    file = Bundle.load(path).add_plan(content, record)
    plan = Bundle.load(path).plan("orin")
    file.write_bytes(b"of another")
    assert (plan.data, plan.record) == (content, record.model_copy(update={"sha256": plan.record.sha256}))
    with pytest.raises(InputError, match=r"orin\.plan: was changed"):
        Bundle.load(path).plan("orin")


# ----- graphs, and weights in other files -----


def external(tensor: TensorProto) -> TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def weights() -> TensorProto:
    return numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")


def model_with(*nodes: onnx.NodeProto, initializers: tuple[TensorProto, ...] = ()) -> onnx.ModelProto:
    model = onnx_model(nodes, {"x": [4]}, {"y": [4]})
    model.graph.initializer.extend(initializers)
    return model


def in_the_graph() -> onnx.ModelProto:
    return model_with(helper.make_node("Add", ["x", "w"], ["y"]), initializers=(external(weights()),))


def in_a_node() -> onnx.ModelProto:
    return model_with(helper.make_node("Constant", [], ["y"], value=external(weights())))


def in_a_branch() -> onnx.ModelProto:
    out = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])]
    inner = helper.make_graph([helper.make_node("Identity", ["w"], ["z"])], "b", [], out, [external(weights())])
    return model_with(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))


def in_a_sparse_tensor() -> onnx.ModelProto:
    model = model_with(helper.make_node("Identity", ["x"], ["y"]))
    sparse = model.graph.sparse_initializer.add(dims=[9])
    sparse.values.CopyFrom(external(weights()))
    return model


def in_a_function() -> onnx.ModelProto:
    model = model_with(helper.make_node("Mine", ["x"], ["y"], domain="mine"))
    constant = helper.make_node("Constant", [], ["y"], value=external(weights()))
    model.functions.add(name="Mine", domain="mine").node.append(constant)
    return model


def without_saying_so() -> onnx.ModelProto:
    """The place is named, but not that it is to be used: nobody needs that."""
    tensor = weights()
    tensor.external_data.add(key="location", value="weights.bin")
    return model_with(helper.make_node("Add", ["x", "w"], ["y"]), initializers=(tensor,))


@pytest.mark.parametrize(
    "made", [in_the_graph, in_a_node, in_a_branch, in_a_sparse_tensor, in_a_function, without_saying_so]
)
def test_weights_in_another_file_are_refused_wherever_they_are(made: Callable[[], onnx.ModelProto]) -> None:
    model = made()
    with pytest.raises(InputError, match=r"^a\.onnx: keeps weights in another file, which no hash covers"):
        require_self_contained(Content(Path("a.onnx"), model.SerializeToString()))


def test_onnx_runtime_itself_would_take_them_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the bytes alone: which is why the bundle is searched for them."""
    model = in_the_graph()
    (tmp_path / "weights.bin").write_bytes(weights().raw_data)
    monkeypatch.chdir(tmp_path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.zeros(4, np.float32)})[0], [0, 1, 2, 3])


def test_a_bundle_with_weights_elsewhere_is_refused(tmp_path: Path) -> None:
    path, model = copied(tmp_path / "bundle"), onnx.load(bundle().onnx)
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    content = (tmp_path / "a.onnx").read_bytes()
    with pytest.raises(InputError, match=r"bundle/model\.onnx: keeps weights in another file"):
        rewritten(path, onnx=content)
    with pytest.raises(InputError, match=r"bundle/model\.onnx: keeps weights in another file"):
        Runtime(path)


def cut(at: int) -> bytes:
    whole = in_a_branch().SerializeToString()
    return whole[: at % len(whole)]


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_bytes_that_are_no_graph_are_one_line_and_no_search_ends_otherwise(data: st.DataObject) -> None:
    content = data.draw(st.binary(max_size=60) | st.builds(cut, st.integers(0, 10**6)))
    for check in (require_self_contained, read_graph):
        said = None
        try:
            check(Content(Path("a.onnx"), content))
        except InputError as error:
            said = str(error)
        elsewhere = "a.onnx: keeps weights in another file, which no hash covers; export the bundle again"
        assert said in (None, elsewhere, "a.onnx: not an ONNX file; export the bundle again")


def test_a_graph_is_read_as_onnx_reads_it() -> None:
    model = onnx.load(bundle().onnx)
    found = read_graph(bundle().read("model.onnx"))
    assert found.opsets == {each.domain or "ONNX": each.version for each in model.opset_import}
    assert sum(found.operators.values()) == len(model.graph.node)
    assert found.operators == bundle().manifest.operators
    for values, read in ((model.graph.input, found.inputs), (model.graph.output, found.outputs)):
        assert read == {
            value.name: f"{helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name} "
            f"{tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)}"
            for value in values
        }
    assert {number: helper.tensor_dtype_to_np_dtype(number).name for number in DTYPES} == DTYPES
