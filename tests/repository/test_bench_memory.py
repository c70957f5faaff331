"""The benchmark of the memory: which frames of a drive a network sees, and where its LiDAR is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_memory import EachFrame, _config, _rig
from networks import disturb, small

from perception.config import parse_config
from perception.model import PerceptionModel
from perception.predict import TorchPredictor


@pytest.mark.parametrize("remembers", [True, False])
def test_a_network_with_a_memory_sees_the_frames_before_those_that_are_asked_for(tables, remembers):
    """They matter to it alone; frames without LiDAR are the given ones."""
    content = small().model_dump(mode="json") | {"modules": [{"name": "m", "kind": "memory"}] if remembers else []}
    content["model"]["camera"] = None
    network = PerceptionModel(parse_config(content, "test"))
    if remembers:
        disturb(network, "m", 0.5)
    predictor = TorchPredictor(network)
    drive = tables.samples(None, tables.scenes()[:1])
    reads = predictor.spec.reads
    whole = dict(zip(drive, (p for _, p in predictor.predictions(tables, reads, drive)), strict=True))
    for lost in ((), drive[-1:], drive[:1]):
        ((frame, found),) = EachFrame(predictor, 1, lost).predictions(tables, reads, drive[-1:])
        assert frame.token == drive[-1]
        assert (frame.points is None) == (frame.token in lost)
        same = found.results["detection"].scores.tolist() == whole[drive[-1]].results["detection"].scores.tolist()
        assert same == (not lost or (lost == drive[:1] and not remembers))


@pytest.mark.parametrize("sensors", ["lidar", "camera", "both"])
def test_its_networks_are_of_these_sensors(tmp_path: Path, sensors):
    rig = _rig(sensors)
    assert bool(rig.cameras) == (sensors != "lidar")
    assert all(camera.size == (176, 99) for camera in rig.cameras)
    (tmp_path / "rig.yaml").write_text(rig.model_dump_json())
    model = parse_config(_config(sensors, tmp_path / "rig.yaml"), "test").model
    assert (model.lidar is not None, model.camera is not None) == (sensors != "camera", sensors != "lidar")
