"""The bank: the modules and added heads of a model, and the operations on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from perception.errors import InputError
from perception.modules import files
from perception.modules.base import Freeze, base_hash, base_parameters
from perception.modules.composition import Block, fuses, names
from perception.modules.files import Head
from perception.modules.memories import memories_of, require_same_state
from perception.modules.route import CurrentRoute, Route
from perception.modules.slot import Slot, exact, fits, matching
from perception.modules.spec import Module, build, require_facts
from perception.modules.status import Row, head_row, row


class Bank:
    """Adds, trains, activates, saves and folds the modules of a network with slots.

    It also adds, saves, loads and deletes the heads of added tasks (`PerceptionModel.added`). No operation but `fold`
    changes the base. Modules may require values of these conditions (kind -> values), tasks and sensors.

    Args:
        sensors: first word of the names of a branch's slots -> its kind of sensor, of which `fact` and `presence` count
            (`perception.sensors`).
    """

    def __init__(
        self,
        network: nn.Module,
        conditions: Mapping[str, Sequence[str]] | None = None,
        tasks: Collection[str] = (),
        sensors: Mapping[str, Any] | None = None,
    ) -> None:
        self.network: Any = network
        kinds = sensors or {}
        self.branches = {name: kind.fact for name, kind in kinds.items()}
        self.sensors = {kind.fact: kind.presence for kind in kinds.values()}  # fact -> input that is zero without it
        self.conditions, self.tasks = conditions or {}, tuple(tasks)
        self.condition_values = tuple(value for values in self.conditions.values() for value in values)
        self.current = CurrentRoute()
        self.slots: dict[str, Slot] = {}
        self._take({m.name: m for m in network.modules() if isinstance(m, Slot)})
        self.modules: dict[str, Module] = {}
        self.active: Route | None = None  # overrides the router's
        self.folded: tuple[str, ...] = ()  # modules that are part of the weights for good
        self._freeze = Freeze(network, self.slots)

    def add(self, spec: Module) -> None:
        """Add a module, initially the identity, at each slot that its patterns match; frozen if the base is."""
        self._require_free(spec.name)
        require_same_state(spec, self.modules.values())
        require_facts(spec.when, self.condition_values, self.tasks, self.sensors, f"module {spec.name}")
        if memories_of(spec) and not set(self.tasks).isdisjoint(spec.when):
            raise InputError(f"module {spec.name}: all tasks share the memory; leave tasks out of its `when`")
        computations: dict[str, Any] = {}
        for part in spec.single():
            for slot in matching(self.slots, part.slots, part.kind):
                if slot.name in computations:
                    raise InputError(f"two parts of {spec.name!r} are at {slot.name}; give each part slots of its own")
                computations[slot.name] = build(part, slot.layer, len(self.condition_values))
        self._attach(spec, computations)

    def add_head(self, task: str, options: Mapping[str, Any], source: str) -> None:
        """Add a head with this configuration for a task that the base does not have; modules keep their slots."""
        self._require_free(task)
        self._attach_head(self._new_head(task, options, source))

    def delete(self, name: str) -> None:
        """Remove a module, with the attention of blocks that contain it, or an added head, with its modules."""
        modules = self.modules_of(name) if name in self.heads else [name]
        self.require(modules)
        active = [module for module in modules if self.active is not None and module in self.active.weights]
        if active:
            raise InputError(f"module {active[0]!r} is active; activate another or None first")
        if name in self.heads:
            slots = self.heads[name].slots()
            self._keep_slots(slots)
            for slot in slots:
                del self.slots[slot]
            self.network.detach_head(name)
        for module in modules:
            self._delete(module)

    def activate(self, block: Block | None) -> None:
        """Run the modules of this block on all frames; None: those of the router's route, or none without a router."""
        self.active = None if block is None else self._route(block)
        self.current.route = self.active or Route()  # a router has its own for each frame

    def train(self, *modules: str) -> None:
        """Train these modules, or attentions by `Fuse.key`, and freeze all others and the base.

        Frozen parts get no gradients and stay in evaluation mode, so that their running statistics do not change
        (`Freeze`). The network is put into training mode. A learned router (`chooser`) does not change.
        """
        self.require(set(modules) - self._freeze.keys())
        self._freeze.train_only(modules)

    def freeze(self, *modules: str) -> None:
        self.require(set(modules) - self._freeze.keys())
        self._freeze.freeze(modules)

    def save(self, name: str, path: Path, domain: str = "", metrics: Mapping[str, float | None] | None = None) -> None:
        """Write the module, or the added head with its modules, to PATH.safetensors and PATH.json (`files.py`).

        Args:
            domain: description of its training data.
            metrics: its scores there.
        """
        origin = {"base": self.base_hash(), "domain": domain, "metrics": metrics or {}}
        if name in self.heads:
            own = {module: self._attachment(module) for module in self.modules_of(name)}
            files.write_head(path, self.heads[name], own, self.slots, origin)
        else:
            self.require([name])
            files.write(path, self._attachment(name), self.slots, origin)

    def load(self, *paths: Path, rename: Mapping[Path, str] | None = None) -> list[str]:
        """Add modules and heads from files, some with other names; returns the name of each file's module or task."""
        facts = (self.condition_values, self.tasks, self.sensors)
        heads, modules, loaded = files.read_all(
            paths, rename or {}, self.base_hash(), self._new_head, self.slots, self.names, facts
        )
        before = [*self.modules.values()]
        for spec, _ in modules.values():
            require_same_state(spec, before)
            before.append(spec)
        for head in heads:
            self._attach_head(head)
        for spec, computations in modules.values():
            self._attach(spec, computations)
        return loaded

    def base_hash(self) -> str:
        """Hash of the base, independent of its modules; modules fit only the base that they were trained on."""
        return base_hash(self.network)

    def status(self) -> list[Row]:
        """Modules and added heads, with their size and state."""
        base = sum(parameter.numel() for parameter in base_parameters(self.network))
        active = self.active.weights if self.active else {}
        modules = [row(spec, self.at(name), self.slots, base, name in active) for name, spec in self.modules.items()]
        return modules + [head_row(head, list(self.slots), base) for head in self.heads.values()]

    def at(self, name: str) -> dict[str, Any]:
        """Slot -> the module's computation there."""
        return {slot.name: slot.computations[name] for slot in self.slots.values() if name in slot.computations}

    def requirements(self, name: str) -> frozenset[str]:
        """Facts that a frame must have for the module to run: its `when`, and the sensor of its slots' branch."""
        branches = {slot.split(".")[0] for slot in self.at(name)}
        facts = {self.branches.get(branch, "") for branch in branches}
        sensor = facts if len(facts) == 1 and "" not in facts else set()
        return frozenset(self.modules[name].when) | sensor

    def is_for_tasks(self, name: str) -> bool:
        """Whether the module is for some tasks alone; one that has been folded is not."""
        return name in self.modules and not set(self.tasks).isdisjoint(self.modules[name].when)

    def fold(self, routes: Mapping[str, Sequence[Route]], keep: Collection[str] = ()) -> None:
        """Fold the modules permanently into the weights of their layers, at slots where all routes are the same.

        Modules that do not fold stay at their slots and in `modules`, folded ones are named in `folded`, and modules
        that no route runs are removed. Slots to `keep` do not change, because a learned router chooses there.
        """
        routed: set[str] = set()
        for slot in self.slots.values():
            if slot.name in keep:
                routed |= set(slot.computations)
                continue
            here = routes[slot.name] or [Route()]
            names_here = slot.routed_modules(*here)
            routed |= set(names_here)
            if slot.is_same_for_all(here):
                slot.fold(here[0])
            else:
                slot.computations = nn.ModuleDict({name: slot.computations[name] for name in names_here})
        remaining = {name for slot in self.slots.values() for name in slot.computations}
        self.folded = tuple(name for name in self.modules if name in routed - remaining)
        self.modules = {name: spec for name, spec in self.modules.items() if name in routed & remaining}

    def after_fusion(self) -> list[str]:
        return [name for name in self.slots if name.startswith(("trunk.", "heads."))]

    @property
    def heads(self) -> dict[str, Head]:
        """Task -> added head; empty for a network that is not a `PerceptionModel`, such as a foreign one."""
        added: Mapping[str, nn.Module] = getattr(self.network, "added", {})
        return {task: Head(task, self.network.config.tasks[task], network) for task, network in added.items()}

    @property
    def names(self) -> list[str]:
        return [*self.modules, *self.heads]

    def modules_of(self, task: str) -> list[str]:
        """The modules that belong to an added head: those that run only for its task, or only at its slots."""
        slots = self.heads[task].slots().keys()
        return [name for name, spec in self.modules.items() if task in spec.when or self.at(name).keys() <= slots]

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

    def _new_head(self, task: str, options: Mapping[str, Any], source: str) -> Head:
        if not hasattr(self.network, "new_head"):
            raise InputError(f"{source}: a foreign network takes no head of a task")
        return Head(task, *self.network.new_head(task, options, source))

    def _attach_head(self, head: Head) -> None:
        self._keep_slots(head.slots())
        head.network.train(self.network.training).requires_grad_(not self._freeze.base_is_frozen())
        self.network.attach_head(head.task, head.config, head.network)
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
        keys = self._freeze.keys()
        untrained = [fuse for fuse in fuses(block) if fuse.key not in keys]
        if untrained:
            raise InputError(f"{untrained[0]}: the model has no attention for it; add_fusion makes it, then train it")
        return Route(dict.fromkeys(names(block), 1.0), block=block)
