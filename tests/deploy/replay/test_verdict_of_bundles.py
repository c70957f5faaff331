"""Verdicts of replays of real bundles: the same passes, a worse one fails, and the command says so."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
from exported import QUIET, bundle, copied, folder, rewritten
from judged import gates
from typer.testing import CliRunner

from deploy.bundle import Bundle
from deploy.cli import app
from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.precision.calibrate import ranges
from deploy.precision.quantise import CPU, activations, quantisable, quantise
from deploy.replay.results import Finished
from deploy.replay.run import replay
from deploy.replay.selection import Selection
from deploy.replay.settings import Settings, Source
from deploy.replay.verdict import judge
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.tasks.detection.devkit import open_devkit
from perception.tasks.detection.tracking import score_tracks

SCENE = "scene-0001"


@cache
def replayed(root: Path, path: Path, *faults: str, time: int = 1) -> Path:
    """The folder of a replay through a bundle with random weights; at another `time` it is replayed again."""
    out = folder() / f"replayed-{path.name}-{len(faults)}-{time}"
    replay(Source(root, "v1.0-sim"), path, out, Settings(faults=faults), console=QUIET)
    return out


def in_int8(to: Path, share: float) -> Path:
    """The bundle with its trunk in INT8 on ranges of this share of the measured ones: 1 is right, less is broken.

    It is sealed anew with golden outputs of its own, so nothing but its results gives it away.
    """
    old = Bundle.load(bundle().path)
    model, golden = onnx.load(old.onnx), old.golden()[0]
    measured = ranges(model, activations(model.graph), [golden])
    small = {name: (share * low, share * high) for name, (low, high) in measured.items()}
    lowered = quantise(model, [*quantisable(model.graph)], small, CPU).SerializeToString()
    outputs = OnnxRuntimeEngine(lowered).run(golden)
    return rewritten(copied(to), onnx=lowered, golden=(golden, outputs))


AGREE = gates(
    {"metric": "agreement", "of": "detections", "at_least": 0.98, "score": 0.05},
    {"metric": "agreement", "of": "map", "at_least": 0.98},
)


def test_a_bundle_passes_against_itself_and_fails_without_its_module(sim_root: Path) -> None:
    whole = replayed(sim_root, bundle("rain").path)
    again = replayed(sim_root, bundle("rain").path, time=2)
    assert judge(again, whole, AGREE).passed
    without = judge(replayed(sim_root, bundle().path), whole, AGREE)
    assert [case.passed for case in without.cases] == [False, False]
    assert "detections and the baseline's" in without.cases[0].reason


def test_a_broken_scale_of_int8_fails_where_a_right_one_agrees_more(sim_root: Path, tmp_path: Path) -> None:
    whole = replayed(sim_root, bundle().path)
    values = []
    for share in (1.0, 0.25):
        verdict = judge(replayed(sim_root, in_int8(tmp_path / f"int8-{share}", share)), whole, AGREE)
        values.append([case.value for case in verdict.cases])
    assert not verdict.passed
    assert all(right > broken for right, broken in zip(*values, strict=True)), values
    assert values[1][1] < 0.9


def test_faults_fail_the_verdict(sim_root: Path) -> None:
    whole = replayed(sim_root, bundle().path)
    blind = replayed(sim_root, bundle().path, "drop:all@0.4-0.9")
    assert Finished.load(whole).dropped == (0, 0)
    assert Finished.load(blind).dropped == (0, 2)  # the second of three keyframes of both drives
    assert [case.passed for case in judge(blind, None, gates({"metric": "dropped", "at_most": 0})).cases] == [False]
    with pytest.raises(InputError, match=r"with faults none, this replay with drop:all@0\.4-0\.9; replay the baseline"):
        judge(blind, whole, AGREE)


@pytest.fixture
def command(sim_root: Path, tmp_path: Path) -> Callable[..., Any]:
    def run(out: str, *arguments: str) -> Any:
        given = ["replay", str(sim_root), "--scenes", f"{SCENE}:0-1", "--bundle", str(bundle().path)]
        return CliRunner().invoke(app, [*given, "--out", str(tmp_path / out), *arguments])

    return run


def test_exit_code_is_the_verdict(command: Callable[..., Any], tmp_path: Path) -> None:
    first = command("first")
    assert first.exit_code == 0, first.output
    assert not (tmp_path / "first" / "verdict.json").exists()
    passed = command("second", "--baseline", str(tmp_path / "first"), "--json")
    assert passed.exit_code == 0, passed.output
    (tmp_path / "gates.yaml").write_text("gates: [{metric: latency, at_most: 0.001}, {metric: dropped, at_most: 0}]")
    failed = command("third", "--gates", str(tmp_path / "gates.yaml"), "--fault", "blackout:cameras")
    assert failed.exit_code == 1
    verdict = json.loads((tmp_path / "third" / "verdict.json").read_text())
    assert [case["passed"] for case in verdict["cases"]] == [False, True]
    assert isinstance(command("fourth", "--fault", "melt:lidar").exception, InputError)
    assert isinstance(command("fourth", "--baseline", str(tmp_path)).exception, InputError)
    assert not (tmp_path / "fourth").exists()


def test_a_replay_with_a_gate_on_amota_scores_its_tracks(sim_root: Path, tmp_path: Path) -> None:
    """As the devkit scores the same file by itself; a replay of each second frame is not scored."""
    gate = gates({"metric": "AMOTA", "at_least": 0.0})
    drives = NuScenesTables(sim_root, "v1.0-sim")
    arguments = (Source(drives.dataroot, drives.version, [SCENE]), bundle().path)
    found = replay(*arguments, tmp_path / "out", gates=gate, console=QUIET)["verdict"]["cases"][0]
    nusc = open_devkit(drives.dataroot, drives.version)
    scored = score_tracks(tmp_path / "out" / "tracks.json", nusc, drives.samples(selectors=[SCENE]))
    assert json.loads((tmp_path / "out" / "tracking_metrics.json").read_text()) == scored
    assert found["value"] == scored["amota"]
    replay(*arguments, tmp_path / "out", Settings(selection=Selection(every=2)), gates=gate, console=QUIET)
    assert not (tmp_path / "out" / "tracking_metrics.json").exists()
