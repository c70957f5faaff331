"""A CenterPoint of mmdet3d as a frozen base: a module trains on it with mmdet3d's own losses and data pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mmdet3d.registry import MODELS
from mmengine.config import Config
from torch import Tensor
from typer.testing import CliRunner

from perception.cli import app
from perception.data.nuscenes import NuScenesTables
from perception.errors import InputError
from perception.mmdet3d import annotation_file
from perception.mmdet3d.adapt import fit, training_set
from perception.mmdet3d.foreign import ForeignTrunk, load_foreign, read_config
from perception.mmdet3d.foreign_config import ForeignBackbone, ForeignConfig, foreign_config
from perception.modules.aggregation.notation import parse_block
from perception.modules.spec import LowRank

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
    file = folder / "centerpoint.py"
    config.dump(file)
    torch.manual_seed(0)
    detector = MODELS.build(Config.fromfile(file).model)
    detector.init_weights()
    checkpoint = folder / "centerpoint.pth"
    torch.save({"meta": {"epoch": 20}, "state_dict": detector.state_dict()}, checkpoint)
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


def test_a_trained_module_changes_the_output_folds_and_leaves_no_trace(
    base: ForeignBackbone,
    batch: dict[str, Any],
    mini_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
):
    config = ForeignConfig(name="c", backbone=base)
    plain = MODELS.build(Config.fromfile(base.config).model).eval()
    plain.load_state_dict(torch.load(str(base.checkpoint), weights_only=True)["state_dict"])
    expected = outputs(plain, batch)

    trunk = load_foreign(config)
    trunk.bank.add(LowRank(name="rain", slots=("pts_backbone.blocks.1*", "pts_neck.*"), rank=2))
    fingerprint = trunk.bank.base_hash()
    losses = fit(trunk, "rain", training_frames(trunk, mini_root, tmp_path_factory), config, 4, 1e-2)
    assert losses[-1] < losses[0]
    assert trunk.bank.base_hash() == fingerprint
    assert equal(outputs(trunk.detector, batch), expected)

    trunk.bank.activate(parse_block("rain"))
    adapted = outputs(trunk.detector, batch)
    assert max(float((a - b).abs().max()) for a, b in zip(adapted[:-3], expected[:-3], strict=True)) > 1e-2
    trunk.bank.merge(parse_block("rain"))
    for folded, unfolded in zip(outputs(trunk.detector, batch)[:-3], adapted[:-3], strict=True):
        torch.testing.assert_close(folded, unfolded, rtol=1e-4, atol=1e-4)
    trunk.bank.unmerge()
    assert equal(outputs(trunk.detector, batch), adapted)
    trunk.bank.activate(None)
    assert equal(outputs(trunk.detector, batch), expected)


def test_the_command_adapts_a_foreign_backbone_and_goes_on_from_there(
    base: ForeignBackbone, mini_root: Path, tmp_path: Path
):
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
    assert config is not None
    bank = load_foreign(config).bank
    assert list(bank.modules) == ["rain", "more"]
    assert set(bank.at("rain")) == {f"pts_backbone.blocks.1.{i}" for i in range(0, 18, 3)}
    assert bank.active is None

    with pytest.raises(InputError, match=r"does not export.*import-mmdet3d"):
        CliRunner().invoke(app, ["export", str(tmp_path / "two"), "--out", str(tmp_path / "b")], catch_exceptions=False)


def test_part_of_a_checkpoint_is_refused(base: ForeignBackbone, tmp_path: Path):
    content = torch.load(str(base.checkpoint), weights_only=True)
    key = "pts_neck.deblocks.0.0.weight"
    del content["state_dict"][key]
    torch.save(content, tmp_path / "part.pth")
    partial = base.model_copy(update={"checkpoint": str(tmp_path / "part.pth")})
    with pytest.raises(InputError, match=rf"1 keys are missing \({key}\), 0 unexpected"):
        load_foreign(ForeignConfig(name="c", backbone=partial))


def test_slots_that_are_not_there_are_refused(base: ForeignBackbone):
    wrong = base.model_copy(update={"slots": ("backbone.*",)})
    with pytest.raises(InputError, match=r"'backbone.\*' names no layer; .* pts_backbone, pts_bbox_head"):
        load_foreign(ForeignConfig(name="c", backbone=wrong))


def test_an_unknown_configuration_is_refused():
    with pytest.raises(InputError, match="has no configuration resnet"):
        read_config(ForeignBackbone(kind="mmdet3d", config="resnet"))


def test_voxel_centerpoint_loads_and_says_what_its_sparse_convolutions_need(
    mini_root: Path, tmp_path_factory: pytest.TempPathFactory
):
    config = ForeignConfig(name="v", backbone=ForeignBackbone(kind="mmdet3d", config=VOXELS), batch=1)
    trunk = load_foreign(config)
    assert {f"pts_backbone.blocks.1.{i}" for i in range(0, 18, 3)} <= trunk.bank.slots.keys()
    trunk.bank.add(LowRank(name="rain", slots=("pts_backbone.*",), rank=2))
    frames = training_frames(trunk, mini_root, tmp_path_factory)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="sparse convolutions run on a GPU"):
            fit(trunk, "rain", frames, config, 1, 1e-2)


def test_a_detector_of_a_project_beside_mmdet3d_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As BEVFusion, which is in mmdet3d's repository and not in its package: `custom_imports` says where it is."""
    (tmp_path / "project_of_mine.py").write_text(
        "from mmdet3d.registry import MODELS\n"
        "from mmengine.model import BaseModel\n"
        "from torch import nn\n"
        "@MODELS.register_module()\n"
        "class MyDetector(BaseModel):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.neck = nn.Conv2d(3, 4, 1)\n"
        "    def forward(self, inputs, data_samples=None, mode='tensor'):\n"
        "        return self.neck(inputs)\n"
    )
    file = tmp_path / "mine.py"
    file.write_text('custom_imports = dict(imports=["project_of_mine"])\nmodel = dict(type="MyDetector")\n')
    config = ForeignConfig(name="m", backbone=ForeignBackbone(kind="mmdet3d", config=str(file)))
    with pytest.raises(InputError, match=r"mine\.py: cannot be read .*project_of_mine"):
        load_foreign(config)
    monkeypatch.syspath_prepend(tmp_path)
    assert list(load_foreign(config).bank.slots) == ["neck"]
