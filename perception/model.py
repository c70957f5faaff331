"""The perception model: sensor branches, fusion, BEV trunk and heads, with modules at their slots."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perception.bev.trunks import ConvNextTrunk, Fuse, PyramidTrunk, SingleSensor, Trunk
from perception.config import Config, extend_taxonomy, parse_config
from perception.errors import InputError
from perception.frame import Conditions
from perception.loss import Loss
from perception.modules.aggregation.composition import parse_block
from perception.modules.aggregation.representations import add_fusion
from perception.modules.bank import Bank
from perception.modules.computation.memory import SLOT as MEMORY
from perception.modules.computation.memory import FusedInput, FusedMap
from perception.modules.route import Route, Routes
from perception.modules.routing.fixed import SettledRouter, SteeredRouter, make_fixed_routes, present, settle_routes
from perception.modules.routing.learned import LearnedRouter, select_learned
from perception.modules.slot import Slot
from perception.modules.spec import NEXT_STATE
from perception.sensors.camera.encoder import ImageEncoder
from perception.sensors.camera.lift import Lift
from perception.sensors.inputs import without_padding
from perception.sensors.lidar.encoder import PillarEncoder, VoxelFeatureEncoder
from perception.tasks import TASKS, tasks_of
from perception.tasks.network import PointFeatures, TaskNetwork
from perception.tasks.task import Task, TaskConfig, add_prefix, part_of
from perception.taxonomy import SENSORS, Taxonomy

# Features by name, see `Task.reads`, and the parts of the network that they pass: the first words of slots' names.
_SENSOR_PARTS = ("lidar", "camera")
_FUSED_PARTS = (*_SENSOR_PARTS, "fuse", "fused", MEMORY)
_TRUNK_PARTS = (*_FUSED_PARTS, "trunk")
PARTS = {"inputs": (), "maps": _SENSOR_PARTS, "fused": _FUSED_PARTS, "trunk": _TRUNK_PARTS, "points": _TRUNK_PARTS}


@dataclass
class Trace:
    """What a forward pass computes besides the outputs of the tasks."""

    routes: list[Route] = field(default_factory=list)  # of the groups of tasks, in order
    supervised: dict[str, Tensor] = field(default_factory=dict)  # SENSOR/NAME: the camera's depth logits


class PerceptionModel(nn.Module):
    """Camera and LiDAR inputs to the outputs of the tasks; a missing sensor has zeros (`sensors/inputs.py`)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        grid, model = config.grid.build(), config.model
        inputs = []  # channels and stride of each sensor's BEV feature map
        if model.lidar:
            encoder = VoxelFeatureEncoder if model.lidar.encoder == "padded" else PillarEncoder
            self.lidar = encoder(model.lidar, grid)
            inputs.append((model.lidar.channels, 1))
        if model.camera:
            self.camera = ImageEncoder(model.camera)
            self.lift = Lift(model.camera, grid.coarser(model.camera.stride))
            inputs.append((model.camera.channels * len(model.camera.heights), model.camera.stride))
        self.fuse = Fuse(inputs, model.fused_channels, model.fused_stride) if model.fusion else SingleSensor()
        self.memory = Slot(MEMORY, FusedMap(grid.coarser(model.fused_stride), model.fused_channels))
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
        self.bank = Bank(self, config.taxonomy.conditions, TASKS)
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
    ) -> dict[str, Tensor]:
        """Dense outputs, TASK/NAME; each task on its own route, so a module for one task changes no other's output.

        With a state among the inputs there is one more output, `next_state`: the fused map with the memory applied, at
        the state's resolution. It is computed on the shared route (without task-specific modules), so all tasks share
        one state. A state from another route, for example after the weather changed, is used unchanged.

        Args:
            inputs: from `sensors/inputs.py`; with a memory also those of `sensors/state.py`.
            tasks: to compute; None for all of the model.
            routes: of the tasks, instead of those by conditions and sensors.
            trace: to write down what is computed besides.
        """
        outputs: dict[str, Tensor] = {}
        features = _Features(self, inputs, trace)
        if routes is None:
            asked = self.tasks if tasks is None else tasks
            own = self.router
            routes = own(inputs, asked) if own else make_fixed_routes(self.bank, asked, conditions, present(inputs))
        for task, route in self._route_tasks(features, routes, conditions):
            feature = features(self.tasks[task].reads, route)
            with self.bank.current.running(route):
                outputs |= add_prefix(task, self.head(task)(feature))
        if "state" in inputs:
            outputs[NEXT_STATE] = self._next_state(features, routes)
        return outputs

    def next_state(
        self,
        inputs: dict[str, Tensor],
        conditions: Sequence[Conditions],
        routes: Routes | None,
        trace: Trace | None = None,
    ) -> Tensor:
        """The output `next_state` alone, without a state the fused map; arguments as of `forward`."""
        routes = routes or make_fixed_routes(self.bank, self.tasks, conditions, present(inputs))
        return self._next_state(_Features(self, inputs, trace), routes)

    def _next_state(self, features: _Features, routes: Routes) -> Tensor:
        fused: Tensor = features("fused", self._state_route(routes))
        state = features.inputs.get("state")
        return fused if state is None else self.memory.layer.reduce(fused, state)

    def no_state(self, frames: int) -> Tensor:
        """The input `state` (B, C, rows / stride, columns / stride) of frames without a frame before."""
        strides = [part.stride for module in self.bank.modules.values() for part in module.memories]
        state: Tensor = self.memory.layer.no_state(frames, strides[0] if strides else 1)
        return state

    def _state_route(self, routes: Routes) -> Route:
        """The route of the tasks, without the modules for some tasks alone."""
        route, _ = routes[0]
        shared = {name: weight for name, weight in route.weights.items() if not self.bank.is_for_tasks(name)}
        return route if len(shared) == len(route.weights) else replace(route, weights=shared)

    def _route_tasks(
        self, features: _Features, routes: Routes, conditions: Sequence[Conditions]
    ) -> Iterator[tuple[str, Route]]:
        """Each task with its route; a learned router chooses that of the tasks behind the trunk after the others."""
        for route, tasks in routes:
            late = [task for task in tasks if self.tasks[task].reads != "inputs"]
            yield from ((task, route) for task in tasks if task not in late)
            if late and self._chooses():
                route = self.chooser(features("fused", route), route, present(features.inputs), late, conditions)
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
        """Take over a configuration with the same network, other settings and, at the end, further modules."""
        for module in config.modules[len(self.bank.modules) :]:
            self.bank.add(module)
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
        """Loss terms, TASK/TERM and camera/depth, for the dense outputs of a batch and their labels."""
        terms: dict[str, Loss] = {}
        for name, own in labels.items():
            part = self.camera if name == "camera" else self.head(name)
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
        return rest.split(".")[0] == task if part == "heads" else part in PARTS[self.tasks[task].reads]

    def _routes_through(self, slot: str, cases: Sequence[Routes]) -> list[Route]:
        """The routes on which outputs of their tasks, or the next state, depend on what the slot computes."""
        found = [route for routes in cases for route, tasks in routes if any(self.reaches(slot, t) for t in tasks)]
        if self.memory.computations and slot.partition(".")[0] in _FUSED_PARTS:
            found += [self._state_route(routes) for routes in cases]
        return found

    def sensor_maps(self, inputs: dict[str, Tensor], trace: Trace | None) -> list[Tensor]:
        """BEV feature maps of the sensors."""
        maps = []
        if self.config.model.lidar:
            maps.append(self.lidar(inputs["pillar_points"], inputs["pillar_counts"], inputs["pillar_cells"]))
        if self.config.model.camera:
            maps.append(self._camera_map(inputs["images"], inputs["image_from_reference"], trace))
        return maps

    def _camera_map(self, images: Tensor, image_from_reference: Tensor, trace: Trace | None) -> Tensor:
        """(B, channels * heights, rows, columns) of the cameras."""
        if trace is None:
            context, logits = self.camera(images, image_from_reference)
        else:
            context, logits = self._encode_present(images, image_from_reference)
            if self.depth_cells() is not None:
                trace.supervised["camera/depth"] = logits
        lifted: Tensor = self.lift(context, logits.softmax(dim=2), image_from_reference)
        return lifted

    def _encode_present(self, images: Tensor, image_from_reference: Tensor) -> tuple[Tensor, Tensor]:
        """Context and depth logits as from the encoder, which computes only the images of cameras that are present.

        A missing camera has a black image. It would cost time, and in training it would enter the running statistics.
        Without any image the encoder computes no rows, because several processes need the same parameters in a step.
        """
        current = self.bank.current
        present = image_from_reference.flatten(2).any(dim=2)  # B N
        chosen = present.flatten().nonzero()[:, 0]
        with current.running(current.route.of_rows(chosen // images.shape[1])):
            encoded = self.camera(images[present][:, None], image_from_reference[present][:, None])
        context, logits = (
            rows.new_zeros(present.numel(), *rows.shape[2:])
            .index_copy(0, chosen, rows[:, 0])
            .unflatten(0, present.shape)
            for rows in encoded
        )
        return context, logits

    def depth_cells(self) -> tuple[int, int] | None:
        """(h, w) of the depth labels that training the current parameters needs; None if it needs none."""
        return self.camera.cells_to_supervise() if self.config.model.camera else None

    def predict(self, inputs: dict[str, Tensor], conditions: Sequence[Conditions] = ()) -> dict[str, Tensor]:
        """Decoded outputs of all tasks, TASK/NAME -> (B, ...), and `next_state`; inputs as in `forward`."""
        return self.decode(self(inputs, conditions))

    def decode(self, dense: dict[str, Tensor]) -> dict[str, Tensor]:
        """Decoded outputs of all tasks, from their dense outputs; and the next state, if it is among them."""
        outputs: dict[str, Tensor] = {}
        for task in self.tasks:
            outputs |= add_prefix(task, self.head(task).decode(part_of(task, dense)))
        return outputs | {name: dense[name] for name in (NEXT_STATE,) if name in dense}

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
        sensors: list[list[str]] = [[], *([sensor] for sensor in SENSORS if sensor in required)]  # missing ones
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

    def __init__(self, model: PerceptionModel, inputs: dict[str, Tensor], trace: Trace | None) -> None:
        self.model, self.inputs, self.trace = model, inputs, trace
        self._kept: dict[str, tuple[Route, Any]] = {}

    def __call__(self, name: str, route: Route) -> Any:
        """The feature of this name on the route."""
        if name in self._kept:
            earlier, value = self._kept[name]
            if earlier is route or self.model.is_same_in(route, earlier, PARTS[name]):
                return value
        with self.model.bank.current.running(route):
            value = self._compute(name, route)
        self._kept[name] = (route, value)
        return value

    def _compute(self, name: str, route: Route) -> Any:
        if name == "maps":
            return self.model.sensor_maps(self.inputs, self.trace)
        if name == "fused":
            memory = self.model.memory
            return memory(FusedInput.of(self.model.fuse(self("maps", route)), self.inputs, memory.layer))
        if name == "trunk":
            return self.model.trunk(self("fused", route))
        if name == "points":
            columns, stride = self.model.config.grid.build().shape[1], self.model.config.model.trunk.stride
            points, cells = self.inputs["points"], self.inputs["point_cells"]
            return PointFeatures.of(self("trunk", route), points, cells, columns, stride)
        return self.inputs


def batch_inputs(frames: Sequence[Mapping[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Batched inputs, from those that `prepare` returns for each frame; pillars that are padding in all are removed."""
    inputs = without_padding({name: np.concatenate([frame[name] for frame in frames]) for name in frames[0]})
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
