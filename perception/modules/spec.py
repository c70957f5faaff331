"""Configuration of a module (kind, options, slots, conditions) and of learned routing."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal, Union

from pydantic import Field, model_validator

from perception.errors import InputError
from perception.section import MODULE_NAME, Positive, Section
from perception.taxonomy import SENSORS


def require_facts(when: Iterable[str], conditions: Iterable[str], tasks: Collection[str], where: str) -> None:
    """Raise InputError unless a module can require all of these of a frame: conditions, tasks and sensors."""
    known, when = (*conditions, *tasks, *SENSORS, *(f"no-{sensor}" for sensor in SENSORS)), tuple(dict.fromkeys(when))
    for fact in when:
        if fact not in known:
            raise InputError(f"{where}: {fact!r} is none of {', '.join(known)}")
    for excluding in (tuple(tasks), *((sensor, f"no-{sensor}") for sensor in SENSORS)):
        both = [fact for fact in when if fact in excluding]
        if len(both) > 1:
            raise InputError(f"{where}: {both[0]} and {both[1]} never hold together; add a module for each")


class _Module(Section):
    """A module at some slots that runs on frames with all the facts in `when`."""

    name: Annotated[str, Field(pattern=f"^{MODULE_NAME}$")]
    slots: tuple[str, ...] = Field(default=("trunk.*",), strict=False)  # names or globs
    when: tuple[str, ...] = Field(default=(), strict=False)  # facts, such as [rain, night], [map], [no-lidar]

    def options(self) -> dict[str, Any]:
        """Arguments of the computation function besides its layer; for a union its parts."""
        return self.model_dump(exclude={"name", "kind", "slots", "when"})

    def single(self) -> tuple[Any, ...]:
        """The module, or the parts of a union: modules of one kind each."""
        return (self,)


class LowRank(_Module):
    kind: Literal["low_rank"] = "low_rank"
    rank: Positive = 8
    alpha: float | None = None  # alpha / rank scales the delta; None: alpha = rank


class SparseDelta(_Module):
    kind: Literal["sparse_delta"] = "sparse_delta"
    share: Annotated[float, Field(gt=0, le=1)] = 0.01  # of the layer's weights that change


class BatchNorm(_Module):
    kind: Literal["batch_norm"] = "batch_norm"


class Prompt(_Module):
    kind: Literal["prompt"] = "prompt"
    size: Positive = 8  # the map is size x size, stretched over the input
    channels: Annotated[int, Field(ge=0)] = 0  # 0: added to the input; n: concatenated to it as n more channels


class SeriesAdapter(_Module):
    kind: Literal["series_adapter"] = "series_adapter"


class ParallelAdapter(_Module):
    kind: Literal["parallel_adapter"] = "parallel_adapter"


class Bottleneck(_Module):
    kind: Literal["bottleneck"] = "bottleneck"
    reduction: Positive = 8  # the hidden width is the output's, divided by this


class Rescale(_Module):
    kind: Literal["rescale"] = "rescale"


class ScaleShift(_Module):
    kind: Literal["scale_shift"] = "scale_shift"


class Film(_Module):
    kind: Literal["film"] = "film"


class HyperNetwork(_Module):
    kind: Literal["hypernetwork"] = "hypernetwork"
    rank: Positive = 4
    hidden: Positive = 8


Single = Annotated[
    Union[  # noqa: UP007 - pydantic reads it at run time, in Python 3.10 too
        LowRank,
        SparseDelta,
        BatchNorm,
        Prompt,
        SeriesAdapter,
        ParallelAdapter,
        Bottleneck,
        Rescale,
        ScaleShift,
        Film,
        HyperNetwork,
    ],
    Field(discriminator="kind"),
]


class ModuleUnion(_Module):
    """One module of several kinds at different slots, such as batch norms and low-rank deltas.

    He et al., "Towards a unified view of parameter-efficient transfer learning", 2022, section 4.
    """

    kind: Literal["union"] = "union"
    slots: tuple[()] = Field(default=(), strict=False)  # the parts have theirs
    parts: tuple[Single, ...] = Field(min_length=1, strict=False)

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, content: Any) -> Any:
        """The parts have the name and the facts of the union."""
        if not isinstance(content, dict) or not isinstance(content.get("parts"), list | tuple):
            return content
        shared = {"name": content.get("name"), "when": content.get("when", ())}
        parts = [part.model_dump() if isinstance(part, _Module) else part for part in content["parts"]]
        return {**content, "parts": [{**part, **shared} if isinstance(part, dict) else part for part in parts]}

    def options(self) -> dict[str, Any]:
        return {"parts": [part.model_dump(mode="json", exclude={"name", "when"}) for part in self.parts]}

    def single(self) -> tuple[Any, ...]:
        return self.parts


Module = Annotated[Union[Single, ModuleUnion], Field(discriminator="kind")]  # noqa: UP007


class LearnedRouting(Section):
    """A network chooses the modules after the fusion (`perception/modules/routing/learned.py`)."""

    kind: Literal["learned"]
    choose: Literal["soft", "top_k", "gumbel", "reinforce"] = "soft"
    modules: tuple[str, ...] = Field(default=(), strict=False)  # the options; empty: all that are after the fusion
    k: Positive = 1  # options that top_k keeps; the base alone is one of them
    level: Literal["global", "slot", "cell"] = "global"
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of gumbel
    balance: Annotated[float, Field(ge=0)] = 0.0  # weight of the load-balancing loss
    supervise: Annotated[float, Field(ge=0)] = 0.0  # weight of the cross-entropy with what the tags choose
