"""Fixed routing: what is known of a frame before the network runs (conditions, sensors, task) selects its modules."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from perception.frame import Conditions
from perception.io.distributed import gather, local_part
from perception.modules.bank import Bank
from perception.modules.computation.computation import Weight
from perception.modules.route import Route, Routes
from perception.modules.spec import COMPUTATIONS

Facts = frozenset[str]  # conditions, sensors and tasks


class SettledRouter:
    """Uses the same routes for all frames."""

    def __init__(self, routes: Routes) -> None:
        self.routes = routes

    def __call__(self, inputs: Mapping[str, Tensor], tasks: Collection[str]) -> Routes:
        return [(route, tuple(task for task in group if task in tasks)) for route, group in self.routes]


class SteeredRouter:
    """Runs modules with weights that are an input of the network, so that one graph serves many routes.

    Args:
        bank: of the model.
        always: modules that run on every route, at weight one.
    """

    def __init__(self, bank: Bank, always: Collection[str]) -> None:
        self.bank = bank
        self.always = tuple(name for name in bank.modules if name in always)
        self.steered = tuple(name for name in bank.modules if name not in always)
        self.conditional = _reads_conditions(bank)

    def __call__(self, inputs: Mapping[str, Tensor], tasks: Collection[str]) -> Routes:
        """Routes for a batch of frames; the inputs have the weights `route` (1, M) of the `steered` modules and, for
        conditional ones, the condition vector `conditions` (1, Z).
        """
        weights: dict[str, Weight] = dict.fromkeys(self.always, 1.0)
        weights |= {name: inputs["route"][:, i] for i, name in enumerate(self.steered)}
        z = inputs.get("conditions")
        required = {name: self.bank.requirements(name) & set(self.bank.tasks) for name in weights}
        if not any(required.values()):
            return [(Route(weights, z=z, static=False), tuple(tasks))]
        return [
            (Route({n: w for n, w in weights.items() if required[n] <= {task}}, z=z, static=False), (task,))
            for task in tasks
        ]


def make_fixed_routes(
    bank: Bank, tasks: Collection[str], conditions: Sequence[Conditions], sensors: Mapping[str, Tensor]
) -> Routes:
    """Routes for a batch of frames, each with the tasks that it serves; sensors as from `present`.

    A module runs on the frames that are known to meet all its requirements. Unknown counts as not met, so a frame with
    unknown conditions uses the base alone.
    """
    return _routes(bank, tasks, {name: bank.requirements(name) for name in bank.modules}, conditions, sensors)


def settle_routes(bank: Bank, tasks: Collection[str], conditions: Conditions, missing: Collection[str] = ()) -> Routes:
    """The routes of all frames under these conditions, with all sensors but the missing ones.

    Only the `when` of modules counts, because the branch of a missing sensor returns zeros anyway.
    """
    requirements = {name: frozenset(module.when) for name, module in bank.modules.items()}
    sensors = {name: torch.tensor([name not in missing]) for name in bank.sensors}
    return _routes(bank, tasks, requirements, [conditions], sensors)


def make_shared_routes(
    bank: Bank, inputs: Mapping[str, Tensor], conditions: Sequence[Conditions], tasks: Collection[str]
) -> Routes:
    """As `make_fixed_routes`, for the frames of all processes of a training as one batch.

    So all processes run the same parts of the network equally often, which synchronised normalisations need.
    """
    sensors = present(bank, inputs)
    every = _gather_conditions(conditions, bank.conditions, next(iter(sensors.values())).device)
    parts: dict[int, Tensor] = {}  # by whole tensor; routes with the same weights keep the same object

    def part(weight: Tensor) -> Tensor:
        return parts.setdefault(id(weight), local_part(weight))

    def parts_of(weights: Mapping[str, Weight]) -> dict[str, Weight]:
        return {name: part(w) if isinstance(w, Tensor) else w for name, w in weights.items()}

    routes = make_fixed_routes(bank, tasks, every, {name: gather(there) for name, there in sensors.items()})
    return [
        (replace(route, weights=parts_of(route.weights), z=None if route.z is None else part(route.z)), group)
        for route, group in routes
    ]


def _gather_conditions(
    conditions: Sequence[Conditions], kinds: Mapping[str, Sequence[str]], device: torch.device
) -> list[Conditions]:
    places = [
        [values.index(frame[kind]) if kind in frame else -1 for kind, values in kinds.items()] for frame in conditions
    ]
    return [
        Conditions(**{kind: kinds[kind][i] for kind, i in zip(kinds, frame, strict=True) if i >= 0})
        for frame in gather(torch.tensor(places, device=device)).tolist()
    ]


def _routes(
    bank: Bank,
    tasks: Collection[str],
    requirements: Mapping[str, Facts],
    conditions: Sequence[Conditions],
    sensors: Mapping[str, Tensor],
) -> Routes:
    required = frozenset[str]().union(*requirements.values())
    z = condition_vectors(conditions, bank.condition_values) if _reads_conditions(bank) else None
    if bank.active is not None:
        return [(replace(bank.active, z=z), tuple(tasks))]
    if not required & {*bank.sensors, *(f"no-{name}" for name in bank.sensors)}:
        sensors = {}  # reading them would specialise an exported graph to its example input
    routes: Routes = []
    shared: dict[tuple[bool, ...], Weight] = {}
    for task in tasks if required & set(bank.tasks) else (None,):
        weights = fixed_weights(requirements, facts(conditions, sensors, task), shared)
        routes.append((Route(weights, z=z), tuple(tasks) if task is None else (task,)))
    return routes


def _reads_conditions(bank: Bank) -> bool:
    kinds = {part.kind for module in bank.modules.values() for part in module.single()}
    return any(COMPUTATIONS[kind].conditional for kind in kinds)


def fixed_weights(
    requirements: Mapping[str, Facts], frames: Sequence[Facts], shared: dict[tuple[bool, ...], Weight]
) -> dict[str, Weight]:
    """Weights of the modules that run: 1.0 on all frames, or (B,) ones and zeros; equal ones are one object of
    `shared`."""
    weights: dict[str, Weight] = {}
    for name, required in requirements.items():
        chosen = tuple(required <= known for known in frames)
        if any(chosen):
            weight = 1.0 if all(chosen) else torch.tensor(chosen, dtype=torch.float32)
            weights[name] = shared.setdefault(chosen, weight)
    return weights


def present(bank: Bank, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sensor of the model -> (B,) bool whether each frame has it; a missing one has zeros as inputs."""
    return {fact: (inputs[name] != 0).flatten(1).any(dim=1) for fact, name in bank.sensors.items() if name in inputs}


