"""A slot: a named layer of the network to which modules attach; how modules name slots, and layers with slots."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perception.errors import InputError
from perception.io import distributed
from perception.modules.composition import Block, Fuse, deltas, fold_block, is_affine, is_sum, names
from perception.modules.computation.computation import LAYERS, Affine, Site
from perception.modules.computation.weight_delta import LowRank, LowRankStack
from perception.modules.route import CurrentRoute, Route
from perception.modules.spec import COMPUTATIONS, Module, ModuleUnion


class Slot(nn.Module):
    """Wraps a layer; modules add their deltas to its output: y = layer(x) + sum_m weight_m * module_m(x, y).

    A route can combine them in other ways (`composition.py`).
    """

    constant: Tensor | None

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.layer: Any = layer
        self.computations = nn.ModuleDict()
        self.fusions = nn.ModuleDict()  # the attention of Fuse blocks, by `Fuse.key`
        self.stack: LowRankStack | None = None  # of several low-rank modules, see `stack_low_rank`
        self.register_buffer("constant", None)  # (1, O, H, W) that a folded prompt adds to the output
        self.current = CurrentRoute()  # a bank gives all its slots the same

    def forward(self, x: Any, frames: Tensor | None = None) -> Tensor:
        """The layer's output with the deltas of the modules on the current route.

        x is what the layer reads, mostly a tensor. It has equally many rows for each frame; or, with `frames` (N,) int,
        rows (N, I) of these frames.
        """
        route = self.current.route if frames is None else self.current.route.of_rows(frames)
        block = route.combination(self.name) if self.computations else None
        single = None if block is None or self.constant is not None or self.stack else self._single(block, route)
        if single is not None:
            y: Tensor = single.output(x, self.layer, route.z)
            return y
        y = self.layer(x)
        if self.constant is not None:
            if self.constant.shape[-2:] != y.shape[-2:]:
                raise InputError(f"slot {self.name}: a prompt folds for one size of input, this layer sees several")
            y = y + self.constant
        parts = [self.stack(x, route.at(self.name))] if self.stack else []
        if block is not None:
            weighted, fuse = partial(self._weigh_delta, route), partial(self._fuse, route)
            parts.append(deltas(block, Site(x, y, self.layer, route.z), weighted, fuse))
        y = sum((part for part in parts if part is not None), start=y)
        return self.bounded(x, y) if len(self.computations) > 1 else y

    def bounded(self, x: Any, y: Tensor) -> Tensor:
        """What several modules make of the output; a part of the network may limit it."""
        return y

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the layer's weight; two slots with layers of one class and shape take the same modules."""
        return tuple(self.layer.weight.shape)

    def _single(self, block: Block, route: Route) -> Any:
        """The only module that the route runs here, if its delta is neither weighted nor part of an attention."""
        names_here = self.routed_modules(route)
        if len(names_here) != 1 or not is_sum(block):
            return None
        weight = route.at(self.name)[names_here[0]]
        return self.computations[names_here[0]] if not isinstance(weight, Tensor) and weight == 1 else None

    def routed_modules(self, *routes: Route) -> list[str]:
        """The modules at this slot that at least one of the routes runs, in their order."""
        found: dict[str, None] = {}
        for route in routes:
            block, weights = route.combination(self.name), route.at(self.name)
            if block is not None:
                found |= dict.fromkeys(n for n in names(block) if n in self.computations and n in weights)
        return list(found)

    def is_same_for_all(self, routes: Sequence[Route]) -> bool:
        """Whether all routes compute the same at this slot."""
        conditional = any(module.conditional for module in self.computations.values())

        def here(route: Route) -> tuple[Any, ...]:
            weights = {name: weight for name, weight in route.at(self.name).items() if name in self.computations}
            z = route.z.tolist() if conditional and route.z is not None else None
            return weights, route.block, z

        return all(here(route) == here(routes[0]) for route in routes)

    def same(self, route: Route, other: Route) -> bool:
        """Whether two routes run the same modules here with the very same weights; reads no tensor."""
        mine, others = route.at(self.name), other.at(self.name)
        here = (name for name in mine.keys() | others.keys() if self.stack or name in self.computations)
        return all(mine.get(name) is others.get(name) for name in here)

    def folds(self, route: Route) -> bool:
        """Whether what the route runs here is affine, with weights that do not depend on the input."""
        block, modules = route.combination(self.name), [self.computations[name] for name in self.routed_modules(route)]
        joined = block is None or is_affine(block, list(self.fusions))
        return route.static and joined and all(m.affine for m in modules)

    @torch.no_grad()
    def fold(self, route: Route) -> None:
        """Write the routed modules into the layer, and leave at the slot only what does not fold.

        All of them fold or none: one that reads the layer's output must not find another's delta in it.
        """
        routed, block = self.routed_modules(route), route.combination(self.name)
        if not self.folds(route):
            self.computations = nn.ModuleDict({name: self.computations[name] for name in routed})
            return
        if routed and block is not None:
            function = fold_block(block, Affine.of(self.layer, self.constant), partial(self._with_module, route))
            self.layer.weight.copy_(function.weight)
            if self.layer.bias is not None:
                self.layer.bias.copy_(function.bias)
            elif function.bias.any():
                self.layer.bias = nn.Parameter(function.bias.clone())
            self.constant = function.constant
        self.computations, self.fusions = nn.ModuleDict(), nn.ModuleDict()

    def stack_low_rank(self) -> None:
        """Replace the slot's low-rank modules by one stack; they can then only run in parallel, with batch weights."""
        low: dict[str, Any] = {name: m for name, m in self.computations.items() if isinstance(m, LowRank)}
        if len(low) > 1:
            self.stack = LowRankStack(low)
            self.computations = nn.ModuleDict({n: m for n, m in self.computations.items() if n not in low})

    def _with_module(self, route: Route, name: str, function: Affine) -> Affine:
        weight = route.at(self.name).get(name)
        if weight is None or name not in self.computations:
            return function
        assert isinstance(weight, float | int), "a static route has numbers for weights"
        module: Any = self.computations[name]
        return function.plus(module.fold(function, self.layer, route.z), function, weight)

    def _fuse(self, route: Route, block: Fuse, site: Site, parts: list[Tensor | None]) -> Tensor | None:
        """Attention over the members that run; with a single one the slot needs none."""
        running = [(member, part) for member, part in zip(block.members, parts, strict=True) if part is not None]
        if block.key in self.fusions and running:
            runs = [self._runs(route, member, site.y) for member, _ in running]
            fused: Tensor = self.fusions[block.key](site, [part for _, part in running], runs)
            return fused
        if len(running) > 1:
            raise InputError(f"slot {self.name} has no attention for {block}: add it (`add_fusion`) and train it")
        return running[0][1] if running else None

    def _runs(self, route: Route, member: Block, y: Tensor) -> Tensor | bool:
        """Whether a module of the member has a non-zero weight, for each row or cell of y if that differs."""
        weights = route.at(self.name)
        runs: Tensor | bool = False
        for name in names(member):
            if name in weights and name in self.computations:
                weight = weights[name]
                runs = runs | ((spread(weight, y) if isinstance(weight, Tensor) else weight) != 0)
        return runs

    def _weigh_delta(self, route: Route, name: str, site: Site) -> Tensor | None:
        """weight * delta of a module; None if it is not at this slot or not routed."""
        weight = route.at(self.name).get(name)
        if weight is None or name not in self.computations:
            return None
        module: Any = self.computations[name]
        if not isinstance(weight, Tensor):
            part: Tensor = module(site)
            return part if weight == 1 else weight * part
        if weight.ndim == 1:
            return _per_frame(module, weight, site)
        return spread(weight, site.y).to(site.y) * module(site)


