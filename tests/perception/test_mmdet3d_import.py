"""Imported networks of mmdet3d against the same ones written plainly; refusals; what of ours works on the run."""

import pickle
from pathlib import Path
from typing import Any

import centerpoint_reference
import numpy as np
import pointpillars_reference
import pytest
import torch
from centerpoint_reference import CONFIG, TASKS, reference, voxelised
from commands import refuses, succeeds
from hypothesis import given, settings
from hypothesis import strategies as st
from infos import MMDET3D_CLASSES
from refusals import one_line_error
from rich.console import Console
from vocabulary import ATTRIBUTES, CLASSES, RIG

from deploy.golden import synthetic_frame
from perception.errors import InputError
from perception.grid import BevGrid
from perception.mmdet3d.centerpoint import NAMES
from perception.mmdet3d.importing import import_checkpoint
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, prepare
from perception.sensors.lidar.pillars import group
from perception.tasks.detection.center_head import REGRESSION
from perception.tasks.task import part_of
from perception.training.checkpoint import load_model

QUIET = Console(quiet=True)
FRAME = synthetic_frame("lidar", RIG, seed=3)


NETWORKS = ("centerpoint", "fpn", "secfpn")  # the last two are PointPillars


def files(folder: Path, network: str = "centerpoint") -> tuple[Path, Path]:
    """Configuration and checkpoint."""
    if network == "centerpoint":
        return centerpoint_reference.files(folder)
    return pointpillars_reference.files(folder, network)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("imported")
    for network in NETWORKS:
        import_checkpoint(*files(folder, network), folder / f"run-{network}")
    return {network: folder / f"run-{network}" for network in NETWORKS}


@pytest.fixture(scope="module")
def run(runs: dict[str, Path]) -> Path:
    return runs["centerpoint"]


def plain_maps(network: str) -> dict[str, torch.Tensor]:
    """Of the network written plainly, under our names, with our order of classes and sizes."""
    voxels = voxelised(FRAME.points, 700, 6)
    assert len(voxels[0]) == 700  # there were more
    inputs = map(torch.from_numpy, voxels)
    if network == "centerpoint":
        return {
            f"group{i}_{mine}": task[theirs][:, [1, 0, 2]] if theirs == "dim" else task[theirs]
            for i, task in enumerate(reference()(*inputs))
            for mine, theirs in NAMES.items()
        }
    classes = [MMDET3D_CLASSES.index(name) for name in CLASSES]
    orders = {"classes": classes, "boxes": [0, 1, 2, 4, 3, 5, 6, 7, 8], "directions": [0, 1]}
    return {
        f"{name}.{i}": level.unflatten(1, (4, len(order)))[:, :, order].flatten(1, 2)
        for (name, order), levels in zip(
            orders.items(), pointpillars_reference.reference(network)(*inputs), strict=True
        )
        for i, level in enumerate(levels)
    }


@torch.no_grad()
@pytest.mark.parametrize(("network", "maps", "sweeps"), [("centerpoint", 36, 2), ("fpn", 9, 3), ("secfpn", 3, 3)])
def test_maps_are_those_of_the_network_written_plainly(
    runs: dict[str, Path], network: str, maps: int, sweeps: int
) -> None:
    ours, config = load_model(runs[network])
    assert config.model.lidar.sweeps == sweeps
    inputs = prepare(FRAME, InputSpec.of(config))
    found = part_of("detection", ours({name: torch.from_numpy(array) for name, array in inputs.items()}))
    expected = plain_maps(network)
    assert len(expected) == maps
    for name, wanted in expected.items():
        assert wanted.std() > 0.05
        torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_each_group_gives_its_best_cells_decoded(run: Path) -> None:
    ours, config = load_model(run)
    inputs = {name: torch.from_numpy(array) for name, array in prepare(FRAME, InputSpec.of(config)).items()}
    maps = {name: value[0].double().numpy() for name, value in part_of("detection", ours(inputs)).items()}
    found = {name: value[0].numpy() for name, value in part_of("detection", ours.predict(inputs)).items()}
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


def changed(folder: Path, network: str, tensors: dict[str, torch.Tensor | None]) -> tuple[Path, Path]:
    config, checkpoint = files(folder, network)
    content = torch.load(checkpoint, weights_only=True)
    for name, tensor in tensors.items():
        if tensor is None:
            del content["state_dict"][name]
        else:
            content["state_dict"][name] = tensor
    torch.save(content, checkpoint)
    return config, checkpoint


CONV, BIAS = "pts_backbone.blocks.1.0.weight", "pts_bbox_head.task_heads.5.vel.1.bias"
LINEAR, SMOOTH = "pts_voxel_encoder.vfe_layers.1.linear.weight", "pts_neck.fpn_convs.2.conv.weight"


