"""A module of several kinds: what holds for modules of one kind holds for it."""

import json

import pytest
import torch
from banks import add, new_bank
from computations import assert_near as close
from computations import randomize
from networks import FOG, inputs, model
from pydantic import ValidationError

from perception.commands.modules import _kinds
from perception.errors import InputError
from perception.modules.aggregation.merge import Merging, merge_modules
from perception.modules.aggregation.notation import parse_block
from perception.modules.bank import Bank
from perception.modules.module_record import SPECS
from perception.modules.spec import BatchNorm, LowRank, ModuleUnion

PARTS = [{"kind": "batch_norm", "slots": ["norm"]}, {"kind": "low_rank", "slots": ["one", "t*"], "rank": 2}]


def union(bank: Bank, name: str, parts: list[dict[str, object]] = PARTS) -> None:
    bank.add(SPECS.validate_python({"kind": "union", "name": name, "when": ["fog"], "parts": parts}))
    for module in bank.at(name).values():
        randomize(module)


def output(bank: Bank, name: str) -> torch.Tensor:
    bank.activate(parse_block(name))
    bank.apply(bank.active)
    return seen(bank)


def seen(bank: Bank) -> torch.Tensor:
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y: torch.Tensor = bank.network(x)
    return y


def test_it_computes_what_its_parts_compute_side_by_side():
    bank = new_bank()
    union(bank, "both")
    add(bank, "norm", "batch_norm", ("norm",))
    add(bank, "rank", "low_rank", ("one", "two"), rank=2)
    assert bank.at("both").keys() == {"norm", "one", "two"}
    for name, part in {"norm": "norm", "one": "rank", "two": "rank"}.items():
        bank.at("both")[name].load_state_dict(bank.at(part)[name].state_dict())
    torch.testing.assert_close(output(bank, "both"), output(bank, "parallel(norm, rank)"), rtol=0, atol=0)
    assert not torch.allclose(output(bank, "both"), seen(new_bank()))


def test_parts_go_by_the_name_and_the_facts_of_the_union():
    spec = SPECS.validate_python({"kind": "union", "name": "a", "when": ["fog"], "parts": PARTS})
    norm = BatchNorm(name="a", when=("fog",), slots=("norm",))
    assert spec.single() == (norm, LowRank(name="a", when=("fog",), slots=("one", "t*"), rank=2))
    assert spec == ModuleUnion(name="a", when=("fog",), parts=(norm, spec.parts[1]))
    assert SPECS.validate_python(spec.model_dump(mode="json")) == spec
    assert norm.single() == (norm,)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least 1 item"),
        ([3], "parts.0"),
        ([{"kind": "union", "parts": PARTS}], "'union'"),
        ([{"kind": "low_rank", "rank": 0}], "parts.0.low_rank.rank"),
    ],
)
def test_parts_that_are_none_are_refused(parts, message):
    with pytest.raises(ValidationError, match=message):
        SPECS.validate_python({"kind": "union", "name": "a", "parts": parts})


def test_two_parts_at_one_slot_are_refused():
    bank = new_bank()
    keys = bank.network.state_dict().keys()
    with pytest.raises(InputError, match="two parts of 'a' are at two; give each part slots of its own"):
        union(bank, "a", [{"kind": "rescale", "slots": ["two"]}, {"kind": "low_rank", "slots": ["t*"]}])
    assert bank.network.state_dict().keys() == keys
    assert not bank.modules


def test_it_merges_into_the_base_and_comes_out_bit_for_bit():
    bank = new_bank()
    union(bank, "a")
    expected, before = output(bank, "a"), {k: v.clone() for k, v in bank.network.state_dict().items()}
    bank.merge(bank.active)
    close(seen(bank), expected)
    bank.unmerge()
    after = bank.network.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


@pytest.mark.parametrize("name", [None, "mist"])
def test_a_file_brings_it_back_on_this_base_bit_for_bit(tmp_path, name):
    bank, other = new_bank(), new_bank()
    union(bank, "a")
    bank.save("a", tmp_path / "a", "fog")
    path = tmp_path / "a.json"
    (loaded,) = other.load(path, rename={path: name} if name else None)
    assert loaded == (name or "a")
    torch.testing.assert_close(output(other, loaded), output(bank, "a"), rtol=0, atol=0)
    spec = other.modules[loaded]
    assert [part.slots for part in spec.single()] == [("norm",), ("one", "two")]
    assert {part.name for part in spec.single()} == {loaded}
    assert bank.modules["a"].single()[1].slots == ("one", "t*"), "what is saved stays as it was"