def spread(weight: Tensor, y: Tensor) -> Tensor:
    """Weights (B,) of frames or (B, 1, h, w) of cells, broadcast over y, which has one or more rows for each frame."""
    if weight.ndim == 1:
        # `len` would make a dynamic number of rows a constant of the graph.
        rows = weight.repeat_interleave(y.shape[0] // len(weight)) if len(weight) > 1 else weight.expand(y.shape[0])
        return rows.reshape(-1, *(1,) * (y.ndim - 1))
    return weight if weight.shape[-2:] == y.shape[-2:] else F.interpolate(weight, size=y.shape[-2:], mode="nearest")


def _per_frame(module: Any, weight: Tensor, site: Site) -> Tensor:
    """weight (B,) times the delta. A slot may have several rows for each frame, such as its six images.

    Frames with weight zero are not computed, so that they do not enter the statistics of a batch normalisation, unless
    the gradient of the weight needs them. In a training of several processes the module runs in all or in none: one
    without such frames computes no rows, for the exchanges in the module and of its gradients.
    """
    rows = spread(weight, site.y)
    if weight.requires_grad or torch.compiler.is_compiling():
        return rows.to(site.y) * module(site)
    chosen = rows.nonzero()[:, 0]
    running = len(chosen)
    if distributed.processes() > 1 and _exchanges(module):
        running = int(distributed.total(torch.tensor(running, device=site.y.device)))
    if running == 0:
        return torch.zeros_like(site.y)
    if len(chosen) == len(rows):
        return rows.to(site.y) * module(site)
    z = site.z
    if z is not None and len(z) > 1:
        frames = weight.nonzero()[:, 0].to(z.device)
        z = z[frames] if len(frames) else z[:1]  # any one for no rows
    part = module(Site(site.x[chosen], site.y[chosen], site.layer, z))
    total = part.new_zeros(site.y.shape)  # in mixed precision the delta can be of another type than y
    return total.index_add(0, chosen.to(part.device), rows[chosen].to(part) * part)


def _exchanges(module: nn.Module) -> bool:
    """Whether processes exchange statistics of the module, or gradients, which each then needs in its graph."""
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters()):
        return True
    return any(isinstance(part, nn.SyncBatchNorm) and part.training for part in module.modules())


