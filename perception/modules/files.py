"""The files of modules and added heads: NAME.safetensors with the tensors, NAME.json with their description.

The description is a module's configuration, its slots and the base that it fits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from perception.errors import InputError
from perception.io.files import make_folder, write_together
from perception.io.section import Section, explain
from perception.modules.base import is_base_key
from perception.modules.computation.computation import Computation
from perception.modules.slot import Slot
from perception.modules.spec import COMPUTATIONS, Module, build, parse_module, require_facts

FORMAT = 1  # version of the JSON file; later versions are refused


@dataclass(frozen=True)
class Head:
    """The head of an added task."""

    task: str
    config: Section
    network: nn.Module

    def slots(self) -> dict[str, Slot]:
        return {module.name: module for module in self.network.modules() if isinstance(module, Slot)}


class Place(Section):
    """A slot of the module."""

    name: str
    layer: str  # class of the slot's layer
    shape: tuple[int, ...]  # `Slot.shape`

    @classmethod
    def of(cls, slot: Slot) -> Place:
        return cls(name=slot.name, layer=type(slot.layer).__name__, shape=slot.shape)


class _Origin(Section):
    format: Literal[1] = 1
    domain: str  # description of the training data
    base: str  # `base_hash` of the network it was trained on
    metrics: dict[str, float | None]
    sha256: str  # of the safetensors file


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


class Record(Attached, _Origin):
    """The content of a module's JSON file."""


class HeadRecord(_Origin):
    """The content of the JSON file of an added head."""

    name: str  # of its task
    kind: Literal["task"]
    options: dict[str, Any]  # the configuration of the head
    modules: tuple[Attached, ...]  # that belong to the head


def describe_attached(spec: Module, slots: Iterable[Slot]) -> dict[str, Any]:
    places = tuple(Place.of(slot) for slot in slots)
    return {"name": spec.name, "kind": spec.kind, "options": spec.options(), "slots": places, "when": spec.when}


def pair(path: Path) -> tuple[Path, Path]:
    """The safetensors and the JSON file, from the path of either or the common path without a suffix."""
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return stem.with_name(f"{stem.name}.safetensors"), stem.with_name(f"{stem.name}.json")


def read_record(path: Path) -> Record | HeadRecord:
    """The content of the JSON file of a module or a head."""
    json_file = pair(path)[1]
    try:
        content = json.loads(json_file.read_bytes())
        version = content["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{json_file}: not readable as a module ({error.__class__.__name__}: {error})") from None
    if isinstance(version, int) and version > FORMAT:
        raise InputError(f"{json_file}: has format {version}, this program reads {FORMAT}; install a newer one")
    try:
        record = (HeadRecord if content.get("kind") == "task" else Record).model_validate_json(json.dumps(content))
        for module in (record,) if isinstance(record, Record) else record.modules:
            module.spec(module.name)
    except ValidationError as error:
        raise InputError(f"{json_file}: {explain(Record, error, 'module')}") from None
    return record


def read_records(run: Path) -> dict[str, Record | HeadRecord]:
    """Module or task -> record in RUN/modules; for a checkpoint those of its run."""
    folder = run.parent.parent if run.parent.name == "checkpoints" else run
    records = [read_record(json_file) for json_file in sorted((folder / "modules").glob("*.json"))]
    return {record.name: record for record in records}


NewHead = Callable[[str, Mapping[str, Any], str], Head]
Attachment = tuple[Module, Mapping[str, Computation]]  # a module, and its computation at each of its slots


def write(path: Path, module: Attachment, slots: Mapping[str, Slot], origin: Mapping[str, Any]) -> None:
    """Write both files of a module atomically, by the path of either file, or of both without a suffix.

    `origin` has the fields base, domain and metrics of a record.
    """
    spec, computations = module
    content = _bytes(_tensors(computations))
    fields = describe_attached(spec, [slots[name] for name in computations])
    _write(path, content, Record(**fields, **origin, sha256=_sha256(content)))


def write_head(
    path: Path, head: Head, modules: Mapping[str, Attachment], slots: Mapping[str, Slot], origin: Mapping[str, Any]
) -> None:
    """Write both files of a head with the modules that belong to it; as `write`."""
    content = _bytes(_head_tensors(head, modules))
    record = HeadRecord(
        name=head.task,
        kind="task",
        options=head.config.model_dump(mode="json", exclude={"added"}),
        modules=tuple(
            Attached(**describe_attached(spec, [slots[name] for name in computations]))
            for spec, computations in modules.values()
        ),
        **origin,
        sha256=_sha256(content),
    )
    _write(path, content, record)


