"""The computation functions by kind, and the configuration of a module of any kind."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, TypeAdapter, model_validator

from perception.modules import spec
from perception.modules.computation.computation import Computation
from perception.modules.spec import Module

KINDS: dict[str, type[Computation]] = {
    kind: getattr(import_module(f"perception.modules.computation.{file}"), name)
    for kind, (file, name) in spec.KINDS.items()
}
if TYPE_CHECKING:
    Single = Module
else:
    Single = Annotated[Union[tuple(each.Options for each in KINDS.values())], Field(discriminator="kind")]  # noqa: UP007


class ModuleUnion(Module):
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
        parts = [part.model_dump() if isinstance(part, Module) else part for part in content["parts"]]
        return {**content, "parts": [{**part, **shared} if isinstance(part, dict) else part for part in parts]}

    def options(self) -> dict[str, Any]:
        return {"parts": [part.model_dump(mode="json", exclude={"name", "when"}) for part in self.parts]}

    def single(self) -> tuple[Any, ...]:
        return self.parts


MODULE: TypeAdapter[Module] = TypeAdapter(Annotated[Union[Single, ModuleUnion], Field(discriminator="kind")])  # noqa: UP007


def build(module: Module, layer: Any, conditions: int) -> Computation:
    """A new computation function, for this layer, of a module of one kind.

    Args:
        conditions: length of a condition vector.
    """
    make: Any = KINDS[module.kind]
    further = {"conditions": conditions} if make.conditional else {}
    computation: Computation = make(layer, **further, **module.options())
    return computation
