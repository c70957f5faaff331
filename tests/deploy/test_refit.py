"""Plans that take the weights of another bundle: what is the same structure, and what is refused.

No plan is compiled or refitted here: tensorrt_rtx needs a GPU for both, and test_engines.py does them on one. What a
refittable plan's record says, and what becomes of it, is tested with a plan that was compiled as usual.
"""

import copy
import hashlib
import shutil
from pathlib import Path

import lowered
import numpy as np
import onnx
import pytest
from commands import refuses
from exported import QUIET, bundle, copy_bundle, keys, rewritten
from hypothesis import given, settings
from hypothesis import strategies as st
from lowered import onnx_model
from networks import EVERYWHERE, Net, make_learned_routing, randomise
from onnx import TensorProto, helper, numpy_helper
from refits import no_gpu, train_further, weights

from deploy.build import build, refit
from deploy.bundle import Bundle
from deploy.engines import open_engine
from deploy.engines.tensorrt import build_engine, compiler_version
from deploy.onnx_export import to_onnx
from deploy.precision.measure import structure_sha256
from deploy.signature import require_signed
from deploy.targets import find_target
from perception.errors import InputError
from perception.modules.computation.weight_delta import LowRank

TARGET = "rtx-ampere"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_weights_are_no_part_of_the_structure(precision: str) -> None:
    graph = lowered.graph(precision, "banked")
    other = train_further(graph)
    assert other.SerializeToString() != graph.SerializeToString()
    assert structure_sha256(other) == structure_sha256(graph)
    if precision != "int8":  # where they pass through a Q/DQ pair first
        layers = {name for node in graph.graph.node if node.op_type.startswith("Conv") for name in node.input[1:]}
        assert layers & {t.name for t in graph.graph.initializer} <= weights(graph)
    assert len(weights(graph)) > 10


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_everything_else_is_part_of_the_structure(data: st.DataObject) -> None:
    """Whatever is changed of a node, of an input or of a constant."""
    graph = lowered.graph("fp32", "banked")
    other, trained = copy.deepcopy(graph), weights(graph)
    tensors = other.graph.initializer
    kind = data.draw(st.sampled_from(["constant", "node", "link", "attribute", "shape", "order", "more", "opset"]))
    if kind == "constant":
        constants = [tensor for tensor in tensors if tensor.name not in trained and np.prod(tensor.dims)]
        tensor = data.draw(st.sampled_from(constants))
        values = numpy_helper.to_array(tensor).copy()
        values.flat[data.draw(st.integers(0, values.size - 1))] += 1
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    elif kind == "node":
        data.draw(st.sampled_from(other.graph.node)).op_type += "X"
    elif kind == "link":
        data.draw(st.sampled_from(other.graph.node)).output[0] += "x"
    elif kind == "attribute":
        node = data.draw(st.sampled_from([n for n in other.graph.node if n.op_type == "Conv"]))
        next(a for a in node.attribute if a.name == "pads").ints[0] += 1
    elif kind == "shape":
        data.draw(st.sampled_from([tensor for tensor in tensors if tensor.name in trained])).dims[0] += 1
    elif kind == "order":
        tensors.append(tensors.pop(data.draw(st.integers(0, len(tensors) - 2))))
    elif kind == "more":
        other.graph.output.append(other.graph.output[0])
    else:
        other.opset_import[0].version += 1
    assert structure_sha256(other) != structure_sha256(graph)


def test_a_module_trained_further_is_the_same_structure() -> None:
    """From the exporter itself, with a learned router in the graph."""
    example = {"x": np.ones((1, 4, 6, 8), np.float32), "lidar": np.ones(1, np.float32)}
    networks = (
        randomise(Net([LowRank.Options(name="rain", slots=EVERYWHERE, rank=2)], make_learned_routing()), by)
        for by in (1.0, 1.5)
    )
    old, further = (to_onnx(network.eval(), example, ["y"]) for network in networks)
    assert further.SerializeToString() != old.SerializeToString()
    assert structure_sha256(further) == structure_sha256(old)


