"""Routing by facts, and how a route is shown."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from slotted import ROUTED, Net
from vocabulary import CONDITION_VALUES, CONDITIONS

from perception.frame import Conditions
from perception.modules.route import Route
from perception.modules.routing.fixed import FixedRouter
from perception.modules.routing.show_route import as_figure, as_table, routing_table
from perception.modules.spec import LowRank

known_conditions = st.builds(Conditions, **{k: st.sampled_from([None, *v]) for k, v in CONDITIONS.items()})
facts = st.sampled_from([*CONDITION_VALUES, "lidar", "no-lidar", "cameras", "no-cameras", "detection", "map"])


def can_hold(asked: set[str]) -> bool:
    """Others are refused."""
    return not any(
        set(pair) <= asked for pair in (("lidar", "no-lidar"), ("cameras", "no-cameras"), ("detection", "map"))
    )


# ---- fixed routing


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(known_conditions, st.booleans(), st.booleans()), min_size=1, max_size=4),
    st.lists(st.sets(facts, max_size=3).filter(can_hold), min_size=1, max_size=3),
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
                    *conditions.known(),
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
    heat, cell_map, _ = as_figure(rows).axes
    expected = np.array([[0.75, 0, 1], [0.5, np.nan, 0]])
    np.testing.assert_allclose(np.ma.filled(heat.images[0].get_array(), np.nan), expected, rtol=1e-6)
    np.testing.assert_array_equal(cell_map.images[0].get_array(), cells[0, 0].numpy())