def matching(slots: Mapping[str, Slot], patterns: Sequence[str], kind: str) -> list[Slot]:
    """The slots that match these names or globs and whose layers a module of this kind can attach to."""
    found: dict[str, Slot] = {}
    for pattern in patterns:
        matches = {name: slot for name, slot in slots.items() if fnmatchcase(name, pattern)}
        if not matches:
            raise InputError(f"no slot is called {pattern!r}; there are {', '.join(slots)}")
        fits = COMPUTATIONS[kind].attaches_to
        attachable = {name: slot for name, slot in matches.items() if fits(slot.layer)}
        if not attachable:
            layers = sorted({type(slot.layer).__name__ for slot in matches.values()})
            raise InputError(f"{kind} does not attach to {', '.join(layers)}, which is what {pattern!r} names")
        found |= attachable
    return list(found.values())


def exact(spec: Module, slots: Mapping[str, Slot], chosen: Collection[str]) -> Any:
    """The module with its patterns replaced by the names of the chosen slots that they match."""

    def with_names(part: Any) -> Any:
        matches = tuple(slot.name for slot in matching(slots, part.slots, part.kind) if slot.name in chosen)
        return part.model_copy(update={"slots": matches})

    if isinstance(spec, ModuleUnion):
        return spec.model_copy(update={"parts": tuple(with_names(part) for part in spec.parts)})
    return with_names(spec)


def fits(spec: Module, slots: Collection[str]) -> bool:
    patterns = [pattern for part in spec.single() for pattern in part.slots]
    return any(fnmatchcase(slot, pattern) for slot in slots for pattern in patterns)


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, ReLU: (B, I, H, W) -> (B, O, H / stride, W / stride).

    The slot of the convolution is `name`, that of the normalisation `name.norm`.
    """

    def __init__(self, name: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, up: int = 1) -> None:
        super().__init__()
        layer: nn.Module
        if up > 1:  # each cell becomes up x up cells
            layer = nn.ConvTranspose2d(inputs, outputs, up, up, bias=False)
        else:
            layer = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
        self.conv = Slot(name, layer)
        self.norm = Slot(f"{name}.norm", nn.BatchNorm2d(outputs, eps=1e-3))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        return x


def add_slots(
    network: nn.Module,
    prefix: str = "",
    patterns: Sequence[str] = ("*",),
    kinds: Sequence[type[nn.Module]] = LAYERS,
) -> None:
    """Wrap the layers of these kinds in a foreign network in slots, named by their paths after the prefix.

    A layer that occurs several times gets one slot, named by its first path. Subclasses of the kinds get none, because
    they may compute something else.
    """
    made: dict[int, Slot] = {}
    for path, parent in list(network.named_modules(prefix=prefix)):
        for name, child in list(parent.named_children()) if not isinstance(parent, Slot) else ():
            full = f"{path}.{name}" if path else name
            if type(child) in kinds and any(fnmatchcase(full, pattern) for pattern in patterns):
                setattr(parent, name, made.setdefault(id(child), Slot(full, child)))
