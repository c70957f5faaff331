"""An imported CenterPoint against the same network written plainly; refusals; what of ours works on the run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from centerpoint_reference import CONFIG, TASKS, files, reference, voxelised
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from deploy.export import export
from deploy.golden import synthetic_frame
from deploy.runtime import Runtime
from perception.cli import main
from perception.errors import InputError
from perception.frame import ATTRIBUTES, CLASSES
from perception.grid import BevGrid
from perception.mmdet3d.centerpoint import NAMES
from perception.mmdet3d.importing import import_checkpoint
from perception.model import PerceptionModel
from perception.predict import TorchPredictor
from perception.sensors.inputs import InputSpec, prepare
from perception.sensors.lidar.pillars import group
from perception.tasks.detection.center_head import REGRESSION
from perception.training.checkpoint import load_model

QUIET = Console(quiet=True)
FRAME = synthetic_frame("lidar", seed=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    import_checkpoint(*files(folder), folder / "run")
    return folder / "run"


@torch.no_grad()
def test_maps_are_those_of_the_network_written_plainly(run: Path) -> None:
    ours, config = load_model(run)
    inputs = prepare(FRAME, InputSpec.of(config))
    found = ours({name: torch.from_numpy(array) for name, array in inputs.items()})
    voxels, counts, cells = voxelised(FRAME.points, 700, 6)
    assert len(voxels) == 700  # there were more
    expected = reference()(*map(torch.from_numpy, (voxels, counts, cells)))
    for i, task in enumerate(expected):
        for mine, theirs in NAMES.items():
            wanted = task[theirs][:, [1, 0, 2]] if theirs == "dim" else task[theirs]
            assert wanted.std() > 0.05
            torch.testing.assert_close(found[f"group{i}_{mine}"], wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_each_group_gives_its_best_cells_decoded(run: Path) -> None:
    ours, config = load_model(run)
    inputs = {name: torch.from_numpy(array) for name, array in prepare(FRAME, InputSpec.of(config)).items()}
    maps = {name: value[0].double().numpy() for name, value in ours(inputs).items()}
    found = {name: value[0].numpy() for name, value in ours.predict(inputs).items()}
    assert found["scores"].shape == (6, 40)
    for i, task in enumerate(TASKS):
        cells = []  # score, label, row, column
        for label, name in enumerate(task):
            for row, column in np.ndindex(16, 16):
                logit = maps[f"group{i}_heatmap"][label, row, column]
                cells.append((1 / (1 + np.exp(-logit)), CLASSES.index(name), row, column))
        best = sorted(cells, reverse=True)[:40]
        np.testing.assert_allclose(found["scores"][i], [cell[0] for cell in best], rtol=1e-5)
        assert found["labels"][i].tolist() == [cell[1] for cell in best]
        for box, attribute, (_, label, row, column) in zip(
            found["boxes"][i], found["attributes"][i], best, strict=True
        ):
            at = {name: maps[f"group{i}_{name}"][:, row, column] for name in NAMES}
            center = np.array([column, row]) * 1.6 - 12.8 + at["offset"] * 1.6
            expected = [*center, *at["height"], *np.exp(at["size"]), *at["heading"], *at["velocity"]]
            np.testing.assert_allclose(box, expected, rtol=1e-4, atol=1e-5)
            assert attribute == -1 if CLASSES[label] in ("barrier", "traffic_cone") else attribute >= 0


def test_a_moving_car_and_a_standing_pedestrian_get_their_attributes(run: Path) -> None:
    head: Any = load_model(run)[0].heads["detection"]
    speeds = {0.1: ["vehicle.parked", "pedestrian.standing"], 0.3: ["vehicle.moving", "pedestrian.moving"]}
    for speed, expected in speeds.items():
        dense = {}
        for i, task in enumerate(TASKS):
            dense |= {f"group{i}_{name}": torch.zeros(1, n, 16, 16) for name, n in REGRESSION.items()}
            dense[f"group{i}_velocity"] += speed * 0.5**0.5
            dense[f"group{i}_heatmap"] = torch.randn(1, len(task), 16, 16, generator=torch.Generator().manual_seed(i))
        found = head.decode(dense)
        for label, attribute in zip((0, 8), expected, strict=True):
            ids = found["attributes"][found["labels"] == label].unique()
            assert [ATTRIBUTES[i] for i in ids] == [attribute]


def changed(folder: Path, **tensors: torch.Tensor | None) -> tuple[Path, Path]:
    config, checkpoint = files(folder)
    content = torch.load(checkpoint, weights_only=True)
    for name, tensor in tensors.items():
        if tensor is None:
            del content["state_dict"][name]
        else:
            content["state_dict"][name] = tensor
    torch.save(content, checkpoint)
    return config, checkpoint


def test_every_key_must_be_accounted_for(tmp_path: Path) -> None:
    conv, bias = "pts_backbone.blocks.1.0.weight", "pts_bbox_head.task_heads.5.vel.1.bias"
    given_files = changed(tmp_path, **{conv: None, bias: None, "img_backbone.conv1.weight": torch.zeros(1)})
    with pytest.raises(InputError) as error:
        import_checkpoint(*given_files, tmp_path / "run")
    assert str(error.value) == (
        f"{given_files[1]}: does not fit its configuration: 2 keys are missing ({conv}, {bias}), "
        "1 unexpected (img_backbone.conv1.weight)"
    )
    assert not (tmp_path / "run").exists()


def test_a_key_too_many_is_refused_where_none_is_missing(tmp_path: Path) -> None:
    extra = "pts_bbox_head.task_heads.0.iou.1.bias"
    with pytest.raises(InputError, match=rf"0 keys are missing, 1 unexpected \({extra}\)"):
        import_checkpoint(*changed(tmp_path, **{extra: torch.zeros(1)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_shape_must_be_that_of_the_configuration(tmp_path: Path) -> None:
    conv = "pts_backbone.blocks.1.0.weight"
    with pytest.raises(
        InputError, match=rf"{conv} has the shape \(12, 9, 3, 3\), the configuration says \(12, 8, 3, 3\)"
    ):
        import_checkpoint(*changed(tmp_path, **{conv: torch.zeros(12, 9, 3, 3)}), tmp_path / "run")


class Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_checkpoint_executes_nothing(tmp_path: Path, zipped: bool) -> None:
    config, checkpoint = files(tmp_path)
    content = {"state_dict": reference().state_dict(), "meta": Malicious(tmp_path / "executed")}
    torch.save(content, checkpoint, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="holds more than tensors and plain data") as error:
        import_checkpoint(config, checkpoint, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()  # it would have


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_checkpoint_that_is_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    config, checkpoint = files(tmp_path)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"centerpoint\.pth: not a checkpoint of torch") as error:
        import_checkpoint(config, checkpoint, tmp_path / "run")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("legacy=False", "legacy=True", "model.pts_voxel_encoder: no counterpart here: legacy is True, ours has False"),
        ("legacy=False,", "", "model.pts_voxel_encoder: no counterpart here: legacy is True, ours has False"),
        ("'SeparateHead'", "'DCNSeparateHead'", "separate_head: no counterpart here: type is 'DCNSeparateHead'"),
        ("'truck', 'construction_vehicle'", "'bus', 'construction_vehicle'", "the classes of its tasks must be, in"),
        ("'PointPillarsScatter'", "'SparseEncoder'", "`backbone: {kind: mmdet3d, ...}`), and its sparse conv"),
        ("type='CenterPoint'", "type='BEVFusion'", "`backbone: {kind: mmdet3d, ...}`), and its sparse conv"),
        ("type='CenterPoint'", "type='VoteNet'", "VoteNet is none of CenterPoint"),
        ("voxel_size = [0.4, 0.4, 8]", "voxel_size = [0.4, 0.4, 0.2]", "are no pillars on square cells"),
        ("voxel_size = [0.4, 0.4, 8]", "voxel_size = eval('[0.4, 0.4, 8]')", "a configuration is read, not run"),
        ("upsample_strides=[0.5, 1, 2]", "upsample_strides=[1, 1, 2]", "its stages must come out with the same"),
        ("norm_bbox=True", "norm_bbox=False", "norm_bbox is False"),
        ("max_num=40,", "", "model.pts_bbox_head.bbox_coder.max_num is missing"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    config, checkpoint = files(tmp_path)
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    with pytest.raises(InputError) as error:
        import_checkpoint(config, checkpoint, tmp_path / "run")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_command_imports_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoint = files(tmp_path)
    arguments = ["perception", "import-mmdet3d", str(config), str(checkpoint), "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code in (0, None)
    parameters = sum(p.numel() for p in reference().parameters())
    assert capsys.readouterr().out == f"{tmp_path / 'run'}: centerpoint, {parameters:,} parameters\n"
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    assert capsys.readouterr().err == f"perception: {tmp_path / 'run'}: holds files already; choose another --out\n"


def test_no_weight_of_the_checkpoint_gets_lost(run: Path) -> None:
    model: PerceptionModel = load_model(run)[0]
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in reference().parameters())
    assert CONFIG.count("max_voxels=(500, 700)") == 1
    assert load_model(run)[1].model.lidar.max_pillars == 700


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 300), spread=st.floats(0.3, 12), most=st.integers(1, 60))
def test_first_pillars_equal_a_loop_over_points(seed: int, number: int, spread: float, most: int) -> None:
    rng = np.random.default_rng(seed)
    points = (rng.normal(size=(number, 5)) * spread).astype(np.float32)
    edges = np.float32(-12.8) + np.float32(0.4) * rng.integers(0, 65, number).astype(np.float32)
    points[:, 0] = np.where(rng.random(number) < 0.5, edges, points[:, 0])  # where precision decides
    voxels, counts, cells = voxelised(points, most, 3)
    pillars, found_counts, found_cells = (
        np.ones((most, 3, 5), np.float32),
        np.ones(most, np.int32),
        np.ones(most, np.int32),
    )
    grid = BevGrid(x=(-12.8, 12.8), y=(-12.8, 12.8), z=(-5.0, 3.0), cell=0.4, reference="lidar")
    found = group(points, grid, pillars, found_counts, found_cells, "first")
    assert found == len(voxels)
    flat = cells.reshape(-1, 2) @ np.array([64, 1])
    order = np.argsort(flat)
    np.testing.assert_array_equal(found_cells[:found], flat[order])
    np.testing.assert_array_equal(found_counts[:found], counts[order])
    np.testing.assert_array_equal(pillars[:found], voxels[order])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_exported_network_gives_the_same_boxes(run: Path, tmp_path: Path, precision: Any) -> None:
    bundle = export(run, tmp_path / "bundle", console=QUIET, precision=precision)
    expected, found = TorchPredictor.load(run)(FRAME).boxes, Runtime(bundle.path)(FRAME).boxes
    assert len(expected) > 20
    if precision == "fp32":
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.centers, expected.centers, atol=1e-4)
        np.testing.assert_allclose(found.corners(), expected.corners(), atol=1e-3)
    else:  # a few are on the edge of being suppressed
        assert abs(len(found) - len(expected)) <= 0.05 * len(expected)
