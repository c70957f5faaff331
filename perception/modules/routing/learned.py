"""Learned routing: the network selects its modules from its own features.

Gates turn logits over N options into weights. Options are dimension 1: (B, N) or (B, N, ...), with an independent
choice at each position of the rest. An option whose logit is -inf is never chosen. All are deterministic but `gumbel`
and `sample`, which are for training.

Load balance: probabilities are (B, N, P, ...): options, then places with their own choice (slots), then cells, whose
choices count like those of further frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perception.errors import InputError
from perception.frame import Conditions
from perception.io import distributed
from perception.io.distributed import draw_locally, mean, processes
from perception.modules.bank import Bank
from perception.modules.computation.computation import Weight
from perception.modules.route import Route
from perception.modules.routing.fixed import meets_requirements, required_kinds
from perception.modules.routing.pooling import HIDDEN, CellFeatures, PooledFeatures
from perception.modules.spec import LearnedRouting

BASELINE_RATE = 0.05  # of the running mean that REINFORCE compares costs with


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedRoute(Route):
    """A route with the tensors for its losses, of N options (the base alone, then the modules) and P places (slots, or
    one). At level `cell` the tensors have further dimensions (rows, columns).
    """

    logits: Tensor  # (B, N, P); -inf where the option is impossible
    chosen: Tensor  # (B, N, P) weights
    target: Tensor | None  # (B, N, P) choice by the tags, zero on frames without tags; None: not supervised


def select_learned(routes: Sequence[Route]) -> list[LearnedRoute]:
    """Those of the routes that a learned router chose."""
    return [route for route in routes if isinstance(route, LearnedRoute)]


class LearnedRouter(nn.Module):
    """Chooses, from the fused features, among the base alone and the modules at the slots after the fusion.

    At level `global` one choice is made for all slots, at `slot` one for each slot, at `cell` one for each cell of the
    fused features; slots of added heads keep the fixed route. A module is never chosen without the sensors and tasks
    that it requires; its conditions (weather, light, city) are left to the router.

    Each option has its own head, by the module's name. After modules were added to the bank or deleted, `update` adds
    and removes heads; the others do not change.
    """

    baseline: Tensor
    batches: Tensor

    def __init__(self, config: LearnedRouting, channels: int, bank: Bank) -> None:
        super().__init__()
        self.config, self.bank = config, bank
        added = {slot for head in bank.heads.values() for slot in head.slots()}
        self.slots = [slot for slot in bank.after_fusion() if slot not in added]
        self.features = CellFeatures(channels) if config.level == "cell" else PooledFeatures(channels)
        self.base, self.options = self._head(), nn.ModuleDict()
        if config.choose == "reinforce":
            self.register_buffer("baseline", torch.zeros(()))
            self.register_buffer("batches", torch.zeros(()))
        self.update()
        for name in config.modules:
            if name not in self.options:
                there = ", ".join(self._modules_after_fusion()) or "none"
                raise InputError(f"routing.modules: no module {name!r} is after the fusion; there are: {there}")

    @property
    def names(self) -> list[str]:
        return [name for name in self.bank.modules if name in self.options]

    def update(self) -> None:
        """Add heads for new options, and remove those of deleted modules."""
        options = [
            name for name in self._modules_after_fusion() if not self.config.modules or name in self.config.modules
        ]
        known = {name: self.options[name] if name in self.options else self._head() for name in options}
        self.options = nn.ModuleDict(known)

    def forward(
        self,
        fused: Tensor,
        route: Route,
        sensors: Mapping[str, Tensor],
        tasks: Sequence[str],
        conditions: Sequence[Conditions],
    ) -> LearnedRoute:
        """The fixed `route` of these tasks with other weights at the slots after the fusion; conditions are for the
        target."""
        slots = [slot for slot in self.slots if self.bank.slots[slot].computations]
        present = self._options_at(slots).to(fused.device)
        logits = self._logits(fused, slots)
        allowed = _like(self._find_allowed(sensors, tasks)[..., None] & present, logits)
        logits = logits.masked_fill(~allowed, NEVER)
        chosen = self._choose(logits)
        target = None
        if self.config.supervise and conditions:
            target = _like(self._target(route, present, conditions), logits).expand_as(logits)
        by_slot = {slot: self._weights(chosen, place, route) for place, slot in enumerate(slots)}
        return LearnedRoute(
            route.weights, by_slot, route.block, route.z, static=False, logits=logits, chosen=chosen, target=target
        )

    def losses(self, routes: Sequence[LearnedRoute], costs: Tensor | None) -> dict[str, Tensor]:
        """Terms to add to the task's loss, for the routes of one batch, as parts of the mean over all processes.

        REINFORCE needs the `costs` (B,) of the tasks on each frame.
        """
        terms = {}
        if self.config.balance:
            terms["balance"] = self.config.balance * torch.stack([gshard(r.logits) for r in routes]).mean()
        targets = [(r.logits, r.target) for r in routes if r.target is not None]
        if targets:
            terms["supervision"] = self.config.supervise * torch.stack([supervision(*t) for t in targets]).mean()
        if self.config.choose == "reinforce":
            if costs is None:
                raise ValueError("REINFORCE needs the costs of the frames")
            logs = torch.stack([log_probability(r.logits, r.chosen) for r in routes]).sum(dim=0)
            terms["reinforce"] = reinforce(logs, costs, self.baseline)
            if self.training:
                self.batches += 1
                self.baseline.lerp_(mean(costs.detach().mean()), (1 / self.batches).clamp(min=BASELINE_RATE))
        return terms

    def balance(self, routes: Sequence[LearnedRoute]) -> dict[str, float]:
        """`gshard` of the routes of one batch, averaged over them and all processes."""
        values = [float(distributed.mean(gshard(route.logits))) for route in routes]
        return {"gshard": sum(values) / len(values)}

    def _modules_after_fusion(self) -> list[str]:
        names = {name for slot in self.slots for name in self.bank.slots[slot].computations}
        return [name for name in self.bank.modules if name in names]

    def _head(self) -> nn.Module:
        """Logits of one option from the features; initially zero."""
        head: nn.Module
        if self.config.level == "cell":
            head = nn.Conv2d(HIDDEN, 1, 1)
        else:
            head = nn.Linear(HIDDEN, len(self.slots) if self.config.level == "slot" else 1)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        return head.to(next(self.features.parameters()).device)

    def _logits(self, fused: Tensor, slots: Sequence[str]) -> Tensor:
        features = self.features(fused)
        logits = torch.stack([head(features) for head in (self.base, *(self.options[n] for n in self.names))], dim=1)
        return logits[:, :, [self.slots.index(slot) for slot in slots]] if self.config.level == "slot" else logits

    def _choose(self, logits: Tensor) -> Tensor:
        """Weights (B, N, P) from logits; deterministic in evaluation."""
        if self.config.choose == "soft":
            return soft(logits)
        if self.config.choose == "top_k":
            return top_k(logits, self.config.k)
        if not self.training:
            return hard(logits)
        if self.config.choose == "gumbel":
            return gumbel(logits, self.config.temperature)
        return sample(logits)

    def _options_at(self, slots: Sequence[str]) -> Tensor:
        """(N, P) bool: the options that each place has."""
        if self.config.level != "slot":
            return torch.ones(1 + len(self.names), 1, dtype=torch.bool)
        modules = [[name in self.bank.slots[slot].computations for slot in slots] for name in self.names]
        return torch.tensor([[True] * len(slots), *modules])

    def _find_allowed(self, sensors: Mapping[str, Tensor], tasks: Sequence[str]) -> Tensor:
        """(B, N) bool: the options whose sensors and task are available."""
        required = [frozenset[str](), *(self.bank.requirements(name) for name in self.names)]
        unknown = {fact for name in self.bank.sensors if name not in sensors for fact in (name, f"no-{name}")}
        excluded = unknown | (set(self.bank.tasks) - set(tasks))
        return torch.stack([meets_requirements(facts, sensors, excluded) for facts in required], dim=1)

    def _target(self, route: Route, present: Tensor, conditions: Sequence[Conditions]) -> Tensor:
        """(B, N, P): equal shares for the modules of the fixed route, or all for the base; zero without tags."""
        kinds = required_kinds([self.bank.requirements(name) for name in self.names], self.bank.conditions)
        tagged = [all(kind in frame for kind in kinds) for frame in conditions]
        fixed = [torch.as_tensor(route.weights.get(name, 0.0)).expand(len(tagged)) for name in self.names]
        modules = torch.stack([torch.zeros(len(tagged)), *(w.to("cpu") for w in fixed)], dim=1).to(present.device)
        modules = modules[..., None] * present
        modules[:, 0] = (modules.sum(dim=1) == 0).to(modules)
        return modules / modules.sum(dim=1, keepdim=True) * present.new_tensor(tagged)[:, None, None]

    def _weights(self, chosen: Tensor, place: int, route: Route) -> dict[str, Weight]:
        """Module -> weight at a place; modules that are not options keep the fixed route's."""
        weights = {name: weight for name, weight in route.weights.items() if name not in self.options}
        for option, name in enumerate(self.names, start=1):
            if self.config.level == "cell":
                weights[name] = chosen[:, option]  # (B, 1, rows, columns)
            else:
                weights[name] = chosen[:, option, place if self.config.level == "slot" else 0]
        return weights


