"""engines/<target>.json: the record of how a plan was compiled, and of which network."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.integrity import Content, SelfHashed


class EngineRecord(SelfHashed):
    """The record of one plan; `build.sh` writes the same."""

    target: str
    compiler: str  # name and version
    layers: int
    seconds: float
    plan_bytes: int
    plan_sha256: str
    refittable: bool  # whether its weights can be replaced
    onnx_sha256: str  # of the model.onnx that was compiled
    weights_sha256: str  # of the model.onnx whose weights it runs with, the same or one of the same structure

    @property
    def refitted(self) -> bool:
        """Whether the plan runs with other weights than it was compiled with."""
        return self.weights_sha256 != self.onnx_sha256


@dataclass(frozen=True)
class StoredPlan(Content):
    """A plan's content, with the record that it was checked against."""

    record: EngineRecord
