"""Gates without a file, what they say, and what a replay that was made by hand is of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vocabulary import NUSCENES

from deploy.replay.gates import Gates
from deploy.replay.outcome import Case, Verdict
from deploy.replay.provenance import ReplayProvenance
from perception.frame import Prediction

REPLAYED = {
    "bundle": {"name": "by hand", "manifest_sha256": "0" * 64}, "taxonomy": NUSCENES.model_dump(mode="json"),
    "engine": {"target": "cpu", "compiler": "none"}, "software": {}, "path": "drives", "version": "v1.0-sim",
    "machine": {"processor": "any", "cores": 1, "platform": "any"}, "scenes": (), "topics_sha256": None, "faults": (),
    "conditions": None, "selection": {"start": 0.0, "end": None, "every": 1}, "real_time": False, "latency": False,
}  # fmt: skip


def gates(*each: dict[str, Any], **options: Any) -> Gates:
    return Gates.model_validate({"gates": each, **options})


def only(verdict: Verdict) -> Case:
    assert len(verdict.cases) == 1
    return verdict.cases[0]


def record(out: Path, **changes: Any) -> Path:
    """The folder, with a replay.json of these settings."""
    ReplayProvenance.model_validate(REPLAYED | changes).write(out)
    return out


def instead(prediction: Prediction, **results: Any) -> Prediction:
    """With other results of these tasks."""
    return replace(prediction, results={**prediction.results, **results})
