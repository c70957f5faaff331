"""Detection by centres: targets, losses, decoding, boxes at the peaks alone, and the submission of what was found."""

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import one_line_error
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import make_boxes
from networks import config
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.utils import detection_name_to_rel_attributes
from nuscenes.utils.data_classes import Box
from perfect import Dense, count_found, perfect_detection, perfect_outputs
from pyquaternion import Quaternion
from torch import Tensor
from vocabulary import ATTRIBUTES, CLASSES, NUSCENES

from perception.config import find_config, load_config, parse_config
from perception.frame import Boxes, Conditions, Frame
from perception.grid import BevGrid
from perception.model import PerceptionModel
from perception.tasks.detection import targets
from perception.tasks.detection.center_head import CenterHead, PeakHead, at_peaks, by_speed
from perception.tasks.detection.config import DetectionHead, Suppression
from perception.tasks.detection.submission import SubmissionWriter, fitting_attributes, sample_results
from perception.tasks.detection.targets import REGRESSION, center_losses, gaussian_focal
from perception.tasks.detection.task import DetectionTask
from perception.training.loader import batch_labels

GRID = BevGrid(x=(-16.0, 16.0), y=(-8.0, 8.0), cell=0.5)


def head_of(config: DetectionHead) -> Any:
    return DetectionTask(config, GRID, NUSCENES).network(8)


def labels_of(config: DetectionHead, *frames: Boxes) -> Dense:
    """Labels of a batch, as the loader makes and joins them."""
    task, here = DetectionTask(config, GRID, NUSCENES), np.eye(4)
    empty = [Frame("", 0, "ego", here, here, None, {}, truth={"boxes": boxes}) for boxes in frames]
    return batch_labels([{"detection": task.labels(frame)} for frame in empty])["detection"]


def random_boxes(rng: np.random.Generator, n: int) -> Boxes:
    """Boxes whose cells are far enough apart that each is a peak of its own."""
    cells = rng.choice(8 * 4, size=n, replace=False)
    centers = np.stack([cells % 8 * 4.0 - 14 + rng.uniform(-1, 1, n), cells // 8 * 4.0 - 6 + rng.uniform(-1, 1, n)], 1)
    centers, sizes = np.column_stack([centers, rng.normal(size=n)]), rng.uniform(0.3, 6, (n, 3))
    yaws, velocities = rng.uniform(-np.pi, np.pi, n), rng.normal(size=(n, 2))
    return make_boxes(centers, sizes, yaws, velocities, rng.integers(0, 10, n))


GROUPED = (CLASSES[:4], CLASSES[4:])
FINE = {"pedestrian": 4, "traffic_cone": 4, "bicycle": 2}
OUTPUTS = {**REGRESSION, "heatmap": 10, "attribute": 8}


def crowd_of(seed: int) -> tuple[Boxes, np.ndarray]:
    """Objects on distinct subcells that do not touch, up to four in one cell, and their certainties."""
    rng, kinds, places = np.random.default_rng(seed), list[str](), list[np.ndarray]()
    for kind in rng.choice(["pedestrian", "traffic_cone", "bicycle", "car"], rng.integers(1, 11)).tolist():
        place = rng.integers(0, 3 * FINE.get(kind, 1), 2)  # nine cells at the corner of the grid
        if all(kind != other or abs(place - there).max() > 1 for other, there in zip(kinds, places, strict=True)):
            kinds.append(kind)
            places.append(place)
    n, across = len(kinds), np.array([[GRID.cell / FINE.get(kind, 1)] for kind in kinds])
    centers = [GRID.x[0], GRID.y[0]] + across * (np.array(places) + rng.uniform(0.1, 0.9, (n, 2)))
    sizes = np.array([[2.0, 4.0, 1.5] if kind == "car" else [0.6, 0.7, 1.8] for kind in kinds])
    labels = [CLASSES.index(kind) for kind in kinds]
    boxes = make_boxes(np.pad(centers, ((0, 0), (0, 1))), sizes, labels=labels)
    return boxes, rng.permutation(np.linspace(0.4, 0.95, n))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(), GROUPED]))
