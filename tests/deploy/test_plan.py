"""The plan says what the export then does, and costs that are counted."""

import pytest
from exported import AFFINE, BANK, NOT_AFFINE, PROMPT, ROUTES, checkpoint_of, modular

from deploy.plan import plan, table
from perception.errors import InputError
from perception.training.checkpoint import load_model


def steps_of(checkpoint, routes=((),)):
    return {step.slot: step for step in plan(checkpoint, routes).steps}


def test_affine_modules_of_one_route_are_folded_everywhere():
    checkpoint = checkpoint_of(modular("affine", [*AFFINE, PROMPT]))
    planned = plan(checkpoint, [["rain"]])
    assert {step.what for step in planned.steps} == {"folded"}
    assert sum(step.parameters + step.flops for step in planned.steps) == 0
    assert planned.unused == ("dry",)
    model, _ = load_model(checkpoint)
    assert [step.slot for step in planned.steps] == [
        name for name, slot in model.bank.slots.items() if slot.computations
    ]


def test_what_cannot_fold_is_inline():
    neck = NOT_AFFINE | {"slots": ["trunk.stage0.1", "heads.map"]}
    checkpoint = checkpoint_of(modular("curved", [neck, AFFINE[0] | {"slots": ["fused", "heads.map"]}]))
    planned = plan(checkpoint)
    steps = {step.slot: step for step in planned.steps}
    assert {name: step.what for name, step in steps.items()} == {
        "fused": "folded",
        "trunk.stage0.1": "inline",
        "heads.map": "inline",
    }
    assert steps["heads.map"].modules == ("bend", "rank")
    assert "bend cannot fold" in steps["heads.map"].why


def test_what_differs_between_routes_is_banked_where_it_is():
    steps = steps_of(checkpoint_of(modular("banked", BANK)), ROUTES)
    assert (steps["trunk.stage0.0"].what, steps["trunk.stage0.0"].modules) == ("folded", ("city",))
    stage = steps["trunk.stage1.0"]
    assert (stage.what, stage.modules, stage.why) == ("banked", ("city", "rain"), "rain: not on all routes")
    assert steps["camera.backbone.bn1"].modules == ("night",)
    assert steps["fused"].why == "blind: not on all routes"
    assert plan(checkpoint_of(modular("banked", BANK)), ROUTES).unused == ("dry",)


def test_slots_of_a_router_in_the_graph_are_said_to_be():
    module = AFFINE[0] | {"slots": ["trunk.*", "lidar.*"]}
    steps = steps_of(checkpoint_of(modular("chosen", [module], routing={"kind": "learned", "choose": "soft"})))
    assert (steps["trunk.stage0.0"].what, steps["trunk.stage0.0"].why) == (
        "banked",
        "selected by the router in the graph",
    )
    assert steps["lidar.pillar"].what == "folded"


def test_the_table_sums_up():
    planned = plan(checkpoint_of(modular("banked", BANK)), ROUTES)
    shown = table(planned)
    assert shown.row_count == len(planned.steps) + 1
    assert shown.caption == "on no route, not exported: dry"
    with pytest.raises(InputError, match="hail: unknown condition"):
        plan(checkpoint_of(modular("banked", BANK)), [["hail"]])
