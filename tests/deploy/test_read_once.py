"""What was hashed is what is used: files that change after a bundle was opened, and files that no hash vouches for."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from exported import bundle, copied, plan_record, rewritten
from graphs import onnx_model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deploy.bundle import Bundle
from deploy.engines import open_engine
from deploy.integrity import Content
from deploy.onnx_file import DTYPES, read_graph, require_self_contained
from deploy.runtime import Runtime
from perception.errors import InputError


def swapped(file: Path) -> None:
    """Another whole graph of the same signature takes the place of the one that was hashed."""
    model = onnx.load(bundle().onnx)
    model.doc_string = "another's"
    file.write_bytes(model.SerializeToString())


def test_a_network_that_changes_after_the_bundle_was_opened_is_refused(tmp_path: Path) -> None:
    opened = Bundle.load(copied(tmp_path / "bundle"))
    swapped(tmp_path / "bundle" / "model.onnx")
    with pytest.raises(InputError, match=r"model\.onnx: was changed \(its sha256 differs"):
        open_engine(opened)
    (tmp_path / "bundle" / "model.onnx").write_bytes(bundle().onnx.read_bytes())
    (tmp_path / "bundle" / "golden.safetensors").write_bytes(b"of another")
    with pytest.raises(InputError, match=r"golden\.safetensors: was changed"):
        opened.golden()


def test_a_network_that_changes_under_the_engine_does_not_matter(tmp_path: Path) -> None:
    """Swapped at the last moment, as ONNX Runtime is about to open it: it has the bytes already."""
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


def test_a_plan_that_changes_after_it_was_checked_does_not_matter(tmp_path: Path) -> None:
    path, content = copied(tmp_path / "bundle"), b"a plan"
    record = plan_record(path, content)
    file = Bundle.load(path).add_plan(content, record)
    plan = Bundle.load(path).plan("orin")
    file.write_bytes(b"of another")
    assert (plan.data, plan.record) == (content, record.model_copy(update={"sha256": plan.record.sha256}))
    with pytest.raises(InputError, match=r"orin\.plan: was changed"):
        Bundle.load(path).plan("orin")


def test_an_engine_keeps_no_file_in_memory() -> None:
    assert open_engine(bundle())._session._model_bytes is None  # type: ignore[attr-defined]


# ----- weights in other files -----


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
    model.functions.add(name="Mine", domain="mine").node.append(
        helper.make_node("Constant", [], ["y"], value=external(weights()))
    )
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


def test_a_bundle_with_weights_in_its_engines_is_refused(tmp_path: Path) -> None:
    """The one folder that no hash covers."""
    path = copied(tmp_path / "bundle")
    model = onnx.load(bundle().onnx)
    onnx.save(
        model, path / "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0,
    )  # fmt: skip
    content = (path / "outside.onnx").read_bytes()
    (path / "outside.onnx").unlink()
    os.remove(path / "weights.bin")
    with pytest.raises(InputError, match=r"bundle/model\.onnx: keeps weights in another file"):
        rewritten(path, onnx=content)
    with pytest.raises(InputError, match=r"bundle/model\.onnx: keeps weights in another file"):
        Runtime(path)


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


def cut(at: int) -> bytes:
    whole = in_a_branch().SerializeToString()
    return whole[: at % len(whole)]


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
