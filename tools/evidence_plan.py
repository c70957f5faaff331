"""The plan of `evidence.py`: domains, ways to adapt, routers and lengths of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SOURCE = ("clear", "day", "boston")
TARGETS = {
    "rain": ("rain", "day", "boston"),
    "fog": ("fog", "day", "boston"),
    "night": ("clear", "night", "boston"),
    "singapore": ("clear", "day", "singapore"),
}
COMBINATIONS = {  # conditions, and the modules whose conditions they combine
    "rain+night": (("rain", "night", "boston"), ("rain", "night")),
    "rain+singapore": (("rain", "day", "singapore"), ("rain", "singapore")),
}
SCENES, SAMPLES = 400, 3  # a quarter for the source, an eighth for each other set of conditions
BASE_STEPS, STEPS = 1200, 200
# All slots but those of the image backbone, which would need its backward pass.
BEHIND_BACKBONE = ("lidar.*", "camera.lateral*", "camera.neck*", "fuse*", "trunk.*", "heads.*")
ROUTED = "low_rank after the fusion"  # modules that a router on the fused map can select
UNION = "batch_norm + low_rank"
LATE = "batch_norm + low_rank behind layer1"  # the backward pass ends before the first layers of the image backbone


@dataclass(frozen=True)
class Way:
    """A way to adapt: the trained parts and the peak learning rate."""

    rate: float
    parts: tuple[str, ...] = ()  # of the base
    module: dict[str, Any] = field(default_factory=dict)  # kind and options of a new module


WAYS = {
    "full fine-tune": Way(1e-3, parts=("*",)),
    "heads only": Way(3e-3, parts=("heads.*",)),
    "low_rank": Way(1.2e-2, module={"kind": "low_rank", "rank": 2}),
    UNION: Way(
        1.2e-2,
        module={
            "kind": "union",
            "parts": [
                {"kind": "batch_norm", "slots": ["*"]},
                {"kind": "low_rank", "rank": 2, "slots": BEHIND_BACKBONE},
            ],
        },
    ),
    LATE: Way(
        1.2e-2,
        module={
            "kind": "union",
            "parts": [
                {"kind": "batch_norm", "slots": ["camera.backbone.layer[23]*", *BEHIND_BACKBONE]},
                {"kind": "low_rank", "rank": 3, "slots": ["trunk.*"]},
            ],
        },
    ),
    "sparse_delta": Way(5e-3, module={"kind": "sparse_delta", "share": 0.06}),
    "batch_norm": Way(1e-2, module={"kind": "batch_norm"}),
    "prompt": Way(1e-2, module={"kind": "prompt", "slots": ["camera.neck", "fused", "heads.detection", "heads.map"]}),
    "series_adapter": Way(
        5e-3, module={"kind": "series_adapter", "slots": ["trunk.stage0*", "trunk.lift*", "heads.*"]}
    ),
    "parallel_adapter": Way(5e-3, module={"kind": "parallel_adapter", "slots": ["fuse*", "trunk.stage[01]*"]}),
    "bottleneck": Way(1e-2, module={"kind": "bottleneck", "reduction": 8}),
    "rescale": Way(2e-2, module={"kind": "rescale"}),
    "scale_shift": Way(2e-2, module={"kind": "scale_shift"}),
    "film": Way(2e-2, module={"kind": "film"}),
    "hypernetwork": Way(1e-2, module={"kind": "hypernetwork", "rank": 2, "hidden": 4}),
    ROUTED: Way(1.2e-2, module={"kind": "low_rank", "rank": 3, "slots": ["trunk.*", "heads.*"]}),
}
ROUTED_BY = "router: soft, tags as labels"  # run with all seeds
ROUTERS = {  # trained on drives of all single conditions, with frozen base and modules
    ROUTED_BY: {"kind": "learned", "choose": "soft", "supervise": 1.0},
    "router: Gumbel, no tags": {"kind": "learned", "choose": "gumbel", "balance": 0.1},
}
CLAIMED = ("full fine-tune", UNION)  # run with all seeds
