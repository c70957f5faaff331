"""Data that does not fit, as a user meets it: one line, and exit code 2."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pandaset_drive as written
import pytest
import yaml
from commands import refuses
from exported import bundle, copied
from pandaset_drive import Object
from pickles import system

from perception.config import find_config

TINY = yaml.safe_load(find_config("tiny").read_text())
CAR = Object("Car", "parked", (3.0, 20.0, 0.3))


def test_an_unknown_class_in_a_configuration(tmp_path: Path) -> None:
    head = {"groups": [["car", "lorry"]]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**TINY, "tasks": {"detection": head}}))
    line = refuses("train", tmp_path / "own.yaml", "--data", tmp_path, "--out", tmp_path / "run")
    assert "own.yaml: (top level): tasks.detection: the groups, one after the other, must be car, truck," in line


def test_a_malicious_table_of_pandaset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    content = {**TINY, "rig": "pandaset_64", "taxonomy": "pandaset", "tasks": {"detection": {}}, "modules": []}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    written.write_drive(tmp_path / "drives", [CAR], {0: np.zeros((4, 6))})
    table = tmp_path / "drives/007/annotations/cuboids/00.pkl.gz"
    table.write_bytes(gzip.compress(pickle.dumps(system(), 3)))
    given = ("--data", tmp_path / "drives", "--split", "all", "--out", tmp_path / "run")
    line = refuses("train", tmp_path / "own.yaml", *given)
    assert f"{table}: " in line
    assert "asks for 'posix.system'" in line
    assert not (tmp_path / "canary").exists()


def test_a_manifest_with_fewer_classes_than_its_network(tmp_path: Path) -> None:
    """Though all hashes hold: labels would name what is not there."""
    path = copied(tmp_path / "bundle")
    manifest = bundle().manifest
    highest = max(int(frame.outputs["detection/labels"].max()) for frame in bundle().golden_frames("model.onnx"))
    fewer = manifest.taxonomy.model_copy(update={"classes": manifest.taxonomy.classes[:highest]})
    (path / "manifest.json").write_bytes(manifest.model_copy(update={"taxonomy": fewer}).hashed_json())
    line = refuses("verify", path)
    assert f"detection/labels are up to {highest}, the manifest's taxonomy nuscenes has {highest} classes" in line
