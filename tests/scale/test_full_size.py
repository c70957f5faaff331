"""The size that vehicles run: ResNet-50 at 256x704 and pillars of 0.2 m, exported and compiled without a GPU.

It takes the better part of a minute, because nothing smaller shows that the whole size compiles.
"""

from io import StringIO
from pathlib import Path

import onnx
import pytest
from exported import QUIET, checkpoint
from rich.console import Console

from deploy.build import build
from deploy.export import export


def test_fusion_at_full_size_exports_and_compiles(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    said = StringIO()
    bundle = export(checkpoint("nuscenes/fusion"), tmp_path / "bundle", console=Console(file=said, width=100))
    manifest = bundle.manifest
    graph = onnx.load(bundle.onnx).graph
    assert {node.domain for node in graph.node} == {""}
    assert f"{manifest.parameters:,}" in said.getvalue()
    assert f"{manifest.flops / 1e9:.2f}" in said.getvalue()
    assert f"Conv {sum(node.op_type == 'Conv' for node in graph.node)}" in said.getvalue()
    for target in ("rtx-ampere", "rtx-ada"):
        assert build(bundle.path, target, QUIET).plan_bytes > 4 * manifest.parameters
