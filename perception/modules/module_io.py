"""Reads and writes modules and added heads: NAME.safetensors with the tensors, NAME.json with their description."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from perception.errors import InputError
from perception.files import make_folder, write_together
from perception.modules.added_heads import AddedHeads, Head
from perception.modules.base_weights import is_base_key
from perception.modules.computation.computation import Computation
from perception.modules.computation.kinds import KINDS, build
from perception.modules.module_record import Attached, HeadRecord, Place, Record, attached, pair, read_record
from perception.modules.slot import Slot
from perception.modules.spec import Module, require_facts

Attachment = tuple[Module, Mapping[str, Computation]]  # a module, and its computation at each of its slots


class Description(NamedTuple):
    """Origin and scores of a module or a head.

    Attributes:
        base: `base_hash` of the network that it was trained on.
        domain: description of its training data.
        metrics: its scores there.
    """

    base: str
    domain: str
    metrics: Mapping[str, float | None]


def write(path: Path, module: Attachment, slots: Mapping[str, Slot], description: Description) -> None:
    """Write both files of a module atomically.

    Args:
        path: of either file, or of both without a suffix.
        module: for a union with the exact slots of each part.
        slots: of the network.

    Raises:
        InputError: the disk is full or the folder not writable; existing files do not change.
    """
    spec, computations = module
    content = _bytes(_tensors(computations))
    fields = attached(spec, [slots[name] for name in computations])
    _write(path, content, Record(**fields, **description._asdict(), sha256=_sha256(content)))


def write_head(
    path: Path, head: Head, modules: Mapping[str, Attachment], slots: Mapping[str, Slot], description: Description
) -> None:
    """Write both files of a head with the modules that belong to it; as `write`."""
    content = _bytes(_head_tensors(head, modules))
    record = HeadRecord(
        name=head.task,
        kind="task",
        options=head.config.model_dump(mode="json", exclude={"added"}),
        modules=tuple(
            Attached(**attached(spec, [slots[name] for name in computations]))
            for spec, computations in modules.values()
        ),
        **description._asdict(),
        sha256=_sha256(content),
    )
    _write(path, content, record)


def read_all(
    paths: Sequence[Path],
    rename: Mapping[Path, str],
    base: str,
    added: AddedHeads,
    used_names: Collection[str],
    conditions: Sequence[str],
) -> tuple[list[Head], dict[str, Attachment], list[str]]:
    """Heads and modules from files, not attached yet, and the name of each file's module or task.

    Args:
        paths: of either file, or of both without a suffix.
        rename: path -> new name of its module.
        base: `base_hash` of the network.
        added: the network's added heads and slots.
        used_names: of the network's modules and heads.
        conditions: length of a condition vector.
        conditions: that modules may require and depend on.

    Raises:
        InputError: a file is absent or damaged or does not fit the network, or a name is used_names.
    """
    heads: dict[str, Head] = {}
    modules: dict[str, Attachment] = {}
    slots, loaded = dict(added.slots), []
    for path in paths:
        record, (weights, json_file) = read_record(path), pair(path)
        if record.base != base:
            raise InputError(
                f"{json_file}: was trained on another base ({record.base[:12]}, this is {base[:12]}); load it on its "
                "own"
            )
        name = rename.get(path, record.name)
        if isinstance(record, Record):
            found = {name: _build(json_file, record, name, slots, conditions)}
            expected = _tensors(found[name][1])
        else:
            head = _new_head(json_file, record, name, added)
            slots |= head.slots()
            found = {
                module.name: _build(json_file, module, module.name, slots, conditions) for module in record.modules
            }
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


def _new_head(json_file: Path, record: HeadRecord, name: str, added: AddedHeads) -> Head:
    if name != record.name:
        raise InputError(f"{json_file}: is the head of the task {record.name}, which keeps its name")
    return added.new(name, record.options, str(json_file))


def _build(
    json_file: Path, record: Attached, name: str, slots: Mapping[str, Slot], conditions: Sequence[str]
) -> Attachment:
    """A module with initial weights from its record."""
    try:
        spec: Module = record.spec(name)
    except ValidationError:
        raise InputError(f"{json_file}: {name!r} is no name for a module; use letters, digits, _ and -") from None
    require_facts(spec.when, conditions, f"{json_file}: when")
    parts = {slot: part for part in spec.single() for slot in part.slots}
    if parts.keys() != {place.name for place in record.slots}:
        raise InputError(f"{json_file}: the slots of its parts are not the slots it lists; it was changed by hand")
    for place in record.slots:
        _check_place(json_file, place, slots, parts[place.name].kind)
    return spec, {slot: build(part, slots[slot].layer, len(conditions)) for slot, part in parts.items()}


def _check_place(json_file: Path, place: Place, slots: Mapping[str, Slot], kind: str) -> None:
    if place.name not in slots:
        raise InputError(f"{json_file}: the network has no slot {place.name!r}")
    here = Place.of(slots[place.name])
    if here != place:
        raise InputError(
            f"{json_file}: slot {place.name!r} was a {place.layer} {place.shape}, here it is a {here.layer} "
            f"{here.shape}"
        )
    if not KINDS[kind].attaches_to(slots[place.name].layer):
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
    """Copy the tensors of a file into the expected ones with the same names."""
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
