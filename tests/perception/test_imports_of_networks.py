"""Imported networks compute what mmdet3d's do; what does not fit is refused, and nothing runs."""

import json
import math
import pickle
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import one_line_error, refuses, succeeds
from hypothesis import given
from hypothesis import strategies as st
from made_up import keyframe
from mmdet3d_networks import TASKS, files, outputs, points, require_boxes, require_maps
from vocabulary import ATTRIBUTES, CLASSES

from perception.checkpoint import load_model
from perception.config import Config
from perception.errors import InputError
from perception.frame import Conditions, Frame
from perception.grid import BevGrid
from perception.mmdet3d.checkpoint import read_config
from perception.mmdet3d.importing import import_checkpoint
from perception.mmdet3d.second import sweep_step
from perception.predict import TorchPredictor
from perception.sensors.inputs import prepare
from perception.sensors.lidar.pillars import group
from perception.tasks.detection.targets import REGRESSION
from perception.tasks.task import part_of

FRAME = Frame("made", 0, "lidar", np.eye(4), np.eye(4), cameras={}, **keyframe(points()))
NETWORKS = {  # maps, sweeps; fpn and secfpn are PointPillars
    "centerpoint": (36, 2), "fpn": (9, 3), "secfpn": (3, 3), "pillarnest": (42, 2),
}  # fmt: skip
Files = dict[str, tuple[Path, Path]]


plain = st.one_of(st.none(), st.booleans(), st.integers(-999, 999), st.floats(-1e6, 1e6), st.text(max_size=8))
keys = st.sampled_from(["type", "in_channels", "norm_cfg", "a", "b"])
children = st.recursive(plain, lambda child: st.lists(child, max_size=3) | st.dictionaries(keys, child, max_size=3))


def written(folder: Path, text: str) -> Path:
    (folder / "config.py").write_text(text)
    return folder / "config.py"


def dumped(value: object) -> str:
    """As mmengine writes it."""
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={dumped(each)}' for key, each in value.items())})"
    return f"[{', '.join(map(dumped, value))}]" if isinstance(value, list) else repr(value)


@given(st.dictionaries(keys, children))
def test_values_are_those_that_python_gives(value: dict[str, object]) -> None:
    text = f"model = {dumped(value)}\nother = ({{'k': (1, -2), 1: []}}, 1e-05)\n"
    expected: dict[str, object] = {}
    exec(text, expected)
    with tempfile.TemporaryDirectory() as folder:
        found = read_config(written(Path(folder), text)).content
    assert found == {"model": value, "other": expected["other"]}


FLAT = "is more than a name and its value: a configuration is read, not run; write a flat one with python -c "
MODEL = "model = dict(type='A')\n"
NOT_FLAT = [
    ("open(MARK, 'w').close()\n", "config.py:2: \"open('/"),
    ("x = f\"{open(MARK, 'w')}\"\n", FLAT),
    ("x = dict(**{'a': 1})\n", FLAT),
    ("def f():\n    open(MARK, 'w')\nx = f()\n", f"config.py:2: 'def f():' {FLAT}"),
    ("x = dict(a=(lambda: open(MARK, 'w'))())\n", FLAT),
    ("y = 1\nx = y\n", f"config.py:3: 'x = y' {FLAT}"),
    ("_base_ = ['../_base_/models/a.py']\n", "config.py').dump('flat.py')"),
    ("x = " + "(" * 10**4, "config.py: not a Python file (SyntaxError)"),
    ("model = 1\n", "config.py: no `model` here"),
]


@pytest.mark.parametrize(("text", "message"), NOT_FLAT)
def test_what_is_not_flat_is_refused_in_one_line_and_nothing_runs(tmp_path: Path, text: str, message: str) -> None:
    config = written(tmp_path, MODEL + text.replace("MARK", repr(str(tmp_path / "executed"))))
    with one_line_error(says=message):
        read_config(config)
    assert not (tmp_path / "executed").exists()