@pytest.mark.parametrize(
    ("network", "missing", "more"),
    [
        ("centerpoint", [CONV, BIAS], ["img_backbone.conv1.weight"]),
        ("centerpoint", [], ["pts_bbox_head.task_heads.0.iou.1.bias"]),
        ("fpn", [SMOOTH, LINEAR], ["pts_bbox_head.conv_iou.weight"]),
    ],
)
def test_every_key_must_be_accounted_for(tmp_path: Path, network: str, missing: list[str], more: list[str]) -> None:
    tensors = {**dict.fromkeys(missing), **dict.fromkeys(more, torch.zeros(1))}
    config, checkpoint = changed(tmp_path, network, tensors)
    named = f" ({', '.join(missing)})" if missing else ""
    keys = f"{len(missing)} keys are missing{named}, {len(more)} unexpected ({', '.join(more)})"
    with one_line_error(exactly=f"{checkpoint}: does not fit its configuration: {keys}"):
        import_checkpoint(config, checkpoint, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_shape_must_be_that_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"{CONV} has the shape \(12, 9, 3, 3\), the configuration says \(12, 8, 3, 3\)"
    ):
        import_checkpoint(*changed(tmp_path, "centerpoint", {CONV: torch.zeros(12, 9, 3, 3)}), tmp_path / "run")


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
    with one_line_error("holds more than tensors and plain data"):
        import_checkpoint(config, checkpoint, tmp_path / "run")
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()  # it would have


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_checkpoint_that_is_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    config, checkpoint = files(tmp_path)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(share * len(content))])
    with one_line_error(r"centerpoint\.pth: not a checkpoint of torch"):
        import_checkpoint(config, checkpoint, tmp_path / "run")


REFUSED = {
    "centerpoint": [
        ("legacy=False", "legacy=True", "model.pts_voxel_encoder: no counterpart here: legacy is True, ours has False"),
        ("legacy=False,", "", "model.pts_voxel_encoder: no counterpart here: legacy is True, ours has False"),
        ("'SeparateHead'", "'DCNSeparateHead'", "separate_head: no counterpart here: type is 'DCNSeparateHead'"),
        ("'truck', 'construction_vehicle'", "'bus', 'construction_vehicle'", "the classes of its tasks must be, in"),
        ("'PointPillarsScatter'", "'SparseEncoder'", "`backbone: {kind: mmdet3d, ...}`), and its sparse conv"),
        ("type='CenterPoint'", "type='BEVFusion'", "`backbone: {kind: mmdet3d, ...}`), and its sparse conv"),
        ("type='CenterPoint'", "type='VoteNet'", "VoteNet is none of CenterPoint"),
        ("voxel_size=[0.4, 0.4, 8]", "voxel_size=[0.4, 0.4, 0.2]", "are no pillars on square cells"),
        ("voxel_size=[0.4, 0.4, 8]", "voxel_size=eval('[0.4, 0.4, 8]')", "a configuration is read, not run"),
        ("upsample_strides=[0.5, 1, 2]", "upsample_strides=[1, 1, 2]", "its stages must come out with the same"),
        ("norm_bbox=True", "norm_bbox=False", "norm_bbox is False"),
        ("max_num=40,", "", "model.pts_bbox_head.bbox_coder.max_num is missing"),
    ],
    "fpn": [
        ("with_distance=False", "with_distance=True", "no counterpart here: with_distance is True, ours has False"),
        ("in_channels=4", "in_channels=5", "no counterpart here: in_channels is 5, ours has 4"),
        ("test_mode=True", "use_dim=[0, 1, 3, 4]", "points have the columns [0, 1, 3, 4] of x, y, z, intensity, dt"),
        ("use_rotate_nms=True", "use_rotate_nms=False", "model.test_cfg.pts: no counterpart here: use_rotate_nms is"),
        ("AlignedAnchor3DRangeGenerator", "Anchor3DRangeGenerator", "no counterpart here: type is 'Anchor3DRange"),
        ("code_size=9", "code_size=7", "bbox_coder: no counterpart here: code_size is 7, ours has 9"),
        ("num_outs=3", "num_outs=4", "pts_neck: no counterpart here: num_outs is 4, ours has 3"),
        ("'trailer', ", "'tram', ", "`class_names` must be, in any order, car, truck"),
        ("nms_pre=100", "nms_pre=2000", "candidates of all maps together must be fewer than 3840"),
        ("type='MVXFasterRCNN',", "type='MVXFasterRCNN', img_backbone=dict(type='ResNet'),", "img_backbone is"),
        ("test_pipeline", "train_pipeline", "no `test_pipeline`"),
        ("LoadPointsFromMultiSweeps", "LoadPointsFromFile", "has no LoadPointsFromMultiSweeps"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("network", "row"), [(name, row) for name, rows in REFUSED.items() for row in rows])
def test_what_has_no_counterpart_is_refused(tmp_path: Path, network: str, row: tuple[str, str, str]) -> None:
    old, new, message = row
    config, checkpoint = files(tmp_path, network)
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    with one_line_error(says=message):
        import_checkpoint(config, checkpoint, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_imports_or_says_why_not(tmp_path: Path) -> None:
    command = ("import-mmdet3d", *files(tmp_path), "--out", tmp_path / "run")
    parameters = sum(p.numel() for p in reference().parameters())
    assert succeeds(*command) == f"{tmp_path / 'run'}: centerpoint, {parameters:,} parameters\n"
    assert refuses(*command) == f"perception: {tmp_path / 'run'}: holds files already; choose another --out\n"


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