def facts(conditions: Sequence[Conditions], sensors: Mapping[str, Tensor], task: str | None) -> list[Facts]:
    """Facts of each frame of a batch, for a task or all of them; sensors as from `present`: others are neither there
    nor not."""
    size = len(conditions) or max((len(there) for there in sensors.values()), default=1)
    known = [set(c.known()) for c in conditions] or [set() for _ in range(size)]
    for name, present_in in sensors.items():
        for frame, there in zip(known, present_in.tolist(), strict=True):
            frame.add(name if there else f"no-{name}")
    return [frozenset(frame | ({task} if task else set())) for frame in known]


def condition_vectors(conditions: Sequence[Conditions], values: Sequence[str]) -> Tensor:
    """(B, values): one where a condition holds; zeros for unknown conditions."""
    known = [c.known() for c in conditions] or [()]
    return torch.tensor([[float(value in frame) for value in values] for frame in known])


def meets_requirements(required: Facts, sensors: Mapping[str, Tensor], excluded: Collection[str]) -> Tensor:
    """(B,) bool: frames that have the sensors that a module requires, by tensor operations only.

    Args:
        excluded: facts about other sensors and tasks, which no frame has.
    """
    holds = torch.ones_like(next(iter(sensors.values())))
    for name, there in sensors.items():
        if name in required:
            holds = holds & there
        if f"no-{name}" in required:
            holds = holds & ~there
    return holds & required.isdisjoint(excluded)


def required_kinds(requirements: Iterable[Facts], conditions: Mapping[str, Sequence[str]]) -> list[str]:
    """The kinds of conditions (weather, light, city) that some module requires."""
    required = frozenset[str]().union(*requirements)
    return [kind for kind, values in conditions.items() if required & set(values)]
