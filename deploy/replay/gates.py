"""Gates from a YAML file: requirements that a replay must meet to pass, and the frames that a baseline must share.

gates:
  - {metric: NDS, at_least: 0.3}
  - {metric: AP, class: car, condition: rain+night, range: [0, 30], at_least: 0.5}
  - {metric: IoU, at_least: 0.4}
  - {metric: AMOTA, at_least: 0.2}
  - {metric: latency, stage: total, quantile: p99, at_most: 100}
  - {metric: dropped, at_most: 0}
  - {metric: difference, of: AP, at_most: 0.05}
  - {metric: agreement, of: detections, at_least: 0.9}
common: 0.9
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from deploy.replay.latency import STAGES
from deploy.replay.results import Measures, agreements, metrics
from perception.errors import InputError, suggestion
from perception.io.section import Contents, Section, Share
from perception.tasks.metric import GateMetric, Subject
from perception.taxonomy import Taxonomy

LEAST_FRAMES = 100  # that a gate on latency needs: in fewer, the 99th percentile is the slowest frame
DEFAULT_LOSS, DEFAULT_AGREEMENT, DEFAULT_COMMON = 0.01, 0.9, 0.9


class _Gate(Section):
    model_config = ConfigDict(allow_inf_nan=False)  # JSON has none


class _Subset(_Gate):
    """Restricts a gate to a class, a condition and a range."""

    class_: str | None = Field(default=None, alias="class")  # None: AP of each class, mean IoU
    condition: str | None = None  # such as rain or rain+night: only frames with these tags
    range: tuple[float, float] | None = Field(default=None, strict=False)  # m from the vehicle: from, to

    @field_validator("range")
    @classmethod
    def _require_order(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        if bounds is not None and not 0 <= bounds[0] < bounds[1]:
            raise ValueError("a range is [from, to] in metres")
        return bounds

    def require_one_of(self, name: str, known: Mapping[str, GateMetric]) -> None:
        """Raise ValueError if the name is unknown, or its metric has no such class or range."""
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(known)}{suggestion(name, known)}")
        metric = known[name]
        if self.class_ is not None and metric.classes is None:
            raise ValueError(f"{name} has no class {self.class_!r}; it is of all classes")
        if self.condition is not None and metric.whole:
            raise ValueError(f"{name} is of all frames; give no condition")
        if self.range is not None and not metric.ranged:
            raise ValueError(f"{name} has no ranges; give none")
        if self.range is not None and metric.step and any(bound % metric.step for bound in self.range):
            raise ValueError(f"{name} is counted in rings of {metric.step:g} m; give multiples of it as the range")

    def require_taxonomy(self, name: str, taxonomy: Taxonomy) -> None:
        """Raise InputError for a class or a condition that the taxonomy lacks."""
        known = (metrics() | agreements())[name].names(taxonomy)
        if self.class_ is not None and self.class_ not in known:
            raise InputError(f"{name} has no class {self.class_!r}; {', '.join(known)}")
        for value in self.condition.split("+") if self.condition else ():
            taxonomy.kind_of(value)

    def subject(self, name: str) -> Subject:
        return Subject(name, self.class_, self.condition, self.range)

    @property
    def where(self) -> str:
        """The subset in words, such as ' car in rain, 0 to 30 m'; '' for all."""
        parts = [f" {self.class_}" if self.class_ else "", f" in {self.condition}" if self.condition else ""]
        return "".join(parts) + (", {:g} to {:g} m".format(*self.range) if self.range else "")


class Score(_Subset):
    """Requires a score: one of nuScenes, with the devkit's numbers, or the map's IoU at a probability of 0.5."""

    metric: Annotated[str, Contents(lambda: Literal[tuple(metrics())])]  # name of the score
    at_least: float | None = None  # least value
    at_most: float | None = None  # instead, if lower is better

    @model_validator(mode="after")
    def _sensible(self) -> Score:
        if self.metric not in metrics():
            known = *metrics(), *_OTHERS
            raise ValueError(f"{self.metric!r} is none of {', '.join(known)}{suggestion(self.metric, known)}")
        self.require_one_of(self.metric, metrics())
        bound = metrics()[self.metric].bound
        if [key for key in ("at_least", "at_most") if getattr(self, key) is not None] != [bound]:
            raise ValueError(f"a gate on {self.metric} has one limit, `{bound}`")
        return self


class LatencyLimit(_Gate):
    metric: Literal["latency"]  # time of a frame
    stage: Annotated[str, Contents(lambda: Literal[(*STAGES, "total")])] = "total"  # part of the frame's way, or total
    quantile: Literal["p50", "p95", "p99", "max"] = "p99"  # over all frames
    at_most: Annotated[float, Field(gt=0)]  # ms

    @field_validator("stage")
    @classmethod
    def _require_stage(cls, stage: str) -> str:
        if stage not in (*STAGES, "total"):
            known = *STAGES, "total"
            raise ValueError(f"{stage!r} is none of {', '.join(known)}{suggestion(stage, known)}")
        return stage


class Dropped(Section):
    """Limits the number of missing keyframes plus that of frames without any sensor that the network takes."""

    metric: Literal["dropped"]  # frames that were lost
    at_most: Annotated[int, Field(ge=0)]  # number of frames


class Difference(_Subset):
    """Limits how much worse than the baseline's a score may be, by a confidence interval over scenes.

    A score gets worse when it falls or, if lower is better, when it rises. It passes if the whole interval
    (perception.evaluation.interval) is better than the margin, fails if it is worse, and is inconclusive if the margin
    is inside or there are too few scenes for an interval. The comparison is paired: the same
    scenes are left out of both replays. Replays with equal results pass with any number of scenes.
    """

    metric: Literal["difference"]  # loss against the baseline
    of: Annotated[str, Contents(lambda: Literal[tuple(metrics())])]  # name of the score
    at_most: Annotated[float, Field(ge=0)]  # in the unit of the score
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95  # of the interval

    @model_validator(mode="after")
    def _sensible(self) -> Difference:
        self.require_one_of(self.of, metrics())
        metric = metrics()[self.of]
        if metric.whole:
            instead = f"{{metric: {self.of}, {metric.bound}: ...}}"
            raise ValueError(f"{self.of} is not compared with a baseline; give {instead}")
        if self.at_most > 1 and not metric.lower_is_better:
            raise ValueError(f"{self.of} is at most 1; give a margin `at_most` that is not greater")
        return self


class Agreement(_Subset):
    """Requires that the outputs agree with the baseline's; needs no annotations.

    detections: 2 M / (A + B) for A and B detections above a score, of which M are matched, best scores first, with one
    of their class within `metres`. map: IoU of the cells of both.
    """

    metric: Literal["agreement"]  # agreement with the baseline
    of: Annotated[str, Contents(lambda: Literal[tuple(agreements())])]  # name of the output
    at_least: Share  # least agreement
    score: Share = 0.2  # least score of a detection that counts
    metres: Annotated[float, Field(gt=0)] = 1.0  # m between two detections that are the same

    @model_validator(mode="after")
    def _sensible(self) -> Agreement:
        self.require_one_of(self.of, agreements())
        return self


_OTHERS = ("latency", "dropped", "difference", "agreement")  # metrics other than the tasks' scores


def _kind(gate: Any) -> str:
    """The tag of a gate: its metric, or "score" for a task's score."""
    metric = gate.get("metric") if isinstance(gate, dict) else getattr(gate, "metric", None)
    return str(metric) if metric in _OTHERS else "score"