def supervision(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy between the router and the choice by the tags, over all places of frames with tags.

    This process's part of the mean over all of them.
    """
    logs = logits.log_softmax(dim=1).masked_fill(logits == NEVER, 0.0)
    return -(target * logs).sum() / mean(target.sum()).clamp(min=1 / processes())


def _like(mask: Tensor, logits: Tensor) -> Tensor:
    """(B, N, P) with a dimension of one for rows and columns where the logits have these."""
    return mask.reshape(*mask.shape, *(1,) * (logits.ndim - 3))


def importance(probabilities: Tensor) -> Tensor:
    """(N, P): sum of an option's weights over the batch (Shazeer et al., 2017, eq. 6)."""
    return probabilities.transpose(0, 1).transpose(1, 2).flatten(2).sum(dim=2)


def gshard(logits: Tensor) -> Tensor:
    """N sum_i f_i P_i, averaged over places (GShard, Lepikhin et al., 2020; Switch, Fedus et al., 2021, eq. 4).

    P_i is the mean of the probabilities, f_i that of the best option (one-hot) over all processes; N counts the options
    that are possible on some frame. 1.0 where the router is uniform, N where it has collapsed to one option.
    """
    chosen = hard(logits)
    choices = chosen[:, :1].numel() / chosen.shape[2]  # at one place
    f, p = distributed.mean(importance(chosen)) / choices, importance(soft(logits)) / choices
    possible = distributed.total(importance((logits > NEVER).to(logits.dtype))) > 0
    return (possible.sum(dim=0) * (f * p).sum(dim=0)).mean()


NEVER = float("-inf")


def soft(logits: Tensor) -> Tensor:
    """softmax(l), over all options."""
    return logits.softmax(dim=1)


def top_k(logits: Tensor, k: int) -> Tensor:
    """softmax over the k largest logits (Shazeer et al., 2017, eq. 3-5, without noise); the others get weight zero.

    No gradient reaches the others, so a router can collapse; see `gshard`.
    """
    return logits.masked_fill(ranks(logits) >= k, NEVER).softmax(dim=1)


def hard(logits: Tensor) -> Tensor:
    """One for the best option, zero for the others."""
    return (ranks(logits) == 0).to(logits.dtype)


def gumbel(logits: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """A sampled option as one-hot weights, with the gradient of softmax((l + g) / t) and the noise g.

    Straight-through Gumbel-softmax (Jang et al., 2017).
    """
    perturbed = logits + (gumbel_noise(logits) if noise is None else noise)
    relaxed = (perturbed / temperature).softmax(dim=1)
    return hard(perturbed) + (relaxed - relaxed.detach())  # the bracket is exactly zero


def sample(logits: Tensor) -> Tensor:
    """An option drawn with probabilities softmax(l), as one-hot weights without gradient (the Gumbel-max trick)."""
    return hard((logits + gumbel_noise(logits)).detach())


def log_probability(logits: Tensor, chosen: Tensor) -> Tensor:
    """(B,): log pi of the options that the one-hot `chosen` names, summed over the places of a frame."""
    logs = logits.log_softmax(dim=1).masked_fill(chosen == 0, 0.0)
    return logs.flatten(1).sum(dim=1)


def reinforce(log_probabilities: Tensor, costs: Tensor, baseline: Tensor | float) -> Tensor:
    """The loss whose gradient estimates that of the expected cost (REINFORCE, Williams, 1992): mean (c - b) log pi.

    The baseline b must not depend on the samples, whose costs are c (B,).
    """
    return ((costs - baseline).detach() * log_probabilities).mean()


def ranks(logits: Tensor) -> Tensor:
    """How many options are better than each, shaped like the logits; of equal ones the first is better.

    By comparing all pairs, since topk leaves the order of equals open, and engines differ in it.
    """
    own, rival = logits.unsqueeze(2), logits.unsqueeze(1)
    index = torch.arange(logits.shape[1], device=logits.device)
    earlier = (index < index[:, None]).reshape(len(index), -1, *(1,) * (logits.ndim - 2))  # [own, rival]
    return ((rival > own) | ((rival == own) & earlier)).sum(dim=2)


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel numbers, finite: -log of exponential ones, of which torch draws a zero now and then."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    numbers = draw_locally(
        lambda frames: like.new_empty((frames, *like.shape[1:]), dtype=dtype).exponential_(), len(like)
    )
    return -numbers.clamp(min=torch.finfo(dtype).tiny).log()