def test_sweeps_are_those_of_testing(tmp_path: Path) -> None:
    steps = "test_pipeline = [dict(type='LoadPointsFromFile'), dict(type='LoadPointsFromMultiSweeps', sweeps_num=9)]\n"
    loader = sweep_step(read_config(written(tmp_path, MODEL + steps)))
    assert loader["sweeps_num"] == 9
    assert sweep_step(read_config(written(tmp_path, MODEL + "test_pipeline = [dict(type='B')]\n"))) is None
    with pytest.raises(InputError, match="no `test_pipeline` here"):
        sweep_step(read_config(written(tmp_path, MODEL)))
    with pytest.raises(InputError, match=r"absent\.py: cannot read the configuration \(FileNotFoundError\)"):
        read_config(tmp_path / "absent.py")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Configuration and checkpoint of each network."""
    return {network: files(tmp_path_factory.mktemp("networks"), network) for network in NETWORKS}


@pytest.fixture(scope="module")
def runs(sources: Files, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {network: tmp_path_factory.mktemp("imported") / network for network in NETWORKS}
    for network, folder in folders.items():
        import_checkpoint(*sources[network], folder)
    return folders


@torch.no_grad()
@pytest.mark.parametrize("network", NETWORKS)
def test_maps_are_those_of_mmdet3d(runs: dict[str, Path], network: str) -> None:
    ours, config = load_model(runs[network])
    maps, sweeps = NETWORKS[network]
    assert (config.model.lidar.sweeps, config.model.lidar.max_pillars) == (sweeps, 700)
    if network == "centerpoint":  # no weight gets lost
        shapes = json.loads(str(outputs(network)["shapes"]))
        trained = [shape for name, shape in shapes.items() if not re.search("running|num_batches", name)]
        assert sum(p.numel() for p in ours.parameters()) == sum(map(math.prod, trained))
    if network == "fpn":
        assert {"trunk.stage2.0", "trunk.lateral1", "trunk.smooth0.norm"} <= ours.bank.slots.keys()
    inputs = inputs_of(config)
    assert (inputs["pillar_counts"] > 0).sum() == 700  # there were more
    found = part_of("detection", ours(inputs))
    assert len(found) == maps
    require_maps(found, outputs(network), tolerance=1e-5)


def inputs_of(config: Config) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in prepare(FRAME, config.spec).items()}


@pytest.mark.parametrize("network", ["centerpoint", "fpn", "secfpn"])
def test_boxes_are_those_of_mmdet3d(runs: dict[str, Path], network: str) -> None:
    """After NMS, one to one."""
    found = TorchPredictor.load(runs[network])(FRAME).results["detection"]
    require_boxes(found, outputs(network), tolerance=1e-4)


@torch.no_grad()
def test_boxes_are_those_of_pillarnest(runs: dict[str, Path]) -> None:
    """Before NMS; scores are weighted by the predicted IoU."""
    ours, config = load_model(runs["pillarnest"])
    found = part_of("detection", ours.deployed(Conditions()).predict(inputs_of(config)))
    expected, first, counts = outputs("pillarnest"), 0, []
    for i, task in enumerate(TASKS):
        of_task = np.flatnonzero((expected["labels"] >= first) & (expected["labels"] < first + len(task)))
        count, boxes, values = len(of_task), expected["boxes"][of_task], found["boxes"][0, i].numpy()[: len(of_task)]
        scores = found["scores"][0, i].numpy()
        np.testing.assert_allclose(scores[:count], expected["scores"][of_task], atol=1e-5)
        assert not scores[count:].any()
        np.testing.assert_array_equal(found["labels"][0, i, :count], expected["labels"][of_task])
        np.testing.assert_allclose(values[:, [0, 1, 2, 3, 4, 5, 8, 9]], np.delete(boxes, 6, 1), atol=1e-4, rtol=1e-4)
        turned = np.column_stack([np.sin(boxes[:, 6]), np.cos(boxes[:, 6])])
        lengths = np.linalg.norm(values[:, 6:8], axis=1, keepdims=True)
        np.testing.assert_allclose(values[:, 6:8] / lengths, turned, atol=1e-4)
        first += len(task)
        counts.append(count)
    assert 10 < min(counts) < 40  # cells above and below the threshold


def test_attributes_are_those_of_the_speed(runs: dict[str, Path]) -> None:
    head: Any = load_model(runs["centerpoint"])[0].heads["detection"]
    speeds = {0.1: ["vehicle.parked", "pedestrian.standing"], 0.3: ["vehicle.moving", "pedestrian.moving"]}
    for speed, expected in speeds.items():
        dense = {}
        for i, task in enumerate(TASKS):
            dense |= {f"group{i}_{name}": torch.zeros(1, n, 16, 16) for name, n in REGRESSION.items()}
            dense[f"group{i}_velocity"] += speed * 0.5**0.5
            dense[f"group{i}_heatmap"] = torch.randn(1, len(task), 16, 16, generator=torch.Generator().manual_seed(i))
        found = head.decode(dense)
        assert found["scores"].shape == (1, 6, 40)
        for name, attribute in zip(("car", "pedestrian", "barrier"), [*expected, None], strict=True):
            ids = found["attributes"][found["labels"] == CLASSES.index(name)].unique()
            assert [None if i < 0 else ATTRIBUTES[i] for i in ids] == [attribute]


CONV, BIAS = "pts_backbone.blocks.1.0.weight", "pts_bbox_head.task_heads.5.vel.1.bias"
LINEAR, SMOOTH = "pts_voxel_encoder.vfe_layers.1.linear.weight", "pts_neck.fpn_convs.2.conv.weight"


KEYS = [
    ("centerpoint", [CONV, BIAS], "img_backbone.conv1.weight"),
    ("centerpoint", [], "pts_bbox_head.task_heads.0.iou.1.bias"),
    ("fpn", [SMOOTH, LINEAR], "pts_bbox_head.conv_iou.weight"),
    ("pillarnest", ["pts_backbone.stages.3.1.gamma"], "pts_backbone.norm1.weight"),  # one of these nothing reads
]


@pytest.mark.parametrize(("network", "missing", "more"), KEYS)
def test_every_key_must_be_accounted_for(sources: Files, tmp_path: Path, network: str, missing: list[str], more: str):
    checkpoint = tmp_path / "changed.pth"
    content = torch.load(sources[network][1], weights_only=True)
    tensors = {name: tensor for name, tensor in content["state_dict"].items() if name not in missing}
    torch.save(content | {"state_dict": tensors | {more: torch.zeros(1)}}, checkpoint)
    named = f" ({', '.join(missing)})" if missing else ""
    keys = f"{len(missing)} keys are missing{named}, 1 unexpected ({more})"
    with one_line_error(exactly=f"{checkpoint}: does not fit the configuration: {keys}"):
        import_checkpoint(sources[network][0], checkpoint, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_checkpoint_that_is_no_plain_data_is_refused_and_executes_nothing(sources: Files, tmp_path: Path) -> None:
    config, checkpoint = sources["centerpoint"]
    whole, content = checkpoint.read_bytes(), torch.load(checkpoint, weights_only=True)
    changed = tmp_path / "changed.pth"

    def refused(says: str) -> None:
        with one_line_error(says):
            import_checkpoint(config, changed, tmp_path / "run")

    for share in (0.0, 0.001, 0.5, 0.999):
        changed.write_bytes(whole[: int(share * len(whole))])
        refused(r"changed\.pth: not a checkpoint of torch")
    weights = content["state_dict"]
    torch.save({"state_dict": weights | {CONV: torch.zeros(12, 9, 3, 3)}}, changed)
    refused(rf"{CONV} has the shape \(12, 9, 3, 3\), the configuration says \(12, 8, 3, 3\)")
    for zipped in (True, False):
        malicious = {"state_dict": weights, "meta": Malicious(tmp_path / "executed")}
        torch.save(malicious, changed, _use_new_zipfile_serialization=zipped)
        refused("holds more than tensors and plain data")
        assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()  # it would have


REFUSED = {
    "centerpoint": [
        ("legacy=False", "legacy=True", "model.pts_voxel_encoder: no counterpart here: legacy is True, ours has False"),
        ("'truck', 'construction_vehicle'", "'bus', 'construction_vehicle'", "the classes of its tasks must be, in"),
        ("'PointPillarsScatter'", "'SparseEncoder'", "`backbone: {kind: mmdet3d, ...}`), and its sparse conv"),
        ("type='CenterPoint'", "type='BEVFusion'", "`backbone: {kind: mmdet3d, ...}`), and its sparse conv"),
        ("voxel_size=[0.4, 0.4, 8]", "voxel_size=[0.4, 0.4, 0.2]", "are no pillars on square cells"),
        ("upsample_strides=[0.5, 1, 2]", "upsample_strides=[1, 1, 2]", "its stages must come out with the same"),
    ],
    "fpn": [
        ("test_mode=True", "use_dim=[0, 1, 3, 4]", "points have the columns [0, 1, 3, 4] of x, y, z, intensity, dt"),
        ("use_rotate_nms=True", "use_rotate_nms=False", "model.test_cfg.pts: no counterpart here: use_rotate_nms is"),
        ("'trailer', ", "'tram', ", "`class_names` must be, in any order, car, truck"),
        ("nms_pre=100", "nms_pre=2000", "candidates of all maps together must be fewer than 3840"),
        ("type='MVXFasterRCNN',", "type='MVXFasterRCNN', img_backbone=dict(type='ResNet'),", "img_backbone is"),
    ],
    "pillarnest": [
        ("arch=dict(depths=[2, 1, 1, 2, 1], channels=[48, 12, 16, 16, 20])", "arch='huge'", "arch is 'huge', known"),
        ("out_indices=[2, 3, 4]", "out_indices=[1, 3, 4]", "out_indices are [1, 3, 4], ours joins the last stages"),
        (", iou=(1, 2)", "", "common_heads is"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("network", "row"), [(name, row) for name, rows in REFUSED.items() for row in rows])
def test_what_has_no_counterpart_is_refused(sources: Files, tmp_path: Path, network: str, row: tuple[str, ...]) -> None:
    old, new, message = row
    text = sources[network][0].read_text()
    assert old in text
    with one_line_error(says=message):
        import_checkpoint(written(tmp_path, text.replace(old, new)), sources[network][1], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_imports_or_says_why_not(sources: Files, tmp_path: Path) -> None:
    command = ("import", *sources["centerpoint"], "--out", tmp_path / "run")
    assert re.fullmatch(rf"{tmp_path / 'run'}: centerpoint, \d+,\d+ parameters\n", succeeds(*command))
    assert refuses(*command) == f"perception: {tmp_path / 'run'}: holds files already; choose another --out\n"


def voxelise(points: np.ndarray, most: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hard voxelisation, point by point: voxels, counts, cells (P, 2)."""
    places: dict[tuple[int, int], list[np.ndarray]] = {}
    for point in points.astype(np.float32):
        column, row = (np.floor((point[i] - np.float32(-12.8)) / np.float32(0.4)) for i in (0, 1))
        level = np.floor((point[2] - np.float32(-5)) / np.float32(8))
        cell = (int(row), int(column))
        if not (0 <= column < 64 and 0 <= row < 64 and level == 0) or (cell not in places and len(places) == most):
            continue
        if len(places.setdefault(cell, [])) < size:
            places[cell].append(point)
    voxels = np.zeros((len(places), size, 5), np.float32)
    for voxel, inside in zip(voxels, places.values(), strict=True):
        voxel[: len(inside)] = inside
    return voxels, np.array([len(inside) for inside in places.values()], np.int32), np.array([*places], np.int64)


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 300), spread=st.floats(0.3, 12), most=st.integers(1, 60))
def test_first_pillars_equal_a_loop_over_points(seed: int, number: int, spread: float, most: int) -> None:
    rng = np.random.default_rng(seed)
    points = (rng.normal(size=(number, 5)) * spread).astype(np.float32)
    edges = np.float32(-12.8) + np.float32(0.4) * rng.integers(0, 65, number).astype(np.float32)
    points[:, 0] = np.where(rng.random(number) < 0.5, edges, points[:, 0])  # where precision decides
    voxels, counts, cells = voxelise(points, most, 3)
    pillars, (found_counts, found_cells) = np.ones((most, 3, 5), np.float32), np.ones((2, most), np.int32)
    grid = BevGrid(x=(-12.8, 12.8), y=(-12.8, 12.8), z=(-5.0, 3.0), cell=0.4, reference="lidar")
    found = group(points, grid, pillars, found_counts, found_cells, "first")
    assert found == len(voxels)
    flat = cells.reshape(-1, 2) @ np.array([64, 1])
    order = np.argsort(flat)
    np.testing.assert_array_equal(found_cells[:found], flat[order])
    np.testing.assert_array_equal(found_counts[:found], counts[order])
    np.testing.assert_array_equal(pillars[:found], voxels[order])
