"""Anchors and their decoding against a loop over all of them, written down from the definition."""

import functools
import math

import numpy as np
import pytest
import torch
from anchored_model import config as model_config
from vocabulary import ATTRIBUTES, CLASSES, NUSCENES

from perception.config import parse_config
from perception.errors import InputError
from perception.section import parse_section
from perception.tasks.detection.anchor_head import AnchorHead
from perception.tasks.detection.attributes_by_speed import by_speed
from perception.tasks.detection.config import AnchorHead as Settings

ANCHORS = [
    {"size": [1.9, 4.6, 1.7], "bottom": -1.8, "x": [-8.0, 8.0], "y": [-6.0, 6.0]},
    {"size": [0.7, 0.6, 1.8], "bottom": -1.6, "x": [-7.0, 7.0], "y": [-5.0, 5.0]},
]
SHAPES = [(6, 8), (3, 4)]


def settings(**changes: object) -> Settings:
    content = {"anchors": ANCHORS, "scales": [1, 2], "candidates": 40, "direction_offset": -0.7854}
    return parse_section(Settings, content | changes, "test")


def random_dense(config: Settings, frames: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    anchors = len(config.anchors) * len(config.rotations)
    return {
        f"{name}.{i}": 2 * torch.randn(frames, anchors * n, *shape, generator=generator)
        for i, shape in enumerate(SHAPES[: len(config.scales)])
        for name, n in {"classes": 10, "boxes": 9, "directions": 2}.items()
    }


def decoded_by_loop(config: Settings, dense: dict[str, torch.Tensor], frame: int) -> np.ndarray:
    """(K, 20) box and class scores of every chosen anchor of the frame, level by level, best class first."""
    rows_ = []
    for level, scale in enumerate(config.scales):
        classes, codes, directions = (
            dense[f"{name}.{level}"][frame].double().numpy() for name in ("classes", "boxes", "directions")
        )
        _, rows, columns = classes.shape
        found = []
        for row in range(rows):
            for column in range(columns):
                a = 0
                for anchor in config.anchors:
                    for rotation in config.rotations:
                        w, l, h = (scale * side for side in anchor.size)  # noqa: E741
                        x = anchor.x[0] + (column + 0.5) * (anchor.x[1] - anchor.x[0]) / columns
                        y = anchor.y[0] + (row + 0.5) * (anchor.y[1] - anchor.y[0]) / rows
                        code = codes[9 * a : 9 * a + 9, row, column]
                        yaw = rotation + code[6]
                        while yaw < config.direction_offset:
                            yaw += math.pi
                        while yaw >= config.direction_offset + math.pi:
                            yaw -= math.pi
                        first, second = directions[2 * a : 2 * a + 2, row, column]
                        yaw += math.pi * (second > first)
                        diagonal = math.hypot(w, l)
                        box = [
                            x + code[0] * diagonal, y + code[1] * diagonal, anchor.bottom + h / 2 + code[2] * h,
                            w * math.exp(code[3]), l * math.exp(code[4]), h * math.exp(code[5]),
                            math.sin(yaw), math.cos(yaw), code[7], code[8],
                        ]  # fmt: skip
                        logits = classes[10 * a : 10 * a + 10, row, column]
                        found.append([*box, *(1 / (1 + np.exp(-logits)))])
                        a += 1
        rows_ += sorted(found, key=lambda each: -max(each[10:]))[: config.candidates]
    return np.array(sorted(rows_, key=lambda each: -max(each[10:])))


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("scales", [[1], [1, 2]])
def test_decoding_is_what_a_loop_over_the_anchors_gives(scales: list[int], limit: float) -> None:
    """Each class has all candidates, best first, with those below the threshold at the end."""
    config = settings(scales=scales, direction_limit_offset=limit)
    dense = random_dense(config)
    decoded = {name: value.numpy() for name, value in AnchorHead(config, 8, NUSCENES).decode(dense).items()}
    threshold, shown = config.suppression.threshold, 0
    for frame in range(2):
        candidates = decoded_by_loop(config, dense, frame)
        assert decoded["boxes"].shape == (2, 10, len(candidates), 10)
        if limit:  # another half turn back, which is the other direction's place
            candidates[:, 6:8] *= -1
        for label in range(10):
            above = candidates[candidates[:, 10 + label] > threshold]
            expected = above[np.argsort(-above[:, 10 + label])]
            own = {name: value[frame, label] for name, value in decoded.items()}
            np.testing.assert_allclose(own["boxes"][: len(above), :10], expected[:, :10], rtol=1e-5, atol=2e-5)
            np.testing.assert_allclose(own["scores"][: len(above)], expected[:, 10 + label], atol=1e-6)
            assert not own["scores"][len(above) :].any()
            assert (own["labels"] == label).all()
            shown += len(above) < len(candidates)
    assert shown > 5


def test_dense_outputs_are_the_layers_on_every_level() -> None:
    config = settings()
    head, levels = AnchorHead(config, 8, NUSCENES), [torch.randn(1, 8, *shape) for shape in SHAPES]
    dense = head(levels)
    for i, level in enumerate(levels):
        for name, outputs in {"classes": 40, "boxes": 36, "directions": 8}.items():
            layer = head.branches[name].layer
            assert dense[f"{name}.{i}"].shape == (1, outputs, *SHAPES[i])
            expected = torch.einsum("oi,birc->borc", layer.weight[:, :, 0, 0], level) + layer.bias[:, None, None]
            torch.testing.assert_close(dense[f"{name}.{i}"], expected)
    one = AnchorHead(settings(scales=[1]), 8, NUSCENES)
    assert set(one(levels[0])) == {"classes.0", "boxes.0", "directions.0"}


def test_candidates_beyond_what_a_graph_can_sort_are_refused() -> None:
    with pytest.raises(InputError, match="candidates of all maps together must be fewer than 3840"):
        settings(candidates=1920)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (
            "model.trunk",
            {"pyramid": False},
            "tasks.detection: anchors.scales must have one for each .* feature maps, 1",
        ),
        (
            "tasks.detection.anchors",
            {"scales": [1, 2]},
            "tasks.detection: anchors.scales must have one for each of the trunk's feature maps, 3",
        ),
        ("tasks.map", {}, "tasks.map: reads one feature map, a trunk with `pyramid` gives one for each stage"),
        ("model.lidar", {"encoder": "masked"}, "`hidden` layers are for the encoder `padded`"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(part: str, changes: dict[str, object], message: str) -> None:
    content = model_config("pyramid").model_dump(mode="json")
    *path, last = part.split(".")
    section = functools.reduce(dict.__getitem__, path, content)
    section[last] = section.get(last, {}) | changes
    with pytest.raises(InputError, match=message):
        parse_config(content, "test")


def test_attributes_go_by_the_speed() -> None:
    labels = torch.arange(10).repeat_interleave(2)
    velocities = torch.tensor([[0.1, 0.1], [0.3, -0.3]]).repeat(10, 1)
    names = [ATTRIBUTES[i] if i >= 0 else "" for i in by_speed(labels, velocities, NUSCENES).tolist()]
    vehicle, cycle = ("vehicle.parked", "vehicle.moving"), ("cycle.without_rider", "cycle.with_rider")
    own = {
        "bus": ("vehicle.stopped", "vehicle.moving"), "motorcycle": cycle, "bicycle": cycle,
        "pedestrian": ("pedestrian.standing", "pedestrian.moving"), "barrier": ("", ""), "traffic_cone": ("", ""),
    }  # fmt: skip
    assert names == [name for c in CLASSES for name in own.get(c, vehicle)]
