"""The perception model: sensor branches, fusion, BEV trunk and heads, with modules at their slots."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perception.bev.memory import MemorySlot
from perception.bev.trunks import ConvNextTrunk, Fuse, PyramidTrunk, SingleSensor, Trunk
from perception.config import Config, extend_taxonomy, parse_config
from perception.errors import InputError
from perception.frame import Arrays, Conditions
from perception.loss import Loss
from perception.modules.aggregation.representations import add_fusion
from perception.modules.bank import Bank
from perception.modules.composition import parse_block
from perception.modules.memories import SLOT as MEMORY
from perception.modules.route import Route, Routes
from perception.modules.routing.fixed import SettledRouter, SteeredRouter, make_fixed_routes, present, settle_routes
from perception.modules.routing.learned import LearnedRouter, select_learned
from perception.sensors import SENSORS
from perception.sensors.inputs import without_padding
from perception.sensors.network import SensorNetwork
from perception.state import NEXT, states_of
from perception.tasks import TASKS, tasks_of
from perception.tasks.network import PointFeatures, TaskNetwork
from perception.tasks.task import Task, TaskConfig, add_prefix, part_of
from perception.taxonomy import Taxonomy

# Features by name, see `Task.reads`, and the parts of the network that they pass: the first words of slots' names.
_FUSED_PARTS = ("fuse", "fused", MEMORY)
_TRUNK_PARTS = (*_FUSED_PARTS, "trunk")
_PARTS = {"inputs": (), "maps": (), "fused": _FUSED_PARTS, "trunk": _TRUNK_PARTS, "points": _TRUNK_PARTS}


def parts_of(feature: str) -> tuple[str, ...]:
    return () if feature == "inputs" else (*SENSORS, *_PARTS[feature])


@dataclass
class Trace:
    """What a forward pass computes besides the outputs of the tasks."""

    routes: list[Route] = field(default_factory=list)  # of the groups of tasks, in order
    supervised: dict[str, Tensor] = field(default_factory=dict)  # SENSOR/NAME, of the branches that have losses


class PerceptionModel(nn.Module):
    """Inputs of the sensors (`sensors/inputs.py`) to the outputs of the tasks; a sensor may be missing."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        grid, model = config.grid.build(), config.model
        for kind, sensor in config.spec.sensors.items():
            self.add_module(kind, sensor.network())
        maps = [(branch.channels, branch.stride) for branch in self.branches.values()]
        self.fuse = Fuse(maps, model.fused_channels, model.fused_stride) if model.fusion else SingleSensor()
        self.memory = MemorySlot(grid.coarser(model.fused_stride), model.fused_channels)
        self.trunk: Trunk | ConvNextTrunk | PyramidTrunk
        if model.trunk.pyramid:
            self.trunk = PyramidTrunk(model.trunk, model.fused_channels)
        else:
            trunk = ConvNextTrunk if model.trunk.kind == "convnext" else Trunk
            self.trunk = trunk(model.trunk, model.fused_channels, model.fused_stride)
        self.tasks = tasks_of(config.tasks, config.head_grid, config.taxonomy)
        self.heads, self.added = nn.ModuleDict(), nn.ModuleDict()  # of the base, and added later
        for name, task in self.tasks.items():
            if task.config.added:
                self.added[name] = self._added_network(task)
            else:
                self.heads[name] = task.network(self.trunk.channels)
        self.bank = Bank(self, config.taxonomy.conditions, TASKS, SENSORS)
        for module in config.modules:
            self.bank.add(module)
        for text in config.fusions:
            add_fusion(self.bank, parse_block(text))
        self.router: SettledRouter | SteeredRouter | None = None  # None: what is known of each frame decides
        self.chooser: Any = LearnedRouter(config.routing, model.fused_channels, self.bank) if config.routing else None

    def forward(
        self,
        inputs: dict[str, Tensor],
        conditions: Sequence[Conditions] = (),
        tasks: Collection[str] | None = None,
        routes: Routes | None = None,
        trace: Trace | None = None,
        training: bool = False,
    ) -> dict[str, Tensor]:
        """Dense outputs, TASK/NAME; each task on its own route, so a module for one task changes no other's output.

        With a state among the inputs there is one more output, `next_state`: the fused map with the memory applied, at
        the state's resolution. It is computed on the shared route (without task-specific modules), so all tasks share
        one state. A state from another route, for example after the weather changed, is used unchanged.

        Args:
            inputs: from `sensors/inputs.py`; with a memory also those of `state.py`.
            tasks: to compute; None for all of the model.
            routes: of the tasks, instead of those by conditions and sensors.
            trace: to write down what is computed besides.
            training: leave frames that lack a sensor out of the running statistics of its branch.
        """
        outputs: dict[str, Tensor] = {}
        features = _Features(self, inputs, trace, training)
        if routes is None:
            asked = self.tasks if tasks is None else tasks
            routes = self.router(inputs, asked) if self.router else self._fixed_routes(inputs, asked, conditions)
        for task, route in self._route_tasks(features, routes, conditions):
            feature = features(self.tasks[task].reads, route)
            with self.bank.current.running(route):
                outputs |= add_prefix(task, self.head(task)(feature))
        if inputs.keys() & self.memory.states.keys():
            outputs |= {NEXT + name: state for name, state in self._next_states(features, routes).items()}
        return outputs

    def next_states(
        self,
        inputs: dict[str, Tensor],
        conditions: Sequence[Conditions],
        routes: Routes | None,
        training: bool = False,
    ) -> dict[str, Tensor]:
        """The states of the next frame alone, without a state the fused map; arguments as of `forward`."""
        routes = routes or self._fixed_routes(inputs, self.tasks, conditions)
        return self._next_states(_Features(self, inputs, None, training), routes)

    def _next_states(self, features: _Features, routes: Routes) -> dict[str, Tensor]:
        return self.memory.next_states(features("fused", self._state_route(routes)), features.inputs)

    def no_states(self, frames: int) -> dict[str, Tensor]:
        """The states (B, ...) of frames without a frame before, by input; empty for a network without a memory."""
        return self.memory.no_states(frames)

    def _state_route(self, routes: Routes) -> Route:
        """The route of the tasks, without the modules for some tasks alone."""
        route, _ = routes[0]
        shared = {name: weight for name, weight in route.weights.items() if not self.bank.is_for_tasks(name)}
        return route if len(shared) == len(route.weights) else replace(route, weights=shared)

    def _fixed_routes(
        self, inputs: dict[str, Tensor], tasks: Collection[str], conditions: Sequence[Conditions]
    ) -> Routes:
        return make_fixed_routes(self.bank, tasks, conditions, present(self.bank, inputs))

    def _route_tasks(
        self, features: _Features, routes: Routes, conditions: Sequence[Conditions]
    ) -> Iterator[tuple[str, Route]]:
        """Each task with its route; a learned router chooses that of the tasks behind the trunk after the others."""
        for route, tasks in routes:
            late = [task for task in tasks if self.tasks[task].reads != "inputs"]
            yield from ((task, route) for task in tasks if task not in late)
            if late and self._chooses():
                sensors = present(self.bank, features.inputs)
                route = self.chooser(features("fused", route), route, sensors, late, conditions)
            yield from ((task, route) for task in late)
            if features.trace is not None and tasks:
                features.trace.routes.append(route)

    def head(self, task: str) -> TaskNetwork:
        network: Any = self.heads[task] if task in self.heads else self.added[task]
        return network

    def new_head(self, name: str, options: Mapping[str, Any], source: str) -> tuple[TaskConfig, TaskNetwork]:
        """Configuration and network of a further task, with initial weights, not attached yet; `source` is of its
        options."""
        if name in self.heads:
            raise InputError(f"{source}: its base has the task {name} already; add another, or adapt it by modules")
        content = self.config.model_dump(mode="json")
        content["tasks"][name] = {**options, "added": True}
        config = parse_config(content | {"taxonomy": extend_taxonomy(self.config, name, options, source)}, source)
        task = tasks_of(config.tasks, config.head_grid, config.taxonomy)[name]
        return config.tasks[name], self._added_network(task).to(next(self.parameters()).device)

    def attach_head(self, name: str, config: TaskConfig, network: nn.Module) -> None:
        """Add the head of a task; tasks keep the order of `TASKS`."""
        self.added[name] = network
        self._set_tasks({**self.config.tasks, name: config}, extend_taxonomy(self.config, name, dict(config), name))

    def detach_head(self, name: str) -> None:
        del self.added[name]
        tasks = {task: config for task, config in self.config.tasks.items() if task != name}
        self._set_tasks(tasks, self.config.taxonomy)

    def reconfigure(self, config: Config) -> None:
        """Take over a configuration of this network with other settings and options and, at the end, further modules.

        A learned router is removed where the configuration has none.
        """
        for module in config.modules[len(self.bank.modules) :]:
            self.bank.add(module)
        self.bank.modules.update({module.name: module for module in config.modules})
        if config.routing is None:
            self.chooser = None
        self.config = config

    def _set_tasks(self, tasks: Mapping[str, TaskConfig], taxonomy: Taxonomy) -> None:
        ordered = {name: tasks[name] for name in TASKS if name in tasks}
        self.config = self.config.model_copy(update={"tasks": ordered, "taxonomy": taxonomy})
        self.tasks = tasks_of(ordered, self.config.head_grid, taxonomy)

    def _added_network(self, task: Task[Any]) -> TaskNetwork:
        """Return the initial network of an added head without advancing the random state, on which the base depends."""
        with torch.random.fork_rng(devices=[]):
            return task.network(self.trunk.channels)

    def losses(self, dense: dict[str, Tensor], labels: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Loss]:
        """Loss terms, TASK/TERM and SENSOR/TERM, for the dense outputs of a batch and their labels."""
        terms: dict[str, Loss] = {}
        for name, own in labels.items():
            part = self.branches[name] if name in self.branches else self.head(name)
            terms |= add_prefix(name, part.losses(part_of(name, dense), own))
        return terms

    def routing_losses(self, routes: Sequence[Route], costs: Tensor | None = None) -> dict[str, Tensor]:
        """Loss terms of the learned router on the routes of a `Trace`; REINFORCE needs the costs (B,) of the tasks."""
        return self.chooser.losses(chosen, costs) if (chosen := select_learned(routes)) else {}

    def routing_balance(self, routes: Sequence[Route]) -> dict[str, float]:
        """Load balance of a learned router on the routes of a `Trace`; empty without one."""
        return self.chooser.balance(chosen) if (chosen := select_learned(routes)) else {}

    def _chooses(self) -> bool:
        """Whether the learned router has a choice: its slots have modules, and none is activated by hand."""
        holding = any(self.bank.slots[slot].computations for slot in self.bank.after_fusion())
        return self.chooser is not None and self.bank.active is None and holding

    def is_same_in(self, route: Route, other: Route, parts: Collection[str]) -> bool:
        """Whether two routes run the same modules with the same weights in these parts of the network."""
        if route.block != other.block or route.z is not other.z:
            return False
        return all(slot.same(route, other) for name, slot in self.bank.slots.items() if name.split(".")[0] in parts)

    def reaches(self, slot: str, task: str) -> bool:
        """Whether the outputs of the task depend on what the slot computes."""
        part, _, rest = slot.partition(".")
        return rest.split(".")[0] == task if part == "heads" else part in parts_of(self.tasks[task].reads)

    def _routes_through(self, slot: str, cases: Sequence[Routes]) -> list[Route]:
        """The routes on which outputs of their tasks, or the next state, depend on what the slot computes."""
        found = [route for routes in cases for route, tasks in routes if any(self.reaches(slot, t) for t in tasks)]
        if self.memory.computations and slot.partition(".")[0] in parts_of("fused"):
            found += [self._state_route(routes) for routes in cases]
        return found

    @property
    def branches(self) -> dict[str, SensorNetwork]:
        """Kind of sensor -> its branch."""
        return {kind: getattr(self, kind) for kind in self.config.model.sensors}

    def sensor_maps(self, inputs: dict[str, Tensor], trace: Trace | None, training: bool) -> list[Tensor]:
        """BEV feature maps of the sensors; arguments as of `forward`."""
        maps = []
        for kind, branch in self.branches.items():
            feature_map, supervised = branch(inputs, training)
            maps.append(feature_map)
            if trace is not None:
                trace.supervised |= add_prefix(kind, supervised)
        return maps

    def load_pretrained(self) -> None:
        """Load the weights with which a training of the branches begins."""
        for branch in self.branches.values():
            branch.load_pretrained()

    def supervision(self) -> dict[str, Any]:
        """Kind of sensor -> `SensorNetwork.supervision`, of those whose branches have losses."""
        needs = {kind: branch.supervision() for kind, branch in self.branches.items()}
        return {kind: need for kind, need in needs.items() if need is not None}

    def predict(self, inputs: dict[str, Tensor], conditions: Sequence[Conditions] = ()) -> dict[str, Tensor]:
        """Decoded outputs of all tasks, TASK/NAME -> (B, ...), and the next states; inputs as in `forward`."""
        return self.decode(self(inputs, conditions))

    def decode(self, dense: dict[str, Tensor]) -> dict[str, Tensor]:
        """Decoded outputs of all tasks, from their dense outputs; and the next states among these."""
        outputs: dict[str, Tensor] = {}
        for task in self.tasks:
            outputs |= add_prefix(task, self.head(task).decode(part_of(task, dense)))
        return outputs | {name: dense[name] for name in states_of(dense).values()}

    def folded(self, *routes: Conditions) -> PerceptionModel:
        """A copy with its modules folded into the weights, for these sets of conditions; none: unknown conditions.

        Unrouted modules are removed. Modules that do not fold stay at their slots. With a learned router all modules
        stay. Modules that are active on only some of the routes (for several conditions, or missing sensors) stay as
        well, weighted by a `SteeredRouter`; those that are the same on all routes are folded.
        """
        model = copy.deepcopy(self)
        chosen = model.chooser.names if model.chooser else ()
        fixed = [module for name, module in model.bank.modules.items() if name not in chosen]
        required = {fact.removeprefix("no-") for module in fixed for fact in module.when}
        sensors: list[list[str]] = [[], *([fact] for fact in model.bank.sensors if fact in required)]  # missing ones
        known = routes or (Conditions(),)
        cases = [settle_routes(model.bank, model.tasks, each, missing) for missing in sensors for each in known]
        settled = {slot: model._routes_through(slot, cases) for slot in model.bank.slots}
        always = {name for name in model.bank.modules if all(any(name in r.weights for r, _ in case) for case in cases)}
        model.bank.fold(settled, keep=model.bank.after_fusion() if model.chooser else ())
        if len(cases) == 1:
            model.router = SettledRouter(cases[0])
        else:
            model.router = SteeredRouter(model.bank, always)
            if model.chooser is None:
                for slot in model.bank.slots.values():
                    slot.stack_low_rank()
        return model

    def deployed(self, *routes: Conditions) -> PerceptionModel:
        """`folded` for inference: `forward` computes only what `predict` needs."""
        model = self.folded(*routes).eval()
        for heads in (model.heads, model.added):
            for task, head in heads.items():
                heads[task] = model.tasks[task].deployed(head)
        return model


