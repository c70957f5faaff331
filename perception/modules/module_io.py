"""A module on disk: NAME.safetensors with its tensors, and NAME.json that says what they are and what they fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from perception.atomic import made, write_together
from perception.errors import InputError
from perception.modules.computation.computation import Computation
from perception.modules.computation.kinds import KINDS, build
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


class Record(Section):
    """The content of the JSON file."""

    format: Literal[1] = 1
    name: str
    kind: str
    options: dict[str, Any]
    slots: tuple[Place, ...] = Field(min_length=1)
    when: tuple[str, ...]
    domain: str  # what the module was trained on, in words
    base: str  # `base_hash` of the network it was trained on
    metrics: dict[str, float | None]
    sha256: str  # of the safetensors file

    def spec(self, name: str) -> Any:
        """The module under this name, at the slots of the record; the parts of a union say which are theirs."""
        content = {**self.options, "name": name, "kind": self.kind, "when": self.when}
        if self.kind != "union":
            content["slots"] = tuple(place.name for place in self.slots)
        return SPECS.validate_python(content)


def tensors_of(computations: Mapping[str, Computation]) -> dict[str, Tensor]:
    """Tensors of a module by slot and name; views, not copies.

    Args:
        computations: what the module is at each of its slots.
    """
    return {
        f"{slot}/{key}": tensor
        for slot, computation in computations.items()
        for key, tensor in computation.state_dict().items()
    }


def write(
    path: Path,
    spec: Module,
    slots: Mapping[str, Slot],
    computations: Mapping[str, Computation],
    base: str,
    domain: str,
    metrics: Mapping[str, float | None],
) -> None:
    """Write both files, or neither.

    Args:
        path: of either file, or of both without a suffix.
        spec: of a union, with the exact slots of each part.
        slots: of the network.
        computations: what the module is at each of its slots.

    Raises:
        InputError: the disk is full or the folder not writable; what was there stays.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors_of(computations).items()}
    content = safetensors.save(tensors)
    record = Record(
        name=spec.name,
        kind=spec.kind,
        options=spec.options(),
        slots=tuple(Place.of(slots[name]) for name in computations),
        when=spec.when,
        domain=domain,
        base=base,
        metrics=dict(metrics),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    weights, words = _pair(path)
    made(weights.parent)
    write_together({weights: content, words: record.model_dump_json(indent=1).encode()})


def read_record(path: Path) -> Record:
    """What a module's JSON file says.

    Raises:
        InputError: the file is absent, not JSON, or not such a record; of a later version or an unknown kind.
    """
    words = _pair(path)[1]
    try:
        content = json.loads(words.read_bytes())
        version = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{words}: not readable as a module ({error.__class__.__name__}: {error})") from None
    if isinstance(version, int) and version > FORMAT:
        raise InputError(f"{words}: has format {version}, this program reads {FORMAT}; install a newer one")
    try:
        record = Record.model_validate_json(json.dumps(content))
        record.spec(record.name)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "module"
        raise InputError(f"{words}: {key}: {first['msg'].lower()}") from None
    return record


def read_records(run: Path) -> dict[str, Record]:
    """Records of the modules in RUN/modules, by the modules' names; of a checkpoint: those of its run.

    Raises:
        InputError: one of them is damaged.
    """
    folder = run.parent.parent if run.parent.name == "checkpoints" else run
    records = [read_record(words) for words in sorted((folder / "modules").glob("*.json"))]
    return {record.name: record for record in records}


def read(path: Path, name: str | None, slots: Mapping[str, Slot], base: str) -> tuple[Module, dict[str, Computation]]:
    """The module of a file under a name (None: its own), and what it is at each of its slots, not attached yet.

    Args:
        path: of either file, or of both without a suffix.
        slots: of the network.
        base: the network's `base_hash`.

    Raises:
        InputError: one of the files is absent or damaged, or the module does not fit the network.
    """
    record, (weights, words) = read_record(path), _pair(path)
    if record.base != base:
        raise InputError(
            f"{words}: was trained on another base ({record.base[:12]}, this is {base[:12]}); load it on its own"
        )
    try:
        spec = record.spec(name or record.name)
    except ValidationError:
        raise InputError(f"{words}: {name!r} is no name for a module; use letters, digits, _ and -") from None
    parts = {slot: part for part in spec.single() for slot in part.slots}
    if parts.keys() != {place.name for place in record.slots}:
        raise InputError(f"{words}: the slots of its parts are not the slots it lists; it was changed by hand")
    for place in record.slots:
        _check_place(words, place, slots, parts[place.name].kind)
    tensors = _read_tensors(weights, record.sha256)
    built = {slot: build(part, slots[slot].layer) for slot, part in parts.items()}
    expected = tensors_of(built)
    different = sorted(expected.keys() ^ tensors.keys()) or [
        key for key, own in expected.items() if (own.shape, own.dtype) != (tensors[key].shape, tensors[key].dtype)
    ]
    if different:
        raise InputError(
            f"{weights}: {len(different)} tensors are not those of its JSON file, such as {different[0]!r}"
        )
    for slot, computation in built.items():
        computation.load_state_dict({key: tensors[f"{slot}/{key}"] for key in computation.state_dict()})
    return spec, built


def _check_place(words: Path, place: Place, slots: Mapping[str, Slot], kind: str) -> None:
    if place.name not in slots:
        raise InputError(f"{words}: the network has no slot {place.name!r}")
    here = Place.of(slots[place.name])
    if here != place:
        raise InputError(
            f"{words}: slot {place.name!r} was a {place.layer} {place.shape}, here it is a {here.layer} {here.shape}"
        )
    if not KINDS[kind].attaches_to(slots[place.name].layer):
        raise InputError(f"{words}: {kind} does not attach to slot {place.name!r}, a {here.layer}")


def _read_tensors(weights: Path, sha256: str) -> dict[str, Tensor]:
    try:
        content = weights.read_bytes()
    except OSError as error:
        raise InputError(f"{weights}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{weights}: damaged (its sha256 is not the one in its JSON file)")
    try:
        return safetensors.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{weights}: not a safetensors file ({error})") from None


def _pair(path: Path) -> tuple[Path, Path]:
    """The safetensors and the JSON file."""
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return stem.with_name(f"{stem.name}.safetensors"), stem.with_name(f"{stem.name}.json")