def test_numbers_of_an_unknown_role_are_part_of_the_structure() -> None:
    """A limit, a scalar, a weight that is a limit elsewhere, or one that is dequantised first."""

    def structure(**changed: float) -> str:
        numbers = {"kernel": np.ones((1, 1, 1, 1)), "both": np.ones(1), "limit": np.array(2.0), "scale": np.array(3.0)}
        numbers |= {"rounded": np.ones((1, 1, 1, 1)), "step": np.ones(1)}
        nodes = [
            helper.make_node("QuantizeLinear", ["rounded", "step"], ["whole"], name="quantised"),
            helper.make_node("DequantizeLinear", ["whole", "step"], ["again"], name="dequantised"),
            helper.make_node("Conv", ["x", "again"], ["z"], name="int8"),
            helper.make_node("Conv", ["x", "kernel", "both"], ["a"], name="conv"),
            helper.make_node("Clip", ["a", "", "limit"], ["b"], name="clip"),
            helper.make_node("Mul", ["b", "scale"], ["c"], name="scaled"),
            helper.make_node("Where", ["m", "c", "both"], ["y"], name="where"),
        ]
        shape: list[int] = [1, 1, 4, 4]
        tensors = {name: (number + changed.get(name, 0)).astype(np.float32) for name, number in numbers.items()}
        return structure_sha256(onnx_model(nodes, {"x": shape, "m": (TensorProto.BOOL, shape)}, {"y": shape}, tensors))

    assert structure(kernel=1.0) == structure()
    for name in ("both", "limit", "scale", "rounded", "step"):
        assert structure(**{name: 1.0}) != structure()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_compiler_knows_the_weights_by_their_names(precision: str) -> None:
    """NVIDIA's network has refittable weights of each of these names; norms alone it combines."""
    trt = pytest.importorskip("tensorrt_rtx")
    graph = lowered.graph(precision, "banked")
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))
    assert parser.parse(graph.SerializeToString())
    norms = {name for node in graph.graph.node if node.op_type == "BatchNormalization" for name in node.input}
    assert {name for name in weights(graph) if not network.mark_weights_refittable(name)} <= norms


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle with a plan."""
    pytest.importorskip("tensorrt_rtx")
    path = copy_bundle(tmp_path_factory.mktemp("compiled") / "bundle")
    build(path, TARGET, QUIET)
    return path


def with_plan(compiled: Path, path: Path, **changed: object) -> Path:
    """A copy of the compiled bundle with a record as of a plan that was compiled to be refitted."""
    shutil.copytree(compiled, path)
    record = Bundle.load(path).plan(TARGET).record.model_copy(update={"refittable": True, **changed})
    (path / "engines" / f"{TARGET}.json").write_bytes(record.content())
    return path


def retrained(path: Path, seed: int = 1) -> Path:
    """A copy of the bundle with other weights."""
    graph = train_further(onnx.load(bundle().onnx), seed)
    assert structure_sha256(graph) == bundle().manifest.structure_sha256
    return rewritten(copy_bundle(path), graph.SerializeToString(deterministic=True))


def test_a_plan_moves_to_a_bundle_with_other_weights(tmp_path: Path, compiled: Path) -> None:
    private, public = keys(tmp_path / "keys")
    old, new = with_plan(compiled, tmp_path / "old"), rewritten(retrained(tmp_path / "new"), sign=private)
    before = {file: file.read_bytes() for file in old.rglob("*") if file.is_file()}
    record = refit(new, old, TARGET, QUIET, private)
    loaded, compiled = Bundle.load(new), Bundle.load(old).plan(TARGET).record
    assert loaded.plan(TARGET).record == record
    file = new / "engines" / f"{TARGET}.json"
    require_signed(file, file.read_bytes(), public)
    assert record.onnx_sha256 == compiled.onnx_sha256 == hashlib.sha256((old / "model.onnx").read_bytes()).hexdigest()
    assert record.weights_sha256 == hashlib.sha256((new / "model.onnx").read_bytes()).hexdigest()
    assert (record.refitted, compiled.refitted) == (True, False)
    assert loaded.plan(TARGET, compiler_version(find_target(TARGET))).data == Bundle.load(old).plan(TARGET).data
    assert before == {file: file.read_bytes() for file in old.rglob("*") if file.is_file()}
    # On from there: the plan of the plan's new owner, which still names the graph it was compiled from.
    third = retrained(tmp_path / "third", seed=2)
    assert refit(third, new, TARGET, QUIET).onnx_sha256 == record.onnx_sha256
    # Its weights are this bundle's and no other's.
    shutil.rmtree(new / "engines")
    shutil.copytree(third / "engines", new / "engines")
    with pytest.raises(InputError, match=r"rtx-ampere.plan: compiled from another network; run `perception build"):
        Bundle.load(new).plan(TARGET)
    forged = refit(new, old, TARGET, QUIET).model_copy(update={"refittable": False})
    (new / "engines" / f"{TARGET}.json").write_bytes(forged.content())
    with pytest.raises(InputError, match=r"rtx-ampere.plan: compiled from another network; run `perception build"):
        Bundle.load(new).plan(TARGET)


def test_another_plan_is_refused(tmp_path: Path, compiled: Path) -> None:
    new, here = retrained(tmp_path / "new"), compiler_version(find_target(TARGET))
    for i, (change, message) in enumerate((
        ({"refittable": False}, "to be refitted; run `perception build {old} --target rtx-ampere --refit`"),
        ({"compiler": "tensorrt_rtx 1.0.0"}, f"compiled by tensorrt_rtx 1.0.0, but here is {here}; run"),
    )):  # fmt: skip
        old = with_plan(compiled, tmp_path / str(i), **change)
        line = refuses("build", new, "--target", TARGET, "--refit-from", old)
        assert str(old / "engines" / f"{TARGET}.plan") in line
        assert message.format(old=old) in line
        assert not (new / "engines").exists()


def test_another_network_is_refused(tmp_path: Path, compiled: Path) -> None:
    graph = onnx.load(bundle().onnx)
    conv = next(node for node in graph.graph.node if node.op_type == "Conv")
    next(a for a in conv.attribute if a.name == "dilations").ints[0] = 2
    described = {"structure_sha256": structure_sha256(graph)}
    new = rewritten(copy_bundle(tmp_path / "new"), graph.SerializeToString(), **described)
    with pytest.raises(InputError, match=r"new/model.onnx: has another structure than \S*old/model.onnx, so it needs"):
        refit(new, with_plan(compiled, tmp_path / "old"), TARGET, QUIET)
    with pytest.raises(InputError, match="no engine for rtx-ada; run `perception build"):
        refit(new, tmp_path / "old", "rtx-ada", QUIET)


def test_what_has_no_meaning_is_refused(tmp_path: Path) -> None:
    path = bundle().path
    for reason, arguments in {
        "cpu: ONNX Runtime runs any bundle without a plan; leave out --refit": ("--target", "cpu", "--refit"),
        "cpu: has no plan to refit": ("--target", "cpu", "--refit-from", path),
        "orin: layers on a DLA cannot be refitted": ("--target", "orin", "--refit", "--dla"),
        "orin: needs tensorrt on the Jetson Orin itself": ("--target", "orin", "--refit-from", path),
        "--refit-from compiles nothing": ("--target", TARGET, "--refit", "--refit-from", path),
        "nowhere: not a bundle": ("--target", TARGET, "--refit-from", "nowhere"),
    }.items():
        assert reason in refuses("build", path, *arguments)
    with pytest.raises(InputError, match="rtx-ampere: the scales of int8 follow its weights and are compiled"):
        build(rewritten(copy_bundle(tmp_path / "bundle"), precision="int8"), TARGET, QUIET, refittable=True)


@no_gpu
def test_without_a_gpu_nothing_is_refitted(tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a version of tensorrt_rtx comes whose compiler needs none, this fails, and the refusal can go."""
    new = retrained(tmp_path / "new")
    refit(new, with_plan(compiled, tmp_path / "old"), TARGET, QUIET)
    with pytest.raises(InputError, match="no NVIDIA GPU driver on this machine"):
        open_engine(Bundle.load(new), TARGET)
    reason = "a refittable plan compiles only where there is an NVIDIA GPU; run this there, or leave out --refit"
    assert refuses("build", bundle().path, "--target", TARGET, "--refit") == f"perception: {TARGET}: {reason}\n"
    monkeypatch.setattr("deploy.engines.tensorrt._require_gpu", lambda target: None)
    target, shape = find_target(TARGET), [1, 1, 4, 4]
    model = onnx_model([helper.make_node("Relu", ["x"], ["y"])], {"x": shape}, {"y": shape})
    assert build_engine(model.SerializeToString(), target, refittable=True).layers > 0
    with pytest.raises(InputError, match=r"cannot compile the graph: .*Myelin"):
        build_engine(bundle().onnx.read_bytes(), target, refittable=True, inputs=bundle().manifest.input_shapes)