def read_all(
    paths: Sequence[Path],
    rename: Mapping[Path, str],
    base: str,
    new_head: NewHead,
    slots: Mapping[str, Slot],
    used_names: Collection[str],
    facts: tuple[Collection[str], Collection[str], Collection[str]],
) -> tuple[list[Head], dict[str, Attachment], list[str]]:
    """Heads and modules from files, not attached yet, and the name of each file's module or task.

    Args:
        rename: path -> new name of its module.
        new_head: makes the head of a task from its options and their source, as `Bank.add_head` does.
        facts: conditions, tasks and sensors that modules may require.
    """
    heads: dict[str, Head] = {}
    modules: dict[str, Attachment] = {}
    slots, loaded = dict(slots), []
    for path in paths:
        record, (weights, json_file) = read_record(path), pair(path)
        if record.base != base:
            raise InputError(
                f"{json_file}: was trained on another base ({record.base[:12]}, this is {base[:12]}); load it on its "
                "own"
            )
        name = rename.get(path, record.name)
        if isinstance(record, Record):
            found = {name: _build(json_file, record, name, slots, facts)}
            expected = _tensors(found[name][1])
        else:
            if name != record.name:
                raise InputError(f"{json_file}: is the head of the task {record.name}, which keeps its name")
            head = new_head(name, record.options, str(json_file))
            slots |= head.slots()
            found = {module.name: _build(json_file, module, module.name, slots, facts) for module in record.modules}
            expected = _head_tensors(head, found)
        _fill(expected, _read_tensors(weights, record.sha256), weights)
        for new in dict.fromkeys([name, *found]):
            if new in used_names or new in heads or new in modules:
                raise InputError(f"{path}: a module called {new!r} is there already; rename this one")
        if isinstance(record, HeadRecord):
            heads[name] = head
        modules |= found
        loaded.append(name)
    return list(heads.values()), modules, loaded


def _build(
    json_file: Path,
    record: Attached,
    name: str,
    slots: Mapping[str, Slot],
    facts: tuple[Collection[str], Collection[str], Collection[str]],
) -> Attachment:
    try:
        spec: Module = record.spec(name)
    except ValidationError:
        raise InputError(f"{json_file}: {name!r} is no name for a module; use letters, digits, _ and -") from None
    require_facts(spec.when, *facts, f"{json_file}: when")
    parts = {slot: part for part in spec.single() for slot in part.slots}
    if parts.keys() != {place.name for place in record.slots}:
        raise InputError(f"{json_file}: the slots of its parts are not the slots it lists; it was changed by hand")
    for place in record.slots:
        _check_place(json_file, place, slots, parts[place.name].kind)
    return spec, {slot: build(part, slots[slot].layer, len(facts[0])) for slot, part in parts.items()}


def _check_place(json_file: Path, place: Place, slots: Mapping[str, Slot], kind: str) -> None:
    if place.name not in slots:
        raise InputError(f"{json_file}: the network has no slot {place.name!r}")
    here = Place.of(slots[place.name])
    if here != place:
        raise InputError(
            f"{json_file}: slot {place.name!r} was a {place.layer} {place.shape}, here it is a {here.layer} "
            f"{here.shape}"
        )
    if not COMPUTATIONS[kind].attaches_to(slots[place.name].layer):
        raise InputError(f"{json_file}: {kind} does not attach to slot {place.name!r}, a {here.layer}")


def _tensors(computations: Mapping[str, Computation]) -> dict[str, Tensor]:
    """Views of the tensors of a module, named SLOT/KEY."""
    return {
        f"{slot}/{key}": tensor
        for slot, computation in computations.items()
        for key, tensor in computation.state_dict().items()
    }


def _head_tensors(head: Head, modules: Mapping[str, Attachment]) -> dict[str, Tensor]:
    """Views of the tensors of a head, named TASK/KEY, and of its modules, named MODULE/SLOT/KEY."""
    found = {f"{head.task}/{key}": tensor for key, tensor in head.network.state_dict().items() if is_base_key(key)}
    for name, (_, computations) in modules.items():
        found |= {f"{name}/{key}": tensor for key, tensor in _tensors(computations).items()}
    return found


def _fill(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], weights: Path) -> None:
    different = sorted(expected.keys() ^ tensors.keys()) or [
        key for key, own in expected.items() if (own.shape, own.dtype) != (tensors[key].shape, tensors[key].dtype)
    ]
    if different:
        raise InputError(
            f"{weights}: {len(different)} tensors are not those of its JSON file, such as {different[0]!r}"
        )
    for key, own in expected.items():
        own.copy_(tensors[key])


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes, record: Record | HeadRecord) -> None:
    weights, json_file = pair(path)
    make_folder(weights.parent)
    write_together({weights: content, json_file: record.model_dump_json(indent=1).encode()})


def _read_tensors(weights: Path, sha256: str) -> dict[str, Tensor]:
    try:
        content = weights.read_bytes()
    except OSError as error:
        raise InputError(f"{weights}: cannot be read ({error.strerror})") from None
    if _sha256(content) != sha256:
        raise InputError(f"{weights}: damaged (its sha256 is not the one in its JSON file)")
    try:
        return safetensors.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{weights}: not a safetensors file ({error})") from None
