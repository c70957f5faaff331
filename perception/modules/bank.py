"""The bank: which modules and added heads a model has, at which slots, and what is done with them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from perception.errors import InputError
from perception.modules import module_io
from perception.modules.added_heads import AddedHeads, Head
from perception.modules.aggregation.composition import Block, fuses, names
from perception.modules.base_weights import base_hash, own_parameters
from perception.modules.computation.kinds import build
from perception.modules.freeze import Freeze
from perception.modules.merge_into_base import Merge
from perception.modules.route import Route
from perception.modules.slot import Slot
from perception.modules.slot_patterns import exact, fits, matching
from perception.modules.spec import Module
from perception.modules.status import Row, head_row, row

BRANCHES = {"lidar": "lidar", "camera": "cameras"}  # first part of a slot's name: the sensor


class Bank:
    """Adds modules to the slots of a network, trains some of them, keeps them in files, writes them into weights.

    The heads of tasks that were added to a finished model (`PerceptionModel.added`) are deleted, saved and loaded
    here too. Whatever is done here, the base keeps its bytes: `base_hash` changes only while modules are merged.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.slots = {m.name: m for m in network.modules() if isinstance(m, Slot)}
        self.heads = AddedHeads(network, self.slots)
        self.modules: dict[str, Module] = {}
        self.active: Route | None = None  # in force instead of the router's
        self.merged: Merge | None = None
        self.folded: tuple[str, ...] = ()  # modules that are part of the weights for good
        self._freeze = Freeze(network, self.slots)

    def add(self, spec: Module) -> None:
        """Add a module, the identity at first, at each slot that its patterns match. On a frozen base it is frozen too.

        Raises:
            InputError: the name is taken, a pattern fits no slot, or two parts of a union want the same one.
        """
        self.require_unmerged()
        self._require_free(spec.name)
        computations: dict[str, Any] = {}
        for part in spec.single():
            for slot in matching(self.slots, part.slots, part.kind):
                if slot.name in computations:
                    raise InputError(f"two parts of {spec.name!r} are at {slot.name}; give each part slots of its own")
                computations[slot.name] = build(part, slot.layer)
        self._attach(spec, computations)

    def add_head(self, task: str, options: Mapping[str, Any], source: str) -> None:
        """Add a head with this configuration for a task that the base does not have; modules stay at their slots.

        Raises:
            InputError: an unknown task or option, or a name that is taken; the message names the source.
        """
        self.require_unmerged()
        self._require_free(task)
        self._attach_head(self.heads.new(task, options, source))

    def delete(self, name: str) -> None:
        """Take the module, and the attention of blocks with it, out of every slot; or an added head, with its modules.

        Raises:
            InputError: there is no such module or added head, or one of the modules is active.
        """
        self.require_unmerged()
        doomed = self.modules_of(name) if name in self.heads else [name]
        self.require(doomed)
        active = [module for module in doomed if self.active is not None and module in self.active.weights]
        if active:
            raise InputError(f"module {active[0]!r} is active; activate another or None first")
        if name in self.heads:
            self._keep_slots(self.heads[name].slots())
            self.heads.delete(name)
        for module in doomed:
            self._delete(module)

    def activate(self, block: Block | None) -> None:
        """Run these modules, combined like this, on all frames instead of the router's route; None: the router's.

        In a network without a router, such as a foreign one, None runs none.

        Raises:
            InputError: the model has no module of that name.
        """
        self.active = None if block is None else self._route(block)
        self.apply(self.active or Route())  # a router puts its own in force at the next frame

    def train(self, *modules: str) -> None:
        """Train these modules and freeze all else, the base included; without names, freeze all.

        Frozen parts get no gradients and stay in evaluation mode, so that running statistics do not change, whatever
        mode a training loop puts the network into (`freeze.py`). The network is put into training mode. A learned
        router (`chooser`) is not touched.

        Args:
            modules: names, or the key of a Fuse block, whose attention trains then.
        """
        self.require_unmerged()
        self.require(set(modules) - self._freeze.keys())
        self._freeze.all_but(modules)

    def freeze(self, *modules: str) -> None:
        """Freeze these; all else stays as it is."""
        self.require_unmerged()
        self.require(set(modules) - self._freeze.keys())
        self._freeze.these(modules)

    def save(self, name: str, path: Path, domain: str = "", metrics: Mapping[str, float | None] | None = None) -> None:
        """Write the module, or the added head with its modules, to PATH.safetensors and PATH.json (`module_io.py`).

        Args:
            domain: what it was trained on, in words.
            metrics: what it reaches there.
        """
        self.require_unmerged()
        known = module_io.Known(self.base_hash(), domain, metrics or {})
        if name in self.heads:
            own = {module: self._attachment(module) for module in self.modules_of(name)}
            module_io.write_head(path, self.heads[name], own, self.slots, known)
        else:
            self.require([name])
            module_io.write(path, self._attachment(name), self.slots, known)

    def load(self, *paths: Path, rename: Mapping[Path, str] | None = None) -> list[str]:
        """Add modules and heads from files; returns the name of each file's module or task.

        Args:
            rename: names for the modules of some of the files, instead of their own.

        Raises:
            InputError: a file is damaged or does not fit this network, or a name is taken; then none is added.
        """
        self.require_unmerged()
        heads, modules, loaded = module_io.read_all(paths, rename or {}, self.base_hash(), self.heads, self.names)
        for head in heads:
            self._attach_head(head)
        for spec, computations in modules.values():
            self._attach(spec, computations)
        return loaded

    def merge(self, modules: Block | Route) -> None:
        """Write what a route, or a block at weight one, runs into the base's weights; until `unmerge` no module runs.

        Raises:
            InputError: something is merged already, or one of the modules does not fold; nothing has changed then.
        """
        self.require_unmerged()
        route = modules if isinstance(modules, Route) else self._route(modules)
        self.require([*route.weights, *(name for weights in route.by_slot.values() for name in weights)])
        self.merged = Merge(self.slots.values(), route)

    def unmerge(self) -> None:
        """Bring weights and modules back, bit for bit.

        Raises:
            InputError: nothing is merged.
        """
        if self.merged is None:
            raise InputError("no modules are merged")
        self.merged.undo()
        self.merged = None

    def base_hash(self) -> str:
        """Fingerprint of the base, the same whatever modules there are; modules fit only the base they trained on."""
        return base_hash(self.network)

    def status(self) -> list[Row]:
        """Modules and added heads, with their size and state."""
        base = sum(parameter.numel() for parameter in own_parameters(self.network))
        active = self.active.weights if self.active else {}
        merged = self.merged.names if self.merged else ()
        modules = [
            row(spec, self.at(name), self.slots, base, name in active, name in merged)
            for name, spec in self.modules.items()
        ]
        return modules + [head_row(head, list(self.slots), base) for head in self.heads.values()]

    def at(self, name: str) -> dict[str, Any]:
        """The module's computation at each of its slots, by the slot's name; also while it is merged."""
        kept = self.merged.computations if self.merged else {}
        there = {slot.name: kept.get(slot.name, slot.computations) for slot in self.slots.values()}
        return {slot: computations[name] for slot, computations in there.items() if name in computations}

    def asks(self, name: str) -> frozenset[str]:
        """Facts that the module requires of a frame: its `when`, and the sensor in whose branch its slots are."""
        branches = {slot.split(".")[0] for slot in self.at(name)}
        needs = {BRANCHES[next(iter(branches))]} if len(branches) == 1 and branches <= BRANCHES.keys() else set()
        return frozenset(self.modules[name].when) | needs

    def fold(self, routes: Sequence[Route], keep: Collection[str] = ()) -> None:
        """Write the modules into the weights of their layers for good, where all routes agree and the modules fold.

        Modules that do not fold stay at their slots and in `modules`; folded ones are named in `folded`, and modules
        that no route runs are removed. Slots in `keep` are left as they are: a learned router decides there.
        """
        routed: set[str] = set()
        for slot in self.slots.values():
            if slot.name in keep:
                routed |= set(slot.computations)
                continue
            here = slot.routed_by(routes)
            routed |= set(here)
            slot.route = routes[0]
            if slot.alike(routes):
                slot.fold()
            else:
                slot.computations = nn.ModuleDict({name: slot.computations[name] for name in here})
        left = {name for slot in self.slots.values() for name in slot.computations}
        self.folded = tuple(name for name in self.modules if name in routed - left)
        self.modules = {name: spec for name, spec in self.modules.items() if name in routed & left}

    def after_fusion(self) -> list[str]:
        """The slots behind the fusion."""
        return [name for name in self.slots if name.startswith(("trunk.", "heads."))]

    def apply(self, route: Route) -> None:
        """Set the route of every slot."""
        for slot in self.slots.values():
            slot.route = route

    @property
    def names(self) -> list[str]:
        """Of the modules and the added heads."""
        return [*self.modules, *self.heads]

    def modules_of(self, task: str) -> list[str]:
        """The modules that an added head cannot share: those that run for its task alone, or at its slots alone."""
        own = self.heads[task].slots().keys()
        return [name for name, spec in self.modules.items() if task in spec.when or self.at(name).keys() <= own]

    def require(self, modules: Iterable[str]) -> None:
        """Raises InputError unless the model has modules of these names."""
        for name in modules:
            if name not in self.modules:
                there = ", ".join(self.modules) or "none"
                raise InputError(f"the model has no module called {name!r}; there are: {there}")

    def _require_free(self, name: str) -> None:
        if name in self.names:
            raise InputError(f"the model already has {'a head' if name in self.heads else 'a module'} called {name!r}")

    def _delete(self, name: str) -> None:
        del self.modules[name]
        for slot in self.slots.values():
            if name in slot.computations:
                del slot.computations[name]
            fusions: dict[str, Any] = dict(slot.fusions.items())
            for key, fusion in fusions.items():
                if name in names(fusion.block):
                    del slot.fusions[key]

    def _attachment(self, name: str) -> module_io.Attachment:
        return exact(self.modules[name], self.slots, self.at(name)), self.at(name)

    def _attach_head(self, head: Head) -> None:
        self._keep_slots(head.slots())
        head.network.train(self.network.training).requires_grad_(not self._freeze.base_is_frozen())
        self.heads.attach(head)

    def _keep_slots(self, changing: Collection[str]) -> None:
        """Let modules whose patterns fit slots that come or go name their other slots instead."""
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
