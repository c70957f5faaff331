"""A training that takes a second."""

from routed import CAMERA, LITTLE, module

from perception.config import Config, parse_config


def small(**training: object) -> Config:
    """Both sensors and both heads at a size that trains in a moment."""
    image, depth = {"height": 32, "width": 96}, {"bins": 8, "supervision": 0.5}
    camera = CAMERA | {"stages": [2, 3], "image": image, "depth": depth, "heights": [0.0, 1.0], "stride": 1}
    lidar = {"max_pillars": 1500, "points_per_pillar": 5, "channels": 8, "sweeps": 0}
    content = LITTLE | {"name": "small", "grid": {"cell": 3.2}, "data": {"augment": {}}}
    content |= {"model": LITTLE["model"] | {"lidar": lidar, "camera": camera}, "modules": [module("rain", "rain")]}
    defaults = {"steps": 6, "batch": 2, "checkpoint_every": 3, "drop_lidar": 0.3, "drop_cameras": 0.3}
    return parse_config(content | {"train": defaults | training}, "small")