def test_each_object_of_a_crowd_has_a_peak_of_its_own(seed: int, groups: tuple[tuple[str, ...], ...]) -> None:
    """Also two in one cell, whose regression is that of the more certain one: the other stays at its subcell."""
    boxes, certainties = crowd_of(seed)
    task = DetectionTask(DetectionHead(top_k=50, groups=groups, subcells=FINE, min_radius=1), GRID, NUSCENES)
    dense = perfect_outputs(task, boxes, certainties)
    with torch.no_grad():
        decoded = task.network(8).decode({name: torch.from_numpy(values[None]) for name, values in dense.items()})
    found = task.result({name: values[0].numpy() for name, values in decoded.items()})
    found = found.select(found.scores > 0.3)
    assert sorted(found.labels) == sorted(boxes.labels)
    np.testing.assert_allclose(np.sort(found.scores), np.sort(np.float32(certainties)), atol=1e-5)
    cells = GRID.continuous(boxes.centers).astype(int)
    for center, label, certainty in zip(boxes.centers, boxes.labels, certainties, strict=True):
        place = found.centers[np.argmin(abs(found.scores - certainty))][:2]
        shared = (cells == GRID.continuous(center[None]).astype(int)).all(axis=1).sum() > 1
        across = GRID.cell / FINE.get(CLASSES[label], 1)
        np.testing.assert_allclose(place, center[:2], atol=2 * across if shared else 1e-4)


HEADS = ["nuscenes/fusion", "nuscenes/camera", "tiny"]


def found_of(
    kind: str, name: str, places: np.ndarray, size: tuple[float, float, float], yaw: float, seed: int
) -> float:
    """How many objects of a class at (N, 2) m a perfect network of configs/`name` finds."""
    trained, label = load_config(find_config(name)), CLASSES.index(kind)
    head, cell = trained.tasks["detection"], trained.head_grid.cell
    task = DetectionTask(head, BevGrid(x=(-15 * cell, 15 * cell), y=(-15 * cell, 15 * cell), cell=cell), NUSCENES)
    boxes = make_boxes(np.pad(places, ((0, 0), (0, 1))), size, yaw, labels=label)
    return count_found(task, boxes, np.random.default_rng(seed))[0, label]


@settings(deadline=None, max_examples=20)
@given(st.floats(1.2, 3.4), st.floats(-math.pi, math.pi), st.sampled_from(HEADS), st.integers(0, 99))
def test_a_row_of_barriers_is_found_whole(spacing: float, yaw: float, name: str, seed: int) -> None:
    """Barriers end to end, 0.5 m apart, of 0.7 to 2.9 m, through labels, perfect outputs, decoding and NMS."""
    # A barrier's width is its long side, so that a row runs to the left of its heading.
    along = spacing * np.outer(np.arange(6) - 2.5, [-math.sin(yaw), math.cos(yaw)])
    places = along + np.random.default_rng(seed).uniform(-1, 1, 2)
    assert found_of("barrier", name, places, (spacing - 0.5, 0.5, 1.0), yaw, seed) == 6


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("seed", range(4))
def test_two_cones_in_one_cell_are_found(name: str, seed: int) -> None:
    """0.51 m apart, as in a real keyframe: the less certain one, at its subcell, is 0.2 to 0.3 m from the other."""
    places = 0.8 * np.array([[0.14, 0.31], [0.76, 0.18]])
    assert found_of("traffic_cone", name, places, (0.4, 0.4, 0.95), 0.0, seed) == 2


