"""The bank: the modules and added heads of a model, and the operations on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perception.errors import InputError
from perception.modules import files
from perception.modules.added_heads import AddedHeads, Head
from perception.modules.aggregation.composition import Block, fuses, is_affine, names
from perception.modules.base import Freeze, base_hash, base_parameters
from perception.modules.computation.kinds import build
from perception.modules.route import CurrentRoute, Route
from perception.modules.slot import Slot, exact, fits, matching
from perception.modules.spec import Module, require_facts
from perception.modules.status import Row, head_row, row

BRANCHES = {"lidar": "lidar", "camera": "cameras"}  # first part of a slot's name -> sensor


class Bank:
    """Adds, trains, activates, saves and merges the modules of a network with slots.

    It also adds, saves, loads and deletes the heads of added tasks (`PerceptionModel.added`). No operation changes the
    base, except that `base_hash` differs while modules are merged.

    Args:
        conditions: that modules may require and depend on, kind -> values.
        tasks: that modules may require.
    """

    def __init__(
        self,
        network: nn.Module,
        conditions: Mapping[str, Sequence[str]] | None = None,
        tasks: Collection[str] = (),
    ) -> None:
        self.network, self.conditions, self.tasks = network, conditions or {}, tuple(tasks)
        self.condition_values = tuple(value for values in self.conditions.values() for value in values)
        self.current = CurrentRoute()
        self.slots: dict[str, Slot] = {}
        self._take({m.name: m for m in network.modules() if isinstance(m, Slot)})
        self.heads = AddedHeads(network, self.slots)
        self.modules: dict[str, Module] = {}
        self.active: Route | None = None  # overrides the router's
        self.merged: Merge | None = None
        self.folded: tuple[str, ...] = ()  # modules that are part of the weights for good
        self._freeze = Freeze(network, self.slots)

    def add(self, spec: Module) -> None:
        """Add a module, initially the identity, at each slot that its patterns match; frozen if the base is.

        Raises:
            InputError: the name is taken, a pattern matches no slot, or two parts of a union match the same one.
        """
        self.require_unmerged()
        self._require_free(spec.name)
        require_facts(spec.when, self.condition_values, self.tasks, f"module {spec.name}")
        computations: dict[str, Any] = {}
        for part in spec.single():
            for slot in matching(self.slots, part.slots, part.kind):
                if slot.name in computations:
                    raise InputError(f"two parts of {spec.name!r} are at {slot.name}; give each part slots of its own")
                computations[slot.name] = build(part, slot.layer, len(self.condition_values))
        self._attach(spec, computations)

    def add_head(self, task: str, options: Mapping[str, Any], source: str) -> None:
        """Add a head with this configuration for a task that the base does not have; modules keep their slots.

        Raises:
            InputError: an unknown task or option, or a name that is taken; the message names the source.
        """
        self.require_unmerged()
        self._require_free(task)
        self._attach_head(self.heads.new(task, options, source))

    def delete(self, name: str) -> None:
        """Remove a module, with the attention of blocks that contain it, or an added head, with its modules.

        Raises:
            InputError: there is no such module or added head, or one of the modules is active.
        """
        self.require_unmerged()
        modules = self.modules_of(name) if name in self.heads else [name]
        self.require(modules)
        active = [module for module in modules if self.active is not None and module in self.active.weights]
        if active:
            raise InputError(f"module {active[0]!r} is active; activate another or None first")
        if name in self.heads:
            self._keep_slots(self.heads[name].slots())
            self.heads.delete(name)
        for module in modules:
            self._delete(module)

    def activate(self, block: Block | None) -> None:
        """Run the modules of this block on all frames instead of the router's route; None: back to the router's.

        In a network without a router, such as a foreign one, None runs no module.

        Raises:
            InputError: the model has no module of that name.
        """
        self.active = None if block is None else self._route(block)
        self.current.route = self.active or Route()  # a router has its own for each frame

    def train(self, *modules: str) -> None:
        """Train these modules and freeze all others and the base; without names, freeze all.

        Frozen parts get no gradients and stay in evaluation mode, so that their running statistics do not change
        (`Freeze`). The network is put into training mode. A learned router (`chooser`) does not change.

        Args:
            modules: names, or keys of Fuse blocks to train their attention.
        """
        self.require_unmerged()
        self.require(set(modules) - self._freeze.keys())
        self._freeze.train_only(modules)

    def freeze(self, *modules: str) -> None:
        """Freeze these modules; others do not change."""
        self.require_unmerged()
        self.require(set(modules) - self._freeze.keys())
        self._freeze.freeze(modules)

    def save(self, name: str, path: Path, domain: str = "", metrics: Mapping[str, float | None] | None = None) -> None:
        """Write the module, or the added head with its modules, to PATH.safetensors and PATH.json (`files.py`).

        Args:
            domain: description of its training data.
            metrics: its scores there.
        """
        self.require_unmerged()
        description = files.Description(self.base_hash(), domain, metrics or {})
        if name in self.heads:
            own = {module: self._attachment(module) for module in self.modules_of(name)}
            files.write_head(path, self.heads[name], own, self.slots, description)
        else:
            self.require([name])
            files.write(path, self._attachment(name), self.slots, description)

    def load(self, *paths: Path, rename: Mapping[Path, str] | None = None) -> list[str]:
        """Add modules and heads from files; returns the name of each file's module or task.

        Args:
            rename: names for the modules of some of the files, instead of their own.

        Raises:
            InputError: a file is damaged or does not fit this network, or a name is taken; nothing has been added.
        """
        self.require_unmerged()
        heads, modules, loaded = files.read_all(
            paths, rename or {}, self.base_hash(), self.heads, self.names, (self.condition_values, self.tasks)
        )
        for head in heads:
            self._attach_head(head)
        for spec, computations in modules.values():
            self._attach(spec, computations)
        return loaded

    def merge(self, modules: Block | Route) -> None:
        """Merge the modules of a route, or of a block with weight one, into the base's weights, until `unmerge`.

        Raises:
            InputError: modules are merged already, or one of these does not fold; nothing has changed.
        """
        self.require_unmerged()
        route = modules if isinstance(modules, Route) else self._route(modules)
        self.require([*route.weights, *(name for weights in route.by_slot.values() for name in weights)])
        self.merged = Merge(self.slots.values(), route)

    def unmerge(self) -> None:
        """Restore weights and modules bit for bit.

        Raises:
            InputError: nothing is merged.
        """
        if self.merged is None:
            raise InputError("no modules are merged")
        self.merged.undo()
        self.merged = None

    def base_hash(self) -> str:
        """Hash of the base, independent of its modules; modules fit only the base that they were trained on."""
        return base_hash(self.network)

    def status(self) -> list[Row]:
        """Modules and added heads, with their size and state."""
        base = sum(parameter.numel() for parameter in base_parameters(self.network))
        active = self.active.weights if self.active else {}
        merged = self.merged.names if self.merged else ()
        modules = [
            row(spec, self.at(name), self.slots, base, name in active, name in merged)
            for name, spec in self.modules.items()
        ]
        return modules + [head_row(head, list(self.slots), base) for head in self.heads.values()]

    def at(self, name: str) -> dict[str, Any]:
        """Slot -> the module's computation there, also while it is merged."""
        merged = self.merged.computations if self.merged else {}
        at_slots = {slot.name: merged.get(slot.name, slot.computations) for slot in self.slots.values()}
        return {slot: computations[name] for slot, computations in at_slots.items() if name in computations}

    def requirements(self, name: str) -> frozenset[str]:
        """Facts that a frame must have for the module to run: its `when`, and the sensor of its slots' branch."""
        branches = {slot.split(".")[0] for slot in self.at(name)}
        sensor = {BRANCHES[next(iter(branches))]} if len(branches) == 1 and branches <= BRANCHES.keys() else set()
        return frozenset(self.modules[name].when) | sensor

    def fold(self, routes: Mapping[str, Sequence[Route]], keep: Collection[str] = ()) -> None:
        """Fold the modules permanently into the weights of their layers, at slots where all routes are the same.

        Modules that do not fold stay at their slots and in `modules`, folded ones are named in `folded`, and modules
        that no route runs are removed.

        Args:
            routes: slot -> those of the tasks that depend on it.
            keep: slots that do not change, because a learned router chooses there.
        """
        routed: set[str] = set()
        for slot in self.slots.values():
            if slot.name in keep:
                routed |= set(slot.computations)
                continue
            here = routes[slot.name] or [Route()]
            names_here = slot.routed(*here)
            routed |= set(names_here)
            if slot.same_for_all(here):
                slot.fold(here[0])
            else:
                slot.computations = nn.ModuleDict({name: slot.computations[name] for name in names_here})
        remaining = {name for slot in self.slots.values() for name in slot.computations}
        self.folded = tuple(name for name in self.modules if name in routed - remaining)
        self.modules = {name: spec for name, spec in self.modules.items() if name in routed & remaining}

    def after_fusion(self) -> list[str]:
        """Names of the slots after the fusion."""
        return [name for name in self.slots if name.startswith(("trunk.", "heads."))]

    @property
    def names(self) -> list[str]:
        """Names of the modules and the added heads."""
        return [*self.modules, *self.heads]

    def modules_of(self, task: str) -> list[str]:
        """The modules that belong to an added head: those that run only for its task, or only at its slots."""
        slots = self.heads[task].slots().keys()
        alone = () if self.heads.extends(task) else (task,)
        return [name for name, spec in self.modules.items() if {*alone} & {*spec.when} or self.at(name).keys() <= slots]

    def require(self, modules: Iterable[str]) -> None:
        """Raise InputError unless the model has modules with these names."""
        for name in modules:
            if name not in self.modules:
                there = ", ".join(self.modules) or "none"
                raise InputError(f"the model has no module called {name!r}; there are: {there}")

    def _require_free(self, name: str) -> None:
        if name in self.names:
            raise InputError(f"the model already has {'a head' if name in self.heads else 'a module'} called {name!r}")

    def _take(self, slots: Mapping[str, Slot]) -> None:
        self.slots.update(slots)
        for slot in slots.values():
            slot.current = self.current

    def _delete(self, name: str) -> None:
        del self.modules[name]
        for slot in self.slots.values():
            if name in slot.computations:
                del slot.computations[name]
            fusions: dict[str, Any] = dict(slot.fusions.items())
            for key, fusion in fusions.items():
                if name in names(fusion.block):
                    del slot.fusions[key]

    def _attachment(self, name: str) -> files.Attachment:
        return exact(self.modules[name], self.slots, self.at(name)), self.at(name)

    def _attach_head(self, head: Head) -> None:
        self._keep_slots(head.slots())
        head.network.train(self.network.training).requires_grad_(not self._freeze.base_is_frozen())
        self.heads.attach(head)
        self._take(head.slots())

    def _keep_slots(self, changing: Collection[str]) -> None:
        """Replace patterns that match slots about to be added or removed by the exact names of the other slots."""
        for name, spec in self.modules.items():
            if fits(spec, changing):
                self.modules[name] = exact(spec, self.slots, self.at(name).keys() - changing)

    def _attach(self, spec: Module, computations: Mapping[str, Any]) -> None:
        for name, computation in computations.items():
            slot = self.slots[name]
            slot.computations[spec.name] = computation.train(slot.training)
            computation.requires_grad_(not self._freeze.base_is_frozen())
        self.modules[spec.name] = spec

    @property
    def fusions(self) -> list[str]:
        """The Fuse blocks whose attention the model has, as text."""
        return list(dict.fromkeys(str(fusion.block) for s in self.slots.values() for fusion in s.fusions.values()))

    def _route(self, block: Block) -> Route:
        self.require(names(block))
        keys = {key for slot in self.slots.values() for key in slot.fusions}
        untrained = [fuse for fuse in fuses(block) if fuse.key not in keys]
        if untrained:
            raise InputError(f"{untrained[0]}: the model has no attention for it; add_fusion makes it, then train it")
        return Route(dict.fromkeys(names(block), 1.0), block=block)

    def require_unmerged(self) -> None:
        if self.merged is not None:
            raise InputError("modules are merged into the base's weights; unmerge first")


