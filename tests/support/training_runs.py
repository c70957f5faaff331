"""A training that takes a second."""

from perception import config as c
from perception.config import Config, Data
from perception.modules.spec import LowRank
from perception.recipe import Train
from perception.tasks.detection.config import DetectionHead
from perception.tasks.map.config import MapHead


def small(**training: object) -> Config:
    """Both sensors and both heads at a size that trains in a moment."""
    defaults = {"steps": 6, "batch": 2, "checkpoint_every": 3, "drop_lidar": 0.3, "drop_cameras": 0.3}
    return Config(
        name="small",
        grid=c.Grid(cell=3.2),
        data=Data(augment=c.Augment()),
        model=c.Model(
            lidar=c.Lidar(max_pillars=1500, points_per_pillar=5, channels=8, sweeps=0),
            camera=c.CameraBranch(
                backbone="resnet10t",
                stages=(2, 3),
                channels=8,
                image=c.Image(height=32, width=96),
                depth=c.Depth(bins=8, supervision=0.5),
                heights=(0.0, 1.0),
                stride=1,
            ),
            fused_channels=8,
            trunk=c.Trunk(channels=(8, 8), blocks=(1, 1), strides=(1, 2), up_channels=8, stride=1),
        ),
        tasks={"detection": DetectionHead(channels=8, top_k=20), "map": MapHead(channels=8)},
        modules=(LowRank(name="rain", rank=2, slots=("trunk.*", "heads.*"), when=("rain",)),),
        train=Train(**(defaults | training)),
    )