def test_the_taxonomy_says_which_classes_are_fine_and_how_far_apart() -> None:
    nms = Suppression(threshold=0.1, kind="circle", within="class")
    head = DetectionHead(subcells=4, suppression=nms).settled(NUSCENES)
    assert head.groups == (CLASSES,)
    assert head.subcells == dict.fromkeys(("motorcycle", "bicycle", "pedestrian", "traffic_cone"), 4)
    assert head.suppression.radii == tuple(min(each.size[:2]) / 2 for each in NUSCENES.classes)
    far = nms.model_copy(update={"radii": (1.0,) * 10})
    given = DetectionHead(subcells={"car": 2}, groups=GROUPED, suppression=far)
    assert given.settled(NUSCENES) == given


def test_a_head_that_does_not_fit_its_classes_is_refused() -> None:
    nms = {"threshold": 0.1, "kind": "circle"}
    for content, message in (
        ({"subcells": {"tram": 2}}, "subcells: 'tram' is not among the classes"),
        ({"score_thresholds": {"thresholds": {"tram": [0.5]}}}, "'tram' is not among the classes"),
        ({"score_thresholds": {"upper_bounds": [40.0, 20.0]}}, "must ascend"),
        ({"score_thresholds": {"upper_bounds": [40.0], "thresholds": {"car": [0.5, 0.4]}}}, "each of the ranges, 1"),
        ({"suppression": {**nms, "within": "class", "radii": [1.0]}}, "each class, 10"),
        ({"suppression": nms, "groups": GROUPED}, "each group, 2"),
    ):
        with pytest.raises(ValueError, match=message):
            DetectionHead.model_validate(content).require_taxonomy(NUSCENES)


def test_each_group_is_normalised_by_its_own_objects() -> None:
    boxes = random_boxes(np.random.default_rng(3), 12)
    boxes.labels[:] = [0] * 9 + [8, 8, 6]
    config = DetectionHead(groups=GROUPED, subcells=FINE, min_radius=1)
    labels = labels_of(config, boxes)
    torch.manual_seed(0)
    dense = {name: torch.randn_like(values) for name, values in head_of(config)(torch.zeros(1, 8, *GRID.shape)).items()}
    terms = center_losses(dense, labels, config)
    for i, (own, count) in enumerate(((boxes.labels < 4, 9), (boxes.labels >= 4, 3))):
        assert terms[f"group{i}_regression"].counts.item() == count
        alone = center_losses(dense, labels_of(config, boxes.select(own)), config)
        for name in (f"group{i}_heatmap", f"group{i}_regression"):
            torch.testing.assert_close(terms[name].mean(), alone[name].mean())
    maps = [f"group1_{name}" for name in ("heatmap", "heatmap_2x", "heatmap_4x")]
    expected = sum(gaussian_focal(dense[name], labels[name]).sums.item() for name in maps) / 3
    assert terms["group1_heatmap"].mean().item() == pytest.approx(expected, rel=1e-5)


def test_attributes_fit_their_classes() -> None:
    """As the devkit says."""
    torch.manual_seed(0)
    dense = {name: torch.randn(1, n, *GRID.shape) for name, n in OUTPUTS.items()}
    decoded = head_of(DetectionHead(top_k=200)).decode(dense)
    for label, attribute in zip(decoded["labels"][0].tolist(), decoded["attributes"][0].tolist(), strict=True):
        allowed = detection_name_to_rel_attributes(CLASSES[label])
        assert ATTRIBUTES[attribute] in allowed if allowed else attribute == -1


@given(st.floats(0.5, 30), st.floats(0.5, 30), st.floats(0.1, 0.9))
def test_radius_is_the_smallest_move_that_leaves_the_wanted_iou(length: float, width: float, overlap: float) -> None:
    radius = targets.gaussian_radius(np.array(length), np.array(width), overlap).item()
    area = length * width
    shared = (length - radius) * (width - radius)
    shifted = shared / (2 * area - shared)
    shrunk = (length - 2 * radius) * (width - 2 * radius) / area
    grown = area / ((length + 2 * radius) * (width + 2 * radius))
    assert abs(min(shifted, shrunk, grown) - overlap) < 1e-9


