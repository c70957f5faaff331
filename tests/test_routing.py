"""Routing by facts and by recognised conditions, and how a route is shown."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from slotted import ROUTED, Net, softmax, weights_at
from torch import Tensor, nn

from perception.config import ClassifierRouting
from perception.frame import CONDITION_VALUES, CONDITIONS, Conditions
from perception.modules.route import Route
from perception.modules.routing.classifier import recognised
from perception.modules.routing.fixed import FixedRouter
from perception.modules.routing.show_route import as_table, picture, routing_table
from perception.modules.spec import LowRank
from perception.tasks.conditions.network import classification

# ---- the classifier


def confident(conditions: list[Conditions], strength: float = 20.0) -> dict[str, Tensor]:
    """Logits that say these conditions, and nothing where one is not known."""
    return {
        kind: torch.tensor([[strength * (getattr(c, kind) == value) for value in values] for c in conditions])
        for kind, values in CONDITIONS.items()
    }


known_conditions = st.builds(Conditions, **{k: st.sampled_from([None, *v]) for k, v in CONDITIONS.items()})
fact = st.sampled_from([*CONDITION_VALUES, "lidar", "no-lidar", "cameras", "no-cameras"])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(known_conditions, st.booleans(), st.booleans()), min_size=1, max_size=4),
    st.lists(st.sets(fact, max_size=3), min_size=1, max_size=3),
)
def test_a_classifier_that_is_right_routes_as_the_tags_do(
    frames: list[tuple[Conditions, bool, bool]], asks: list[set[str]]
) -> None:
    modules = [LowRank(name=f"m{i}", rank=1, when=tuple(asked)) for i, asked in enumerate(asks)]
    network = Net(modules, ClassifierRouting(kind="classifier", confidence=0.6)).eval()
    conditions = [c for c, *_ in frames]
    sensors = {"lidar": torch.tensor([f[1] for f in frames]), "cameras": torch.tensor([f[2] for f in frames])}
    said = confident(conditions)
    for kind, head in network.chooser.heads.items():  # the features are replaced by the frame's index
        head.weight.data, head.bias.data = said[kind].T.contiguous(), torch.zeros(len(CONDITIONS[kind]))
    network.chooser.features = nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 8, len(frames), bias=False))
    nn.init.zeros_(network.chooser.features[1].weight)
    x = torch.zeros(len(frames), 4, 6, 8)
    for i in range(len(frames)):
        x[i].view(-1)[i] = network.chooser.features[1].weight.data[i, i] = 1
    route = network.chooser(x, Route(), sensors, ("detection",), ())
    ((fixed, _),) = network.router(conditions, sensors)
    for name in network.bank.modules:
        expected = torch.as_tensor(fixed.weights.get(name, 0.0)).expand(len(frames))
        assert torch.equal(route.at("trunk.one")[name], expected)
    assert network.chooser.conditions(route) == conditions


def test_conditions_less_probable_than_the_threshold_are_unknown() -> None:
    p = {"weather": [0.5, 0.3, 0.2], "light": [0.55, 0.45], "city": [0.2, 0.8]}
    logits = {kind: torch.tensor([values], dtype=torch.float64).log() for kind, values in p.items()}
    assert recognised(logits, 0.54).tolist() == [[0, 0, 0, 1, 0, 0, 1]]
    assert recognised(logits, 0.0).tolist() == [[1, 0, 0, 1, 0, 0, 1]]


def test_the_classifiers_loss_counts_the_frames_whose_condition_is_known() -> None:
    torch.manual_seed(0)
    tags = [Conditions("rain", None, None), Conditions("fog", "night", None), Conditions()]
    logits = {kind: torch.randn(3, len(values), dtype=torch.float64) for kind, values in CONDITIONS.items()}
    p = {kind: [softmax(frame) for frame in values.numpy()] for kind, values in logits.items()}
    weather = -(math.log(p["weather"][0][1]) + math.log(p["weather"][1][2])) / 2
    assert classification(logits, tags).item() == pytest.approx(weather - math.log(p["light"][1][1]), rel=1e-12)
    assert classification(logits, []).item() == 0


def test_in_training_known_tags_count_and_in_evaluation_they_do_not() -> None:
    network = Net(
        [LowRank(name="rain", when=("rain",)), LowRank(name="night", when=("night",))],
        ClassifierRouting(kind="classifier"),
    )
    for head in network.chooser.heads.values():
        nn.init.zeros_(head.weight)
        head.bias.data = torch.tensor([5.0, 0, 0][: len(head.bias)])  # clear, day, boston
    x, sensors = torch.zeros(2, 4, 6, 8), {"lidar": torch.ones(2, dtype=torch.bool)}
    tags = [Conditions(weather="rain"), Conditions(light="night")]
    network.train()(x, sensors, tags)
    assert [w.tolist() for w in weights_at(network, "trunk.one").values()] == [[1, 0], [0, 1]]
    network.eval()(x, sensors, tags)
    assert [w.tolist() for w in weights_at(network, "trunk.one").values()] == [[0, 0], [0, 0]]


# ---- fixed routing


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(known_conditions, st.booleans(), st.booleans()), min_size=1, max_size=4),
    st.lists(st.sets(st.one_of(fact, st.sampled_from(["detection", "map"])), max_size=3), min_size=1, max_size=3),
)
def test_fixed_routing_runs_a_module_where_all_that_it_asks_for_holds(
    frames: list[tuple[Conditions, bool, bool]], asks: list[set[str]]
) -> None:
    modules = [LowRank(name=f"m{i}", rank=1, when=tuple(asked)) for i, asked in enumerate(asks)]
    router = FixedRouter(Net(modules).bank, ("detection", "map"))
    sensors = {"lidar": torch.tensor([f[1] for f in frames]), "cameras": torch.tensor([f[2] for f in frames])}
    routes = router([c for c, *_ in frames], sensors)
    assert sorted(task for _, tasks in routes for task in tasks) == ["detection", "map"]
    assert (len(routes) == 2) == bool(set().union(*asks) & {"detection", "map"})
    for route, tasks in routes:
        for i, asked in enumerate(asks):
            weight = torch.as_tensor(route.weights.get(f"m{i}", 0.0)).expand(len(frames))
            for (conditions, lidar, cameras), w in zip(frames, weight.tolist(), strict=True):
                holds = {
                    conditions.weather, conditions.light, conditions.city,
                    "lidar" if lidar else "no-lidar", "cameras" if cameras else "no-cameras", *tasks,
                }  # fmt: skip
                assert w == (asked <= holds)


# ---- inspection


def test_a_route_is_shown_by_slot_and_module() -> None:
    network = Net(ROUTED)
    cells = torch.linspace(0, 1, 6).reshape(1, 1, 2, 3)
    route = Route({"rain": torch.tensor([0.25, 0.75]), "seeing": 1.0}, {"heads.two": {"rain": cells}})
    rows = routing_table(route, network.bank, frame=1)
    assert [(r.slot, r.module, r.weight) for r in rows] == [
        ("trunk.one", "rain", 0.75), ("trunk.one", "blind", 0.0), ("trunk.one", "seeing", 1.0),
        ("heads.two", "rain", pytest.approx(0.5)), ("heads.two", "seeing", 0.0),
    ]  # fmt: skip
    console = Console(width=100, record=True, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(as_table(rows))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "│" in line]
    assert lines == [["trunk.one", "0.75", "0.00", "1.00"], ["heads.two", "0.50", "", "0.00"]]
    heat, cell_map, _ = picture(rows).axes
    expected = np.array([[0.75, 0, 1], [0.5, np.nan, 0]])
    np.testing.assert_allclose(np.ma.filled(heat.images[0].get_array(), np.nan), expected, rtol=1e-6)
    np.testing.assert_array_equal(cell_map.images[0].get_array(), cells[0, 0].numpy())
