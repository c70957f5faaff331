"""A CenterPoint of mmdet3d as a frozen base: a module trains on it with mmdet3d's own losses and data pipeline."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mmdet3d.registry import MODELS
from mmengine.config import Config
from torch import Tensor
from typer.testing import CliRunner

from deploy.cli import app
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.mmdet3d import annotation_file
from perception.mmdet3d.foreign import ForeignTrunk, fit, load_foreign, read_config, training_set
from perception.mmdet3d.foreign_config import ForeignBackbone, ForeignConfig, foreign_config
from perception.modules.composition import parse_block
from perception.modules.computation.weight_delta import LowRank
from perception.modules.route import Route

PILLARS = "centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d"
VOXELS = "centerpoint_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ForeignBackbone:
    """The shipped pillar CenterPoint on cells of 0.8 m, a sixteenth of the work, and random weights of it."""
    folder = tmp_path_factory.mktemp("centerpoint")
    config = read_config(ForeignBackbone(kind="mmdet3d", config=PILLARS))
    model, cell = config.model, [0.8, 0.8, 8]
    model.data_preprocessor.voxel_layer.update(voxel_size=cell, max_voxels=(5000, 5000))
    model.pts_voxel_encoder.voxel_size = cell
    model.pts_middle_encoder.output_shape = (128, 128)
    model.pts_bbox_head.bbox_coder.update(voxel_size=cell[:2], score_threshold=0.0)
    model.train_cfg.pts.update(grid_size=[128, 128, 1], voxel_size=cell)
    model.test_cfg.pts.update(voxel_size=cell[:2], score_threshold=0.0, post_max_size=20)
    file, checkpoint = folder / "centerpoint.py", folder / "centerpoint.pth"
    torch.manual_seed(0)
    detector = MODELS.build(copy.deepcopy(model))
    detector.init_weights()
    torch.save({"meta": {"epoch": 20}, "state_dict": detector.state_dict()}, checkpoint)
    # Not fetched: the checkpoint has all.
    model.pts_backbone.init_cfg = {
        "type": "Pretrained",
        "checkpoint": "absent.pth",
    }
    config.dump(file)
    return ForeignBackbone(kind="mmdet3d", config=str(file), checkpoint=str(checkpoint))


def outputs(detector: Any, batch: dict[str, Any]) -> list[Tensor]:
    """All maps of the detector's heads, and what it decodes from them."""
    with torch.no_grad():
        data = detector.data_preprocessor(batch, False)
        _, features = detector.extract_feat(data["inputs"], [sample.metainfo for sample in data["data_samples"]])
        maps = [value for task in detector.pts_bbox_head(features) for value in task[0].values()]
        (sample,) = detector(**data, mode="predict")
    found = sample.pred_instances_3d
    return [*maps, found.bboxes_3d.tensor, found.scores_3d, found.labels_3d]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.fixture(scope="module")