def test_gaussian_focal_equals_its_equation_and_has_right_gradients() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    target[0, 1, 2, 3] = target[1, 0, 0, 0] = target[1, 2, 3, 4] = 1
    p = 1 / (1 + np.exp(-logits.detach().numpy()))
    off = -((1 - target.numpy()) ** 4) * p**2 * np.log(1 - p)
    each = np.where(target.numpy() == 1, -((1 - p) ** 2) * np.log(p), off)
    expected = [math.fsum(frame.ravel()) for frame in each]
    loss = gaussian_focal(logits, target)
    assert loss.counts.tolist() == [1, 2]
    torch.testing.assert_close(loss.sums.tolist(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.mean().item(), sum(expected) / 3, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda x: gaussian_focal(x, target).mean(), (logits,))


def test_unknown_velocities_and_padding_carry_no_gradient() -> None:
    boxes = random_boxes(np.random.default_rng(1), 4)
    boxes.velocities[2] = np.nan
    labels = labels_of(DetectionHead(min_radius=1), boxes, boxes.select(np.arange(2)))
    dense = {name: torch.randn(2, n, *GRID.shape, requires_grad=True) for name, n in OUTPUTS.items()}
    losses = [term.mean() for term in center_losses(dense, labels, DetectionHead().settled(NUSCENES)).values()]
    assert all(torch.isfinite(loss) for loss in losses)
    sum(losses).backward()
    touched = (dense["velocity"].grad != 0).any(1).flatten(1)  # B cells
    for frame, known in enumerate(([0, 1, 3], [0, 1])):
        assert {*touched[frame].nonzero().flatten().tolist()} == {*labels["cells"][frame, known].tolist()}


def test_decoded_headings_lie_on_the_axis() -> None:
    """Although each regressed heading is off by 1 rad."""
    boxes, config = random_boxes(np.random.default_rng(2), 12), DetectionHead(axis=True, top_k=12)
    head, labels = head_of(config), labels_of(config, boxes)
    dense = perfect_detection(labels)
    turned = labels["heading"] @ torch.tensor([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]]).T
    for name, values in (("heading", turned), ("axis", labels["axis"])):
        dense[name] = torch.zeros(1, 2, *GRID.shape)
        dense[name].flatten(2)[0, :, labels["cells"][0]] = values[0].T
    decoded = head.decode(dense)["boxes"][0].numpy()
    order, expected = np.argsort(decoded[:, 0]), boxes.select(np.argsort(boxes.centers[:, 0]))
    off = np.arctan2(decoded[order, 6], decoded[order, 7]) - expected.yaws
    np.testing.assert_allclose((off + np.pi) % (2 * np.pi) - np.pi, 0, atol=1e-5)


# ---- boxes regressed at the peaks alone

PEAKS = BevGrid(x=(-3.5, 3.5), y=(-2.5, 2.5), cell=1.0)  # 5 x 7 cells
ROWS, COLUMNS = PEAKS.shape


def small_head(kernel: int, attributes: str, subcells: int) -> CenterHead:
    """With random weights, and normalisations that make zero something else: what lies beyond the map must matter.

    All cells may be peaks, side by side.
    """
    content = {"channels": 4, "groups": GROUPED, "output_kernel": kernel, "attributes": attributes, "top_k": 6}
    content["subcells"] = dict.fromkeys((CLASSES[0], CLASSES[4]), subcells)
    torch.manual_seed(kernel)
    head = DetectionTask(DetectionHead.model_validate(content), PEAKS, NUSCENES).network(3).eval()
    with torch.no_grad():
        for module in head.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.bias.uniform_(0.3, 1)
    head.config = head.config.model_copy(update={"peaks": False})
    return head


