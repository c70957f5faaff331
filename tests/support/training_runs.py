"""A training that takes a second."""

from perception.config import Config, parse_config

CAMERA_BRANCH = {
    "backbone": "resnet10t", "stages": [2, 3], "channels": 8, "image": {"height": 32, "width": 96},
    "depth": {"bins": 8, "supervision": 0.5}, "heights": [0.0, 1.0], "stride": 1,
}  # fmt: skip


def small(**training: object) -> Config:
    """Both sensors and both heads at a size that trains in a moment."""
    defaults = {"steps": 6, "batch": 2, "checkpoint_every": 3, "drop_lidar": 0.3, "drop_cameras": 0.3}
    content = {
        "name": "small",
        "grid": {"cell": 3.2},
        "data": {"augment": {}},
        "model": {
            "lidar": {"max_pillars": 1500, "points_per_pillar": 5, "channels": 8, "sweeps": 0},
            "camera": CAMERA_BRANCH,
            "fused_channels": 8,
            "trunk": {"channels": [8, 8], "blocks": [1, 1], "strides": [1, 2], "up_channels": 8, "stride": 1},
        },
        "tasks": {"detection": {"channels": 8, "top_k": 20}, "map": {"channels": 8}},
        "modules": [{"name": "rain", "kind": "low_rank", "rank": 2, "slots": ["trunk.*", "heads.*"], "when": ["rain"]}],
        "train": defaults | training,
    }
    return parse_config(content, "small")
