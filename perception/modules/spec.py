"""Configuration of modules (kind, options, slots, conditions) and of learned routing, without torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, PlainValidator, SerializeAsAny, TypeAdapter, model_validator

from perception.errors import InputError, suggestion
from perception.io.section import MODULE_NAME, Contents, Positive, Section
from perception.registry import Registry

# The computation functions by kind. They need torch, so that only what has modules imports them.
COMPUTATIONS = Registry(
    low_rank="perception.modules.computation.weight_delta:LowRank",
    sparse_delta="perception.modules.computation.weight_delta:SparseDelta",
    batch_norm="perception.modules.computation.channelwise:BatchNorm",
    prompt="perception.modules.computation.prompt:Prompt",
    series_adapter="perception.modules.computation.adapter:SeriesAdapter",
    parallel_adapter="perception.modules.computation.adapter:ParallelAdapter",
    bottleneck="perception.modules.computation.adapter:Bottleneck",
    rescale="perception.modules.computation.channelwise:Rescale",
    scale_shift="perception.modules.computation.channelwise:ScaleShift",
    memory="perception.modules.computation.memory:Memory",
    film="perception.modules.computation.conditional:Film",
    hypernetwork="perception.modules.computation.conditional:HyperNetwork",
)


def require_facts(
    when: Iterable[str], conditions: Iterable[str], tasks: Collection[str], sensors: Collection[str], where: str
) -> None:
    """Raise InputError unless a module can require all of these of a frame: conditions, tasks and sensors."""
    known, when = (*conditions, *tasks, *sensors, *(f"no-{sensor}" for sensor in sensors)), tuple(dict.fromkeys(when))
    for fact in when:
        if fact not in known:
            raise InputError(f"{where}: {fact!r} is none of {', '.join(known)}{suggestion(fact, known)}")
    for excluding in (tuple(tasks), *((sensor, f"no-{sensor}") for sensor in sensors)):
        both = [fact for fact in when if fact in excluding]
        if len(both) > 1:
            raise InputError(f"{where}: {both[0]} and {both[1]} never hold together; add a module for each")


class Module(Section):
    """A module at some slots that runs on frames with all the facts in `when`.

    The computation function of each kind has such a class, with its options, as `Options`.
    """

    if TYPE_CHECKING:
        kind: str  # of the options; declared there, so that it stays behind these keys in files
    name: Annotated[str, Field(pattern=f"^{MODULE_NAME}$")]  # of the module
    slots: tuple[str, ...] = Field(default=("trunk.*",), strict=False)  # names or globs
    when: tuple[str, ...] = Field(default=(), strict=False)  # facts, such as [rain, night], [map], [no-lidar]

    def options(self) -> dict[str, Any]:
        """Arguments of the computation function besides its layer; for a union its parts."""
        return self.model_dump(exclude={"name", "kind", "slots", "when"})

    def single(self) -> tuple[Any, ...]:
        """The module, or the parts of a union: modules of one kind each."""
        return (self,)


def build(module: Module, layer: Any, conditions: int) -> Any:
    """A new `Computation` for this layer, of a module of one kind, with condition vectors of this length."""
    kind = COMPUTATIONS[module.kind]
    further = {"conditions": conditions} if kind.conditional else {}
    return kind(layer, **further, **module.options())


def _kinds(*others: type[Module]) -> Any:
    """The type of a module of one of the kinds, or of one of the others."""
    kinds = (*(each.Options for each in COMPUTATIONS.values()), *others)
    every: Any = Union[kinds]  # noqa: UP007 - its members are known at run time only
    return Annotated[every, Field(discriminator="kind")]


@cache
def _parser(*others: type[Module]) -> TypeAdapter[Module]:
    return TypeAdapter(_kinds(*others))


_Single = Annotated[
    SerializeAsAny[Module], PlainValidator(lambda content: _parser().validate_python(content)), Contents(_kinds)
]


class ModuleUnion(Module):
    """One module of several kinds at different slots, such as batch norms and low-rank deltas.

    He et al., "Towards a unified view of parameter-efficient transfer learning", 2022, section 4.
    """

    kind: Literal["union"] = "union"  # kind of module
    slots: tuple[()] = Field(default=(), strict=False)  # the parts have theirs
    parts: tuple[_Single, ...] = Field(min_length=1, strict=False)  # modules of one kind each, without name and `when`

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, content: Any) -> Any:
        """The parts have the name and the facts of the union."""
        if not isinstance(content, dict) or not isinstance(content.get("parts"), list | tuple):
            return content
        shared = {"name": content.get("name"), "when": content.get("when", ())}
        parts = [part.model_dump() if isinstance(part, Module) else part for part in content["parts"]]
        return {**content, "parts": [{**part, **shared} if isinstance(part, dict) else part for part in parts]}

    def options(self) -> dict[str, Any]:
        return {"parts": [part.model_dump(mode="json", exclude={"name", "when"}) for part in self.parts]}

    def single(self) -> tuple[Any, ...]:
        return self.parts


def parse_module(content: object) -> Module:
    """The module in a parsed document, of one of the kinds or a union of several; a module stays as it is."""
    return _parser(ModuleUnion).validate_python(content)


AnyModule = Annotated[SerializeAsAny[Module], PlainValidator(parse_module), Contents(lambda: _kinds(ModuleUnion))]


class LearnedRouting(Section):
    """A network chooses the modules after the fusion (`perception/modules/routing/learned.py`)."""

    kind: Literal["learned"]  # the only one
    choose: Literal["soft", "top_k", "gumbel", "reinforce"] = "soft"  # how the router's weights become a choice
    modules: tuple[str, ...] = Field(default=(), strict=False)  # the options; empty: all that are after the fusion
    k: Positive = 1  # options that top_k keeps; the base alone is one of them
    level: Literal["global", "slot", "cell"] = "global"  # where it chooses: for the frame, each slot or each cell
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of gumbel
    balance: Annotated[float, Field(ge=0)] = 0.0  # weight of the load-balancing loss
    supervise: Annotated[float, Field(ge=0)] = 0.0  # weight of the cross-entropy with what the tags choose