class _Features:
    """The features of one forward pass by name, see `Task.reads`: each is computed when a route needs it, and kept for
    routes that are the same up to there."""

    def __init__(self, model: PerceptionModel, inputs: dict[str, Tensor], trace: Trace | None, training: bool) -> None:
        self.model, self.inputs, self.trace, self.training = model, inputs, trace, training
        self._kept: dict[str, tuple[Route, Any]] = {}

    def __call__(self, name: str, route: Route) -> Any:
        """The feature of this name on the route."""
        if name in self._kept:
            earlier, value = self._kept[name]
            if earlier is route or self.model.is_same_in(route, earlier, parts_of(name)):
                return value
        with self.model.bank.current.running(route):
            value = self._compute(name, route)
        self._kept[name] = (route, value)
        return value

    def _compute(self, name: str, route: Route) -> Any:
        if name == "maps":
            return self.model.sensor_maps(self.inputs, self.trace, self.training)
        if name == "fused":
            return self.model.memory.remember(self.model.fuse(self("maps", route)), self.inputs)
        if name == "trunk":
            return self.model.trunk(self("fused", route))
        if name == "points":
            columns, stride = self.model.config.grid.build().shape[1], self.model.config.model.trunk.stride
            points, cells = self.inputs["points"], self.inputs["point_cells"]
            return PointFeatures.of(self("trunk", route), points, cells, columns, stride)
        return self.inputs


def batch_inputs(frames: Sequence[Arrays]) -> dict[str, torch.Tensor]:
    """Batched inputs as tensors, from those that `prepare` returns for each frame."""
    return to_tensors(join_inputs(frames))


def join_inputs(frames: Sequence[Arrays]) -> Arrays:
    """The inputs of all frames along the batch dimension."""
    return {name: np.concatenate([frame[name] for frame in frames]) for name in frames[0]} if frames[1:] else frames[0]


def to_tensors(inputs: Arrays) -> dict[str, torch.Tensor]:
    """Inputs as tensors; pillars that are padding in all frames are removed."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in without_padding(inputs).items()}
