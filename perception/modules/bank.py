"""The bank: which modules a model has, at which slots, and what is done with them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from perception.errors import InputError
from perception.modules import module_io
from perception.modules.aggregation.composition import Block, fuses, names
from perception.modules.base_weights import base_hash, own_parameters
from perception.modules.computation.kinds import KINDS, build
from perception.modules.freeze import Freeze
from perception.modules.merge_into_base import Merge
from perception.modules.route import Route
from perception.modules.slot import Slot
from perception.modules.spec import Module, ModuleUnion
from perception.modules.status import Row, row

BRANCHES = {"lidar": "lidar", "camera": "cameras"}  # first part of a slot's name: the sensor


class Bank:
    """Adds modules to the slots of a network, trains some of them, keeps them in files, writes them into weights.

    Whatever is done here, the base keeps its bytes: `base_hash` changes only while modules are merged.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.slots = {m.name: m for m in network.modules() if isinstance(m, Slot)}
        self.modules: dict[str, Module] = {}
        self.active: Route | None = None  # in force instead of the router's
        self.merged: Merge | None = None
        self.folded: tuple[str, ...] = ()  # modules that are part of the weights for good
        self._freeze = Freeze(network, list(self.slots.values()))

    def match(self, patterns: Sequence[str], kind: str) -> list[Slot]:
        """The slots with these names or globs whose layers a module of this kind can attach to.

        Raises:
            InputError: a pattern fits no such slot.
        """
        found: dict[str, Slot] = {}
        for pattern in patterns:
            fitting = {name: slot for name, slot in self.slots.items() if fnmatchcase(name, pattern)}
            if not fitting:
                raise InputError(f"no slot is called {pattern!r}; there are {', '.join(self.slots)}")
            able = {name: slot for name, slot in fitting.items() if KINDS[kind].attaches_to(slot.layer)}
            if not able:
                layers = sorted({type(slot.layer).__name__ for slot in fitting.values()})
                raise InputError(f"{kind} does not attach to {', '.join(layers)}, which is what {pattern!r} names")
            found |= able
        return list(found.values())

    def add(self, spec: Module) -> None:
        """A new module, the identity at first, at each slot that its patterns name. On a frozen base it is frozen too.

        Raises:
            InputError: the name is taken, a pattern fits no slot, or two parts of a union want the same one.
        """
        self.require_unmerged()
        if spec.name in self.modules:
            raise InputError(f"the model already has a module called {spec.name!r}")
        computations: dict[str, Any] = {}
        for part in spec.single():
            for slot in self.match(part.slots, part.kind):
                if slot.name in computations:
                    raise InputError(f"two parts of {spec.name!r} are at {slot.name}; give each part slots of its own")
                computations[slot.name] = build(part, slot.layer)
        self._attach(spec, computations)

    def delete(self, name: str) -> None:
        """Take the module, and the attention of blocks with it, out of every slot.

        Raises:
            InputError: there is no such module, or it is active.
        """
        self.require_unmerged()
        self.require([name])
        if self.active is not None and name in self.active.weights:
            raise InputError(f"module {name!r} is active; activate another or None first")
        del self.modules[name]
        for slot in self.slots.values():
            if name in slot.computations:
                del slot.computations[name]
            fusions: dict[str, Any] = dict(slot.fusions.items())
            for key, fusion in fusions.items():
                if name in names(fusion.block):
                    del slot.fusions[key]

    def activate(self, block: Block | None) -> None:
        """Run these modules, combined like this, on all frames whatever the router says; None: as the router says.

        In a network without a router, such as a foreign one, None runs none.

        Raises:
            InputError: the model has no module of that name.
        """
        self.active = None if block is None else self._route(block)
        self.apply(self.active or Route())  # a router puts its own in force at the next frame

    def train(self, *modules: str) -> None:
        """From now on these train and all else, the base first, holds still; without names all of it does.

        What holds still gets no gradients and stays in evaluation mode, so that no running statistics move, whatever
        mode a training loop puts the network into (`freeze.py`). The network is in training mode then. A learned
        router (`chooser`) is left alone.

        Args:
            modules: names, or the key of a Fuse block, whose attention trains then.
        """
        self.require_unmerged()
        self.require(set(modules) - self._freeze.keys())
        self._freeze.all_but(modules)

    def freeze(self, *modules: str) -> None:
        """These hold still from now on; all else goes on as it did."""
        self.require_unmerged()
        self.require(set(modules) - self._freeze.keys())
        self._freeze.these(modules)

    def save(self, name: str, path: Path, domain: str = "", metrics: Mapping[str, float | None] | None = None) -> None:
        """Write the module to PATH.safetensors and PATH.json (`module_io.py`).

        Args:
            domain: what the module was trained on, in words.
            metrics: what it reaches there.
        """
        self.require_unmerged()
        self.require([name])
        spec, at = self.modules[name], self.at(name)
        if isinstance(spec, ModuleUnion):  # each part with its slots by name
            exact = (tuple(slot.name for slot in self.match(part.slots, part.kind)) for part in spec.parts)
            parts = zip(spec.parts, exact, strict=True)
            spec = spec.model_copy(update={"parts": tuple(p.model_copy(update={"slots": own}) for p, own in parts)})
        module_io.write(path, spec, self.slots, at, self.base_hash(), domain, metrics or {})

    def load(self, *paths: Path, rename: Mapping[Path, str] | None = None) -> list[str]:
        """Add modules from files; returns their names.

        Args:
            rename: names for the modules of some of the files, instead of their own.

        Raises:
            InputError: a file is damaged or does not fit this network, or a name is taken; then none is added.
        """
        self.require_unmerged()
        base, read = self.base_hash(), {}
        for path in paths:
            spec, computations = module_io.read(path, (rename or {}).get(path), self.slots, base)
            if spec.name in self.modules or spec.name in read:
                raise InputError(f"{path}: a module called {spec.name!r} is there already; rename this one")
            read[spec.name] = spec, computations
        for spec, computations in read.values():
            self._attach(spec, computations)
        return list(read)

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
        """What there is, how large, and in which state."""
        base = sum(parameter.numel() for parameter in own_parameters(self.network))
        active = self.active.weights if self.active else {}
        merged = self.merged.names if self.merged else ()
        return [
            row(spec, self.at(name), self.slots, base, name in active, name in merged)
            for name, spec in self.modules.items()
        ]

    def at(self, name: str) -> dict[str, Any]:
        """What the module is at each of its slots, by the slot's name; also while it is merged."""
        kept = self.merged.computations if self.merged else {}
        there = {slot.name: kept.get(slot.name, slot.computations) for slot in self.slots.values()}
        return {slot: computations[name] for slot, computations in there.items() if name in computations}

    def asks(self, name: str) -> frozenset[str]:
        """Facts that must hold of a frame for the module: its `when`, and the sensor in whose branch its slots are."""
        branches = {slot.split(".")[0] for slot in self.at(name)}
        needs = {BRANCHES[next(iter(branches))]} if len(branches) == 1 and branches <= BRANCHES.keys() else set()
        return frozenset(self.modules[name].when) | needs

    def fold(self, routes: Sequence[Route], keep: Collection[str] = ()) -> None:
        """Write the modules into the weights of their layers for good, where all routes agree and the modules fold.

        What does not fold stays at its slot and in `modules`; what is folded is named in `folded`, and modules that
        no route runs are gone. Slots in `keep` are left as they are: a chooser decides there.
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
        """The slots that compute when the fused map is there."""
        return [name for name in self.slots if name.startswith(("trunk.", "heads."))]

    def apply(self, route: Route) -> None:
        """Put the route in force at every slot."""
        for slot in self.slots.values():
            slot.route = route

    def require(self, modules: Iterable[str]) -> None:
        """Raises InputError unless the model has modules of these names."""
        for name in modules:
            if name not in self.modules:
                there = ", ".join(self.modules) or "none"
                raise InputError(f"the model has no module called {name!r}; there are: {there}")

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
