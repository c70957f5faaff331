"""engines/<target>.json: where a plan came from, and which network it runs."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.integrity import Content, Sealed


class EngineRecord(Sealed):
    """The record of one plan; `build.sh` writes the same."""

    target: str
    compiler: str  # with its version
    layers: int
    seconds: float
    plan_bytes: int
    plan_sha256: str
    refittable: bool  # whether it was compiled to take other weights
    onnx_sha256: str  # of the model.onnx that was compiled
    weights_sha256: str  # of the model.onnx whose weights it runs with: the same, or one of the same structure

    @property
    def refitted(self) -> bool:
        """Whether the plan is to be given other weights than it was compiled with."""
        return self.weights_sha256 != self.onnx_sha256


@dataclass(frozen=True)
class StoredPlan(Content):
    """A plan as it was read, with the record that it was checked against."""

    record: EngineRecord