def batch(base: ForeignBackbone, mini_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One keyframe as the configuration's pipeline gives it."""
    frames = training_frames(load_foreign(ForeignConfig(name="c", backbone=base)), mini_root, tmp_path_factory)
    data = frames[0]
    return {"inputs": {"points": [data["inputs"]["points"]]}, "data_samples": [data["data_samples"]]}


def training_frames(trunk: ForeignTrunk, root: Path, folders: pytest.TempPathFactory) -> Any:
    tables, annotations = NuScenesTables(root, "v1.0-mini"), folders.mktemp("annotations") / "annotations.json"
    annotation_file.write(annotations, tables, tables.samples("mini_val"))
    return training_set(trunk.config, tables, annotations)


def test_a_trained_module_changes_the_output_folds_and_leaves_no_trace(base, batch, mini_root, tmp_path_factory):
    config = ForeignConfig(name="c", backbone=base)
    plain = MODELS.build(Config.fromfile(base.config).model).eval()
    plain.load_state_dict(torch.load(str(base.checkpoint), weights_only=True)["state_dict"])
    expected = outputs(plain, batch)

    trunk = load_foreign(config)
    trunk.bank.add(LowRank.Options(name="rain", slots=("pts_backbone.blocks.1*", "pts_neck.*"), rank=2))
    fingerprint = trunk.bank.base_hash()
    losses = fit(trunk, "rain", training_frames(trunk, mini_root, tmp_path_factory), config, 4, 1e-2)
    assert losses[-1] < losses[0]
    assert trunk.bank.base_hash() == fingerprint
    assert equal(outputs(trunk.detector, batch), expected)

    trunk.bank.activate(parse_block("rain"))
    adapted = outputs(trunk.detector, batch)
    assert max(float((a - b).abs().max()) for a, b in zip(adapted[:-3], expected[:-3], strict=True)) > 1e-2
    trunk.bank.activate(None)
    assert equal(outputs(trunk.detector, batch), expected)
    trunk.bank.fold({name: [Route({"rain": 1.0})] for name in trunk.bank.slots})
    for folded, unfolded in zip(outputs(trunk.detector, batch)[:-3], adapted[:-3], strict=True):
        torch.testing.assert_close(folded, unfolded, rtol=1e-4, atol=1e-4)


def test_the_command_adapts_a_foreign_backbone_and_goes_on_from_there(base, mini_root, tmp_path):
    file = tmp_path / "centerpoint.yaml"
    file.write_text(yaml.safe_dump({"name": "c", "backbone": base.model_dump(mode="json"), "batch": 1}))

    def adapt(source: Path, module: str, out: Path) -> None:
        words = ["adapt", str(source), "--add", module, "--slots", "pts_backbone.blocks.1*", "--split", "all"]
        words += ["--conditions", "rain", "--data", str(mini_root), "--out", str(out), "--steps", "1"]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0

    adapt(file, "low_rank:rain", tmp_path / "one")
    adapt(tmp_path / "one", "rescale:more", tmp_path / "two")
    config = foreign_config(tmp_path / "two")
    bank = load_foreign(config).bank
    assert list(bank.modules) == ["rain", "more"]
    assert set(bank.at("rain")) == {f"pts_backbone.blocks.1.{i}" for i in range(0, 18, 3)}
    assert bank.active is None

    with pytest.raises(InputError, match=r"does not export.*perception import"):
        CliRunner().invoke(app, ["export", str(tmp_path / "two"), "--out", str(tmp_path / "b")], catch_exceptions=False)


def test_what_is_not_there_is_refused(base: ForeignBackbone, tmp_path: Path):
    wrong = base.model_copy(update={"slots": ("backbone.*",)})
    with pytest.raises(InputError, match=r"'backbone.\*' names no layer; .* pts_backbone, pts_bbox_head"):
        load_foreign(ForeignConfig(name="c", backbone=wrong))
    with pytest.raises(InputError, match="has no configuration resnet"):
        read_config(ForeignBackbone(kind="mmdet3d", config="resnet"))
    content = torch.load(str(base.checkpoint), weights_only=True)
    key = "pts_neck.deblocks.0.0.weight"
    del content["state_dict"][key]
    torch.save(content, tmp_path / "part.pth")
    partial = base.model_copy(update={"checkpoint": str(tmp_path / "part.pth")})
    with pytest.raises(InputError, match=rf"1 keys are missing \({key}\), 0 unexpected"):
        load_foreign(ForeignConfig(name="c", backbone=partial))
    file = tmp_path / "bevfusion.py"  # whose classes are in mmdet3d's repository, not in its package
    file.write_text("custom_imports = dict(imports=['projects.BEVFusion.bevfusion'])\nmodel = dict(type='BEVFusion')\n")
    with pytest.raises(InputError, match=r"No module named 'projects'\).*on PYTHONPATH, with its operators compiled"):
        load_foreign(ForeignConfig(name="f", backbone=ForeignBackbone(kind="mmdet3d", config=str(file))))


def test_voxel_centerpoint_loads_and_says_what_its_sparse_convolutions_need(mini_root, tmp_path_factory):
    config = ForeignConfig(name="v", backbone=ForeignBackbone(kind="mmdet3d", config=VOXELS), batch=1)
    trunk = load_foreign(config)
    assert {f"pts_backbone.blocks.1.{i}" for i in range(0, 18, 3)} <= trunk.bank.slots.keys()
    trunk.bank.add(LowRank.Options(name="rain", slots=("pts_backbone.*",), rank=2))
    frames = training_frames(trunk, mini_root, tmp_path_factory)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="sparse convolutions run on a GPU"):
            fit(trunk, "rain", frames, config, 1, 1e-2)
    file = tmp_path_factory.mktemp("voxels") / "centerpoint.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with pytest.raises(InputError, match=r"does not export \(sparse convolutions would need a plugin\)"):
        CliRunner().invoke(app, ["export", str(file), "--out", str(file.parent / "b")], catch_exceptions=False)
