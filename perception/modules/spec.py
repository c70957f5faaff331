"""Configuration of modules (kind, options, slots, conditions) and of learned routing, without torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainValidator, SerializeAsAny

from perception.errors import InputError
from perception.section import MODULE_NAME, Positive, Section
from perception.taxonomy import SENSORS

# Kind -> its file in perception/modules/computation and the class of its computation function there.
KINDS = {
    "low_rank": ("weight_delta", "LowRank"),
    "sparse_delta": ("weight_delta", "SparseDelta"),
    "batch_norm": ("batch_norm", "BatchNorm"),
    "prompt": ("prompt", "Prompt"),
    "series_adapter": ("adapter", "SeriesAdapter"),
    "parallel_adapter": ("adapter", "ParallelAdapter"),
    "bottleneck": ("adapter", "Bottleneck"),
    "rescale": ("rescale", "Rescale"),
    "scale_shift": ("rescale", "ScaleShift"),
    "film": ("conditional", "Film"),
    "hypernetwork": ("conditional", "HyperNetwork"),
}


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


class Module(Section):
    """A module at some slots that runs on frames with all the facts in `when`.

    The computation function of each kind has such a class, with its options, as `Options`.
    """

    if TYPE_CHECKING:
        kind: str  # of the options; declared there, so that it stays behind these keys in files
    name: Annotated[str, Field(pattern=f"^{MODULE_NAME}$")]
    slots: tuple[str, ...] = Field(default=("trunk.*",), strict=False)  # names or globs
    when: tuple[str, ...] = Field(default=(), strict=False)  # facts, such as [rain, night], [map], [no-lidar]

    def options(self) -> dict[str, Any]:
        """Arguments of the computation function besides its layer; for a union its parts."""
        return self.model_dump(exclude={"name", "kind", "slots", "when"})

    def single(self) -> tuple[Any, ...]:
        """The module, or the parts of a union: modules of one kind each."""
        return (self,)


def parse_module(content: object) -> Module:
    """The module in a parsed document, of one of the kinds or a union of several; a module stays as it is.

    Raises:
        ValidationError: an unknown kind or option.
    """
    kinds = import_module("perception.modules.computation.kinds")  # which needs torch, unlike other configurations
    module: Module = kinds.MODULE.validate_python(content)
    return module


AnyModule = Annotated[SerializeAsAny[Module], PlainValidator(parse_module)]


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