def with_peaks(dense: dict[str, Tensor], cells: list[list[int]]) -> dict[str, Tensor]:
    """The first class of every heatmap peaks at these cells of each frame, the first highest."""
    changed = dict(dense)
    for name in [name for name in dense if "heatmap" in name]:
        heat = torch.full_like(dense[name], -9.0)
        across = heat.shape[-1] // COLUMNS
        for frame, chosen in enumerate(cells):
            for cell, logit in zip(chosen, torch.linspace(3, 1, len(chosen)), strict=True):
                heat[frame, 0, cell // COLUMNS * across + across - 1, cell % COLUMNS * across] = logit
        changed[name] = heat
    return changed


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.sampled_from([1, 3]),
    attributes=st.sampled_from(["learned", "speed"]),
    subcells=st.sampled_from([1, 2, 4]),
    cells=st.lists(
        st.lists(st.integers(0, ROWS * COLUMNS - 1), min_size=6, max_size=6, unique=True), min_size=1, max_size=2
    ),
    seed=st.integers(0, 2**16),
)
def test_boxes_at_any_cells_are_those_of_the_dense_head(kernel, attributes, subcells, cells, seed):
    head = small_head(kernel, attributes, subcells)
    lean: Any = at_peaks(head)
    assert isinstance(lean, PeakHead)
    x = torch.randn(len(cells), 3, ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected, found = (each.decode(with_peaks(each(x), cells)) for each in (head, lean))
    assert expected["boxes"].shape == (len(cells), 2, 6, 10)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_modules_at_branches_keep_the_dense_head_and_those_that_fold_do_not() -> None:
    for slots, kind, head in (
        ("heads.detection.size", "bottleneck", CenterHead),
        ("heads.detection.heatmap", "bottleneck", PeakHead),
        ("heads.detection.size", "low_rank", PeakHead),
    ):
        modules = [{"name": "m", "kind": kind, "slots": [slots]}]
        model = PerceptionModel(parse_config(config().model_dump(mode="json") | {"modules": modules}, "modular"))
        assert isinstance(model.deployed(Conditions()).heads["detection"], head)
    model = PerceptionModel(config())
    assert sum(p.numel() for p in model.deployed().parameters()) == sum(p.numel() for p in model.parameters())


# ---- the submission


EYE = np.eye(4)


def a_frame(token: str, pose: Any = EYE) -> Frame:
    return Frame(token, 0, "ego", pose, pose, points=None, cameras={})


def detections(n: int, seed: int = 0) -> Boxes:
    rng = np.random.default_rng(seed)
    return Boxes.from_yaws(
        rng.uniform(-50, 50, (n, 3)), rng.uniform(0.3, 5, (n, 3)), rng.uniform(-np.pi, np.pi, n),
        rng.normal(0, 3, (n, 2)), rng.integers(0, len(CLASSES), n), rng.integers(-1, len(ATTRIBUTES), n),
        rng.permutation(n) / n,
    )  # fmt: skip


def write(path: Path, *pairs: tuple[Frame, Boxes]) -> dict:
    with SubmissionWriter.open(path, ["lidar"], NUSCENES) as submission:
        for frame, boxes in pairs:
            submission.add(frame, boxes)
    return json.loads(path.read_text())


def attribute_of(name: str, attribute: int, speed: float) -> str:
    columns = (np.array([each]) for each in (CLASSES.index(name), attribute, speed))
    return (*ATTRIBUTES, "")[fitting_attributes(*columns, NUSCENES)[0]]


def test_attribute_is_one_that_the_devkit_allows_for_the_class() -> None:
    for name, attribute, speed in product(CLASSES, range(-1, len(ATTRIBUTES)), (0.0, 5.0, math.nan)):
        allowed = detection_name_to_rel_attributes(name)
        found = attribute_of(name, attribute, speed)
        assert found in (allowed or [""])
        assert found == ATTRIBUTES[attribute] or attribute < 0 or ATTRIBUTES[attribute] not in allowed


def test_default_attribute_follows_the_speed() -> None:
    """Of results, and of the network where it has learned none."""
    for names, still, moving in (
        ("car truck trailer construction_vehicle", "vehicle.parked", "vehicle.moving"),
        ("bus", "vehicle.stopped", "vehicle.moving"),
        ("bicycle motorcycle", "cycle.without_rider", "cycle.with_rider"),
        ("pedestrian", "pedestrian.standing", "pedestrian.moving"),
        ("barrier traffic_cone", "", ""),
    ):
        for name in names.split():
            labels = torch.full((2,), CLASSES.index(name))
            of_network = by_speed(labels, torch.tensor([[0.1, 0.1], [0.3, -0.3]]), NUSCENES).tolist()
            assert [(*ATTRIBUTES, "")[i] for i in of_network] == [still, moving]
            misfit = ATTRIBUTES.index("cycle.with_rider" if name == "pedestrian" else "pedestrian.moving")
            for attribute in (-1, misfit):
                assert attribute_of(name, attribute, 0.2) == still
                assert attribute_of(name, attribute, 0.21) == moving


@given(yaw=st.floats(-math.pi, math.pi), pitch=st.floats(-0.3, 0.3), seed=st.integers(0, 99))
def test_boxes_are_moved_to_the_global_frame_as_the_devkit_moves_them(yaw: float, pitch: float, seed: int) -> None:
    turn = Quaternion(axis=[0, 0, 1], radians=yaw) * Quaternion(axis=[0, 1, 0], radians=pitch)
    pose = turn.transformation_matrix
    pose[:3, 3] = 600, 1600, 0.5
    boxes = detections(3, seed)
    entries = sample_results(a_frame("a", pose), boxes, NUSCENES)
    best_first = np.argsort(-boxes.scores)
    for i, entry in zip(best_first, entries, strict=True):
        rotation, velocity = Quaternion(matrix=boxes.rotations[i]), tuple(boxes.velocities[i])
        box = Box(boxes.centers[i], boxes.sizes[i], rotation, velocity=velocity)
        box.rotate(turn)
        box.translate(pose[:3, 3])
        np.testing.assert_allclose(entry["translation"], box.center, atol=1e-9)
        np.testing.assert_allclose(entry["size"], box.wlh)
        np.testing.assert_allclose(entry["velocity"], box.velocity[:2], atol=1e-9)
        assert Quaternion.absolute_distance(Quaternion(entry["rotation"]), box.orientation) < 1e-9
        assert entry["detection_name"] == CLASSES[boxes.labels[i]]
        assert entry["detection_score"] == boxes.scores[i]


def test_the_devkit_reads_the_file(tmp_path: Path) -> None:
    """With the best 500 boxes, and in strict JSON though a velocity is unknown."""
    boxes = detections(700)
    boxes.velocities[::2] = np.nan
    content = write(tmp_path / "r.json", (a_frame("one"), boxes), (a_frame("two"), Boxes.none()))
    assert "NaN" not in (tmp_path / "r.json").read_text()
    used = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    assert content["meta"] == used | {"use_lidar": True}
    found = EvalBoxes.deserialize(content["results"], DetectionBox)
    assert found.sample_tokens == ["one", "two"]
    assert [box.detection_score for box in found["one"]] == sorted(boxes.scores, reverse=True)[:500]
    assert found["two"] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("centers", np.nan), ("velocities", np.inf), ("sizes", 0.0), ("sizes", np.inf), ("scores", np.nan), ("", 0.0)],
)
def test_what_cannot_be_written_is_named_and_the_earlier_file_survives(tmp_path, field, value):
    """A broken box; or a sample that is there twice."""
    path, boxes, token = tmp_path / "r.json", detections(5), "b" if field else "a"
    before = write(path, (a_frame("a"), detections(2)))
    words = "sample a is predicted twice"
    if field:
        getattr(boxes, field)[3] = value
        words = "sample b: 1 of 5 predicted boxes are not finite or have no extent"
    with one_line_error(says=words):
        write(path, (a_frame("a"), detections(5)), (a_frame(token), boxes))
    assert json.loads(path.read_text()) == before
    assert list(tmp_path.iterdir()) == [path]
    with one_line_error(says="cannot write the submission"):
        write(tmp_path / "no" / "r.json")