def test_a_file_whose_parts_name_other_slots_is_refused(tmp_path):
    bank = new_bank()
    union(bank, "a")
    bank.save("a", tmp_path / "a")
    path = tmp_path / "a.json"
    content = json.loads(path.read_text())
    content["options"]["parts"][1]["slots"] = ["one"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="the slots of its parts are not the slots it lists"):
        new_bank().load(path)


def test_the_mean_of_two_has_parts_of_all_kinds_with_room_for_both():
    bank = new_bank()
    union(bank, "a")
    union(bank, "b", [PARTS[0], {**PARTS[1], "rank": 1}])
    missing = merge_modules(bank, "mean", ["a", "b"], Merging("average"))
    assert max(missing.values()) < 1e-12
    norm, rank = bank.modules["mean"].single()
    assert (norm.kind, rank.kind, rank.rank) == ("batch_norm", "low_rank", 3)
    for slot in ("one", "two"):
        product = [bank.at(m)[slot].delta() for m in ("a", "b", "mean")]
        close(product[2], (product[0] + product[1]) / 2)
    variances = [bank.at(m)["norm"].norm.running_var for m in ("a", "b", "mean")]
    close(variances[2], (variances[0] + variances[1]) / 2)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([PARTS[0], {"kind": "rescale", "slots": ["one", "t*"]}], "'b' is batch_norm . rescale, and do not merge"),
        ([PARTS[0], {**PARTS[1], "slots": ["one"]}], r"only one of 'a' and 'b' is at two; .*average\(a, b\)"),
        ([PARTS[1], PARTS[0]], "'a' is batch_norm"),
        (
            [PARTS[0], *({**PARTS[1], "slots": [slot]} for slot in ("one", "two"))],
            "'b' is batch_norm . low_rank . low_rank, and do not merge",
        ),
    ],
)
def test_unions_of_other_parts_do_not_merge(parts, message):
    bank = new_bank()
    union(bank, "a")
    union(bank, "b", parts)
    with pytest.raises(InputError, match=message):
        merge_modules(bank, "mean", ["a", "b"], Merging("average"))
    assert list(bank.modules) == ["a", "b"]


def test_parts_at_exchanged_slots_do_not_merge():
    bank, parts = new_bank(), [{"kind": "low_rank", "slots": [slot], "rank": 2} for slot in ("one", "two")]
    union(bank, "a", parts)
    union(bank, "b", parts[::-1])
    with pytest.raises(InputError, match="the parts of 'a' and 'b' are at different slots"):
        merge_modules(bank, "mean", ["a", "b"], Merging("average"))


def test_status_names_all_its_kinds():
    bank = new_bank()
    union(bank, "a")
    (row,) = bank.status()
    assert (row.kind, row.slots, row.folds) == ("batch_norm + low_rank", 3, True)
    assert row.parameters == sum(p.numel() for m in bank.at("a").values() for p in m.parameters())


def test_a_union_trains_routes_and_forgets_nothing_in_the_whole_network():
    network = model()
    base = network(inputs(1), [FOG])
    parts = [{"kind": "batch_norm", "slots": ["trunk.*"]}, {"kind": "low_rank", "slots": ["trunk.*", "heads.*"]}]
    network.bank.add(SPECS.validate_python({"kind": "union", "name": "fog", "when": ["fog"], "parts": parts}))
    network.bank.train("fog")
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.01)
    sum(value.square().mean() for value in network(inputs(1, 2), [FOG, FOG]).values()).backward()
    optimizer.step()
    network.eval()
    assert not torch.equal(network(inputs(1), [FOG])["detection/heatmap"], base["detection/heatmap"])
    network.bank.delete("fog")
    after = network(inputs(1), [FOG])
    assert all(torch.equal(after[name], value) for name, value in base.items())


def test_the_command_line_gives_each_kind_the_slots_and_its_options():
    assert _kinds("low_rank", ["a"], {"rank": 4}) == {"kind": "low_rank", "slots": ["a"], "rank": 4}
    both = _kinds("batch_norm+low_rank", ["a"], {"low_rank.rank": 4})
    assert both["parts"] == [{"kind": "batch_norm", "slots": ["a"]}, {"kind": "low_rank", "slots": ["a"], "rank": 4}]
    with pytest.raises(InputError, match="KIND one of batch_norm, low_rank"):
        _kinds("batch_norm+low_rank", ["a"], {"rank": 4})
