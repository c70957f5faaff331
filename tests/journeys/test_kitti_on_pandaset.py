"""The trained network on the recorded drive: adapted, extended, scored, exported, compiled and replayed."""

from __future__ import annotations

import json
from pathlib import Path

import kitti_reference as kitti
import yaml
from exported import QUIET
from pandaset_rigs import SPINNING
from repository import ROOT

from deploy.build import build
from deploy.export import export
from deploy.replay.run import replay
from deploy.replay.settings import Source
from deploy.verify import verify
from perception.datasets.pandaset import PandaSet
from perception.evaluation.evaluate import evaluate
from perception.import_pointpillars import import_pointpillars
from perception.predict import TorchPredictor
from perception.training.adapt import adapt, add_task, task_taxonomy
from perception.training.checkpoint import load_model

CONFIGS = ROOT / "configs" / "kitti"
MODULE = {"name": "pandaset", "kind": "low_rank", "slots": ["trunk.stage*.?", "heads.*"], "rank": 1}
NEAR = {"69.12": "28.16", "39.68": "14.08"}  # m; the network works on any grid, and this one costs little


def test_a_drive_of_another_car_goes_all_the_way(tmp_path: Path, pandaset_root: Path) -> None:
    text = (CONFIGS / "pointpillars.yaml").read_text()
    for far, near in NEAR.items():
        text = text.replace(far, near)
    (tmp_path / "near.yaml").write_text(text)
    config, base = import_pointpillars(tmp_path / "near.yaml", kitti.weights_file(), tmp_path / "base")
    before = base.bank.base_hash()
    drives = PandaSet(pandaset_root, SPINNING, config.taxonomy)
    adapt(tmp_path / "base", MODULE, drives, "all", ["002:0-1"], tmp_path / "adapted", steps=1, batch=1)
    further = yaml.safe_load((CONFIGS / "pandaset_further.yaml").read_text())
    drives = PandaSet(pandaset_root, SPINNING, task_taxonomy(config, "detection", further, "here"))
    run = tmp_path / "further"
    add_task(tmp_path / "adapted", "detection", further, drives, "all", ["002:0-1"], run, steps=1, batch=1)
    model, _ = load_model(run)
    assert model.bank.base_hash() == before

    names = ("car", "cyclist", "pedestrian", "truck", "construction_vehicle", "traffic_cone")
    predictor = TorchPredictor(model)
    scores = evaluate(predictor, drives, "all", ["002:30-31"], tmp_path / "scores", predictor.spec, QUIET)
    assert tuple(scores["mean_dist_aps"]) == names
    assert scores["mean_dist_aps"]["car"] > 0  # it sees only a part of them
    assert scores["ground_truth"]["traffic_cone"] > 0

    bundle = export(run, tmp_path / "bundle", console=QUIET)
    assert bundle.manifest.taxonomy.class_names == names
    assert build(bundle.path, "rtx-ampere", QUIET).plan_bytes > 100_000
    verify(bundle.path)
    summary = replay(Source(pandaset_root, scenes=["002:30-31"]), bundle.path, tmp_path / "replay", console=QUIET)
    assert summary["frames"] == 1
    assert "traffic_cone" in Path(summary["report"]).read_text()
    results = json.loads((tmp_path / "replay" / "results.json").read_text())["results"]
    found = [box["detection_name"] for boxes in results.values() for box in boxes if box["detection_score"] > 0.4]
    assert found.count("car") >= 3
