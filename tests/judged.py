"""Gates without a file, and what they say."""

from typing import Any

from deploy.replay.gates import Gates
from deploy.replay.verdict import Case, Verdict


def gates(*each: dict[str, Any], **options: Any) -> Gates:
    return Gates.model_validate({"gates": each, **options})


def only(verdict: Verdict) -> Case:
    assert len(verdict.cases) == 1
    return verdict.cases[0]