class Merge:
    """Merges the modules of a route into the layers of the slots, which hold no module until `undo`.

    Raises:
        InputError: one of the modules does not fold; the slots have not changed.
    """

    def __init__(self, slots: Iterable[Slot], route: Route) -> None:
        self._backups = [_Backup.of(slot) for slot in slots if slot.computations]
        try:
            for backup in self._backups:
                _require_foldable(backup.slot, route)
            self.names = {name for backup in self._backups for name in backup.slot.routed(route)}
            for backup in self._backups:
                backup.slot.fold(route)
        except Exception:
            self.undo()
            raise

    @property
    def computations(self) -> dict[str, nn.ModuleDict]:
        """Slot -> its modules before the merge."""
        return {backup.slot.name: backup.computations for backup in self._backups}

    def undo(self) -> None:
        """Restore weights and modules bit for bit."""
        for backup in self._backups:
            backup.restore()


class _Backup(NamedTuple):
    """The state of a slot before the merge."""

    slot: Slot
    layer: dict[str, Tensor]
    constant: Tensor | None
    computations: nn.ModuleDict
    fusions: nn.ModuleDict

    @classmethod
    def of(cls, slot: Slot) -> _Backup:
        layer = {name: tensor.clone() for name, tensor in slot.layer.state_dict().items()}
        return cls(slot, layer, slot.constant, slot.computations, slot.fusions)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the slot in place, because an optimizer refers to its parameters."""
        if "bias" not in self.layer:
            self.slot.layer.bias = None  # folding may have added one
        for name, tensor in self.slot.layer.state_dict().items():
            tensor.copy_(self.layer[name])
        self.slot.constant = self.constant
        self.slot.computations, self.slot.fusions = self.computations, self.fusions


def _require_foldable(slot: Slot, route: Route) -> None:
    for name in slot.routed(route):
        module, weight = slot.computations[name], route.at(slot.name)[name]
        if not module.affine:
            raise InputError(
                f"cannot merge {name!r}: a {module.kind} module is not affine, it has to stay at its slots"
            )
        if isinstance(weight, Tensor):
            raise InputError(f"cannot merge {name!r}: its weight differs from frame to frame; give one number")
        if module.conditional and (route.z is None or len(route.z) != 1):
            raise InputError(f"cannot merge {name!r}: a {module.kind} module needs a Route with one condition vector z")
    if not route.static:
        raise InputError("cannot merge: the weights of this route depend on the input")
    if route.block is not None and not is_affine(route.block, set(slot.fusions)):
        raise InputError(f"cannot merge {route.block!r}: the attention of fuse is not affine")
