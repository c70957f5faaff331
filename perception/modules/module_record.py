"""The JSON file of a module or an added head: its configuration, its slots and the base that it fits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from perception.errors import InputError
from perception.modules.slot import Slot
from perception.modules.spec import Module, parse_module
from perception.section import Section

FORMAT = 1  # version of the JSON file; later versions are refused


class Place(Section):
    """A slot of the module."""

    name: str
    layer: str  # class of the slot's layer
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
        """The module with this name at the slots of the record; the parts of a union name their own slots."""
        content = {**self.options, "name": name, "kind": self.kind, "when": self.when}
        if self.kind != "union":
            content["slots"] = tuple(place.name for place in self.slots)
        return parse_module(content)


class Record(Attached, _Format):
    """The content of a module's JSON file."""

    domain: str  # description of the training data
    base: str  # `base_hash` of the network it was trained on
    metrics: dict[str, float | None]
    sha256: str  # of the safetensors file


class HeadRecord(_Format):
    """The content of the JSON file of an added head."""

    name: str  # of its task
    kind: Literal["task"]
    options: dict[str, Any]  # the configuration of the head
    modules: tuple[Attached, ...]  # that belong to the head
    domain: str
    base: str
    metrics: dict[str, float | None]
    sha256: str


def attached(spec: Module, slots: Iterable[Slot]) -> dict[str, Any]:
    """Fields of `Attached`."""
    places = tuple(Place.of(slot) for slot in slots)
    return {"name": spec.name, "kind": spec.kind, "options": spec.options(), "slots": places, "when": spec.when}


def pair(path: Path) -> tuple[Path, Path]:
    """The safetensors and the JSON file, from the path of either or the common path without a suffix."""
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return stem.with_name(f"{stem.name}.safetensors"), stem.with_name(f"{stem.name}.json")


def read_record(path: Path) -> Record | HeadRecord:
    """The content of the JSON file of a module or a head.

    Raises:
        InputError: the file is absent, not JSON, or not such a record; of a later version or an unknown kind.
    """
    json_file = pair(path)[1]
    try:
        content = json.loads(json_file.read_bytes())
        version = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{json_file}: not readable as a module ({error.__class__.__name__}: {error})") from None
    if isinstance(version, int) and version > FORMAT:
        raise InputError(f"{json_file}: has format {version}, this program reads {FORMAT}; install a newer one")
    try:
        record = (HeadRecord if content.get("kind") == "task" else Record).model_validate_json(json.dumps(content))
        for module in (record,) if isinstance(record, Record) else record.modules:
            module.spec(module.name)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "module"
        raise InputError(f"{json_file}: {key}: {first['msg'].lower()}") from None
    return record


def read_records(run: Path) -> dict[str, Record | HeadRecord]:
    """Module or task -> record in RUN/modules; for a checkpoint those of its run.

    Raises:
        InputError: one of them is damaged.
    """
    folder = run.parent.parent if run.parent.name == "checkpoints" else run
    records = [read_record(json_file) for json_file in sorted((folder / "modules").glob("*.json"))]
    return {record.name: record for record in records}
