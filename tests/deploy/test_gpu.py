"""Plans on a GPU, compiled for it. None of this has run yet: where it was written, there is none."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from exported import QUIET, bundle, copy_bundle, remembering, retrained
from networks import uniform_tolerances
from refits import has_gpu

from deploy.build import build, refit
from deploy.bundle import Bundle
from deploy.engines import cuda, open_engine
from deploy.engines.tensorrt import TensorRtEngine
from deploy.golden import differences
from deploy.runtime import Runtime
from deploy.targets import TARGETS, Target

on_gpu = pytest.mark.skipif(not has_gpu(), reason="no NVIDIA GPU on this machine")


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """A target for this GPU; one without a name, such as a server's, is compiled for as if it were an RTX GPU."""
    trt = pytest.importorskip("tensorrt_rtx")
    capability = cuda.compute_capability()
    for each in TARGETS.values():
        if each.compiler == "tensorrt_rtx" and capability in each.compute_capabilities:
            yield each
            return
    if not hasattr(trt.ComputeCapability, f"SM{capability}"):
        pytest.skip(f"tensorrt_rtx {trt.__version__} does not compile for compute capability {capability / 10}")
    here = replace(TARGETS["rtx-ampere"], name="here", compute_capabilities=(capability,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TARGETS, "here", here)
        yield here


@pytest.fixture(scope="module")
def compiled(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = copy_bundle(tmp_path_factory.mktemp("compiled") / "bundle")
    build(path, target.name, QUIET)
    return path


def engine_of(path: Path, target: Target) -> TensorRtEngine:
    engine = open_engine(Bundle.load(path), target.name)
    assert isinstance(engine, TensorRtEngine)
    return engine


@on_gpu
def test_the_plan_computes_the_network_and_a_recorded_frame_is_the_frame(target: Target, compiled: Path) -> None:
    from cuda.bindings import driver

    Runtime(compiled, target.name)  # runs the golden frame
    engine = engine_of(compiled, target)
    assert engine.graph is not None
    inputs, _ = bundle().golden()
    dark = inputs | {"images": np.zeros_like(inputs["images"])}
    recorded = [engine.run(each) for each in (inputs, dark, inputs)]
    graph, engine.graph = engine.graph, None
    for outputs, plain in zip(recorded, [engine.run(each) for each in (inputs, dark, inputs)], strict=True):
        assert differences(plain, outputs, uniform_tolerances(1e-5, bundle().manifest.heads)) == []
    assert differences(recorded[0], recorded[1], bundle().manifest.tolerances)  # each frame is its own
    engine.graph, before = graph, driver.cuMemGetInfo()
    for _ in range(100):
        engine.run(inputs)
    assert driver.cuMemGetInfo() == before


@on_gpu
def test_a_refitted_plan_is_the_one_compiled_anew(target: Target, tmp_path: Path) -> None:
    old, new, anew = copy_bundle(tmp_path / "old"), tmp_path / "new", tmp_path / "anew"
    for path in (new, anew):
        copytree(retrained().path, path)
    build(old, target.name, QUIET, refittable=True)
    refit(new, old, target.name, QUIET)
    build(anew, target.name, QUIET)
    inputs, _ = bundle().golden()
    tolerance = bundle().manifest.tolerances
    outputs = engine_of(new, target).run(inputs)
    assert differences(engine_of(anew, target).run(inputs), outputs, tolerance) == []
    assert differences(engine_of(old, target).run(inputs), outputs, tolerance)  # the weights matter
    Runtime(new, target.name)


@on_gpu
def test_a_state_stays_on_the_gpu_through_the_golden_sequence(target: Target, tmp_path: Path) -> None:
    path = copytree(remembering().path, tmp_path / "bundle")
    build(path, target.name, QUIET)
    Runtime(path, target.name)
