"""Our scores are the devkit's: published results, random boxes, drawn scenes, racks; and unusable submissions."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.algo import accumulate
from nuscenes.eval.detection.data_classes import DetectionMetrics
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import points_in_box
from pyquaternion import Quaternion
from random_boxes import random_boxes
from refusals import one_line_error
from submissions import BOX
from vocabulary import ATTRIBUTES, CLASSES, NUSCENES

from perception.tasks.detection.columns import BoxColumns, read_submission
from perception.tasks.detection.devkit import DEVKITS, Devkit
from perception.tasks.detection.matching import match
from perception.tasks.detection.scores import ERRORS, THRESHOLDS, DetectionScores, Scores, undefined_errors
from perception.taxonomy import Taxonomy, load_taxonomy

CONFIG = config_factory("detection_cvpr_2019")
UNDEFINED = {"traffic_cone": ("orient_err", "vel_err", "attr_err"), "barrier": ("vel_err", "attr_err")}  # in the devkit


def devkit_boxes(
    boxes: BoxColumns, tokens: Sequence[str], taxonomy: Taxonomy = NUSCENES, devkit: Devkit = DEVKITS["nuscenes"]
) -> EvalBoxes:
    made = devkit.module("common.data_classes").EvalBoxes()
    box_type = devkit.module("detection.data_classes").DetectionBox
    for token in tokens:
        made.add_boxes(token, [])
    for i in range(len(boxes)):
        attribute = boxes.attributes[i]
        made.add_boxes(
            tokens[boxes.frames[i]],
            [
                box_type(
                    sample_token=tokens[boxes.frames[i]],
                    translation=tuple(boxes.centers[i]),
                    size=tuple(boxes.sizes[i]),
                    rotation=tuple(Quaternion(axis=[0, 0, 1], radians=boxes.yaws[i])),
                    velocity=tuple(boxes.velocities[i]),
                    num_pts=int(boxes.num_points[i]),
                    detection_name=taxonomy.class_names[boxes.labels[i]],
                    detection_score=float(boxes.scores[i]),
                    attribute_name=taxonomy.attributes[attribute] if attribute >= 0 else "",
                )
            ],
        )
    return made


def devkit_scores(
    truth: BoxColumns,
    detections: BoxColumns,
    frames: int,
    taxonomy: Taxonomy = NUSCENES,
    devkit: Devkit = DEVKITS["nuscenes"],
) -> DetectionMetrics:
    """DetectionEval.evaluate on boxes that are filtered already."""
    tokens = [f"s{i}" for i in range(frames)]
    evaluation = object.__new__(devkit.module("detection.evaluate").DetectionEval)
    evaluation.cfg, evaluation.verbose = devkit.module("common.config").config_factory(devkit.protocol), False
    evaluation.gt_boxes, evaluation.pred_boxes = (
        devkit_boxes(boxes, tokens, taxonomy, devkit) for boxes in (truth, detections)
    )
    evaluation.gt_boxes_masks = evaluation.pred_boxes_masks = {}
    metrics, _ = evaluation.evaluate()
    return metrics["all"] if devkit.package == "truckscenes" else metrics


def assert_devkits(scores: Scores, draw: int, theirs: DetectionMetrics, taxonomy: Taxonomy = NUSCENES) -> None:
    close = {"rtol": 0, "atol": 1e-9}
    for label, name in enumerate(taxonomy.class_names):
        aps = [theirs.get_label_ap(name, threshold) for threshold in THRESHOLDS]
        np.testing.assert_allclose(scores.aps[draw, label], aps, **close, err_msg=name)
        errors = [theirs.get_label_tp(name, error) for error in ERRORS]
        np.testing.assert_allclose(scores.errors[draw, label], errors, **close, err_msg=name)
    np.testing.assert_allclose(scores.mean_ap[draw], theirs.mean_ap, **close)
    np.testing.assert_allclose(scores.nds[draw], theirs.nd_score, **close)


def in_order(boxes: BoxColumns) -> BoxColumns:
    """Frame by frame, as in a file."""
    return boxes.select(np.argsort(boxes.frames, kind="stable"))


@pytest.mark.parametrize(("seed", "boxes"), [(0, 60), (1, 60), (2, 5), (3, 1)])
def test_precision_recall_curves_are_the_devkits(seed: int, boxes: int) -> None:
    truth, detections = map(in_order, random_boxes(np.random.default_rng(seed), 3, ties=seed == 1, boxes=boxes))
    tokens = [f"s{i}" for i in range(3)]
    theirs = [devkit_boxes(each, tokens) for each in (truth, detections)]
    ours = DetectionScores(truth, detections, np.array([0, 1, 1]), NUSCENES).precisions()
    for label, name in enumerate(CLASSES):
        for level, threshold in enumerate(THRESHOLDS):
            curve = accumulate(*theirs, name, CONFIG.dist_fcn_callable, threshold)
            np.testing.assert_allclose(ours[label, level], curve.precision, rtol=0, atol=1e-12, err_msg=name)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(1, 4), ties=st.booleans(), boxes=st.integers(1, 60))
@pytest.mark.parametrize(("name", "classes"), [("nuscenes", (0, 5, 8, 9)), ("truckscenes", (0, 8, 9, 10, 11))])
def test_random_boxes_score_as_with_the_devkit(
    name: str, classes: Sequence[int], seed: int, frames: int, ties: bool, boxes: int
) -> None:
    """Classes with and without heading, velocity and attributes."""
    taxonomy, devkit = load_taxonomy(name), DEVKITS[name]
    truth, detections = random_boxes(np.random.default_rng(seed), frames, ties, classes, boxes)
    detections = in_order(detections)
    scenes = np.arange(frames) % 2 * (frames > 1)
    theirs = devkit_scores(truth, detections, frames, taxonomy, devkit)
    assert_devkits(DetectionScores(truth, detections, scenes, taxonomy).scored(), 0, theirs, taxonomy)


def test_drawn_scenes_score_as_a_data_set_of_their_copies() -> None:
    """Each draw against the devkit on the frames of the drawn scenes, every copy a frame of its own."""
    rng = np.random.default_rng(3)
    truth, detections = random_boxes(rng, frames=9, boxes=80)
    scenes = np.arange(9) // 3
    scored = DetectionScores(truth, detections, scenes, NUSCENES)
    draws = np.array([[1, 1, 1], [0, 2, 1], [3, 0, 0], [0, 0, 1], [1, 4, 2], [0, 0, 0]])
    scores = scored.scored(draws)
    for i, draw in enumerate(draws):
        copies = [frame for frame in range(9) for _ in range(draw[scenes[frame]])]
        drawn = []
        for boxes in (truth, detections):
            parts = [boxes.select(boxes.frames == frame) for frame in copies]
            parts = [replace(part, frames=np.full(len(part), k)) for k, part in enumerate(parts)]
            everything = parts or [boxes.select(np.zeros(0, int))]
            drawn.append(
                BoxColumns(**{
                    name: np.concatenate([getattr(part, name) for part in everything])
                    for name in BoxColumns.__dataclass_fields__
                })
            )  # fmt: skip
        assert_devkits(scores, i, devkit_scores(drawn[0], drawn[1], len(copies)))
    np.testing.assert_array_equal(scores.aps[0], scored.scored().aps[0])


def test_nothing_found_and_nothing_there() -> None:
    truth, detections = random_boxes(np.random.default_rng(0), 2)
    none = np.zeros(0, int)
    for gt, found in ((truth.select(none), detections), (truth, detections.select(none))):
        scores = DetectionScores(gt, found, np.zeros(2, int), NUSCENES).scored()
        assert scores.mean_ap[0] == scores.nds[0] == 0
        assert_devkits(scores, 0, devkit_scores(gt, found, 2))


@given(seed=st.integers(0, 2**32 - 1), ties=st.booleans())
def test_matches_are_those_of_the_greedy_loop(seed: int, ties: bool) -> None:
    truth, detections = random_boxes(np.random.default_rng(seed), 2, ties, boxes=30)
    expected = np.full((2, len(detections)), -1)
    for level, threshold in enumerate((0.7, 3.0)):
        taken: set[int] = set()
        order = sorted(range(len(detections)), key=lambda i: (detections.scores[i], i), reverse=True)
        for i in order:
            group = (truth.frames == detections.frames[i]) & (truth.labels == detections.labels[i])
            free = [j for j in np.flatnonzero(group) if j not in taken]
            away = [np.linalg.norm(truth.centers[j, :2] - detections.centers[i, :2]) for j in free]
            if away and min(away) < threshold:
                expected[level, i] = free[int(np.argmin(away))]
                taken.add(expected[level, i])
    np.testing.assert_array_equal(match(truth, detections, (0.7, 3.0)), expected)


def test_class_ranges_are_the_devkits() -> None:
    assert CONFIG.class_range == {each.name: each.range for each in NUSCENES.classes}
    assert {each.name: tuple(found) for each in NUSCENES.classes if (found := undefined_errors(each))} == UNDEFINED
    assert tuple(CONFIG.dist_ths) == THRESHOLDS


@given(seed=st.integers(0, 2**32 - 1))
def test_what_stands_in_a_rack_does_not_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes, _ = random_boxes(rng, 2, classes=[CLASSES.index(n) for n in ("bicycle", "motorcycle", "car")])
    racks = np.column_stack(
        [rng.integers(0, 2, 3), rng.uniform(-8, 8, (3, 3)), rng.uniform(1, 12, (3, 3)), rng.normal(0, 1, (3, 4))]
    )
    kept = {tuple(center) for center in boxes.counted(np.zeros((2, 2)), racks, NUSCENES).centers}
    for i in range(len(boxes)):
        inside = any(
            points_in_box(Box(rack[1:4], rack[4:7], Quaternion(rack[7:11]).normalised), boxes.centers[i][:, None])[0]
            for rack in racks[racks[:, 0] == boxes.frames[i]]
        )
        assert (tuple(boxes.centers[i]) in kept) == (CLASSES[boxes.labels[i]] == "car" or not inside)


def test_far_boxes_and_those_without_points_do_not_count() -> None:
    boxes, _ = random_boxes(np.random.default_rng(0), 1, boxes=3)
    boxes = replace(
        boxes,
        labels=np.array([0, 8, 0]),
        centers=np.array([[49.9, 0, 0], [40.1, 0, 0], [1, 0, 0.0]]),
        num_points=np.array([-1, 3, 0]),
    )
    assert boxes.counted(np.zeros((1, 2)), np.zeros((0, 11)), NUSCENES).centers.tolist() == [[49.9, 0, 0]]
    moved = boxes.counted(np.array([[1.0, 0]]), np.zeros((0, 11)), NUSCENES)  # the vehicle is a metre nearer
    assert moved.centers.tolist() == [[49.9, 0, 0], [40.1, 0, 0]]


def test_a_submission_reads_in_any_order_and_layout(tmp_path: Path) -> None:
    boxes = [BOX | {"rotation": [0, 0, 0, 1], "attribute_name": "vehicle.parked"}, BOX | {"detection_score": 0.25}]
    content = {"results": {"b": boxes, "x": [BOX], "a": []}, "meta": {"use_lidar": True, "why": ["[{,"]}}
    for indent in (None, 2):
        (tmp_path / "r.json").write_text(" " + json.dumps(content, indent=indent) + "\n")
        read = read_submission(tmp_path / "r.json", {"a": 0, "b": 1}, NUSCENES)
        assert read.frames.tolist() == [1, 1]
        assert read.scores.tolist() == [0.5, 0.25]
        assert np.abs(read.yaws).tolist() == [np.pi, 0]
        assert read.attributes.tolist() == [ATTRIBUTES.index("vehicle.parked"), -1]
        assert read.num_points.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the submission"),
        ("{", "not a nuScenes submission"),
        ("[]", "not a nuScenes submission"),
        ('{"results": []}', "not a nuScenes submission"),
        ('{"results": {"a": [}}', "not a nuScenes submission"),
        ('{"results": {"a": []} "b"}', "not a nuScenes submission"),
        ('{"meta": {}}', "not a nuScenes submission"),
        ('{"results": {"b": []}}', "no prediction for 1 of 1 samples, such as a"),
        ({"a": [BOX] * 501}, "sample a has 501 boxes; 500 are allowed"),
        ({"a": [{"translation": [0, 0, 0]}]}, "sample a: a box is malformed: KeyError"),
        ({"a": [BOX | {"detection_name": "tank"}]}, "a box is malformed: KeyError"),
        ({"a": [BOX | {"size": [1, 0, 1]}]}, "a box is malformed: .*not positive"),
        ({"a": [BOX | {"translation": [0, 0]}]}, "a box is malformed: ValueError"),
        (
            {"a": [BOX | {"translation": [0, 0]}, BOX | {"translation": [0, 0, 0, 0]}]},
            "a box is malformed: .*its translation has not 3 numbers",
        ),
        ({"a": [3]}, "a box is malformed: TypeError"),
    ],
)
def test_an_unusable_submission_is_named(tmp_path: Path, content: str | dict | None, message: str) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps({"results": content}))
    with one_line_error(message, at=path):
        read_submission(path, {"a": 0}, NUSCENES)