Gate = Annotated[
    Union[  # noqa: UP007 - pydantic, Python 3.10
        Annotated[Score, Tag("score")],
        Annotated[LatencyLimit, Tag("latency")],
        Annotated[Dropped, Tag("dropped")],
        Annotated[Difference, Tag("difference")],
        Annotated[Agreement, Tag("agreement")],
    ],
    Discriminator(_kind),
]


class Gates(Section):
    gates: tuple[Gate, ...] = Field(min_length=1, strict=False)  # limits, each for one score
    common: Share = DEFAULT_COMMON  # least share of the frames that the baseline must also have

    def require_taxonomy(self, taxonomy: Taxonomy) -> None:
        """Raise InputError for a class or a condition that the taxonomy of the network lacks."""
        for number, gate in enumerate(self.gates):
            if isinstance(gate, _Subset):
                name = gate.metric if isinstance(gate, Score) else gate.of
                try:
                    gate.require_taxonomy(name, taxonomy)
                except InputError as error:
                    raise InputError(f"gates.{number}: {error}") from None

    @property
    def scores(self) -> list[str]:
        """Metrics that must reach a value."""
        return [gate.metric for gate in self.gates if isinstance(gate, Score)]


def default_gates(measures: Measures) -> Gates:
    """The gates without a file: scores must not be worse than the baseline's; without annotations, outputs must agree.

    They apply to all frames and to each condition, since a missing module reduces scores only in its own condition.
    """
    gates: list[Gate] = []
    for condition in (None, *measures.finished.conditions):
        for task in measures.tasks():
            differences, agreeing = measures.metrics[task].list_usual_gates(measures.counts(task))
            for of in differences:
                gates.append(Difference(metric="difference", of=of, condition=condition, at_most=DEFAULT_LOSS))
            for of in agreeing:
                gates.append(Agreement(metric="agreement", of=of, condition=condition, at_least=DEFAULT_AGREEMENT))
    if not gates:
        raise InputError(f"{measures.finished.folder}: no task has default gates; give some with --gates")
    return Gates(gates=tuple(gates))
