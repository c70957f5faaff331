"""The JSON file of a module, or of an added head, on disk: what it is and what it fits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from perception.errors import InputError
from perception.modules.slot import Slot
from perception.modules.spec import Module
from perception.section import Section

FORMAT = 1  # of the JSON file; a program reads those up to its own
SPECS: TypeAdapter[Any] = TypeAdapter(Module)


class Place(Section):
    """A slot that the module is at."""

    name: str
    layer: str  # its class
    shape: tuple[int, ...]  # of the layer's weight

    @classmethod
    def of(cls, slot: Slot) -> Place:
        return cls(name=slot.name, layer=type(slot.layer).__name__, shape=tuple(slot.layer.weight.shape))


class _Format(Section):
    format: Literal[1] = 1


class Attached(Section):
    """A module and its slots."""

    name: str
    kind: str
    options: dict[str, Any]
    slots: tuple[Place, ...] = Field(min_length=1)
    when: tuple[str, ...]

    def spec(self, name: str) -> Any:
        """The module under this name, at the slots of the record; the parts of a union say which are theirs."""
        content = {**self.options, "name": name, "kind": self.kind, "when": self.when}
        if self.kind != "union":
            content["slots"] = tuple(place.name for place in self.slots)
        return SPECS.validate_python(content)


class Record(Attached, _Format):
    """The content of a module's JSON file."""

    domain: str  # what the module was trained on, in words
    base: str  # `base_hash` of the network it was trained on
    metrics: dict[str, float | None]
    sha256: str  # of the safetensors file


class HeadRecord(_Format):
    """The content of the JSON file of a head that was added to a finished model."""

    name: str  # of its task
    kind: Literal["task"]
    options: dict[str, Any]  # the configuration of the head
    modules: tuple[Attached, ...]  # that run for this task alone
    domain: str
    base: str
    metrics: dict[str, float | None]
    sha256: str


def attached(spec: Module, slots: Iterable[Slot]) -> dict[str, Any]:
    """Fields of `Attached`; a union's parts name their slots exactly."""
    places = tuple(Place.of(slot) for slot in slots)
    return {"name": spec.name, "kind": spec.kind, "options": spec.options(), "slots": places, "when": spec.when}


def pair(path: Path) -> tuple[Path, Path]:
    """The safetensors and the JSON file, of the path of either, or of both without a suffix."""
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return stem.with_name(f"{stem.name}.safetensors"), stem.with_name(f"{stem.name}.json")


def read_record(path: Path) -> Record | HeadRecord:
    """What the JSON file of a module or a head says.

    Raises:
        InputError: the file is absent, not JSON, or not such a record; of a later version or an unknown kind.
    """
    words = pair(path)[1]
    try:
        content = json.loads(words.read_bytes())
        version = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{words}: not readable as a module ({error.__class__.__name__}: {error})") from None
    if isinstance(version, int) and version > FORMAT:
        raise InputError(f"{words}: has format {version}, this program reads {FORMAT}; install a newer one")
    try:
        record = (HeadRecord if content.get("kind") == "task" else Record).model_validate_json(json.dumps(content))
        for module in (record,) if isinstance(record, Record) else record.modules:
            module.spec(module.name)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "module"
        raise InputError(f"{words}: {key}: {first['msg'].lower()}") from None
    return record


def read_records(run: Path) -> dict[str, Record | HeadRecord]:
    """Records in RUN/modules, by the names of modules and tasks; of a checkpoint: those of its run.

    Raises:
        InputError: one of them is damaged.
    """
    folder = run.parent.parent if run.parent.name == "checkpoints" else run
    records = [read_record(words) for words in sorted((folder / "modules").glob("*.json"))]
    return {record.name: record for record in records}
